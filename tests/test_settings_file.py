"""Settings from a file against the same flags typed; and what a file can say wrong, told by its name and the key."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import paraphrase_detection
import sonnet_generation
from cli.flags import parse_flags
from config import ParaphraseSettings, PretrainSettings, SonnetSettings, TranslationSettings
from errors import UserError
from tests.helpers import flat
from tests.inputs import ROOT, run, without
from tests.test_flags import IN_BOTH, IN_PARAPHRASE, IN_SONNETS, NOT_DEFAULT, NOT_DEFAULT_IN_BOTH, OTHER_METHODS

EXPERIMENTS = [  # compare-*: tests/test_compare.py
    path for path in sorted((ROOT / "experiments").glob("*")) if not path.name.startswith(("compare-", "translation-"))
]
SCRIPTS = {"sonnet_generation.py": sonnet_generation, "paraphrase_detection.py": paraphrase_detection}
CLASSES = {sonnet_generation: SonnetSettings, paraphrase_detection: ParaphraseSettings}


@pytest.fixture
def recipe(tmp_path):
    """recipe(text) -> the path of a TOML file."""

    def write(text, name="recipe.toml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def as_toml(flags, settings_class):
    """The lines of a file that says what the typed flags say."""
    kinds = {s.name: s.type for group in dataclasses.fields(settings_class) for s in dataclasses.fields(group.type)}
    lines = []
    for flag in re.split(r"(?:^|\s)--", flags)[1:]:
        name, *values = flag.split()
        if kinds[name] is bool:
            value = "true"
        elif kinds[name] is tuple:
            value = json.dumps(values)
        else:
            value = values[0] if kinds[name] in (int, float, int | None, float | None) else json.dumps(values[0])
        lines.append(f"{name} = {value}")
    return "\n".join(lines)


@pytest.mark.parametrize("settings_class", [SonnetSettings, ParaphraseSettings])
def test_a_file_is_what_its_flags_are_when_typed(recipe, settings_class):
    for flags in (f"{NOT_DEFAULT_IN_BOTH} {NOT_DEFAULT[settings_class]}", *OTHER_METHODS):
        path = recipe(as_toml(flags, settings_class))
        settings, given = parse_flags(settings_class, ["--settings", path])
        typed, names = parse_flags(settings_class, flags.split())
        assert (settings, given) == (typed, names) and given.files == dict.fromkeys(names, path)
        assert {name: type(value) for name, value in flat(settings).items()} == {
            name: type(value) for name, value in flat(typed).items()
        }


def test_every_script_takes_a_file(recipe):
    settings, given = parse_flags(PretrainSettings, ["--settings", recipe("steps = 500\nlr = 1")])
    assert settings.training.steps == 500 and settings.training.lr == 1.0 and given == {"steps", "lr"}


@pytest.mark.parametrize(
    ("settings_class", "flags", "message"),
    [(SonnetSettings, *row) for row in IN_BOTH + IN_SONNETS] + [(ParaphraseSettings, *row) for row in IN_PARAPHRASE],
)
def test_what_is_refused_when_typed_is_refused_in_a_file(recipe, settings_class, flags, message):
    path = recipe(as_toml(flags, settings_class))
    with pytest.raises(UserError) as error:
        parse_flags(settings_class, ["--settings", path])
    as_given = message.replace("got 0.0", "got 0").replace("got 1.0", "got 1")  # what typing makes of "0"
    said = str(error.value).replace("got 0.0", "got 0").replace("got 1.0", "got 1").replace("got -1.0", "got -1")
    assert said == f"{path}: {as_given}".replace("got -1.0", "got -1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", ": there is no flag --epoch here; did you mean --epochs? (--help lists the flags)"),
        ("lora-rank = 3", ": there is no flag --lora-rank here; did you mean --lora_rank? (--help lists the flags)"),
        ("settings = 'x.toml'", ": there is no flag --settings here (--help lists the flags)"),
        ("pooling = 'mean'", ": there is no flag --pooling here (--help lists the flags)"),
        ("epochs = '3'", ": --epochs must be a whole number, got '3'"),
        ("epochs = 3.0", ": --epochs must be a whole number, got 3.0"),
        ("epochs = true", ": --epochs must be a whole number, got True"),
        ("lr = 'fast'", ": --lr must be a number, got 'fast'"),
        ("lr = false", ": --lr must be a number, got False"),
        ("lr = nan", ": --lr must be positive, got nan"),
        ("lr = inf", ": --lr must be finite, got inf"),
        (f"lr = 1{400 * '0'}", ": --lr must be a number that a float can hold: give a smaller one"),
        ("lora = 1", ": --lora must be true or false, got 1"),
        ("sonnet_path = 3", ": --sonnet_path must be text, got 3"),
        ("sonnet_path = 2026-11-25", ": --sonnet_path must be text, got datetime.date(2026, 11, 25)"),
        ("tuning = 'lora'", ": --tuning must be a list of names, got 'lora'"),
        ("tuning = ['lora', 3]", ": --tuning must be one of lora,"),
        ("tuning = [['lora']]", ": --tuning must be one of lora,"),
        ("tuning = ['loro']", ": --tuning must be one of lora,"),
        ("schedule = 'steep'", ": --schedule must be one of constant, linear, cosine, inverse_sqrt, got 'steep'"),
        ("[training]\nepochs = 3", ": training is a table: write a line NAME = VALUE for each flag, without tables"),
        ("training.epochs = 3", ": training is a table: write a line NAME = VALUE for each flag, without tables"),
        ("epochs 3", " is no TOML (Expected '=' after a key"),
        ("epochs = 3\nepochs = 4", " is no TOML (Cannot overwrite a value"),
        ("lr = 1e-5\nlora_rank = 4", ": --lora_rank has no effect without --tuning lora|qlora: add it, or leave the"),
        (f"lr = {5000 * '['}", " is no TOML ("),
        ("", " is empty"),
    ],
)
def test_what_a_file_says_wrong_is_one_line_with_its_name_and_the_key(recipe, text, message):
    path = recipe(text)
    with pytest.raises(UserError) as error:
        parse_flags(SonnetSettings, ["--settings", path])
    assert str(error.value).startswith(f"{path}{message}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.toml", None, "does not exist"),
        ("bytes.toml", b"lr = \xff", "is not UTF-8"),
        ("a.json", b"{", "is damaged"),
        ("a.json", b"[]", "is damaged"),
        ("a.json", b'{"lr": 1e-5}', "is not the settings.json of a run"),
        ("a.json", b'{"settings": {"training": 3}}', "is not the settings.json of a run"),
        ("a.json", b'{"settings": {"training": {"lr": null, "epoch": 3}}}', "there is no flag --epoch here"),
        ("a.json", b'{"settings": {"training": {"epochs": null}}}', "--epochs must be a whole number, got None"),
        (".", None, "is a folder"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        parse_flags(SonnetSettings, ["--settings", str(tmp_path / name)])
    assert message in str(error.value) and str(tmp_path) in str(error.value)


def test_typed_flags_win(recipe):
    path = recipe("lora = true\nlora_rank = 2\nlr = 1e-5\nmodel_path = 'm'\nseed = 3")

    def parse(flags):
        settings, given = parse_flags(SonnetSettings, ["--settings", path, *flags.split()])
        return settings, given

    settings, given = parse("--lr 2e-4 --lora_rank 8")
    assert (settings.training.lr, settings.lora.lora_rank, settings.training.seed) == (2e-4, 8, 3)
    assert given == {"lora", "lora_rank", "lr", "model_path", "seed"} and set(given.files) == given - {
        "lr",
        "lora_rank",
    }
    assert parse("--model_size gpt2-xl")[0].model.model_path is None  # a folder would have stood in its place
    assert parse("--tuning qlora")[0].tuning.methods == ["qlora"]  # not lora besides
    with pytest.raises(UserError, match=r"recipe\.toml: --lora_rank has no effect without --tuning lora\|qlora"):
        parse("--adapter")
    with pytest.raises(UserError, match=r"^--lr must be positive, got -1\.0$"):  # the file is not to blame
        parse("--lr -1")


@pytest.mark.slow
def test_files_meet_checkpoints_and_resumed_runs_as_typed_flags_do(recipe, sonnet_flags, tmp_path):
    flags = [*sonnet_flags, "--lora", "--lora_rank", "2", "--run_dir", "run"]
    run(sonnet_generation, flags)
    cases = [
        ("--checkpoint run", "epochs = 3", r"^epochs \(of .*recipe\.toml\) has no effect with --checkpoint"),
        (
            "--resume --run_dir run",
            "lora = true\nlora_rank = 3",
            r"lora_rank = 2, not 3: leave lora_rank \(of .*recipe\.toml\) out",
        ),
        (
            "--resume --run_dir run",
            "adapter = true",
            r"with lora, not adapter: leave adapter \(of .*recipe\.toml\) out",
        ),
        ("--checkpoint run", "resume = true", r"recipe\.toml: --resume trains on, --checkpoint only predicts"),
    ]
    for typed, text, message in cases:
        with pytest.raises(UserError, match=message):
            run(sonnet_generation, [*typed.split(), "--settings", recipe(text)])
    run(
        sonnet_generation,
        ["--resume", "--run_dir", "run", "--settings", recipe("lora = true\nlora_rank = 2\nepochs = 3")],
    )
    assert (tmp_path / "run/metrics.jsonl").read_text().count('"dev loss"') == 3


def test_the_settings_of_a_run_make_the_same_run_again(sonnet_flags, tmp_path):
    run(sonnet_generation, [*sonnet_flags, "--tuning", "lora", "--lora_rank", "2", "--run_dir", "run"])
    first = (tmp_path / "out/sonnets.txt").read_bytes()
    run(sonnet_generation, ["--settings", "run/settings.json", "--run_dir", "again"])
    assert (tmp_path / "out/sonnets.txt").read_bytes() == first
    losses = [re.findall(r'loss": [^,}]+', Path(name, "metrics.jsonl").read_text()) for name in ("run", "again")]
    assert losses[0] == losses[1] and len(losses[0]) > 4
    with pytest.raises(UserError, match=r"settings\.json: there is no flag --sonnet_path here"):
        run(paraphrase_detection, ["--settings", "run/settings.json"])


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_every_experiment_runs(path, sonnet_flags, pair_flags, tmp_path):
    """Its first lines say what it reproduces and the command; that script takes it, here for one epoch."""
    assert path.suffix == ".toml"
    text = path.read_text(encoding="utf-8")
    comment = re.match("(# .*\n|#\n)+", text)[0]
    script, file = re.search(r"^# +python (\w+\.py) --settings (\S+)$", comment, re.MULTILINE).groups()
    assert ROOT / file == path and len(comment.splitlines()) > 2
    script = SCRIPTS[script]
    settings, given = parse_flags(CLASSES[script], ["--settings", str(path)])
    assert settings.training.lr == 1e-5 and settings.training.schedule == "constant" and "precision" in given
    assert (settings.training.warmup_ratio, settings.training.max_grad_norm) == (0, 0)
    assert (settings.training.epochs, settings.training.batch_size, settings.training.seed) == (10, 8, 11711)
    flags = {sonnet_generation: sonnet_flags, paraphrase_detection: pair_flags}[script]
    run(script, [*without(flags, "--epochs", "--lr"), "--epochs", "1", "--run_dir", "r", "--settings", str(path)])
    record = json.loads(Path("r/settings.json").read_text())["settings"]
    kept = {name: value for group in record.values() for name, value in group.items()}
    assert {name: kept[name] for name in given - {"epochs"}} == {
        name: flat(settings)[name] for name in given - {"epochs"}
    }


def test_the_reports_recipes_are_all_there():
    names = ["pairs-attention-pooling", "pairs-last-token", "sonnet-full", "sonnet-lora"]
    assert [path.stem for path in EXPERIMENTS] == names
    lora, _ = parse_flags(SonnetSettings, ["--settings", str(ROOT / "experiments/sonnet-lora.toml")])
    assert (lora.lora.lora_rank, lora.lora.scaling, lora.lora.lora_dropout) == (4, 4.0, 0.05)
    assert lora.lora.targets == ["query", "value", "interm_dense"] and lora.tuning.methods == ["lora"]
    pooled, _ = parse_flags(ParaphraseSettings, ["--settings", str(ROOT / "experiments/pairs-attention-pooling.toml")])
    assert (pooled.pooling.pooling, pooled.head.head, pooled.tuning.methods) == ("attention", "linear", [])


def test_every_flag_that_the_table_of_reports_names_is_one():
    text = (ROOT / "docs/reports.md").read_text(encoding="utf-8")
    named = set(re.findall(r"--(\w+)", text))
    known = {*flat(SonnetSettings()), *flat(ParaphraseSettings()), *flat(TranslationSettings()), "settings"}
    assert len(named) > 20 and named <= known
    for cell in re.findall(
        r"^\|.*?\| `(--[^`]+)`", text, re.MULTILINE
    ):  # what stands first on the right works as it is
        if not cell.startswith(("--top_p", "--sonnet_path")):
            switches = {"--eda_": "--augment eda ", "--augment_": "--augment eda ", "--lora_": "--lora "}
            switch = next((switch for start, switch in switches.items() if cell.startswith(start)), "")
            parse_flags(ParaphraseSettings, f"{switch}{cell}".split())

"""From prompts to sonnets: every decoder, the same text at any batch size, flags from the shell."""

import json

import pytest

import sonnet_generation
from config import DecodingSettings
from datasets import load_sonnets, load_tokenizer
from datasets.sonnets import lines_of
from decoding.template import Lexicon, load_tagger
from decoding.writer import SonnetWriter, lines_to_write
from errors import UserError
from evaluation import chrf
from tests.helpers import mostly_slow
from tests.inputs import check_sonnet_file, run, sonnet, without

PROMPTS = [sonnet(number, lines=3) for number in range(5)]


def writer(gpt2, folder, batch_size=32, **settings):
    tokenizer = load_tokenizer(folder)
    lexicon = None
    if settings.get("decode") == "template":
        pytest.importorskip("textblob")
        lexicon = Lexicon([sonnet(1), sonnet(2)], load_tagger()[0], {})
    templates = lexicon and lexicon.templates["word"]
    options = {"max_new_tokens": 120} | settings
    return SonnetWriter(gpt2, tokenizer, DecodingSettings(**options), batch_size, lexicon, templates)


@pytest.mark.parametrize(
    "settings",
    mostly_slow(
        [
            {"num_samples": 3, "form": "sonnet"},
            {"decode": "mbr", "num_samples": 4},
            {"decode": "template"},
            {"decode": "beam", "beams": 3, "form": "sonnet"},
            {"decode": "greedy"},
            {},
        ]
    ),
    ids=str,
)
def test_the_same_text_at_any_batch_size(gpt2, model_folder, settings):
    # among 8,000 almost equally probable tokens one draw in some thousands falls on a border; with this seed none does
    wide, narrow = (writer(gpt2, model_folder, size, **settings).write(PROMPTS, seed=5) for size in (64, 3))
    assert [[text for text, _ in group] for group in wide] == [[text for text, _ in group] for group in narrow]
    for group in wide:
        scores = [score for _, score in group]
        assert len(group) == settings.get("num_samples", settings.get("beams", 1))
        assert len(group) == 1 or scores == sorted(scores, reverse=True)


def test_one_sample_is_the_first_stream(gpt2, model_folder):
    """Sample 0 of prompt 0 is what a single sample gives, so --num_samples only adds."""
    one, several = (writer(gpt2, model_folder, num_samples=n).write(PROMPTS[:1], seed=4)[0] for n in (1, 4))
    assert one[0].text in [text for text, _ in several] and one[0].score is None


def test_the_best_sample_has_the_highest_mean_log_probability(gpt2, model_folder):
    made = writer(gpt2, model_folder, num_samples=5)
    prompt = made._encode(PROMPTS[0])
    for text, score in made.write(PROMPTS[:1], seed=1)[0]:
        ids = made.tokenizer.encode(text + "\n").ids
        if ids[: len(prompt)] == prompt and len(lines_of(text)) == 3:  # nothing but the prompt: an empty continuation
            assert score == 0
    chosen = made.write(PROMPTS[:1], seed=1)[0]
    assert chosen[0].score == max(score for _, score in chosen)


def test_minimum_bayes_risk_takes_the_most_central_sample(gpt2, model_folder):
    group = writer(gpt2, model_folder, decode="mbr", num_samples=5).write(PROMPTS[:1], seed=2)[0]
    own = [text.removeprefix(PROMPTS[0]) for text, _ in group]
    risks = [sum(chrf([a], [b]) for j, b in enumerate(own) if j != i) / 4 for i, a in enumerate(own)]
    assert [score for _, score in group] == pytest.approx(risks)
    assert risks[0] == max(risks)


def test_lines_to_write():
    assert lines_to_write(sonnet(1, lines=3)) == 11 and lines_to_write(sonnet(1, lines=14)) == 1


@pytest.mark.parametrize(
    "form", mostly_slow(["greedy --form sonnet", "sample --form sonnet --num_samples 2", "beam --form sonnet"])
)
def test_forms_from_the_shell(sonnet_flags, tmp_path, capsys, form):
    pytest.importorskip("pronouncing")
    flags = [
        *without(sonnet_flags, "--max_new_tokens", "--epochs", "--score_seeds"),
        "--epochs",
        "1",
        "--run_dir",
        "run",
    ]
    run(sonnet_generation, [*flags, "--decode", *form.split()])
    check_sonnet_file(tmp_path / "out/sonnets.txt", load_sonnets("prompts.txt"))
    assert all(len(lines_of(text)) == 14 for text in load_sonnets("out/sonnets.txt"))
    shown = capsys.readouterr().out
    assert "syllables a line" in shown and "1.00 +- 0.00" in shown
    if "greedy" not in form:
        lines = (tmp_path / "run/candidates.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert {row["prompt"] for row in rows} == {0, 1, 2} and all(row["score"] <= 0 for row in rows)


@pytest.mark.slow
def test_templates_from_the_shell(sonnet_flags, tmp_path, capsys):
    pytest.importorskip("textblob")
    flags = [
        *without(sonnet_flags, "--max_new_tokens", "--epochs", "--score_seeds"),
        "--epochs",
        "1",
        "--run_dir",
        "run",
    ]
    run(sonnet_generation, [*flags, "--decode", "template", "--template_tags", "word"])
    check_sonnet_file(tmp_path / "out/sonnets.txt", load_sonnets("prompts.txt"))
    saved = (tmp_path / "run/templates.txt").read_text(encoding="utf-8")
    assert "\tWORD WORD WORD +," in saved
    (tmp_path / "mine.txt").write_text("1\tWORD WORD +!\n", encoding="utf-8")
    again = without(sonnet_flags, "--max_new_tokens", "--epochs", "--lr", "--model_path")
    run(sonnet_generation, [*again, "--checkpoint", "run", "--decode", "template", "--templates", "mine.txt"])
    lines = [line for text in load_sonnets("out/sonnets.txt") for line in lines_of(text)[3:]]
    assert len(lines) == 33 and all(line.endswith("!") and len(line.split()) == 2 for line in lines)


def test_a_missing_package_is_said_before_training(sonnet_flags, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "textblob.en", None)
    with pytest.raises(UserError, match=r"textblob: pip install -r requirements-extra\.txt"):
        run(sonnet_generation, [*sonnet_flags, "--decode", "template"])
    monkeypatch.setitem(__import__("sys").modules, "pronouncing", None)
    flags = [*without(sonnet_flags, "--epochs", "--max_new_tokens"), "--epochs", "1", "--form", "sonnet"]
    run(sonnet_generation, flags)  # the measures alone are missing
    assert "syllables and rhymes need the package pronouncing" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--decode mbr --num_samples 2", "--num_samples must be at least 3 with --decode mbr"),
        ("--beams 3", "--beams has no effect without --decode beam"),
        ("--decode beam --temperature 0.5", "--temperature has no effect without --decode sample"),
        ("--decode beam --beams 0", "--beams must be at least 1"),
        ("--num_samples 0", "--num_samples must be at least 1"),
        ("--templates t.txt", "--templates has no effect without --decode template"),
        ("--decode template --form sonnet", "--form has no effect without --decode"),
        ("--decode template --templates missing.txt", "missing.txt"),
    ],
)
def test_flags_that_cannot_be_meant(sonnet_flags, flags, message):
    pytest.importorskip("textblob")
    with pytest.raises(UserError, match=message):
        run(sonnet_generation, [*without(sonnet_flags, "--score_seeds"), *flags.split()])


@pytest.mark.slow
def test_a_resumed_run_may_be_decoded_otherwise(sonnet_flags, tmp_path):
    run(sonnet_generation, [*without(sonnet_flags, "--epochs"), "--epochs", "1", "--run_dir", "run"])
    run(sonnet_generation, ["--resume", "--run_dir", "run", "--epochs", "2", "--decode", "beam", "--beams", "2"])
    assert len((tmp_path / "run/candidates.jsonl").read_text(encoding="utf-8").splitlines()) == 6


def test_a_saved_number_of_samples_is_for_sampling_only(sonnet_flags, tmp_path, capsys):
    run(sonnet_generation, [*sonnet_flags, "--num_samples", "3", "--run_dir", "run"])
    (tmp_path / "run/candidates.jsonl").unlink()
    capsys.readouterr()
    flags = without(sonnet_flags, "--epochs", "--lr", "--score_seeds")
    run(sonnet_generation, [*flags, "--checkpoint", "run", "--decode", "greedy"])
    assert "model, 1 seed " in capsys.readouterr().out and not (tmp_path / "run/candidates.jsonl").exists()

"""The structure itself: imports point down and in no circle, core parts know no method, a method is one line."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from config import CLAIMS, TUNING_METHODS, DecodingSettings, TaskSettings
from decoding import GPT2Steps, Rules, generate, row_streams
from errors import UserError
from formats import peft
from models.sonnet_gpt import SonnetGPT
from modules.adapter import BottleneckAdapter
from optimizer import AdamW, parameter_groups
from tuning.attach import attach, detach, merge
from tuning.portable import to_peft
from tuning.register import METHODS, Method, default_learning_rate
from tuning.state import load_tuning, trainable_state_dict

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (  # from the top; a file may import from its own floor's folder and from the floors below
    (
        *("sonnet_generation", "paraphrase_detection", "classifier", "translation", "pretrain", "exchange"),
        *("compare", "report", "submission", "optimizer_test", "sanity_check", "utils"),
    ),
    ("course",),
    ("reporting",),
    ("comparison",),
    ("handin",),
    ("training",),
    ("tuning",),
    ("decoding",),
    ("evaluation",),
    ("models",),
    ("datasets",),
    ("formats",),
    ("modules",),
    ("optimizer",),
    ("config",),
    ("cli",),
    ("files",),
    ("errors", "namesake"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
OUTSIDE = ("benchmarks", "data", "tests", "predictions", "docs", "runs")  # these stand before the house
CORE = (
    "attention",
    "gpt2_layer",
    "transformer_layers",
    "dropout",
    "kv_cache",
    "pooling",
    "linear_cross_entropy",
)  # of modules/
SOURCES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0] not in OUTSIDE and not path.relative_to(ROOT).parts[0].startswith(".")
)


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in SOURCES}


def imports_of(path):
    """The modules of this project that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            found.add(node.module)
    return {name for name in found if name in MODULES}


def test_every_file_is_on_a_floor():
    assert {name.split(".")[0] for name in MODULES} == set(FLOOR)


@pytest.mark.parametrize("name", MODULES)
def test_no_import_points_upward(name):
    floor = name.split(".")[0]
    for imported in imports_of(MODULES[name]):
        below = imported.split(".")[0]
        assert FLOOR[below] > FLOOR[floor] or (below == floor and floor not in FLOORS[0]), imported


def test_no_import_is_part_of_a_circle():
    # a package's own __init__ is what others see of it: an import of it is one of the files that it lists, too
    arrows = {name: imports_of(path) - {name} for name, path in MODULES.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for imported in sorted(arrows[name]):
                visit(imported)
            done.add(path.pop())

    for name in MODULES:
        visit(name)


def test_core_parts_import_no_tuning_method_and_no_task():
    for name in CORE:
        imported = imports_of(MODULES[f"modules.{name}"])
        assert imported <= {"config", "errors", *(f"modules.{core}" for core in CORE)}, name
    assert imports_of(MODULES["models.gpt2"]) <= {"config", "errors", "formats.hugging_face"} | {
        f"modules.{core}" for core in CORE
    }


def test_help_needs_the_lowest_floors_alone():
    for name in ("config", "cli.flags", "cli.near", "cli.settings_file", "cli.script", "cli.tables", "errors", "files"):
        tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        roots = {
            (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0] for node in nodes
        }
        assert roots <= set(sys.stdlib_module_names) | {"config", "cli", "errors", "files"}, name


def words(source):
    """What a file talks of, but for the words that are slots or have a meaning of their own."""
    return set(re.findall(r"[a-z0-9_]+", source)) - {"prompt", "adapter"}


def test_core_files_know_no_tuning_method():
    for name in ("modules/attention.py", "modules/gpt2_layer.py", "modules/kv_cache.py", "models/gpt2.py"):
        source = (Path(__file__).parents[1] / name).read_text(encoding="utf-8").lower()
        assert not [method for method in (*TUNING_METHODS, "bottleneck") if method in words(source)], name


def test_no_path_of_where_it_was_made():
    """Nothing that a reader or a user sees names the folder in which the authors keep real data."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    for path in [*pages, *ROOT.glob("benchmarks/*.py"), *SOURCES]:
        assert "../shared" not in path.read_text(encoding="utf-8"), path


# --- a new method, through the register alone -------------------------------------------------------------------------


class Shift(nn.Module):
    """A toy: a learned vector added after the feed-forward."""

    def __init__(self, width):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_states):
        return hidden_states + self.shift

    def tuning_parameters(self):
        return [self.shift]


def apply_shift(gpt2, settings):
    for layer in gpt2.gpt_layers:
        layer.ffn_adapter = Shift(gpt2.config.hidden_size)


@pytest.fixture
def shift(monkeypatch):
    method = Method(None, 3e-3, "peft has no shifts", apply_shift)
    monkeypatch.setitem(METHODS, "shift", method)
    monkeypatch.setitem(TUNING_METHODS, "shift", ("a learned vector after every layer",))
    return {"shift": None}


IDS = torch.arange(40).view(2, 20) * 31 % 8600


@torch.no_grad()
def outputs(gpt2):
    return gpt2(IDS)["last_hidden_state"]


def test_one_line_in_the_register_is_a_whole_method(gpt2, shift):
    """Step 0, freezing, training, saving, loading, generating, its rate, what cannot be done with it, taking it off."""
    base = outputs(gpt2)
    attach(gpt2, shift)
    assert torch.equal(outputs(gpt2), base) and default_learning_rate(shift) == 3e-3
    names = [f"gpt_layers.{index}.ffn_adapter.shift" for index in range(3)]
    assert list(trainable_state_dict(gpt2)) == names
    model = SonnetGPT(gpt2).train()
    optimizer = AdamW(parameter_groups(model, 0.0), lr=0.05)
    loss, count = model(IDS, torch.ones_like(IDS), return_loss=True)
    (loss / count).backward()
    optimizer.step()
    tuned = outputs(gpt2.eval())
    assert not torch.allclose(tuned, base)
    tensors = {name: tensor.clone() for name, tensor in trainable_state_dict(gpt2).items()}
    with pytest.raises(UserError, match=r"^shift cannot be merged"):
        merge(gpt2, shift)
    with pytest.raises(UserError, match=r"^shift cannot be exported: peft has no shifts$"):
        to_peft(shift, tensors, gpt2.config, "base")
    written = generate(
        GPT2Steps(gpt2, [[5, 6]], 4), [[5, 6]], Rules(DecodingSettings(temperature=0)), row_streams(0, [0])
    )
    detach(gpt2)
    assert torch.equal(outputs(gpt2), base) and all(p.requires_grad for p in gpt2.parameters())
    attach(gpt2, shift)
    load_tuning(gpt2, tensors)
    assert torch.equal(outputs(gpt2), tuned) and len(written[0]) == 4


def test_the_flags_know_it_too(shift):
    from cli.flags import parse_flags
    from config import SonnetSettings
    from tuning.register import chosen_methods

    settings, _ = parse_flags(SonnetSettings, ["--tuning", "shift", "lora"])
    assert list(chosen_methods(settings)) == ["lora", "shift"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_peft": None}, "must say what it is in peft"),
        ({"apply": None}, "must apply something, or select"),
        ({"settings": "shift"}, "TaskSettings has no group shift"),
    ],
)
def test_a_method_that_is_not_fully_described_fails_where_it_is_written(changes, message):
    line = {"settings": None, "learning_rate": 1e-3, "in_peft": peft.LORA, "apply": apply_shift}
    Method(**line)
    with pytest.raises(TypeError, match=message):
        Method(**line | changes)


def test_config_and_register_describe_the_same_methods():
    assert list(TUNING_METHODS) == list(METHODS)
    assert {claim for _, *claims in TUNING_METHODS.values() for claim in claims} == set(CLAIMS)
    groups = vars(TaskSettings())
    assert all(method.settings is None or method.settings in groups for method in METHODS.values())


def test_another_method_on_a_tuned_model_is_refused(gpt2, shift):
    attach(gpt2, shift)
    for layer in gpt2.gpt_layers:
        assert isinstance(layer.ffn_adapter, Shift)
    with pytest.raises(UserError, match="has a tuning method already"):
        attach(gpt2, {"adapter": TaskSettings().adapter})
    assert not any(isinstance(module, BottleneckAdapter) for module in gpt2.modules())


# --- what is never called ---------------------------------------------------------------------------------------------

FORBIDDEN = {"eval", "exec", "pickle", "dill", "joblib", "marshal", "shelve", "extractall", "system", "popen"}


def test_nothing_runs_what_a_file_says():
    """No pickle, eval, shell or archive that unpacks itself; torch.load reads tensors alone."""
    for path in [*SOURCES, *ROOT.glob("data/*.py"), *ROOT.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                roots = {(getattr(node, "module", None) or alias.name).split(".")[0] for alias in node.names}
                assert not roots & FORBIDDEN, path
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                evaluation = name == "eval" and isinstance(node.func, ast.Attribute)  # model.eval()
                assert name not in FORBIDDEN or evaluation, (path, node.lineno)
                assert options.get("shell") != "True" and "trust_remote_code" not in options, (path, node.lineno)
                if name == "load" and ast.unparse(node.func) == "torch.load":
                    assert options.get("weights_only") == "True", (path, node.lineno)

"""Grading: right solutions pass, common mistakes fail where they should, with a message that names them."""

import json

import pytest

from course.__main__ import main, parse
from course.cutting import complete
from course.handout import write_handout
from course.judging import verdict
from course.running import launched
from tests.course_trees import EXERCISES, ROOT, hostile, messages, write_tree


@pytest.fixture(scope="module")
def handout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course") / "handout"
    write_handout(folder)
    return folder


@pytest.fixture(scope="module")
def launcher():
    with launched() as running:
        yield running


WRONG = [  # exercise, what is replaced by what, a test that fails, what its message says
    ("layer", ', approximate="tanh"', "", "equation", "GELU in its exact form"),
    (
        "layer",
        "self.self_attention(self.attention_layer_norm(x), mask, cache)",
        "self.self_attention(x, mask, cache)",
        "equation",
        "LayerNorm before each sublayer",
    ),
    (
        "attention",
        'weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)',
        "weights = scores.softmax(dim=-1) * mask",
        "spelled_out",
        "the mask comes after the softmax",
    ),
    ("attention", "(query / math.sqrt(query.size(-1)))", "query", "spelled_out", "not scaled by sqrt(d)"),
    ("attention", ", is_causal=causal)", ")", "causal", "every position sees the later ones"),
    ("mask", "(key_positions <= query_positions) & real", "real", "left_padding", "the causal half is missing"),
    ("embed", "(attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)", "torch.arange(length)[None]", "padding",
     "the first real token has position 0"),
    (
        "pooling",
        "real.flip(1).argmax(dim=1)",
        "torch.zeros(len(real), dtype=torch.long)",
        "last",
        "you take position -1: with padding on the right",
    ),
    ("pooling", "total / real.sum(dim=1, keepdim=True).clamp(min=1)", "total / real.size(1)", "mean",
     "divides by all positions"),
    ("loss", "(attention_mask[:, 1:] * attention_mask[:, :-1]).bool()", "torch.ones_like(input_ids[:, 1:]).bool()",
     "right_padding", "padding counts in your loss"),
    ("cross_entropy", "return _LinearCrossEntropy.apply(hidden_states, weight, targets, smoothing)",
     "return torch.nn.functional.cross_entropy(hidden_states @ weight.t(), targets)", "value", "the mean over"),
    ("adamw", 'if group["correct_bias"] else 1.0', "if False else 1.0", "first_step", "bias correction is missing"),
    ("adamw", "        torch._foreach_lerp_(first",
     '        torch._foreach_add_(gradients, parameters, alpha=group["weight_decay"])\n'
     '        group = group | {"weight_decay": 0}\n        torch._foreach_lerp_(first', "decay", "as in Adam with L2"),
    ("nucleus", "inside &= above.sum(dim=-1) < top_p",
     "inside &= (above.sum(dim=-1) + level[:, 0] < top_p) | (above.sum(dim=-1) == 0)",
     "crossing", "the token that crosses top_p is left out"),
    ("repetition", "torch.where(scores < 0, scores * penalty, scores / penalty)", "scores / penalty", "penalty",
     "negative logits are divided"),
    ("cache", "return self.keys[:, :, :end], self.values[:, :, :end]", "return self.keys, self.values", "grows",
     "return what is filled"),
    ("lora", "torch.zeros(base.out_features, rank", "torch.randn(base.out_features, rank", "start",
     "lora_B does not start at zero"),
    ("lora", " * self.scaling) @", ") @", "equation", "`scaling` (alpha / r) is missing"),
    ("adapter", "return hidden_states + self.up", "return self.up", "equation", "the residual connection is missing"),
    ("adapter", "(self.down.bias, self.up.weight, self.up.bias)", "(self.down.bias,)", "start",
     "`up` must start at zero"),
    ("ia3", "F.linear(x, self.weight, self.bias) * self.ia3_scale",
     "F.linear(x, self.weight) * self.ia3_scale + self.bias", "equation", "the bias is not scaled"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "old", "new", "test", "message"), WRONG, ids=[f"{w[0]}-{w[3]}-{n}" for n, w in enumerate(WRONG)]
)
def test_common_mistakes_are_found_and_named(name, old, new, test, message, tmp_path, launcher):
    found = messages(write_tree(tmp_path, **{name: [(old, new)]}), name, launcher)
    assert found[test] is not None and message in found[test], found
    assert "Asked: " in found[test]


def test_right_solutions_in_other_words_pass(tmp_path, launcher):
    """Helpers in the file, a plain loop, None never returned, unused imports taken away."""
    tree = write_tree(
        tmp_path,
        cross_entropy=[
            (
                "    return _LinearCrossEntropy.apply(hidden_states, weight, targets, smoothing)",
                "    return total(log_p(hidden_states, weight), targets, smoothing)\n\n\n"
                "def log_p(hidden_states, weight):\n    return (hidden_states @ weight.t()).log_softmax(-1)\n\n\n"
                "def total(scores, targets, smoothing):\n"
                "    right = (1 - smoothing) * scores[range(len(targets)), targets]\n"
                "    return -(right + smoothing * scores.mean(-1)).sum()",
            )
        ],
        mask=[("    if padded_right_at_most and num_queries == num_keys:\n        return None\n", "")],
    )
    for name in ("cross_entropy", "mask"):
        assert set(messages(tree, name, launcher).values()) == {None}


def test_one_exercise_does_not_cost_points_in_another(tmp_path, launcher):
    broken = "    raise ZeroDivisionError\n    query_positions = torch"
    tree = write_tree(tmp_path, mask=[("    query_positions = torch", broken)])
    assert set(messages(tree, "attention", launcher).values()) == {None}
    found = messages(tree, "mask", launcher)["left_padding"]
    assert found.startswith("ZeroDivisionError: , in attention_mask_for: raise ZeroDivisionError. Asked: a real token")


@pytest.mark.slow
def test_the_reference_passes_all_and_the_handout_nothing(tmp_path, handout, launcher):
    write_tree(tmp_path)
    for name in EXERCISES:
        assert set(messages(tmp_path, name, launcher).values()) == {None}, name
        found = messages(handout, name, launcher)
        assert all(message.startswith(f"not written yet ({name}: ") for message in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("name", EXERCISES)
def test_filling_in_one_exercise_turns_exactly_its_tests_green(name, tmp_path, handout, launcher):
    exercise, tree = EXERCISES[name], tmp_path / "tree"
    for other in EXERCISES.values():
        for file in other.files:
            text = (handout / file).read_text(encoding="utf-8")
            if file in exercise.files:
                text = complete(
                    text, (ROOT / file).read_text(encoding="utf-8"), exercise.named(("write", "remove"), file)
                )
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            (tree / file).write_text(text, encoding="utf-8")
    for other in EXERCISES:
        passed = [message is None for message in messages(tree, other, launcher).values()]
        assert passed == [other == name] * len(passed), other


@pytest.mark.parametrize(
    "given",
    [None, [], "passed", {"tensors": None}, {"tensors": {"x": 1}}, {"tensors": {"x": {"kind": "float"}}},
     {"tensors": {"x": {"kind": "float", "shape": [2], "values": [10**400, 0]}}},
     {"tensors": {"x": {"kind": "float", "shape": [2], "values": [float("nan"), 0.0]}}},
     {"tensors": {"x": {"kind": [], "shape": [2], "values": [1.0, 2.0]}}},
     {"tensors": {"x": {"kind": "float", "shape": [2], "values": ["1", "2"]}}}, {"fault": 3}],
)  # fmt: skip
def test_answers_that_are_none_are_wrong(given):
    right = {"tensors": {"x": {"kind": "float", "shape": [2], "values": [1.0, 2.0]}}}
    assert verdict(right, right, [], 1e-5, "x") is None
    assert isinstance(verdict(given, right, [("m", right)], 1e-5, "x"), str)


@pytest.mark.slow
def test_a_class_is_graded(tmp_path, capsys):
    write_tree(tmp_path / "class" / "ann")
    hostile(tmp_path / "class" / "bob", "import os; os._exit(0)")
    main(parse(f"grade {tmp_path}/class --exercises mask --out {tmp_path}/b.csv --feedback {tmp_path}/f".split()))
    assert (tmp_path / "b.csv").read_text() == "student,mask,all\nann,8,8\nbob,6,6\n"
    assert "FAIL  padded_rows" in (tmp_path / "f" / "bob.txt").read_text()
    assert "ann: 8 of 8 points\nbob: 6 of 8 points\n" in capsys.readouterr().out
    main(parse(f"grade {tmp_path}/class/bob --exercises mask --gradescope {tmp_path}/r.json".split()))
    assert json.loads((tmp_path / "r.json").read_text())["score"] == 6
    main(parse(f"grade {tmp_path}/nobody --gradescope {tmp_path}/r.json".split()))
    assert "no folder" in json.loads((tmp_path / "r.json").read_text())["output"]

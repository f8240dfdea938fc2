"""The benchmarks: what ours is timed against does the same work, and the table says who is quicker."""

import json

import pytest
import torch
import transformers

from benchmarks.bench import parts, row_of, starts
from benchmarks.held_out import nats_a_byte
from benchmarks.peers import FusedGPT2
from benchmarks.rounds import report
from benchmarks.start import PROGRAMS
from models.sonnet_gpt import SonnetGPT
from tests.helpers import MINI
from tests.tuned import INPUT_IDS


def test_the_peer_like_nanogpt_is_gpt2(gpt2):
    peer = FusedGPT2(gpt2.config).eval()
    peer.words, peer.positions, peer.norm = gpt2.word_embedding, gpt2.pos_embedding, gpt2.final_layer_norm
    for theirs, ours in zip(peer.layers, gpt2.gpt_layers, strict=True):
        attention = ours.self_attention
        with torch.no_grad():
            for part in ("weight", "bias"):
                fused = torch.cat([getattr(f, part) for f in (attention.query, attention.key, attention.value)])
                getattr(theirs.qkv, part).copy_(fused)
        theirs.norm1, theirs.dense = ours.attention_layer_norm, ours.attention_dense
        theirs.norm2, theirs.up, theirs.down = ours.out_layer_norm, ours.interm_dense, ours.out_dense
    ids = INPUT_IDS % gpt2.config.vocab_size
    loss, count = SonnetGPT(gpt2.eval())(ids, torch.ones_like(ids), return_loss=True)
    torch.testing.assert_close(peer(ids), (loss / count).float(), atol=1e-5, rtol=1e-5)


def test_the_quickest_of_each_side_are_compared(tmp_path, capsys):
    seconds = {"ours": [1.0, 3.0, 2.0], "ours, int8": [0.1] * 3, "a peer": [4.0] * 3, "another": [8.0, 5.0, 6.0]}
    report(seconds, "ours", lambda name, median, ratio: {"s": str(median)}, "fp32, ", tmp_path / "figures.json")
    part = json.loads((tmp_path / "figures.json").read_text())
    assert "a peer" in capsys.readouterr().out and part["variants"]["another"]["seconds"] == [8.0, 5.0, 6.0]
    assert part["note"] == "fp32" and part["variants"]["a peer"]["ratio"] == 2.0
    row = row_of(part)
    assert row == {"ours": "2.000", "which": "ours", "best peer": "4.000", "which peer": "a peer", "ratio": "0.50"}


@pytest.mark.parametrize("compiled", [True, False])
def test_all_kinds_of_work_are_timed(compiled):
    found = parts("bf16", 2, compiled)
    assert len(found) == 6 and all(arguments[0].startswith("benchmarks.") for arguments in found.values())
    assert sum("--compile" in arguments for arguments in found.values()) == 4 * compiled
    assert [arguments[-1] for arguments in starts(2).values()] == ["full", "LoRA"]


def test_a_start_that_is_timed_leaves_a_model_to_train(model_folder):
    """The programs of both sides, run here: what they end with trains what it says."""
    found = {}
    for name, code in PROGRAMS.items():
        space = {"FOLDER": str(model_folder)}
        exec(code, space)
        found[name] = sum(p.numel() for group in space["optimizer"].param_groups for p in group["params"])
    assert found["ours, full"] == found["transformers, full"] > 10**5
    assert found["ours, LoRA"] == found["transformers + peft, LoRA"] == 3456


def test_nats_a_byte_are_those_of_transformers_whatever_the_window_covers():
    """One window that holds the whole text: the library's own mean loss, over the bytes."""
    text = "The winter evening settles down.\n"
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINI)
    model = transformers.GPT2LMHeadModel.from_pretrained(MINI, dtype=torch.float32).eval()
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        expected = model(ids, labels=ids).loss.item() * (ids.shape[1] - 1) / len(text.encode())
    found = nats_a_byte(str(MINI), {"a": text, "b": text}, 256)
    assert found == pytest.approx({"a": expected, "b": expected, "all": expected}, rel=1e-5)
    assert nats_a_byte(str(MINI), {"a": text}, 4)["a"] != pytest.approx(expected, rel=1e-3)

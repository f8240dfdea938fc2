"""Every tuning method x decoder in fp32, bf16 and fp16 by flag, whatever the processor would take by itself.

(Both scripts from end to end, with every method in all three: test_scripts.py.)
"""

import pytest
import torch

from cli.flags import parse_flags
from config import TUNING_METHODS, SonnetSettings
from datasets.sonnets import lines_of
from decoding.template import Lexicon, load_tagger
from decoding.writer import SonnetWriter
from models.sonnet_gpt import SonnetGPT
from tests.helpers import mostly_slow
from training.assembly import HALF, assemble

POEM = "\n".join(f"bee {('no', 'yes', 'eye')[line % 3]}," for line in range(14))
PROMPT = "\n".join(POEM.splitlines()[:3])
METHODS = ["", *TUNING_METHODS, "ptuning --ptuning_encoder lstm", "prefix --prefix_hidden 6", "adapter lora prompt"]
DECODERS = {
    "sample": "--decode sample --num_samples 2",
    "form": "--decode sample --form sonnet --repetition_penalty 1.1 --no_repeat_ngram 4",
    "greedy": "--decode greedy",
    "beam": "--decode beam --beams 2",
    "mbr": "--decode mbr --num_samples 3",
    "template": "--decode template --template_tags word",
}


@pytest.mark.parametrize("precision", mostly_slow(["bf16", "fp32", "fp16"]))
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method or "full")
def test_every_method_with_every_decoder(model_folder, method, precision):
    """A step's loss and gradients under autocast, then texts from the model cast as the script casts it."""
    pytest.importorskip("textblob")
    flags = [
        "--model_path",
        str(model_folder),
        "--precision",
        precision,
        *(["--tuning", *method.split()] * bool(method)),
    ]
    settings, _ = parse_flags(SonnetSettings, flags)
    tuned = assemble(settings)
    ids = torch.randint(0, 8600, (2, 9))
    wanted = HALF.get(precision, torch.float32)
    with torch.autocast("cpu", wanted, enabled=precision != "fp32"):
        loss, count = SonnetGPT(tuned.gpt2).train()(ids, torch.ones_like(ids), return_loss=True)
    (loss / count).backward()
    trained = [p for p in tuned.gpt2.parameters() if p.requires_grad]
    assert loss.isfinite() and all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in trained)

    tuned.gpt2.eval()
    tuned.cast_for_prediction(precision)
    assert tuned.gpt2.word_embedding.weight.dtype == wanted
    lexicon = Lexicon([POEM], load_tagger()[0], {})
    for name, more in DECODERS.items():
        options = parse_flags(SonnetSettings, [*more.split(), "--max_new_tokens", "40" if name == "template" else "8"])
        decoding = options[0].decoding
        prompts = [PROMPT, "\n".join(POEM.splitlines()[:13])] if name != "form" else ["\n".join(POEM.splitlines()[:13])]
        if name == "template":  # one line fits into so few tokens
            prompts = prompts[1:]
        writer = SonnetWriter(tuned.gpt2, tuned.tokenizer, decoding, 3, lexicon, lexicon.templates["word"])
        written = writer.write(prompts, seed=0)
        assert [len(group) for group in written] == [decoding.beams if name == "beam" else decoding.samples] * len(
            prompts
        )
        for prompt, (best, *_) in zip(prompts, written, strict=True):
            assert best.text.startswith(prompt) and len(lines_of(best.text)) <= 14, name

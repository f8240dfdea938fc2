"""Tokens a second when sampling: ours over the KV cache, with plain and with packed linears (modules/packed.py) and in
8 bits, transformers.generate, CTranslate2 (where it is installed), and the course's loop without a cache.

    python -m benchmarks.generate --rounds 5

12 prompts of sonnet length, 96 new tokens, temperature 1.2, top-p 0.9, 124M size, the same random weights. The variants
run in turn, round by round; reported are medians, and the median of the ratios within each round. Random weights give
flat distributions, the hardest case for nucleus sampling; --sharpness multiplies the logits to make them peaked, as a
trained model's are.
"""

import argparse
import copy
import functools
import warnings

import torch
import transformers

from benchmarks.peers import ctranslate2_writers
from benchmarks.rounds import report, time_rounds
from benchmarks.train_step import transformers_model
from config import DecodingSettings, GPT2Config
from decoding import GPT2Steps, Rules, generate, row_streams
from models.gpt2 import GPT2Model
from modules.packed import pack

TEMPERATURE, TOP_P = 1.2, 0.9


def course_loop(gpt2, ids, new_tokens):
    """The course's generation: the whole prefix again for every token, a sort of the whole vocabulary."""
    for _ in range(new_tokens):
        logits = gpt2.hidden_state_to_token(gpt2(ids)["last_hidden_state"])[:, -1].float() / TEMPERATURE
        probabilities, order = logits.softmax(-1).sort(descending=True)
        keep = probabilities.cumsum(-1) <= TOP_P
        keep[:, 1:] = keep[:, :-1].clone()
        keep[:, 0] = True
        probabilities = probabilities * keep
        drawn = torch.multinomial(probabilities / probabilities.sum(-1, keepdim=True), 1)
        ids = torch.cat([ids, order.gather(1, drawn)], dim=1)
    return ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--new_tokens", type=int, default=96)
    parser.add_argument(
        "--sharpness", type=float, default=1.0, help="1: as random weights give; 10: like a trained model"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--no_course", action="store_true", help="leave out the slow loop without a cache")
    parser.add_argument("--json", help="file for the figures")
    flags = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    dtype = torch.bfloat16 if flags.precision == "bf16" else torch.float32
    config = GPT2Config.of_size("gpt2")
    torch.manual_seed(0)
    ours = GPT2Model(config).eval().to(dtype)
    theirs = transformers_model(config, tuned=False).eval().to(dtype)
    with torch.no_grad():  # the final LayerNorm's scale multiplies the logits
        ours.final_layer_norm.weight.mul_(flags.sharpness)
        theirs.transformer.ln_f.weight.mul_(flags.sharpness)
    packed, in_8_bits = (copy.deepcopy(ours) for _ in range(2))
    heads = [pack(packed, flags.prompts), None, pack(in_8_bits, flags.prompts, int8=True)]
    prompts = torch.randint(0, 50257, (flags.prompts, 32))
    rules = Rules(DecodingSettings(temperature=TEMPERATURE, top_p=TOP_P, max_new_tokens=flags.new_tokens))
    options = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0, "pad_token_id": 50256}
    options |= {"max_new_tokens": flags.new_tokens, "min_new_tokens": flags.new_tokens}

    def write(gpt2, head):
        ids = prompts.tolist()
        generate(GPT2Steps(gpt2, ids, flags.new_tokens, head), ids, rules, row_streams(0, range(flags.prompts)))

    names = ("ours", "ours, plain parts", "ours, int8")
    models = zip((packed, ours, in_8_bits), heads, strict=True)
    variants = {name: functools.partial(write, *model) for name, model in zip(names, models, strict=True)} | {
        "transformers.generate": lambda: theirs.generate(prompts, attention_mask=torch.ones_like(prompts), **options),
        "the course's loop, no cache": lambda: course_loop(ours, prompts, flags.new_tokens),
    }
    if flags.no_course:
        del variants["the course's loop, no cache"]
    with torch.no_grad(), ctranslate2_writers(theirs.float(), prompts, flags.new_tokens, TEMPERATURE, TOP_P) as more:
        theirs.to(dtype)
        seconds = time_rounds(variants | more, flags.rounds)
    tokens = flags.prompts * flags.new_tokens
    note = f"{flags.precision}, {flags.prompts} prompts x {flags.new_tokens} tokens, sharpness {flags.sharpness:g}, "

    def cells(name, median, ratio):
        return {"tokens/s": f"{tokens / median:.1f}", "ours is faster by": f"{ratio:.2f}x"}

    report(seconds, "ours", cells, note, flags.json)


if __name__ == "__main__":
    main()

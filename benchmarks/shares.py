"""Where the time of a training step and of writing goes: the share of each part, and how fast it could be at best.

    python -m benchmarks.shares                    full, LoRA, and writing 12 and 1 texts; GPT-2 small, random weights
    python -m benchmarks.shares --precision bf16

The steps are those of benchmarks/train_step.py (8 x 192 tokens) and benchmarks/generate.py. Parts are told apart by
torch's profiler. The floor of a part of products is its arithmetic over what a large product of matrices reaches here
or, where that takes longer, the bytes of its weights over the memory's rate; of the optimizer it is the bytes that one
pass would read and write. What has no such floor says "-".
"""

import argparse
import collections
import functools
import time
import unittest.mock

import torch
from torch.utils.flop_counter import FlopCounterMode

import decoding.generation
from benchmarks.train_step import LORA, our_model
from cli.script import run_script, say
from cli.tables import format_table
from config import DecodingSettings, GPT2Config
from decoding import GPT2Steps, Rules, generate, row_streams
from decoding.steps import next_token_logits
from models.gpt2 import GPT2Model
from modules.packed import pack
from optimizer import AdamW, parameter_groups
from training.loop import scale_gradients
from tuning.state import count_parameters

ROWS, TOKENS, NEW = 8, 192, 48
HEAD, LINEARS, ATTENTION = "loss head", "linears", "attention (softmax and its two products)"
PARTS = {  # of the profiler's names, the first that is in an operation's or in that of one it is called by
    "_LinearCrossEntropy": HEAD,
    "output head": "output head",
    "optimizer": "optimizer",
    "clipping": "scaling and clipping gradients",
    "sampling": "sampling",
    "scaled_dot_product": ATTENTION,
    "aten::mm": LINEARS,
    "aten::addmm": LINEARS,
    "mkldnn::_linear_pointwise": LINEARS,
    "quantized::linear_dynamic": LINEARS,
    "aten::bmm": LINEARS,
    "layer_norm": "LayerNorm",
    "gelu": "GELU",
    "aten::copy_": "copies and casts",
}
REST = "the rest: sums, dropout, embeddings"


def named(name, function):
    """The function, told apart in the profile."""

    def call(*arguments, **options):
        with torch.profiler.record_function(name):
            return function(*arguments, **options)

    return call


def seconds_of_parts(run):
    """{part: seconds} of a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    found = collections.Counter()
    for event in profile.events():
        found[part_of(event)] += event.self_cpu_time_total / 1e6
    return found


def part_of(event):
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return next((part for key, part in PARTS.items() if any(key in name for name in names)), REST)


def peaks(dtype):
    """(operations a second of a large product of matrices, bytes a second of a pass over memory)"""
    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    x, y = (torch.zeros(2**26) for _ in range(2))
    return 2 * 2048**3 / quickest(lambda: a @ b), 12 * 2**26 / quickest(lambda: x.add_(y))


def quickest(function, times=8):
    found = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def training(method, bf16, dropout, rates):
    """(a function that takes one step, {part: its floor in seconds})"""
    config = GPT2Config.of_size("gpt2")
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "embedding_dropout_prob")
    config = GPT2Config(**vars(config) | dict.fromkeys(names, dropout))
    model = our_model(config, {"lora": LORA} if method == "LoRA" else {}, bf16)
    optimizer = AdamW(parameter_groups(model, 0.0), lr=1e-5)
    ids = torch.randint(0, config.vocab_size, (ROWS, TOKENS))
    mask = torch.ones_like(ids)

    def step():
        loss, count = model(ids, mask, return_loss=True)
        loss.backward()
        named("clipping", scale_gradients)(optimizer, 1 / count.item(), 1.0)
        named("optimizer", optimizer.step)()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    operations, memory = rates
    flops = sum(n for name, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(name))
    products = 3 if method == "full" else 2  # logits, the hidden states' gradient, the embedding's
    head = products * 2 * ROWS * (TOKENS - 1) * config.vocab_size * config.hidden_size
    trained = count_parameters(model)[0]
    return step, {
        HEAD: head / operations,
        LINEARS: (flops - head) / operations,
        PARTS["optimizer"]: 28 * trained / memory,  # read weight, gradient and two moments; write all but the gradient
        PARTS["clipping"]: 4 * trained / memory,  # the norm; scaling could be a part of the update
    }


def writing(prompts, dtype, rates):
    """The same of writing NEW tokens, and how many they are."""
    config = GPT2Config.of_size("gpt2")
    torch.manual_seed(0)
    gpt2 = GPT2Model(config).eval().to(dtype)
    head = pack(gpt2, prompts)
    rules = Rules(DecodingSettings(temperature=1.2, top_p=0.9, max_new_tokens=NEW))
    ids = torch.randint(0, config.vocab_size, (prompts, 32)).tolist()
    project = named("output head", head or functools.partial(next_token_logits, gpt2.word_embedding.weight))

    @torch.no_grad()
    def write():
        generate(GPT2Steps(gpt2, ids, NEW, project), ids, rules, row_streams(0, range(prompts)))

    operations, memory = rates
    layers = 12 * config.num_hidden_layers * config.hidden_size**2
    size = torch.finfo(dtype).bits / 8

    def floor(weights):
        return NEW * max(2 * prompts * weights / operations, size * weights / memory)

    return write, {LINEARS: floor(layers), "output head": floor(config.vocab_size * config.hidden_size)}


def show(title, run, floors, rounds):
    """The table of a step: medians would need each part's, so the quickest of some rounds is shown."""
    run()
    found = min((seconds_of_parts(run) for _ in range(rounds)), key=lambda parts: sum(parts.values()))
    total = sum(found.values())
    rows = {
        part: {
            "ms": f"{1000 * seconds:.0f}",
            "share": f"{100 * seconds / total:.0f} %",
            "floor, ms": f"{1000 * floors[part]:.0f}" if part in floors else "-",
        }
        for part, seconds in found.most_common()
        if seconds >= 0.005 * total
    }
    rows["all"] = {"ms": f"{1000 * total:.0f}", "share": "100 %", "floor, ms": f"{1000 * sum(floors.values()):.0f}"}
    say("\n" + format_table(rows, title), end="")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the training steps; GPT-2's own is 0.1")
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    bf16 = flags.precision == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    rates = peaks(dtype)
    say(
        f"{flags.precision}, {torch.get_num_threads()} threads; {rates[0] / 1e9:.0f} GFLOP/s, {rates[1] / 1e9:.0f} GB/s"
    )
    for method in ("full", "LoRA"):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            step, floors = training(method, bf16, flags.dropout, rates)
            show(f"a step, {method}, {ROWS} x {TOKENS} tokens", step, floors, flags.rounds)
        del step
    with unittest.mock.patch.object(decoding.generation, "sample", named("sampling", decoding.generation.sample)):
        for prompts in (12, 1):
            write, floors = writing(prompts, dtype, rates)
            show(f"writing {NEW} tokens, {prompts} at a time", write, floors, flags.rounds)


if __name__ == "__main__":
    run_script(main)

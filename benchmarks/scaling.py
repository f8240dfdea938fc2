"""How time and memory grow: a training step with the batch, the length, the model and the processes; generation with
the length of the text.

    python -m benchmarks.scaling OUT                   small sizes: a minute or two on one thread
    python -m benchmarks.scaling OUT --rounds 9        steadier on a busy machine
    python -m benchmarks.scaling OUT --width 512       a larger model in the middle of every row
    python -m benchmarks.scaling OUT --only processes  only the tables whose name contains this
    python -m benchmarks.scaling OUT --only processes --width 768 --layers 8 --length 8    the memory that --shard saves

Random weights; a step is forward, backward, sum over the processes, clipping and AdamW, in fp32 without dropout. Each
table varies one thing, with the others as they are by default; its variants run in turn, round by round, and medians
are reported. Several processes share this machine's cores: what they show is what exchange costs, not what more
machines give. OUT gets scaling.md (the tables), scaling.json and scaling.svg.
"""

import argparse
import functools
import multiprocessing
import os
import platform
import socket
import statistics
import time
from pathlib import Path

import torch

from benchmarks.rounds import medians, time_rounds
from cli.script import run_script
from cli.tables import to_markdown
from config import DROPOUTS, DecodingSettings, GPT2Config, TrainingSettings
from decoding import GPT2Steps, Rules, generate, row_streams
from errors import check
from files import write_json, write_text
from models.gpt2 import GPT2Model
from models.sonnet_gpt import SonnetGPT, language_model_loss
from optimizer import AdamW, parameter_groups
from training.assembly import make_accelerator
from training.figures import peak_memory
from training.loop import scale_gradients
from training.processes import sum_over_processes
from training.sharding import shard

VOCABULARY, HEADS = 8600, 4
ROWS = 4
BATCHES, LENGTHS, NEW_TOKENS = (1, 2, 4, 8), (32, 64, 128, 256), (16, 32, 64, 128)
PROCESSES = ((1, False), (2, False), (2, True))  # how many, sharded or not; the batch of all together


def make_model(width, layers):
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "hidden_size": width, "num_hidden_layers": layers}
    config = GPT2Config(**shape, num_attention_heads=HEADS, eos_token_id=VOCABULARY - 1, **dict.fromkeys(DROPOUTS, 0.0))
    return SonnetGPT(GPT2Model(config)).train()


def make_batch(rows, length):
    ids = torch.randint(VOCABULARY - 1, (rows, length), generator=torch.Generator().manual_seed(1))
    return {"token_ids": ids, "attention_mask": torch.ones_like(ids)}


def one_step(model, optimizer, batch, world=1, sharded=False):
    """A training step on this process's batch. (All have as many targets, so that no count need be exchanged.)"""
    loss, count = language_model_loss(model, batch)
    loss.backward()
    if world > 1 and not sharded:
        sum_over_processes([p.grad for group in optimizer.param_groups for p in group["params"]])
    scale_gradients(optimizer, 1 / (world * count.item()), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def stepper(width, layers, batch, length):
    """A function that takes a step of a model of its own."""
    model = make_model(width, layers)
    optimizer = AdamW(parameter_groups(model, 0.0), lr=1e-5)
    return functools.partial(one_step, model, optimizer, make_batch(batch, length))


def writer(model, tokens):
    """A function that continues a text of 8 tokens by so many."""
    rules = Rules(DecodingSettings(temperature=0, max_new_tokens=tokens))

    def write():
        prompt = [list(range(8))]
        (written,) = generate(GPT2Steps(model.gpt, prompt, tokens), prompt, rules, row_streams(0, [0]))
        check(len(written) == tokens, f"the text ended after {len(written)} tokens: its time would say nothing")

    return write


def timed(variants, flags):
    """{name: median seconds}"""
    seconds = time_rounds(variants, flags.rounds, clock_of(flags))
    return {name: median for name, (median, _) in medians(seconds, next(iter(variants))).items()}


def clock_of(flags):
    return time.process_time if flags.cpu_time else time.perf_counter


def vary_batch(flags):
    variants = {f"{rows} rows": stepper(flags.width, flags.layers, rows, flags.length) for rows in BATCHES}
    tokens = {f"{rows} rows": rows * flags.length for rows in BATCHES}
    return per_token(timed(variants, flags), tokens)


def vary_length(flags):
    variants = {f"{length} tokens": stepper(flags.width, flags.layers, ROWS, length) for length in LENGTHS}
    return per_token(timed(variants, flags), {f"{length} tokens": ROWS * length for length in LENGTHS})


def vary_size(flags):
    width, layers = flags.width, flags.layers
    sizes = [(width // 2, layers), (width, layers), (width, 2 * layers), (2 * width, layers)]
    variants, parameters = {}, {}
    for width, layers in sizes:
        name = f"width {width}, {layers} layers"
        variants[name] = stepper(width, layers, ROWS, flags.length)
        parameters[name] = sum(p.numel() for p in variants[name].args[0].parameters())
    seconds = timed(variants, flags)
    return {
        name: {"x": parameters[name], "seconds": seconds[name], "parameters": f"{parameters[name]:,}"}
        for name in variants
    }


def vary_generation(flags):
    model = make_model(flags.width, flags.layers).eval()
    seconds = timed({f"{number} new tokens": writer(model, number) for number in NEW_TOKENS}, flags)
    return per_token(seconds, {f"{number} new tokens": number for number in NEW_TOKENS})


def per_token(seconds, tokens):
    """{name: {"x", "seconds", "tokens a second"}}"""
    return {
        name: {"x": tokens[name], "seconds": value, "tokens a second": f"{tokens[name] / value:,.0f}"}
        for name, value in seconds.items()
    }


# --- several processes ------------------------------------------------------------------------------------------------


def vary_processes(flags):
    """One batch of 4 rows, dealt out. The peak is the largest of all processes', the start of torch included."""
    rows = {}
    for world, sharded in PROCESSES:
        seconds, peak = in_processes(world, sharded, flags)
        name = f"{world} process{'es' if world > 1 else ''}{', --shard' if sharded else ''}"
        rows[name] = {"x": world, "seconds": seconds, "peak of each": f"{peak / 2**20:,.0f} MiB"}
    return rows


def in_processes(world, sharded, flags):
    """(median seconds a step, largest peak in bytes) of so many processes."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = context.SimpleQueue()
    workers = [
        context.Process(target=worker, args=(rank, world, port, sharded, flags, answers)) for rank in range(world)
    ]
    for process in workers:
        process.start()
    found = [answers.get() for _ in workers]
    for process in workers:
        process.join()
    return max(seconds for seconds, _ in found), max(peak for _, peak in found)


def worker(rank, world, port, sharded, flags, answers):
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    accelerator, clock = make_accelerator(TrainingSettings(precision="fp32")), clock_of(flags)
    model = make_model(flags.width, flags.layers)
    if sharded:
        model = shard(model, accelerator.device)
    optimizer = AdamW(parameter_groups(model, 0.0), lr=1e-5)
    batch, seconds = make_batch(max(1, ROWS // world), flags.length), []
    for _ in range(flags.rounds + 1):
        accelerator.wait_for_everyone()
        start = clock()
        one_step(model, optimizer, batch, world, sharded)
        seconds.append(clock() - start)
    answers.put((statistics.median(seconds[1:]), peak_memory(accelerator.device)))
    accelerator.wait_for_everyone()
    accelerator.end_training()


# --- what comes out ---------------------------------------------------------------------------------------------------

TABLES = {  # name: (what makes it, what its x is)
    "step, by batch": (vary_batch, "tokens a step"),
    "step, by length": (vary_length, "tokens a step"),
    "step, by size": (vary_size, "parameters"),
    "step, by processes": (vary_processes, "processes"),
    "generation, by length": (vary_generation, "new tokens"),
}


def machine():
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )


def as_markdown(tables, flags):
    text = f"# Scaling\n\n{machine()}; width {flags.width}, {flags.layers} layers, {flags.rounds} rounds, fp32"
    text += f", {'seconds of processor time' if flags.cpu_time else 'seconds'}.\n"
    for title, rows in tables.items():
        cells = {
            name: {"seconds": f"{row['seconds']:.3f}"} | {k: v for k, v in row.items() if k not in ("x", "seconds")}
            for name, row in rows.items()
        }
        text += f"\n## {title}\n\n{to_markdown(cells)}"
    return text


def draw(tables, path):
    """One picture with a curve for each table, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tables), figsize=(3.4 * len(tables), 3.2), squeeze=False)
    for axis, (title, rows) in zip(axes[0], tables.items(), strict=True):
        plain = [row for name, row in rows.items() if "--shard" not in name]
        axis.loglog([row["x"] for row in plain], [row["seconds"] for row in plain], marker="o")
        split = [row for name, row in rows.items() if "--shard" in name]
        axis.loglog([row["x"] for row in split], [row["seconds"] for row in split], marker="s", linestyle="none")
        axis.set(title=title, xlabel=TABLES[title][1])
    axes[0][0].set_ylabel("seconds")
    figure.tight_layout()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=64, help="tokens a row, where that is not what varies")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--cpu_time", action="store_true", help="the processor's time, where others use the machine")
    flags = parser.parse_args()
    tables = {title: make(flags) for title, (make, _) in TABLES.items() if flags.only in title}
    text = as_markdown(tables, flags)
    print(text, end="")
    write_text(flags.out / "scaling.md", text)
    write_json(
        flags.out / "scaling.json", {"machine": machine(), "width": flags.width, "layers": flags.layers} | tables
    )
    draw(tables, flags.out / "scaling.svg")


if __name__ == "__main__":
    run_script(main)

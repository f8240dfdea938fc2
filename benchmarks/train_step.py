"""Time one training step at the 124M size: ours, full and with LoRA and adapters, beside transformers, peft
and a GPT-2 as nanoGPT has it.

    python -m benchmarks.train_step --rounds 5

Sonnet-like batch: 8 rows x 192 tokens, forward, backward, clip, AdamW. The same random weights and the same batch for
everybody; the variants run in turn, round by round, so that a noisy machine is noisy for all. Reported are the medians
and, for ratios, the median of the ratios within each round.
"""

import argparse
import functools
import time

import peft
import torch
import transformers

from benchmarks.peers import FusedGPT2, fused_step
from benchmarks.rounds import report, time_rounds
from config import AdapterSettings, GPT2Config, LoRASettings
from formats.hugging_face import checkpoint_layout
from models.gpt2 import GPT2Model
from models.sonnet_gpt import SonnetGPT
from optimizer import AdamW, parameter_groups
from training.compiling import compile_layers
from training.loop import scale_gradients
from tuning.attach import attach, cast_frozen
from tuning.state import count_parameters

LORA = LoRASettings()  # the scripts' defaults: r = 4 on query, value, interm_dense, dropout 0.05


def our_model(config, methods, bf16, compiled=False):
    torch.manual_seed(0)
    gpt2 = GPT2Model(config)
    attach(gpt2, methods)
    if bf16 and methods:
        cast_frozen(gpt2, torch.bfloat16)
    if compiled:
        compile_layers(gpt2)
    return SonnetGPT(gpt2).train()


def our_step(model, optimizer, batch):
    loss, count = model(batch["token_ids"], batch["attention_mask"], return_loss=True)
    loss.backward()
    scale_gradients(optimizer, 1 / count.item(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item() / count.item()


def transformers_model(config, tuned):
    """GPT2LMHeadModel with our random weights; with peft's LoRA of the same rank on c_attn (its q, k, v) and c_fc."""
    torch.manual_seed(0)
    ours = dict(GPT2Model(config).named_parameters())
    names = {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "resid_pdrop": config.hidden_dropout_prob,
        "attn_pdrop": config.attention_probs_dropout_prob,
        "embd_pdrop": config.embedding_dropout_prob,
    }
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**names))
    theirs = dict(model.transformer.named_parameters())
    with torch.no_grad():
        for name, (parts, transposed) in checkpoint_layout(config).items():
            tensor = torch.cat([ours[part] for part in parts])
            theirs[name].copy_(tensor.t() if transposed else tensor)
    if tuned:
        lora = peft.LoraConfig(
            r=4, lora_alpha=16, lora_dropout=0.05, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True
        )
        model = peft.get_peft_model(model, lora)
    return model.train()


def transformers_step(model, optimizer, batch):
    labels = batch["token_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss = model(input_ids=batch["token_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def variants(flags):
    """{name: (make model, step)}"""
    dropout = dict.fromkeys(
        ("hidden_dropout_prob", "attention_probs_dropout_prob", "embedding_dropout_prob"), flags.dropout
    )
    config = GPT2Config.of_size("gpt2")
    config = GPT2Config(**vars(config) | dropout)
    bf16 = flags.precision == "bf16"
    adapter = AdapterSettings()
    return {
        "ours, full": (lambda: our_model(config, {}, bf16), our_step),
        "ours, LoRA": (lambda: our_model(config, {"lora": LORA}, bf16), our_step),
        "ours, adapter": (lambda: our_model(config, {"adapter": adapter}, bf16), our_step),
        **compiled_variants(flags, config, bf16),
        "transformers, full": (lambda: transformers_model(config, False), transformers_step),
        "as nanoGPT, full": (lambda: FusedGPT2(config).train(), fused_step),
        "transformers + peft, LoRA": (lambda: transformers_model(config, True), transformers_step),
    }


def compiled_variants(flags, config, bf16):
    """The same compiled: ours layer by layer as --compile does, theirs the whole model."""
    if not flags.compile:
        return {}

    def theirs(model):
        model.compile()
        return model

    return {
        "ours, full, compiled": (lambda: our_model(config, {}, bf16, True), our_step),
        "ours, LoRA, compiled": (lambda: our_model(config, {"lora": LORA}, bf16, True), our_step),
        "transformers, full, compiled": (lambda: theirs(transformers_model(config, False)), transformers_step),
        "as nanoGPT, full, compiled": (lambda: theirs(FusedGPT2(config).train()), fused_step),
        "transformers + peft, LoRA, compiled": (lambda: theirs(transformers_model(config, True)), transformers_step),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dropout", type=float, default=0.1, help="dropout of the backbone, GPT-2's own is 0.1")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="compiled variants as well; their first step compiles")
    parser.add_argument("--only", help="only the variants whose name contains this")
    parser.add_argument("--json", help="file for the figures")
    flags = parser.parse_args()
    torch.manual_seed(0)
    ids = torch.randint(0, 50257, (8, 192))
    mask = torch.ones_like(ids)
    for row in range(8):
        mask[row, 192 - 5 * row :] = 0  # sonnets differ in length
    batch = {"token_ids": ids, "attention_mask": mask}
    steps = {}
    with torch.autocast("cpu", torch.bfloat16, enabled=flags.precision == "bf16"):
        for name, (make, step) in variants(flags).items():
            if flags.only and flags.only not in name:
                continue
            model = make()
            trained = [p for p in model.parameters() if p.requires_grad]
            ours = name.startswith("ours")
            optimizer = AdamW(parameter_groups(model, 0.0), lr=1e-5) if ours else torch.optim.AdamW(trained, lr=1e-5)
            torch.compiler.set_stance("default")  # `compile_layers` keeps what is compiled to training
            start = time.perf_counter()
            loss = step(model, optimizer, batch)
            took = f"first loss {loss:.4f}, after {time.perf_counter() - start:.1f} s"
            print(f"{name}: {count_parameters(model)[0]:,} trained, {took}", flush=True)
            steps[name] = functools.partial(step, model, optimizer, batch)
        seconds = time_rounds(steps, flags.rounds)
    reference = next(iter(steps))

    def cells(name, median, ratio):
        return {"median s": f"{median:.3f}", "min s": f"{min(seconds[name]):.3f}", f"over {reference}": f"{ratio:.3f}"}

    print()
    report(seconds, reference, cells, f"{flags.precision}, dropout {flags.dropout}, ", flags.json)


if __name__ == "__main__":
    main()

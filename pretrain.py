"""Pre-train a GPT-2 of any size from scratch on a folder of text files, and save it in Hugging Face layout.

python pretrain.py --corpus FOLDER                       a small one, on a CPU in an hour or two
accelerate launch pretrain.py --corpus FOLDER --use_gpu  on several GPUs
"""

from cli.flags import parse_flags
from cli.script import run_script, start
from config import PretrainSettings

if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    FLAGS = start(parse_flags, PretrainSettings)

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from cli.script import say
from cli.tables import format_table
from config import DROPOUTS, END_OF_TEXT, GPT2Config
from datasets.corpus import Corpus, PackedBatches, TokenFile, held_out_batches, prepare_corpus
from datasets.paraphrase import PROMPT
from datasets.tokenizer import save_tokenizer
from errors import UserError
from evaluation import absurdity, perplexity
from files import check_writable
from formats.hugging_face import save_pretrained
from models.gpt2 import GPT2Model
from models.guided_gpt import GuidedGPT
from models.sonnet_gpt import language_model_loss, summed_loss
from training.assembly import load_trained, open_session
from training.inputs import content_hash, fingerprint
from training.loop import to_device
from training.processes import in_first_process
from training.randomness import seed_everything

TASK = "pretrain"
EVAL_TOKENS = 8192  # a batch, while measuring
COUNTED_AT_ONCE = 2**20  # tokens
MOST_LINES = 20  # held-out documents that each get a line in the report


def main(settings, given):
    session = open_session(TASK, settings, given, "pretrain")
    run, settings, accelerator = session.run, session.settings, session.accelerator
    out = Path(settings.data.out or run.folder / "model")
    check_writable(out / "config.json")
    in_first_process(prepare, run.folder / "corpus", settings)
    tokens = TokenFile(run.folder / "corpus")
    batches = make_batches(tokens, settings, accelerator)

    seed_everything(settings.training.seed)
    gpt2 = GPT2Model(gpt2_config(settings.shape, tokens.tokenizer))
    options = settings.training
    model = GuidedGPT(gpt2, options.guidance, options.answer_weight, tokens.tokenizer.encode(PROMPT).ids[-1])
    measure = Measure(tokens, settings.shape.context, accelerator)
    documents = [list(document.values()) for part in ("train", "held_out") for document in tokens.record[part]]
    inputs = {"corpus": content_hash(documents, settings.data.corpus)}
    base = fingerprint(gpt2, tokens.tokenizer) | {"weights": "random"}  # made anew, by other versions of torch perhaps
    session.begin(base, inputs, batches)
    held = sum(map(len, tokens.held_out.values()))
    say(
        f"{sum(p.numel() for p in gpt2.parameters()):,} parameters, {len(tokens.train):,} training tokens, "
        f"{held:,} held out ({100 * held / (held + len(tokens.train)):.1f} %)"
    )
    with accelerator.autocast():
        untrained = measure.sums(model.to(accelerator.device).eval())
    trained = {}
    if not settings.run.checkpoint:
        trained = train(session.loop(model), batches, measure)
    figures = load_trained(session, model) | trained
    figures["best epoch"] += f", of {settings.training.eval_every} steps each"
    if accelerator.is_main_process:
        say("\n" + format_table(figures, "Pre-training"), end="")
        run.report({"figures": figures, "held out": measure.report(model, untrained)})
        save(gpt2, tokens.tokenizer, out, settings)


def prepare(folder, settings):
    """The corpus as token ids in a folder, unless it is there already."""
    if not folder.is_dir():
        corpus = Corpus(settings.data.corpus, settings.data.held_out_names)
        prepare_corpus(corpus, folder, settings.shape.vocab_size, settings.shape.context, settings.data.pairs)


def gpt2_config(shape, tokenizer):
    return GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=shape.context,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        eos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        **dict.fromkeys(DROPOUTS, shape.dropout),
    )


def make_batches(tokens, settings, accelerator):
    options = settings.training
    batches = options.eval_every * options.gradient_accumulation
    rank, world = accelerator.process_index, accelerator.num_processes
    return PackedBatches(tokens.train, settings.shape.context, options.batch_size, batches, options.seed, rank, world)


def train(loop, batches, measure):
    def evaluate(model):
        loss = measure.total(model)
        if line := absurdity(loss, model.gpt.config.vocab_size):
            say(line)
        return {"score": -loss, "held-out loss": loss, "held-out perplexity": perplexity(loss)}

    options = loop.settings
    rows = options.batch_size * options.gradient_accumulation * loop.accelerator.num_processes
    seen = options.steps * rows * batches.context
    passes = f"{seen:,} ({seen / len(batches.tokens):.2f} passes over the corpus)"
    loop.fit(batches, language_model_loss, evaluate)
    return {"tokens seen": passes}


class Measure:
    """Losses on the held-out documents: of a model, and of the unigram model that any model should beat."""

    def __init__(self, tokens, context, accelerator):
        self.tokens, self.context, self.accelerator = tokens, context, accelerator

    def sums(self, model):
        """{title: (summed loss in nats, tokens predicted)}: a document each or, where they are many, all as one."""
        sums, size = {}, max(1, EVAL_TOKENS // self.context)
        for name, documents in self.parts().items():
            batches = held_out_batches(documents, self.context, size)
            sums[name] = summed_loss(model, (to_device(batch, self.accelerator.device) for batch in batches))
        return sums

    def parts(self):
        """{title: [token arrays]}"""
        held_out = self.tokens.held_out
        many = len(held_out) > MOST_LINES
        return {"all": list(held_out.values())} if many else {name: [tokens] for name, tokens in held_out.items()}

    def total(self, model):
        """Mean loss over all held-out tokens, in nats."""
        losses, counts = zip(*self.sums(model).values(), strict=True)
        return sum(losses) / sum(counts)

    def unigram_sums(self):
        """The same of a model that knows how often each token occurs in training (plus one), and nothing else."""
        size = self.tokens.tokenizer.get_vocab_size()
        counts = np.ones(size, dtype=np.int64)
        for place in range(0, len(self.tokens.train), COUNTED_AT_ONCE):  # they are copied to eight bytes each
            counts += np.bincount(self.tokens.train[place : place + COUNTED_AT_ONCE], minlength=size)
        costs = -np.log(counts / counts.sum())
        return {
            name: (sum(costs[tokens[1:]].sum() for tokens in documents), sum(len(tokens) - 1 for tokens in documents))
            for name, documents in self.parts().items()
        }

    def report(self, model, untrained):
        """Print a line for every held-out document, or one for all of them where there are many.

        untrained: `sums` of the model before it was trained. Returns {title: {figure: value}}.
        """
        with self.accelerator.autocast():
            trained = self.sums(model)
        unigram = self.unigram_sums()
        sizes = {document["name"]: document["bytes"] for document in self.tokens.record["held_out"]}
        sizes = sizes if sizes.keys() == trained.keys() else {"all": sum(sizes.values())}
        titles = {name: [name] for name in trained}
        rows = {}
        for title, names in (titles | {"all": list(trained)}).items():
            nats, unigram_nats, untrained_nats = (
                sum(sums[name][0] for name in names) for sums in (trained, unigram, untrained)
            )
            count = sum(trained[name][1] for name in names)
            rows[title] = {
                "tokens": count,
                "nats a token": nats / count,
                "bits a byte": nats / math.log(2) / sum(sizes[name] for name in names),
                "perplexity": perplexity(nats / count),
                "unigram": perplexity(unigram_nats / count),
                "untrained": perplexity(untrained_nats / count),
            }
        cells = {title: {name: _number(value) for name, value in row.items()} for title, row in rows.items()}
        say("\n" + format_table(cells, corner="held-out text"), end="")
        say("(perplexity a token; unigram: of a model that knows only how often each token occurs)")
        return rows


def _number(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{1 if value > 100 else 4}f}"


def save(gpt2, tokenizer, folder, settings):
    """The model in Hugging Face layout, with GPT-2's own dropout for whoever fine-tunes it; each file whole or not."""
    gpt2.config = replace(gpt2.config, **dict.fromkeys(DROPOUTS, GPT2Config().hidden_dropout_prob))
    unfinished = folder / "unfinished"
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        save_pretrained(gpt2, unfinished, getattr(torch, settings.data.save_dtype))
        save_tokenizer(tokenizer, unfinished, settings.shape.context)
        for file in unfinished.iterdir():
            os.replace(file, folder / file.name)
        unfinished.rmdir()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(
            f"cannot write {folder} ({error}): the run is kept; make room, then save it with --checkpoint and --out"
        ) from error
    say(f"\n{folder}: the model, for --model_path and for transformers")


if __name__ == "__main__":
    run_script(main, *FLAGS)

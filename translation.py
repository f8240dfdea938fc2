"""Train a Transformer on pairs of sentences from nothing, translate with it, score with BLEU-4.

python translation.py                                       English to Korean, on the sample, in a minute
python translation.py --model parallel                      the parallel Transformer instead
python translation.py --train_pairs train.en,train.de ...   on files of your own
"""

from cli.flags import parse_flags
from cli.script import run_script, start
from config import TranslationSettings

if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    FLAGS = start(parse_flags, TranslationSettings)

import torch
from tqdm import tqdm

from cli.script import say
from cli.tables import format_table
from config import TransformerConfig
from datasets.batching import run_in_parts, some_rows
from datasets.tokenizer import load_tokenizer
from datasets.translation import (
    TokenBudgetBatches,
    TranslationDataset,
    dev_batches,
    load_pairs,
    load_sources,
    train_pair_tokenizer,
    warn_of_known,
)
from decoding.translator import Translator
from errors import UserError, check
from evaluation import absurdity, bleu, perplexity, translation_floors
from files import check_writable, write_text
from models.transformer import Transformer, translation_loss
from training.assembly import load_trained, open_session
from training.inputs import content_hash, fingerprint
from training.loop import to_device
from training.processes import in_first_process
from training.randomness import seed_everything

TASK = "translation"
TOKENIZER = "tokenizer.json"  # in the run folder
SHOWN = 5  # translations side by side


def main(settings, given):
    session = open_session(TASK, settings, given, f"translation-{settings.shape.model}")
    run, settings, accelerator = session.run, session.settings, session.accelerator
    data, text = settings.data, settings.text
    check_writable(data.translation_out)
    training, dev = load_training_and_dev(data, text.lowercase, run, settings.training.train_rows)
    test = load_sources(data.test_pairs, text.lowercase)
    for pairs, path in ((dev, data.dev_pairs), (test, data.test_pairs)):
        warn_of_known(pairs, training, path)
    tokenizer = find_tokenizer(run, training, text.vocab_size)
    sets = {
        name: TranslationDataset(pairs, tokenizer, text.max_length, cut=True)
        for name, pairs in (("dev", dev), ("test", test))
        if pairs
    }
    batches = None
    if not run.predicting:
        batches = make_batches(TranslationDataset(training, tokenizer, text.max_length), settings, accelerator)
    seed_everything(settings.training.seed)
    model = Transformer(transformer_config(settings.shape, tokenizer))
    begin(session, model, tokenizer, training, dev, batches)
    trained = {} if run.predicting else train(session, model, batches, sets["dev"])
    figures = load_trained(session, model) | trained | average(model, run, settings)
    figures["best epoch"] += f", of {settings.training.eval_every} steps each"
    if accelerator.is_main_process:
        with accelerator.autocast():
            for name in [name for name, pairs in (("dev", dev), ("test", test)) if pairs and pairs[0][1] is not None]:
                figures |= loss_figures(mean_loss(model, sets[name], settings, accelerator.device), name)
            translations = translate(model, tokenizer, sets["test"], settings.decoding)
        write_text(data.translation_out, "".join(f"{line}\n" for line in translations))
        scores = score(test, translations, training, settings.decoding.bleu_tokenize)
        say("\n" + format_table(figures, "Translation"), end="")
        report(test, translations, scores, data.translation_out)
        run.report({"figures": figures, "scores": scores})


def load_training_and_dev(data, lowercase, run, train_rows):
    """Both lists of pairs. Where nothing is trained, dev is not read, and the training pairs may be gone, too."""
    try:
        training = load_pairs(data.train_pairs, lowercase)
    except UserError as error:
        if not run.predicting or not isinstance(error.__cause__, FileNotFoundError):
            raise
        training = []
    training = some_rows(training, train_rows, run.seed)
    return training, [] if run.predicting else load_pairs(data.dev_pairs, lowercase)


def find_tokenizer(run, training, vocab_size):
    """The run's own, if it has one already, or a new one. Raises UserError."""
    if run.resumed and (run.folder / TOKENIZER).exists():
        return load_tokenizer(run.folder)
    check(training, f"{run.folder}/{TOKENIZER} is missing: restore it, or train again")
    return train_pair_tokenizer(training, vocab_size)


def transformer_config(shape, tokenizer):
    return TransformerConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn_size,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.attention_dropout,
        wiring=shape.model,
        tied_embeddings=shape.tied_embeddings,
        layer_teacher_forcing=shape.layer_teacher_forcing,
    )


def make_batches(dataset, settings, accelerator):
    options = settings.training
    count = options.eval_every * options.gradient_accumulation
    rank, world = accelerator.process_index, accelerator.num_processes
    return TokenBudgetBatches(dataset, options.batch_tokens, count, options.seed, rank, world)


def begin(session, model, tokenizer, training, dev, batches):
    """Begin the run; its tokenizer is a part of it."""
    run, data = session.run, session.settings.data
    base = fingerprint(model, tokenizer) | {"weights": "random"}  # made anew, by other versions of torch perhaps
    inputs = {
        "training pairs": content_hash(training, data.train_pairs),
        "dev pairs": content_hash(dev, data.dev_pairs),
    }
    session.begin(base, inputs, batches)
    if not run.predicting:
        in_first_process(write_text, run.folder / TOKENIZER, tokenizer.to_str())
    number = sum(parameter.numel() for parameter in model.parameters())
    say(f"{number:,} parameters, {tokenizer.get_vocab_size()} tokens")


def train(session, model, batches, dev):
    """Train; returns a figure for the table. dev: the TranslationDataset that is measured on."""
    settings, run, accelerator = session.settings, session.run, session.accelerator
    options, loop = settings.training, session.loop(model)
    passes = options.steps * options.gradient_accumulation * accelerator.num_processes / batches.a_pass

    def evaluate(model):
        if options.average > 1:
            number = loop.progress.epoch + 1
            in_first_process(run.save_snapshot, model, number, options.average)
        loss = mean_loss(model, dev, settings, accelerator.device)
        if line := absurdity(loss, model.config.vocab_size):
            say(line)
        return {"score": -loss, "dev loss": loss, "dev perplexity": perplexity(loss)}

    loop.fit(batches, lambda *batch: translation_loss(*batch, options.label_smoothing), evaluate)
    return {"passes over the data": f"{passes:.1f}"}


def average(model, run, settings):
    """The mean of the last measurements' weights into the model, where that is wanted; says so in a figure."""
    if settings.training.average == 1:
        return {}
    numbers = run.load_average(model)
    return {"weights": f"mean of the measurements {numbers[0]} to {numbers[-1]}"}


@torch.no_grad()
def mean_loss(model, dataset, settings, device):
    """Nats a token over a TranslationDataset, the end of the text included: plain, without label smoothing."""
    batches = (to_device(batch, device) for batch in dev_batches(dataset, settings.training.batch_tokens))
    sums = [s for batch in batches for s in run_in_parts(lambda part: translation_loss(model, part), batch)]
    return sum(loss.item() for loss, _ in sums) / sum(int(count) for _, count in sums)


def loss_figures(loss, name):
    return {f"{name} loss": f"{loss:.4f} nats a token", f"{name} perplexity": f"{perplexity(loss):.2f}"}


def translate(model, tokenizer, dataset, options):
    """The translations of a TranslationDataset's sources, in order. options: TranslationDecoding."""
    translator = Translator(model, tokenizer, options.decoding, dataset.end, options.eval_batch_size)
    with tqdm(total=len(dataset), desc="translating", unit="sentence", disable=None) as bar:
        return translator.translate([source for _, source, _ in dataset.rows], bar.update)


def score(pairs, translations, training, tokenize):
    """{name: {"BLEU-4", "of 1", "signature"}} of the translations and of what takes no model; {} without references."""
    if pairs[0][1] is None:
        return {}
    rows = {"model": translations}
    rows |= {f"floor: {name}": texts for name, texts in translation_floors(pairs, training).items()}
    scores = {}
    for name, texts in rows.items():
        value, signature = bleu(texts, [target for _, target in pairs], tokenize)
        scores[name] = {"BLEU-4": value, "of 1": value / 100, "signature": signature}
    return scores


def report(pairs, translations, scores, path):
    """Print the scores and a few translations side by side."""
    if scores:
        cells = {name: {"BLEU-4": f"{row['BLEU-4']:.2f}", "of 1": f"{row['of 1']:.4f}"} for name, row in scores.items()}
        say("\n" + format_table(cells, corner=f"{len(pairs)} test pairs"), end="")
        say(f"(sacrebleu: {scores['model']['signature']})")
    say(f"\n{path}: {len(translations)} translations; the first ones:")
    for (source, target), translation in list(zip(pairs, translations, strict=True))[:SHOWN]:
        shown = {"source": source, "model": translation} | ({"reference": target} if target is not None else {})
        say("\n" + format_table(shown), end="")


if __name__ == "__main__":
    run_script(main, *FLAGS)

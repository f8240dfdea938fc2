"""Part 1 of the course: classify the sentiment of movie reviews, SST (five classes), then CFIMDB (two).

python classifier.py                                    the last linear layer alone, on a frozen GPT-2
python classifier.py --fine-tune-mode full-model        all of GPT-2
python classifier.py --lora --only sst                  a tuning method, on one of the two
python classifier.py --checkpoint runs/sentiment-head   predict again, for instance another --sst_test

A run is a folder with a run in it for each data set: runs/sentiment-head/sst and runs/sentiment-head/cfimdb.
"""

from cli.flags import parse_flags
from cli.script import run_script, start
from config import ClassifierSettings

if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    FLAGS = start(parse_flags, ClassifierSettings)

from collections import Counter
from dataclasses import dataclass

import torch
from tqdm import tqdm

from cli.script import say
from cli.tables import format_table
from config import CLASSES
from datasets import LengthGroupedBatches, SentimentDataset, SentimentTestDataset, load_sentiment_data
from datasets.batching import run_in_parts, some_rows
from datasets.tsv import format_answers
from errors import UserError
from evaluation import accuracy, bag_of_words, commonest, macro_f1, predict_sentiment
from files import check_writable, write_text
from handin.checks import check_answers, say_faults
from models.sentiment_gpt import SentimentGPT
from training.assembly import assemble, load_trained, open_session
from training.inputs import content_hash
from training.processes import in_first_process, predict_rows

TASK = "classifier"
TITLES = {"sst": "SST", "cfimdb": "CFIMDB"}


def main(settings, given):
    first = open_session(TASK, settings, given, "sentiment", part=settings.data.names[0])
    sessions = {
        name: first if name == first.run.part else first.of_part(name, given) for name in first.settings.data.names
    }
    rows = {name: read(name, session) for name, session in sessions.items()}  # all that can be wrong is told now
    table, home = {}, None
    for name, session in sessions.items():
        if home:
            session.accelerator.free_memory()  # of the part before, and its model
            session.run.settle(home)
        table |= train_and_predict(name, session, rows[name])
        home = session.run.home
    if len(sessions) > 1 and table:
        say("\n" + format_table(table, "Sentiment, dev"), end="")


@dataclass
class Rows:
    """What a data set's files hold."""

    training: list
    dev: list
    test: list


def read(name, session):
    """The Rows of a data set; that its outputs can be written is checked, too. Raises UserError."""
    settings, predict_only = session.settings, session.settings.run.checkpoint
    paths = {split: getattr(settings.data, f"{name}_{split}") for split in ("train", "dev", "test")}
    for split in ("dev", "test"):
        check_writable(settings.output(name, split))
    if session.run.resumed:
        session.run.record(TASK)
    splits = {split: [] if split == "train" and predict_only else _load(paths[split], name, split) for split in paths}
    training = some_rows(splits["train"], settings.training.train_rows, settings.training.seed)
    return Rows(training, splits["dev"], splits["test"])


def _load(path, name, split):
    return load_sentiment_data(path, CLASSES[name], split)


def train_and_predict(name, session, rows):
    """One data set from its rows to its hand-in files. Returns the rows of the final table."""
    run, settings, accelerator = session.run, session.settings, session.accelerator
    tuned = assemble(settings)
    model, context = SentimentGPT(tuned.gpt2, CLASSES[name], settings.head, settings.pooling), tuned.gpt2.context
    dev = SentimentDataset(rows.dev, tuned.tokenizer, context)
    test = SentimentTestDataset(rows.test, tuned.tokenizer, context)
    if settings.run.checkpoint:
        session.begin(tuned.fingerprint)
    else:
        begin_and_train(name, session, tuned, model, rows, dev)
    figures = load_trained(session, model)
    if settings.inference.merge:
        tuned.merge()
    answers, batch_size = {}, settings.inference.eval_batch_size
    for split, dataset in (("dev", dev), ("test", test)):
        path = settings.output(name, split)
        answers[path] = predict_rows(predict_sentiment, model, dataset, batch_size, accelerator, path)
        text = format_answers("Predicted_Sentiment", dataset.ids, answers[path], range(CLASSES[name]))
        in_first_process(write_text, path, text)
        in_first_process(say_faults, check_answers, path, name, dataset.ids)
    if not accelerator.is_main_process:
        return {}
    scores = score(name, rows, dev, answers[settings.output(name, "dev")])
    figures |= report(scores, answers, CLASSES[name])
    say("\n" + format_table(figures, f"Sentiment, {TITLES[name]}"), end="")
    run.report({"figures": figures})
    return scores


def begin_and_train(name, session, tuned, model, rows, dev):
    """Begin the run, train."""
    settings, accelerator = session.settings, session.accelerator
    training = SentimentDataset(rows.training, tuned.tokenizer, tuned.gpt2.context)
    if training.num_shortened:
        say(f"of {training.num_shortened} training reviews only the last {tuned.gpt2.context} tokens are used")
    batches = session.batches(training)
    inputs = {
        f"{TITLES[name]} training rows": content_hash(rows.training, getattr(settings.data, f"{name}_train")),
        f"{TITLES[name]} dev rows": content_hash(rows.dev, getattr(settings.data, f"{name}_dev")),
    }
    session.begin(tuned.fingerprint, inputs, batches)
    if model.has_fixed_vectors:
        for dataset in (training, dev):
            keep_vectors(model, dataset, settings.inference.eval_batch_size, accelerator)

    def evaluate(model):
        batch_size = settings.inference.eval_batch_size
        answers = predict_rows(predict_sentiment, model, dev, batch_size, accelerator, "dev")
        figures = dev_figures(dev, answers)
        return {"score": figures["dev accuracy"]} | figures

    session.loop(model, tuned.after_step).fit(batches, tuned.loss(class_loss), evaluate)


@torch.no_grad()
def keep_vectors(model, dataset, batch_size, accelerator):
    """Compute the vectors of a frozen GPT-2 once for all epochs. (Each process computes all of them.)"""
    model.to(accelerator.device).eval()
    vectors = {}
    bar = tqdm(LengthGroupedBatches(dataset, batch_size), desc="reading", unit="batch", leave=False, disable=None)
    for batch in bar:
        with accelerator.autocast():
            parts = run_in_parts(lambda part: vectors_of(model, part, accelerator.device), batch)
        vectors |= zip(batch["sent_ids"], torch.cat(parts), strict=True)
    dataset.vectors = torch.stack([vectors[identifier] for identifier in dataset.ids])


def vectors_of(model, batch, device):
    return model.pool(batch["token_ids"].to(device), batch["attention_mask"].to(device))[0].cpu()


def class_loss(model, batch):
    return model(batch["token_ids"], batch["attention_mask"], labels=batch["labels"], vectors=batch.get("vectors"))


def dev_figures(dev, answers):
    predictions = [answers[identifier] for identifier in dev.ids]
    return {"dev accuracy": accuracy(predictions, dev.labels), "dev macro-F1": macro_f1(predictions, dev.labels)}


def score(name, rows, dev, answers):
    """The model beside what needs none: {name: {figure: text}}. The bag of words only where there are training rows."""
    always = dict.fromkeys(dev.ids, commonest(dev.labels))
    choices = {"this model": answers, "always the commonest class": always}
    if rows.training:
        try:
            choices["bag of words"] = dict(zip(dev.ids, bag_of_words(rows.training, dev.sentences), strict=True))
        except UserError as error:
            say(str(error))
    return {
        f"{TITLES[name]}, {who}": {figure: f"{value:.4f}" for figure, value in dev_figures(dev, chosen).items()}
        for who, chosen in choices.items()
    }


def report(scores, answers, classes):
    """What was predicted, {name: text}. scores: as from `score`; answers: {path: {id: class}}."""
    (_, ours), *others = scores.items()
    figures = dict(ours)
    for who, values in others:
        figures[who.split(", ")[1]] = ", ".join(f"{value} {figure}" for figure, value in values.items())
    for path, chosen in answers.items():
        counts = Counter(chosen.values())
        shown = " / ".join(str(counts[label]) for label in range(classes))
        figures[path] = f"{len(chosen)} reviews, {shown} of class 0 to {classes - 1}"
    return figures


if __name__ == "__main__":
    run_script(main, *FLAGS)

"""What of a task's finished runs is compared: their figures, and what one gets without a model.

Everything is measured anew from the files that a run wrote and the gold that it was measured on, so that runs of
different days, and the floors, are measured alike.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from cli.script import say
from config import CLASSES, ClassifierSettings, ParaphraseSettings, SonnetSettings, TranslationSettings
from datasets import load_paraphrase_data, load_sonnets
from datasets.batching import some_rows
from datasets.sentiment import load_sentiment_data
from datasets.sonnets import PROMPT_LINES, head_of, tail_of
from datasets.translation import load_pairs
from decoding.prosody import distinct_ngrams, load_pronouncing, measure_form
from errors import UserError, check
from evaluation import (
    accuracy,
    answer_token,
    bag_of_words,
    bleu,
    commonest,
    macro_f1,
    score_sonnets,
    sonnet_floors,
    texts_resampled,
    translation_floors,
    word_overlap,
)
from files import SAMPLE, read_text
from handin.checks import check_answers, check_sonnets


@dataclass(frozen=True)
class Measured:
    """figures: {column: number}. draws: the score in each resample of the dev items."""

    figures: dict
    draws: np.ndarray


class ComparedTask:
    """script: without .py. score: the column that "score" means, with so many digits. columns: this task's own; hidden:
    those that an experiment must ask for. files: {flag: name in the sample's folder}. tunes: there is a base model."""

    script, settings, score, columns, hidden, tunes = "", None, "", (), (), True
    files: ClassVar[dict] = {}
    digits = 4

    def own_flags(self, folder, settings):
        """{flag: value} that compare.py gives for a run in this folder: where its outputs go, and the like."""
        raise NotImplementedError

    def record_folder(self, folder):
        """Where a run in this folder keeps its record."""
        return folder

    def gold(self, settings):
        """The dev items of settings. Raises UserError."""
        raise NotImplementedError

    def draws(self, settings):
        """Whether predicting with a trained model depends on the seed."""
        return False

    def measure(self, settings, report, gold, counts):
        """Measured of a finished run. report: its report.json; counts: (R, N), how often a resample has each item."""
        raise NotImplementedError

    def floors(self, settings, gold):
        """{name: {column: (mean, deviation)}} of what needs no model."""
        raise NotImplementedError

    def against(self, settings, base, gold):
        """{column: text} of a run beside the first variant's of the same seed."""
        return {}


class Sonnets(ComparedTask):
    script, settings, score, digits = "sonnet_generation", SonnetSettings, "chrF continuation", 2
    columns = ("chrF continuation", "dev loss")
    hidden = ("chrF whole", "14 lines", "distinct-2", "syllables a line", "rhymes", "seconds a sonnet")
    files: ClassVar[dict] = {
        "sonnet_path": "sonnets.txt",
        "held_out_sonnet_path": "sonnets_held_out.txt",
        "gold_sonnet_path": "TRUE_sonnets_held_out_dev.txt",
    }

    def own_flags(self, folder, settings):
        once = {"score_seeds": 1} if settings.decoding.draws else {}  # every seed has a run of its own
        return {"sonnet_out": str(folder / "sonnets.txt"), "sonnet_dev_out": str(folder / "sonnets-dev.txt")} | once

    def gold(self, settings):
        return load_sonnets(settings.data.gold_sonnet_path)

    def draws(self, settings):
        return settings.decoding.draws

    def measure(self, settings, report, gold, counts):
        texts = check_sonnets(settings.data.sonnet_dev_out, [head_of(whole) for whole in gold])
        figures = _figures_of_sonnets(texts, gold)
        figures |= {"dev loss": -report["run"]["best score"]}
        seconds = report["run"].get("seconds a sonnet")  # runs of old have not kept it
        figures |= {} if seconds is None else {"seconds a sonnet": seconds}
        tails = [[tail_of(text) for text in some] for some in (texts, gold)]
        return Measured(figures, texts_resampled(CHRF(), *tails, counts))

    def floors(self, settings, gold):
        rows = sonnet_floors(gold, load_sonnets(settings.data.sonnet_path))
        whole = {name: (value, 0.0) for name, value in _figures_of_sonnets(gold, gold).items()}
        return {f"floor: {name}": values for name, values in rows.items()} | {"the author's": whole}


def _figures_of_sonnets(texts, gold):
    try:
        form = measure_form(texts, PROMPT_LINES, load_pronouncing())
    except UserError:  # the dictionary is not installed: those columns stay empty
        form = {}
    return score_sonnets(texts, gold) | {"distinct-2": distinct_ngrams(texts, 2)} | form


class Answers(ComparedTask):
    """A task whose answers are classes."""

    score, columns = "dev accuracy", ("dev accuracy", "dev macro-F1")
    name = ""  # as handin.checks has it

    def dev_file(self, settings):
        raise NotImplementedError

    def measure(self, settings, report, gold, counts):
        answers = check_answers(self.dev_file(settings), self.name, list(gold))
        predictions, truths = [answers[identifier] for identifier in gold], list(gold.values())
        right = np.array([guess == truth for guess, truth in zip(predictions, truths, strict=True)])
        return Measured(_figures_of_answers(predictions, truths), counts @ right / len(gold))

    def floors(self, settings, gold):
        truths = list(gold.values())
        rows = {"always the commonest answer": [commonest(truths)] * len(truths)}
        try:
            rows |= self.more_floors(settings)
        except UserError as error:  # scikit-learn or the training file is not there: the table does without that row
            say(str(error))
        return {
            f"floor: {name}": {figure: (value, 0.0) for figure, value in _figures_of_answers(chosen, truths).items()}
            for name, chosen in rows.items()
        }

    def more_floors(self, settings):
        """{name: an answer for each dev row} of what needs no GPT-2. Raises UserError where scikit-learn is missing."""
        return {}


def _figures_of_answers(predictions, truths):
    return {"dev accuracy": accuracy(predictions, truths), "dev macro-F1": macro_f1(predictions, truths)}


class Pairs(Answers):
    name, script, settings = "pairs", "paraphrase_detection", ParaphraseSettings
    files: ClassVar[dict] = {
        "para_train": "para-train.csv",
        "para_dev": "para-dev.csv",
        "para_test": "para-test-student.csv",
    }

    def own_flags(self, folder, settings):
        return {"para_dev_out": str(folder / "dev.csv"), "para_test_out": str(folder / "test.csv")}

    def dev_file(self, settings):
        return settings.data.para_dev_out

    def gold(self, settings):
        rows = load_paraphrase_data(settings.data.para_dev, split="dev")
        return {identifier: answer_token(label) for *_, label, identifier in rows}

    def more_floors(self, settings):
        dev = load_paraphrase_data(settings.data.para_dev, split="dev")
        options, training = settings.training, load_paraphrase_data(settings.data.para_train)
        chances = word_overlap(some_rows(training, options.train_rows, options.seed), dev)
        return {"trees over word overlap": [answer_token(int(chance > 0.5)) for chance in chances]}


class Sentiment(Answers):
    """One of the two data sets of classifier.py."""

    script, settings = "classifier", ClassifierSettings

    def __init__(self, name):
        self.name = name
        splits = {"train": "train", "dev": "dev", "test": "test-student"}
        self.files = {f"{name}_{split}": f"ids-{name}-{file}.csv" for split, file in splits.items()}

    def own_flags(self, folder, settings):
        return {"only": self.name, "predictions": str(folder / "predictions")}

    def record_folder(self, folder):
        return folder / self.name

    def dev_file(self, settings):
        return settings.output(self.name, "dev")

    def gold(self, settings):
        return {row[-1]: row[-2] for row in self._rows(settings, "dev")}

    def more_floors(self, settings):
        sentences = [row[0] for row in self._rows(settings, "dev")]
        return {"bag of words": bag_of_words(self._rows(settings, "train"), sentences)}

    def _rows(self, settings, split):
        return load_sentiment_data(getattr(settings.data, f"{self.name}_{split}"), CLASSES[self.name], split)


class Translation(ComparedTask):
    """Scored on the test pairs, which must have translations."""

    script, settings, score, digits, tunes = "translation", TranslationSettings, "BLEU-4", 2, False
    columns, hidden = ("BLEU-4", "test loss"), ("p",)
    files: ClassVar[dict] = {f"{split}_pairs": f"translation-{split}.tsv" for split in ("train", "dev", "test")}

    def own_flags(self, folder, settings):
        return {"translation_out": str(folder / "test.txt")}

    def gold(self, settings):
        return load_pairs(settings.data.test_pairs, settings.text.lowercase)

    def measure(self, settings, report, gold, counts):
        texts, references = self._texts(settings, gold), [target for _, target in gold]
        value, _ = bleu(texts, references, settings.decoding.bleu_tokenize)
        figures = {"BLEU-4": value, "test loss": float(report["figures"]["test loss"].split()[0])}
        metric = BLEU(tokenize=settings.decoding.bleu_tokenize)
        return Measured(figures, texts_resampled(metric, texts, references, counts))

    def floors(self, settings, gold):
        training = load_pairs(settings.data.train_pairs, settings.text.lowercase)
        references, tokenize = [target for _, target in gold], settings.decoding.bleu_tokenize
        return {
            f"floor: {name}": {"BLEU-4": (bleu(texts, references, tokenize)[0], 0.0)}
            for name, texts in translation_floors(gold, training).items()
        }

    def against(self, settings, base, gold):
        """p: how probable so large a difference is between systems that are alike (sacrebleu's paired bootstrap of
        1,000 test sets, Koehn 2004)."""
        ours, theirs = self._texts(settings, gold), self._texts(base, gold)
        metrics = {"BLEU": BLEU(tokenize=settings.decoding.bleu_tokenize, references=[[target for _, target in gold]])}
        test = PairedTest([("base", theirs), ("other", ours)], metrics, None, test_type="bs", n_samples=1000)
        return {"p": f"{test()[1]['BLEU'][1].p_value:.3f}"}

    def _texts(self, settings, gold):
        path = settings.data.translation_out
        texts = read_text(path).splitlines()
        check(len(texts) == len(gold), f"{path} has {len(texts)} lines for {len(gold)} test pairs: train that run anew")
        return texts


TASKS = {
    "sonnets": Sonnets(),
    "pairs": Pairs(),
    **{name: Sentiment(name) for name in CLASSES},
    "translation": Translation(),
}


def course_files(task, folder):
    """{flag: path} of the course's files in a folder: by the names that the flags have by default."""
    data = task.settings().data
    return {flag: str(Path(folder, Path(getattr(data, flag)).name)) for flag in task.files}


def sample_files(task):
    """{flag: path} of the sample that comes with the project."""
    return {flag: (SAMPLE / name).as_posix() for flag, name in task.files.items()}

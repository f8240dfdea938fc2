"""What fine-tuned models know of question pairs beside what counting common words gets.

    python -m benchmarks.word_overlap
    python -m benchmarks.word_overlap --run runs/paraphrase-full runs/paraphrase-full-2 --test labelled-pairs.csv

Gradient-boosted trees (scikit-learn, `evaluation.word_overlap`) on the training pairs; runs of paraphrase_detection.py
on the same; and the log-odds of both mixed, by the share that has the best accuracy on the dev pairs. Of several runs:
mean +- deviation. Needs requirements-dev.txt.
"""

import argparse
from pathlib import Path

import numpy as np

from cli.script import run_script
from cli.tables import format_table
from datasets import ParaphraseDetectionDataset, load_paraphrase_data, load_tokenizer
from evaluation import accuracy, commonest, macro_f1, mean_and_deviation, overlap_features, word_overlap
from reporting.measures import class_probabilities
from training.tasks import open_tuned

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the model's log-odds in a mixture


def log_odds(chances):
    """log p - log (1 - p) of chances, kept away from 0 and 1."""
    chances = np.clip(chances, 1e-6, 1 - 1e-6)
    return np.log(chances / (1 - chances))


def model_scores(folder, model, splits):
    """{split: the log-odds of yes by a run's best epoch, for every row}"""
    tuned, classifier, _, _ = open_tuned(folder, model)
    tokenizer, found = load_tokenizer(tuned.folder), {}
    for split, rows in splits.items():
        dataset = ParaphraseDetectionDataset(rows, tokenizer, tuned.gpt2.context, classifier.aligns)
        found[split] = log_odds(class_probabilities(classifier, dataset, 64)[:, 1].double().numpy())
    return found


def figures(scores, splits):
    """{column: number} of scores, {split: log-odds of its rows}."""
    measures = {"accuracy": accuracy, "macro-F1": macro_f1}
    return {
        f"{split} {figure}": measure([int(value > 0) for value in scores[split]], [row[2] for row in rows])
        for split, rows in splits.items()
        for figure, measure in measures.items()
    }


def mixed(trees, model, dev):
    """(the best share of the model on dev, {split: log-odds})."""
    mixtures = {
        share: {split: share * model[split] + (1 - share) * trees[split] for split in trees} for share in SHARES
    }
    best = max(SHARES, key=lambda share: figures(mixtures[share], {"dev": dev})["dev accuracy"])
    return best, mixtures[best]


def correlation(scores, rows):
    overlap = [overlap_features(*row[:2])[0] for row in rows]
    return f"correlation with the share of common words {np.corrcoef(scores, overlap)[0, 1]:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder of the course's files (default: data)")
    parser.add_argument("--train", help="the training pairs (default: quora-train.csv there)")
    parser.add_argument("--test", help="more pairs with labels, in the format of the training file")
    parser.add_argument("--run", nargs="+", default=[], help="folders of finished runs of paraphrase_detection.py")
    parser.add_argument("--model", default="data/gpt2-mini", help="their base model (default: data/gpt2-mini)")
    options = parser.parse_args()
    training = load_paraphrase_data(options.train or Path(options.data, "quora-train.csv"))
    splits = {"dev": load_paraphrase_data(Path(options.data, "quora-dev.csv"), split="dev")}
    if options.test:
        splits["test"] = load_paraphrase_data(options.test)
    usual = commonest([row[2] for row in training]) - 0.5
    always = {split: np.full(len(rows), usual) for split, rows in splits.items()}
    trees = {split: log_odds(word_overlap(training, rows)) for split, rows in splits.items()}
    answers = {
        "always the commoner answer": [figures(always, splits)],
        "trees over word overlap": [figures(trees, splits)],
    }
    for folder in options.run:
        model = model_scores(folder, options.model, splits)
        share, mixture = mixed(trees, model, splits["dev"])
        answers.setdefault("the model", []).append(figures(model, splits))
        answers.setdefault("both mixed", []).append(figures(mixture, splits))
        print(f"{folder}: mixed with {1 - share:g} of the trees; {correlation(model['dev'], splits['dev'])}")
    print(f"the truth: {correlation([row[2] for row in splits['dev']], splits['dev'])}")
    rows = {}
    for name, seeds in answers.items():
        cells = mean_and_deviation(seeds)
        alone = len(seeds) == 1
        rows[name] = {c: f"{mean:.4f}" if alone else f"{mean:.4f} +- {sd:.4f}" for c, (mean, sd) in cells.items()}
    print(format_table(rows), end="")


if __name__ == "__main__":
    run_script(main)

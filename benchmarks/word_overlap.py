"""What counting common words gets on the question pairs, and what a fine-tuned model knows beside it.

    python -m benchmarks.word_overlap
    python -m benchmarks.word_overlap --run runs/paraphrase-full-1

Gradient-boosted trees (scikit-learn) over eleven features of a pair, trained on the training pairs. With a run of
paraphrase_detection.py: how its answers go with the overlap of words, and what the two score mixed. Needs
requirements-dev.txt.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from cli.script import run_script
from cli.tables import format_table
from datasets import LengthGroupedBatches, ParaphraseDetectionDataset, load_paraphrase_data, load_tokenizer
from evaluation import accuracy, macro_f1
from training.tasks import open_tuned


def features(first, second):
    """Eleven numbers of a pair of questions; the first is the share of common words among all."""
    a, b = first.split(), second.split()
    words_a, words_b = set(a), set(b)
    common = len(words_a & words_b)
    pairs = len(set(pairwise(a)) & set(pairwise(b)))
    return [
        common / max(1, len(words_a | words_b)),
        common / max(1, len(words_a)),
        common / max(1, len(words_b)),
        abs(len(a) - len(b)),
        len(a) + len(b),
        a[:1] == b[:1],
        a[-2:] == b[-2:],
        pairs / max(1, min(len(a), len(b))),
        len(words_a - words_b),
        len(words_b - words_a),
        max((len(word) for word in words_a ^ words_b), default=0),
    ]


@torch.no_grad()
def model_scores(folder, model, rows):
    """log p(yes) - log p(no) of a run's best epoch, for every row."""
    tuned, classifier, _, _ = open_tuned(folder, model)
    scores, dataset = {}, ParaphraseDetectionDataset(rows, load_tokenizer(tuned.folder), tuned.gpt2.context)
    for batch in LengthGroupedBatches(dataset, 64):
        logits = classifier(batch["token_ids"], batch["attention_mask"])
        scores |= dict(zip(batch["sent_ids"], (logits[:, 1] - logits[:, 0]).tolist(), strict=True))
    return np.array([scores[row[3]] for row in rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder of the course's files (default: data)")
    parser.add_argument("--run", help="folder of a finished run of paraphrase_detection.py")
    parser.add_argument("--model", default="data/gpt2-mini", help="that run's base model (default: data/gpt2-mini)")
    options = parser.parse_args()
    training = load_paraphrase_data(Path(options.data, "quora-train.csv"))
    dev = load_paraphrase_data(Path(options.data, "quora-dev.csv"), split="dev")
    truths = [row[2] for row in dev]
    measured = np.array([features(*row[:2]) for row in dev], dtype=float)
    trees = HistGradientBoostingClassifier(random_state=0, max_iter=150, learning_rate=0.05)
    trees.fit(np.array([features(*row[:2]) for row in training], dtype=float), [row[2] for row in training])
    chance = trees.predict_proba(measured)[:, 1]
    answers = {"trees over word overlap": np.log(chance / (1 - chance))}
    if options.run:
        scores = model_scores(options.run, options.model, dev)
        answers["the model"] = scores
        answers["three parts trees, one part model"] = 0.75 * answers["trees over word overlap"] + 0.25 * scores
        for name, values in (("the model's answers", scores), ("the truth", truths)):
            print(
                f"correlation of {name} with the share of common words: {np.corrcoef(values, measured[:, 0])[0, 1]:.3f}"
            )
    rows = {}
    for name, values in answers.items():
        predictions = [int(value > 0) for value in values]
        measures = {"dev accuracy": accuracy, "dev macro-F1": macro_f1}
        rows[name] = {figure: f"{measure(predictions, truths):.4f}" for figure, measure in measures.items()}
    print(format_table(rows), end="")


if __name__ == "__main__":
    run_script(main)

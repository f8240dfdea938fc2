"""Scores against scikit-learn, sacrebleu and naive loops, the floors of chrF, and the hand-in formats."""

import math
import random
import statistics
from collections import Counter

import pytest
import sacrebleu
import torch
from sklearn.metrics import accuracy_score, f1_score

from config import ANSWERS
from datasets import LengthGroupedBatches, ParaphraseDetectionDataset, load_sonnets, load_tokenizer
from datasets.sonnets import format_sonnets
from datasets.tsv import format_answers
from evaluation import (
    absurdity,
    accuracy,
    chrf,
    head_of,
    macro_f1,
    mean_and_deviation,
    model_eval_paraphrase,
    overlap_features,
    perplexity,
    predict_paraphrase,
    score_sonnets,
    sonnet_floors,
    tail_of,
    word_overlap,
)

# --- accuracy, F1, perplexity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [[0, 1], [3919, 8505], [0, 1, 2, 3, 4]])
def test_accuracy_and_macro_f1_equal_scikit_learn(classes):
    draw = random.Random(0)
    for round_ in range(30):
        truths = draw.choices(classes, k=draw.randint(1, 40))
        predictable = classes[:1] if round_ < 5 else classes[1:] if round_ < 10 else classes
        predictions = draw.choices(predictable, k=len(truths))  # at first a class is absent from the predictions
        assert accuracy(predictions, truths) == pytest.approx(accuracy_score(truths, predictions), abs=1e-12)
        expected = f1_score(truths, predictions, average="macro", zero_division=0)
        assert macro_f1(predictions, truths) == pytest.approx(expected, abs=1e-12)


def test_predictions_and_truths_of_different_length_are_refused():
    for score in (accuracy, macro_f1):
        with pytest.raises(ValueError):
            score([1, 0], [1])


def test_perplexity_is_the_inverse_geometric_mean_of_the_probabilities():
    probabilities = [0.5, 0.1, 0.9, 1.0, 0.003]
    mean_loss = sum(-math.log(p) for p in probabilities) / 5
    assert perplexity(mean_loss) == pytest.approx(math.prod(probabilities) ** (-1 / 5), rel=1e-12)
    assert perplexity(0.0) == 1.0
    assert perplexity(750) == perplexity(math.inf) == math.inf
    assert math.isfinite(perplexity(699))


# --- chrF -------------------------------------------------------------------------------------------------------------


def chrf_by_loop(hypotheses, references):
    """Popovic 2015: precision and recall of character 1- to 6-grams without white space, averaged; F with beta 2."""
    precisions, recalls = [], []
    for order in range(1, 7):
        counts = [0, 0, 0]
        for pair in zip(hypotheses, references, strict=True):
            squeezed = ["".join(text.split()) for text in pair]
            grams = [Counter(text[i : i + order] for i in range(len(text) - order + 1)) for text in squeezed]
            counts = [
                counts[0] + (grams[0] & grams[1]).total(),
                *(c + g.total() for c, g in zip(counts[1:], grams, strict=True)),
            ]
        precisions.append(counts[0] / counts[1])
        recalls.append(counts[0] / counts[2])
    precision, recall = statistics.fmean(precisions), statistics.fmean(recalls)
    return 100 * 5 * precision * recall / (4 * precision + recall)


def random_texts(draw, count):
    return [" ".join("".join(draw.choices("abcdeé,\n", k=draw.randint(3, 9))) for _ in range(8)) for _ in range(count)]


def test_chrf_equals_sacrebleu_and_a_loop():
    draw = random.Random(0)
    for _ in range(5):
        hypotheses, references = random_texts(draw, 4), random_texts(draw, 4)
        score = chrf(hypotheses, references)
        assert 5 < score < 95
        assert score == pytest.approx(sacrebleu.corpus_chrf(hypotheses, [references]).score, abs=1e-9)
        assert score == pytest.approx(chrf_by_loop(hypotheses, references), abs=1e-9)
        assert score != pytest.approx(chrf(references, hypotheses), abs=1e-3)  # recall weighs more: no symmetry
    assert chrf(references, references) == pytest.approx(100)


def sonnet(word, lines=14):
    return "\n".join(f"{word} {number}" for number in range(lines))


def test_head_and_tail_leave_blank_lines_out():
    text = "\n\none\n\n  two\nthree\n \nfour\nfive\n"
    assert head_of(text) == "one\n  two\nthree"
    assert tail_of(text) == "four\nfive"
    assert tail_of("one\ntwo") == ""


def test_scores_of_sonnets():
    gold = [sonnet("night"), sonnet("day"), sonnet("light"), sonnet("love")]
    generated = [
        sonnet("knight").replace("\n", "\n\n"),  # blank lines do not count
        sonnet("daze", lines=13),
        sonnet("light", lines=15),
        "love 0\nlove 1\nlove 2\n" + "\n".join(["hate"] * 11) + "\n\n",
    ]
    tails = [["\n".join([line for line in t.split("\n") if line][3:]) for t in texts] for texts in (generated, gold)]
    assert score_sonnets(generated, gold) == {
        "chrF whole": pytest.approx(chrf_by_loop(generated, gold), abs=1e-9),
        "chrF continuation": pytest.approx(chrf_by_loop(*tails), abs=1e-9),
        "14 lines": 0.5,
    }
    assert score_sonnets(gold, gold) == {"chrF whole": 100, "chrF continuation": 100, "14 lines": 1}


def test_floors_of_a_single_training_sonnet_are_no_matter_of_chance():
    gold, training = [sonnet("night"), sonnet("day")], [sonnet("love", lines=13)]
    prompts = ["night 0\nnight 1\nnight 2", "day 0\nday 1\nday 2"]
    texts = [prompt + "".join(f"\nlove {number}" for number in range(3, 13)) for prompt in prompts]
    floors = sonnet_floors(gold, training, draws=3)
    assert floors["prompt alone"] == {"chrF whole": (pytest.approx(chrf_by_loop(prompts, gold)), 0)}
    assert floors["random training tail"] == {
        "chrF whole": (pytest.approx(chrf_by_loop(texts, gold)), pytest.approx(0, abs=1e-9)),
        "chrF continuation": (pytest.approx(chrf([tail_of(t) for t in texts], [tail_of(t) for t in gold])), 0),
        "14 lines": (0, 0),
    }


def test_floors_on_the_real_sonnets(real_data):
    gold = load_sonnets(real_data / "TRUE_sonnets_held_out_dev.txt")
    floors = sonnet_floors(gold, load_sonnets(real_data / "sonnets.txt"), draws=25)
    assert floors["prompt alone"]["chrF whole"] == (pytest.approx(24.8, abs=0.05), 0)
    mean, deviation = floors["random training tail"]["chrF whole"]
    assert mean == pytest.approx(41.5, abs=0.6) and 0.1 < deviation < 0.7
    assert floors["random training tail"]["14 lines"][0] > 0.9


def test_mean_and_deviation():
    rows = [{"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 5.0}, {"a": 6.0, "b": 5.0}]
    assert mean_and_deviation(rows) == {"a": (3.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2))), "b": (5.0, 0.0)}
    assert mean_and_deviation(rows[:1]) == {"a": (1.0, 0.0), "b": (5.0, 0.0)}


# --- predictions ------------------------------------------------------------------------------------------------------


class EvenLengthsAreParaphrases(torch.nn.Module):
    """Says yes where a row has an even number of real tokens, with logits that look nothing like 0 and 1."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, input_ids, attention_mask):
        assert not self.training and not torch.is_grad_enabled()
        assert input_ids.shape == attention_mask.shape
        even = attention_mask.sum(dim=1) % 2 == 0
        return torch.where(even[:, None], torch.tensor([-900.0, -7.0]), torch.tensor([5.0, 4.5])) * self.weight


def test_model_eval_paraphrase_gives_token_ids_in_the_loaders_order(tokenizer_folder):
    draw = random.Random(0)
    rows = [("a" * draw.randint(1, 30), "b" * draw.randint(1, 30), draw.randint(0, 1), f"id {i}") for i in range(43)]
    dataset = ParaphraseDetectionDataset(rows, load_tokenizer(tokenizer_folder))
    batches = LengthGroupedBatches(dataset, batch_size=4)
    order = [identifier for batch in batches for identifier in batch["sent_ids"]]
    assert order != [row[3] for row in rows]  # the longest come first

    labels = {row[3]: {0: 3919, 1: 8505}[row[2]] for row in rows}
    answers = {row[3]: 8505 if length % 2 == 0 else 3919 for row, length in zip(rows, dataset.lengths, strict=True)}
    model = EvenLengthsAreParaphrases().train()
    score, f1, predictions, truths, ids = model_eval_paraphrase(batches, model, torch.device("cpu"))
    assert ids == order
    assert predictions == [answers[identifier] for identifier in ids]
    assert truths == [labels[identifier] for identifier in ids]
    assert set(predictions) == set(truths) == {3919, 8505}
    assert score == pytest.approx(accuracy_score(truths, predictions))
    assert f1 == pytest.approx(f1_score(truths, predictions, average="macro"))
    assert predict_paraphrase(batches, model, "cpu") == (order, predictions)


def test_model_eval_paraphrase_takes_the_courses_own_loader(tokenizer_folder):
    """A plain torch DataLoader, as course scripts build it, with labels in a column."""
    rows = [("a", "b" * length, length % 2, str(length)) for length in range(1, 8)]
    dataset = ParaphraseDetectionDataset(rows, load_tokenizer(tokenizer_folder))

    def collate(items):
        batch = dataset.collate_fn(items)
        return batch | {"labels": batch["labels"][:, None]}

    loader = torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=collate)
    _, _, predictions, truths, ids = model_eval_paraphrase(loader, EvenLengthsAreParaphrases(), torch.device("cpu"))
    assert ids == [row[3] for row in rows]
    assert truths == [8505 if row[2] else 3919 for row in rows]
    assert predictions == [8505 if length % 2 == 0 else 3919 for length in dataset.lengths]


# --- hand-in formats, typed from the course's description -------------------------------------------------------------


def test_prediction_file_byte_for_byte():
    text = format_answers(
        "Predicted_Is_Paraphrase", ["b 2", "a1", "c"], {"a1": 3919, "b 2": 8505, "c": 8505}, ANSWERS.values()
    )
    assert text.encode() == b"id \t Predicted_Is_Paraphrase \nb 2, 8505 \na1, 3919 \nc, 8505 \n"


def test_sonnet_file_byte_for_byte_and_readable_again(tmp_path):
    sonnets = ["First, line\n  second line\nthird", "Other\nlines"]
    text = format_sonnets(sonnets)
    assert text.encode() == (
        b"--Generated Sonnets-- \n\n\n0\nFirst, line\n  second line\nthird\n\n\n1\nOther\nlines\n\n"
    )
    (tmp_path / "out.txt").write_text(text, encoding="utf-8")
    assert load_sonnets(tmp_path / "out.txt") == sonnets


def test_a_loss_worse_than_guessing_is_told():
    assert absurdity(math.log(50257), 50257) is None and absurdity(3.0, 100) is None
    assert absurdity(11.0, 50257).startswith("warning: perplexity 59874 is worse than guessing among 50257 tokens")


def test_what_trees_over_word_overlap_look_at():
    found = overlap_features("how old is he ?", "how old are you ?")
    assert found == [3 / 7, 3 / 5, 3 / 5, 0, 10, True, False, 1 / 5, 2, 2, 3]
    assert overlap_features("", "") == [0, 0, 0, 0, 0, True, True, 0, 0, 0, 0]


def test_trees_over_word_overlap_tell_common_words_and_nothing_else():
    draw = random.Random(3)
    words = [f"w{number}" for number in range(500)]

    def row(label):
        first, other = draw.sample(words, 6), draw.sample(words, 6)
        return " ".join(first), " ".join(first[:5] + other[:1] if label else other), label

    training, asked = ([row(number % 2) for number in range(size)] for size in (200, 40))
    chances = word_overlap(training, asked)
    assert all((chance > 0.5) == label for chance, (*_, label) in zip(chances, asked, strict=True))
    assert word_overlap([("a", "b", 1)] * 3, asked) == [1.0] * 40  # one answer is all that they have seen

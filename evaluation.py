"""Scores: accuracy, macro-F1, perplexity, BLEU, and chrF (Popovic 2015, by sacrebleu), with the floors they need.

chrF over whole sonnets rewards the three lines that were given: the prompt alone already has some, and the prompt plus
the end of any training sonnet nearly as much as a good model. So a chrF is only reported beside those floors.
"""

import functools
import itertools
import math
import random
import statistics
from collections import Counter, defaultdict

import numpy as np
import torch
from sacrebleu.metrics import BLEU, CHRF

from config import ANSWERS, SonnetData
from datasets.batching import run_in_parts
from datasets.sonnets import SONNET_LINES, head_of, lines_of, load_sonnets, tail_of
from errors import Diverged, UserError, check


def accuracy(predictions, truths):
    """The share of equal entries, in [0, 1]."""
    return sum(p == t for p, t in zip(predictions, truths, strict=True)) / len(truths)


def macro_f1(predictions, truths):
    """The mean over all classes that occur of 2 TP / (2 TP + FP + FN)."""
    pairs = list(zip(predictions, truths, strict=True))
    scores = []
    for label in set(predictions) | set(truths):
        hits = sum(p == t == label for p, t in pairs)
        errors = sum((p == label) != (t == label) for p, t in pairs)  # FP + FN
        scores.append(2 * hits / (2 * hits + errors))
    return sum(scores) / len(scores)


def commonest(truths):
    """The answer that most of them have, the first of equals: given always, it is the floor of every classification."""
    return Counter(truths).most_common(1)[0][0]


def perplexity(mean_loss):
    """exp of a mean loss in nats a token; infinity where that overflows."""
    return math.exp(mean_loss) if mean_loss < 700 else math.inf


def absurdity(mean_loss, vocab_size):
    """A line that says so where a loss (nats a token) is finite but worse than guessing among all tokens; else None."""
    if mean_loss <= math.log(vocab_size):
        return None
    return (
        f"warning: perplexity {perplexity(mean_loss):.0f} is worse than guessing among {vocab_size} tokens: is --lr "
        "too high, or the tokenizer another model's?"
    )


@torch.no_grad()
def predict_paraphrase(loader, model, device):
    """(ids, predictions) over a loader's batches; predictions are token ids, those of "no" and "yes".

    The model may put out two logits (no, yes) or, as the course's skeleton does, logits over the whole vocabulary.
    """
    return predict(_answers, loader, model, device)


def predict(answers_of, loader, model, device):
    """(ids, what answers_of(model, batch, device) gives for their rows) over a loader's batches."""
    model.eval()
    ids, predictions = [], []
    for batch in loader:
        parts = run_in_parts(lambda part: answers_of(model, part, device), batch)
        predictions += [answer for part in parts for answer in part]
        ids += batch["sent_ids"]
    return ids, predictions


def logits_of(model, batch, device):
    """What a classifying model puts out for a batch, given what some batches have besides."""
    more = {name: batch[name].to(device) for name in ("token_type_ids", "vectors") if name in batch}
    return model(batch["token_ids"].to(device), batch["attention_mask"].to(device), **more)


def _answers(model, batch, device):
    logits = logits_of(model, batch, device)
    chosen = _most_probable(logits, batch["sent_ids"])
    return [answer_token(index) for index in chosen] if logits.size(-1) == 2 else chosen


def _most_probable(logits, ids):
    """The index of each row's largest logit. Raises Diverged, naming an id, where a row has one that is not finite."""
    best, chosen = logits.max(dim=-1)  # NaN where a row has one
    bad = [str(row) for row, value in zip(ids, best.tolist(), strict=True) if not math.isfinite(value)]
    if bad:
        raise Diverged(f"the model's logits are not finite for {len(bad)} rows, first {bad[0]}: no answer is written")
    return chosen.tolist()


def answer_token(label):
    """0 -> the token of "no", 1 -> that of "yes"."""
    return tuple(ANSWERS.values())[label]


def model_eval_paraphrase(loader, model, device):
    """(accuracy, macro-F1, predictions, truths, ids) over a loader with labels; both as token ids, in loader order.

    Labels may be 0 and 1, as our datasets give them, or token ids already.
    """
    truths = []

    def batches():
        for batch in loader:
            labels = batch["labels"].flatten().tolist()
            truths.extend(answer_token(label) if label in (0, 1) else label for label in labels)
            yield batch

    ids, predictions = predict_paraphrase(batches(), model, device)
    return accuracy(predictions, truths), macro_f1(predictions, truths), predictions, truths, ids


def model_test_paraphrase(loader, model, device):
    """(predictions, ids) over a loader without labels, the predictions as token ids: what the course's scripts call."""
    ids, predictions = predict_paraphrase(loader, model, device)
    return predictions, ids


def test_sonnet(test_path=SonnetData.sonnet_dev_out, gold_path=SonnetData.gold_sonnet_path):
    """The course's score: the chrF of a file of generated sonnets against the whole ones, the given lines included.

    What such a figure is worth, `sonnet_floors` says. Raises UserError where one file holds more than the other.
    """
    generated, gold = load_sonnets(test_path), load_sonnets(gold_path)
    pairs = len(generated) == len(gold)
    check(
        pairs, f"{test_path} holds {len(generated)} sonnets, {gold_path} {len(gold)}: give files that belong together"
    )
    return chrf(generated, gold)


@torch.no_grad()
def predict_sentiment(loader, model, device):
    """(ids, predictions) over a loader's batches; predictions are classes, 0, 1, ..."""
    return predict(_classes, loader, model, device)


def _classes(model, batch, device):
    return _most_probable(logits_of(model, batch, device), batch["sent_ids"])


def model_eval(loader, model, device):
    """The course's: (accuracy, macro-F1, predictions, truths, sentences, ids) over a loader with labels, in order."""
    truths, sentences = [], []

    def batches():
        for batch in loader:
            truths.extend(batch["labels"].flatten().tolist())
            sentences.extend(batch["sents"])
            yield batch

    ids, predictions = predict_sentiment(batches(), model, device)
    return accuracy(predictions, truths), macro_f1(predictions, truths), predictions, truths, sentences, ids


def model_test_eval(loader, model, device):
    """The course's: (predictions, sentences, ids) over a loader without labels, in order."""
    sentences = []

    def batches():
        for batch in loader:
            sentences.extend(batch["sents"])
            yield batch

    ids, predictions = predict_sentiment(batches(), model, device)
    return predictions, sentences, ids


def bag_of_words(training, sentences):
    """The classes that a logistic regression over word counts gives the sentences: what needs no GPT-2 at all.

    training: rows (sentence, label, ...). A word is what white space divides; the regularisation is scikit-learn's own
    (C = 1), nothing is tuned. Raises UserError without scikit-learn.
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UserError("the bag of words needs scikit-learn: pip install -r requirements-extra.txt") from error
    labels = [row[1] for row in training]
    if len(set(labels)) == 1:  # which no regression takes
        return [labels[0]] * len(sentences)
    words = CountVectorizer(token_pattern=r"\S+")
    counts = words.fit_transform([row[0] for row in training])
    return LogisticRegression(max_iter=1000).fit(counts, labels).predict(words.transform(sentences)).tolist()


def overlap_features(first, second):
    """Eleven numbers of a pair of questions; the first is the share of common words among all of either's."""
    a, b = first.split(), second.split()
    words_a, words_b = set(a), set(b)
    common = len(words_a & words_b)
    pairs = len(set(itertools.pairwise(a)) & set(itertools.pairwise(b)))
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


def word_overlap(training, pairs):
    """The chance that each pair of questions asks the same, by trees that count common words: no GPT-2 at all.

    training: rows (first, second, label, ...); pairs: rows (first, second, ...). Gradient-boosted trees (scikit-learn,
    150 at a rate of 0.05) over `overlap_features`; nothing is tuned. Raises UserError without scikit-learn.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError as error:
        raise UserError("trees over word overlap need scikit-learn: pip install -r requirements-extra.txt") from error
    labels = [row[2] for row in training]
    if len(set(labels)) == 1:  # which no trees take
        return [float(labels[0])] * len(pairs)
    measured, asked = (
        np.array([overlap_features(*row[:2]) for row in rows], dtype=float) for rows in (training, pairs)
    )
    trees = HistGradientBoostingClassifier(random_state=0, max_iter=150, learning_rate=0.05).fit(measured, labels)
    return trees.predict_proba(asked)[:, 1].tolist()


def chrf(hypotheses, references):
    """Corpus chrF (character n-grams up to 6, beta 2), in [0, 100]."""
    return _chrf_against(tuple(references)).corpus_score(hypotheses, None).score


@functools.lru_cache(maxsize=4)
def _chrf_against(references):
    """The metric with the references' n-grams counted: floors and bootstraps ask for the same ones again and again."""
    return CHRF(references=[references])


def bleu(hypotheses, references, tokenize="13a"):
    """(corpus BLEU-4 in [0, 100], sacrebleu's signature) (Papineni et al. 2002; Post 2018)."""
    metric = BLEU(tokenize=tokenize)
    return metric.corpus_score(hypotheses, [references]).score, str(metric.get_signature())


def translation_floors(pairs, training):
    """Translations that take no model: {name: [text]}: the source itself, and the translation of the training sentence
    that shares the largest share of words with it (Jaccard; the first of equals)."""
    postings, bags = defaultdict(list), [set(source.split()) for source, _ in training]
    for place, bag in enumerate(bags):
        for word in bag:
            postings[word].append(place)
    nearest = []
    for source, _ in pairs:
        bag = set(source.split())
        shared = Counter(place for word in bag for place in postings[word])
        best = max(shared, key=lambda place: (shared[place] / len(bag | bags[place]), -place), default=0)
        nearest.append(training[best][1] if training else "")
    floors = {"source as it is": [source for source, _ in pairs]}
    return floors | ({"nearest training sentence": nearest} if training else {})


def score_sonnets(generated, gold):
    """{"chrF whole", "chrF continuation", "14 lines"}: the last is the share of texts with exactly 14 lines."""
    return {
        "chrF whole": chrf(generated, gold),
        "chrF continuation": chrf([tail_of(text) for text in generated], [tail_of(text) for text in gold]),
        "14 lines": sum(len(lines_of(text)) == SONNET_LINES for text in generated) / len(generated),
    }


def sonnet_floors(gold, training, draws=100, seed=0):
    """What one gets without writing anything: {name: {figure: (mean, deviation)}}.

    "prompt alone" hands in the three given lines; "random training tail" adds lines 4 to 14 of a training sonnet.
    """
    prompts = [head_of(sonnet) for sonnet in gold]
    picks, rows = random.Random(seed), []
    for _ in range(draws):
        texts = [f"{prompt}\n{tail_of(picks.choice(training))}" for prompt in prompts]
        rows.append(score_sonnets(texts, gold))
    return {
        "prompt alone": {"chrF whole": (chrf(prompts, gold), 0.0)},
        "random training tail": mean_and_deviation(rows),
    }


def mean_and_deviation(rows):
    """[{figure: value}] -> {figure: (mean, standard deviation)}; the deviation of a single row is 0."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: (statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for name, values in columns.items()
    }


def resample_counts(size, number=1000, seed=0):
    """(number, size): how often each item is in each of `number` sets of as many, drawn from them with replacement.

    What a draw does to a score depends on nothing else, so no item is scored twice. Two systems' scores of the same
    draws make a paired bootstrap (Koehn 2004).
    """
    return np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), number)


def texts_resampled(metric, hypotheses, references, counts):
    """The corpus score of each resample. metric: one of sacrebleu's; counts: as from `resample_counts`.

    (sacrebleu's own bootstrap keeps the scores of its draws to itself; the statistics of texts add up.)
    """
    statistics = np.array(metric._extract_corpus_statistics(hypotheses, [references]))
    return np.array([metric._compute_score_from_stats(total.tolist()).score for total in counts @ statistics])


def interval(scores):
    """The ends of the middle 95 % of the scores of all resamples."""
    low, high = np.quantile(scores, (0.025, 0.975))
    return float(low), float(high)

"""The sections of a report, and the page that they make: one HTML file that needs nothing else."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader

from config import ANSWERS, CLASSES, SonnetSettings
from datasets import (
    ParaphraseDetectionDataset,
    load_paraphrase_data,
    load_sentiment_data,
    load_sonnets,
    load_tokenizer,
)
from datasets.paraphrase import PROMPT
from datasets.sentiment import SentimentDataset
from datasets.sonnets import head_of
from decoding.writer import SonnetWriter
from errors import UserError
from reporting import plots
from reporting.measures import (
    alignment,
    attention_weights,
    class_probabilities,
    final_ranks,
    low_rank_updates,
    pooling_weights,
    reliability,
    token_losses,
)

MOST_NATS = 10.0  # the loss of a token with the deepest shade
MOST_TOKENS = 40  # of a text whose attention is drawn
SONNETS, MISTAKES = 3, 10  # shown
ANY_TEXT = "The cat sat on the mat, and the dog saw that it did."  # for attention, where there is nothing better


@dataclass
class Section:
    """items: [(kind, item)], as page.html knows them: "plot", "text", "table", "texts"."""

    title: str
    items: list = field(default_factory=list)


@dataclass
class Table:
    caption: str
    head: list
    rows: list


@dataclass
class Shaded:
    """A text whose pieces have a shade in [0, 1] and a hint each."""

    caption: str
    pieces: list


def write_page(sections, title, footer):
    """The HTML of a page."""
    folder = Path(__file__).parent
    template = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return template.get_template("page.html").render(sections=sections, title=title, footer=footer)


def plots_of(sections):
    return [item for section in sections for kind, item in section.items if kind == "plot"]


# --- what every run has -----------------------------------------------------------------------------------------------


def course_of_training(lines, task=None):
    """Curves of loss, rate and dev figures, runs over one another.

    lines: {run's name: its metrics.jsonl's lines}. task: theirs, where the page shows several.
    """
    tag = f"-{task}" if task else ""
    steps = {name: [line for line in mine if "loss" in line] for name, mine in lines.items()}
    epochs = {name: [line for line in mine if "train_loss" in line] for name, mine in lines.items()}
    section = Section(f"Training: {task}" if task else "Training")
    for key, title in (("loss", "Training loss"), ("lr", "Learning rate")):
        series = {name: [(line["step"], line[key]) for line in mine] for name, mine in steps.items() if mine}
        if series:
            section.items.append(("plot", plots.curves(key + tag, title, series, "step", key)))
    figures = dict.fromkeys(key for mine in epochs.values() for line in mine for key in line if key.startswith("dev "))
    for key in figures:
        series = {name: [(line["epoch"], line[key]) for line in mine if key in line] for name, mine in epochs.items()}
        series = {name: points for name, points in series.items() if points}
        section.items.append(
            ("plot", plots.curves(key.replace(" ", "-") + tag, key.capitalize(), series, "epoch", key))
        )
    if not section.items:
        section.items.append(("text", "These runs have not trained a step."))
    return section


def final_table(reports):
    """reports: {run's name: its report.json}."""
    section = Section("Figures")
    names = dict.fromkeys(figure for report in reports.values() for figure in report.get("figures", {}))
    rows = [[figure, *(r.get("figures", {}).get(figure, "-") for r in reports.values())] for figure in names]
    if rows:
        section.items.append(("table", Table("figures of the runs", ["", *reports], rows)))
    else:
        section.items.append(("text", "No run has come to its end yet."))
    for name, report in reports.items():
        scores = report.get("scores", {})
        columns = list(dict.fromkeys(column for row in scores.values() for column in row))
        if scores:
            rows = [[row, *(_score(values.get(column)) for column in columns)] for row, values in scores.items()]
            section.items.append(("text", f"Scores of {name}, mean ± deviation:"))
            section.items.append(("table", Table(f"scores of {name}", ["", *columns], rows)))
    return section


def _score(value):
    if isinstance(value, list):
        return f"{value[0]:.2f} ± {value[1]:.2f}"
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


# --- what hangs on the task -------------------------------------------------------------------------------------------


def of_task(name, opened, part, options):
    """The sections on a model and its task.

    opened: (Assembly, model, settings, score). part: of a script with parts, which one. options: those of report.py.
    """
    tuned, model, settings, _ = opened
    tokenizer = load_tokenizer(tuned.folder)
    try:
        if isinstance(settings, SonnetSettings):
            section, text = _sonnets(name, model, tokenizer, settings)
        else:
            data = _dev_rows(model, tokenizer, settings, part, options.rows)
            section, shown = _answers(name, model, data, settings)
            dataset, _, texts, _ = data
            text = texts[shown]
            section.items += _pooling(model, tokenizer, text) + _alignment(model, tokenizer, dataset, shown)
    except UserError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        section, text = Section(f"Dev data of {name}", [("text", f"Left out: {error}.")]), ANY_TEXT
    updates = _updates(name, model.gpt)
    text = text if options.text is None else options.text
    return [section, _attention(name, model, tokenizer, text), *([updates] if updates else [])]


def _sonnets(name, model, tokenizer, settings):
    """Written anew beside gold: (Section, the text whose attention is drawn by default)."""
    gold = load_sonnets(settings.data.gold_sonnet_path)
    decoding, seed = settings.decoding, settings.training.seed
    section = Section(f"Sonnets of {name}")
    if decoding.decode == "template":
        written = []
        section.items.append(("text", "The run's templates are not filled here: gold alone."))
    else:
        writer = SonnetWriter(model.gpt, tokenizer, decoding, settings.inference.eval_batch_size)
        written = [best.text for best, *_ in writer.write([head_of(sonnet) for sonnet in gold[:SONNETS]], seed)]
    section.items.append(
        ("text", "The first dev sonnets, completed anew in fp32 with the run's decoding and seed, beside gold. The "
                 "darker a token, the less the model expected it; the shade ends at 10 nats.")
    )  # fmt: skip
    for place, sonnet in enumerate(gold[:SONNETS]):
        pair = [_by_loss(f"Gold, sonnet {place + 1}", model, tokenizer, sonnet)]
        if written:
            pair.insert(0, _by_loss(f"Model, sonnet {place + 1}", model, tokenizer, written[place]))
        section.items.append(("texts", pair))
    return section, head_of(gold[0])


def _by_loss(caption, model, tokenizer, text):
    losses = token_losses(model, tokenizer, text)
    known = [loss for _, loss in losses if loss is not None]
    shaded = [
        (piece, min(loss or 0.0, MOST_NATS) / MOST_NATS, "given" if loss is None else f"{loss:.2f} nats")
        for piece, loss in losses
    ]
    return Shaded(f"{caption}: {sum(known) / max(1, len(known)):.2f} nats a token", shaded)


def _dev_rows(model, tokenizer, settings, part, most):
    """(dataset, the rows as people read them, as the model reads them, what its classes are called)."""
    context = model.gpt.context
    if part:
        rows = load_sentiment_data(getattr(settings.data, f"{part}_dev"), CLASSES[part], "dev")[:most]
        sentences = [row[0] for row in rows]
        return SentimentDataset(rows, tokenizer, context), sentences, sentences, list(map(str, range(CLASSES[part])))
    rows = load_paraphrase_data(settings.data.para_dev, split="dev")[:most]
    pairs = [f"{first} / {second}" for first, second, *_ in rows]
    prompts = [PROMPT.format(first=first, second=second) for first, second, *_ in rows]
    return ParaphraseDetectionDataset(rows, tokenizer, context, model.aligns), pairs, prompts, list(ANSWERS)


def _answers(name, model, data, settings):
    """Confusions, calibration, mistakes: (Section, the row of the worst mistake). data: as from `_dev_rows`."""
    dataset, shown, _, answers = data
    p = class_probabilities(model, dataset, settings.inference.eval_batch_size)
    (confidence, chosen), truths = p.max(dim=-1), dataset.labels
    confidence, chosen = confidence.tolist(), chosen.tolist()
    wrong = [place for place, (c, t) in enumerate(zip(chosen, truths, strict=True)) if c != t]
    wrong = sorted(wrong, key=lambda place: -confidence[place])[:MISTAKES]
    right = sum(c == t for c, t in zip(chosen, truths, strict=True))
    counts = Counter(zip(truths, chosen, strict=True))
    confusions = {
        (f"is {one}", f"said {other}"): counts[i, j] for i, one in enumerate(answers) for j, other in enumerate(answers)
    }
    is_, said = [f"is {one}" for one in answers], [f"said {one}" for one in answers]
    bins, error = reliability(p, truths)
    section = Section(f"Answers of {name}")
    section.items += [
        ("text", f"The first {len(truths)} dev rows in fp32: {right} right, {right / len(truths):.4f}."),
        ("plot", plots.grid(f"confusion-{name}", "Confusion matrix", is_, said, confusions, "{:d}")),
        ("plot", plots.reliability_diagram(f"reliability-{name}", f"Reliability (ECE {error:.3f})", bins, error)),
    ]
    if wrong:
        rows = [[shown[i], answers[truths[i]], answers[chosen[i]], f"{confidence[i]:.3f}"] for i in wrong]
        section.items.append(("text", "The most confident mistakes:"))
        section.items.append(("table", Table("mistakes", ["row", "is", "said", "probability"], rows)))
    return section, wrong[0] if wrong else 0


def _pooling(model, tokenizer, text):
    """What each head of the pooling takes of each token, where it has weights; [] where it has none."""
    found = pooling_weights(model, tokenizer, text)
    return [("texts", [_by_weight(head, found) for head in range(len(found[1]))])] if found else []


def _alignment(model, tokenizer, dataset, row):
    """What each token of a pair's questions finds in the other one, where the pooling aligns them; [] elsewhere."""
    if not hasattr(model.pooling, "align"):
        return []
    shaded = [
        (piece, 0.0, "") if best is None else (piece, min(1.0, max(0.0, 1 - cosine)), f"{best.strip()} {cosine:.2f}")
        for piece, best, cosine in alignment(model, tokenizer, dataset.token_ids[row], dataset.token_types[row])
    ]
    caption = "What aligned pooling finds of each token in the other question: the darker, the less (1 - cosine)"
    return [("texts", [Shaded(caption, shaded)])]


def _by_weight(head, found):
    words, weights = found
    top = weights[head].max().item()
    shaded = [(word, w / top, f"weight {w:.3f}") for word, w in zip(words, weights[head].tolist(), strict=True)]
    return Shaded(f"What pooling takes of each token, head {head + 1} (at most {top:.3f})", shaded)


# --- what hangs on the model ------------------------------------------------------------------------------------------


def _attention(name, model, tokenizer, text):
    words, weights = attention_weights(model.gpt, tokenizer, text, MOST_TOKENS)
    section = Section(f"Attention of {name}")
    section.items.append(
        ("text", "Each square: a token (down) looks at those before it (across); brightness is the square root of the "
                 "weight. The text, token by token: " + " | ".join(word.strip() or "⏎" for word in words))
    )  # fmt: skip
    section.items.append(("plot", plots.attention_maps(f"attention-{name}", "Layers and heads", words, weights)))
    return section


def _updates(name, gpt2):
    """Norms and spectra of LoRA's updates, AdaLoRA's ranks; None where there are none."""
    updates = low_rank_updates(gpt2)
    if not updates:
        return None
    section = Section(f"Updates of {name}")
    layers = [f"layer {number + 1}" for number in sorted({layer for layer, _ in updates})]
    linears = list(dict.fromkeys(linear for _, linear in updates))
    norms = {(f"layer {layer + 1}", linear): norm for (layer, linear), (_, norm) in updates.items()}
    title = "Norm of each update over the norm of its weight"
    section.items.append(("plot", plots.grid(f"update-norms-{name}", title, layers, linears, norms)))
    lines = {}
    for linear in linears:
        shares = [torch.tensor(v) / max(v[0], 1e-30) for (_, mine), (v, _) in updates.items() if mine == linear]
        lines[linear] = torch.stack(shares).mean(dim=0).tolist()
    rank = max(map(len, lines.values()))
    title = f"Singular values of the updates, mean over layers (is rank {rank} used?)"
    section.items.append(("plot", plots.spectra(f"spectra-{name}", title, lines)))
    if ranks := final_ranks(gpt2):
        values = {(f"layer {layer + 1}", linear): rank for (layer, linear), rank in ranks.items()}
        section.items.append(("plot", plots.grid(f"ranks-{name}", "Final ranks", layers, linears, values, "{:d}")))
    return section

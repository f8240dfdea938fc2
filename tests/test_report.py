"""report.py: what it looks at in a model, held to transformers and to plain loops; the page, in a browser, too."""

import html.parser
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers

import classifier
import paraphrase_detection
import sonnet_generation
from config import TUNING_METHODS, PairPoolingSettings, PoolingSettings
from datasets import ParaphraseDetectionDataset, load_tokenizer
from errors import UserError
from models.gpt2 import GPT2Model
from models.paraphrase_gpt import ParaphraseGPT
from models.sonnet_gpt import SonnetGPT
from report import main, names_of, parse
from reporting.measures import (
    alignment,
    attention_weights,
    final_ranks,
    low_rank_updates,
    pooling_weights,
    reliability,
    token_losses,
)
from reporting.page import Section, Shaded, Table, write_page
from reporting.plots import curves
from tests.inputs import run, without
from tests.tuned import CHOICES
from tuning.attach import attach

TEXT = "noon yonder hen,\nyonder hen bee"


@pytest.fixture
def tokenizer(model_folder):
    return load_tokenizer(model_folder)


def test_losses_of_tokens_add_up_to_the_models(model_folder, tokenizer):
    model = SonnetGPT(GPT2Model.from_pretrained(str(model_folder))).eval()
    losses = token_losses(model, tokenizer, TEXT)
    ids = torch.tensor([tokenizer.encode(TEXT).ids])
    total, count = model(ids, torch.ones_like(ids), return_loss=True)
    assert "".join(piece for piece, _ in losses) == TEXT and losses[0][1] is None and count == len(losses) - 1
    assert sum(loss for _, loss in losses[1:]) == pytest.approx(total.item(), rel=1e-5)
    assert len(token_losses(model, tokenizer, 400 * TEXT)) == model.gpt.context


def test_attention_is_that_of_transformers(model_folder, tokenizer):
    gpt2 = GPT2Model.from_pretrained(str(model_folder)).eval()
    theirs = transformers.GPT2Model.from_pretrained(model_folder, attn_implementation="eager").eval()
    ids = torch.tensor([tokenizer.encode(TEXT).ids])
    before = gpt2(ids, torch.ones_like(ids))["last_hidden_state"]
    words, weights = attention_weights(gpt2, tokenizer, TEXT, 40)
    with torch.no_grad():
        expected = torch.cat(theirs(ids, output_attentions=True).attentions)
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-5)
    assert "".join(words) == TEXT
    assert torch.equal(gpt2(ids, torch.ones_like(ids))["last_hidden_state"], before)  # nothing stays behind


@pytest.mark.parametrize("pooling", ["attention", "generalized"])
def test_pooling_weights_are_what_it_pools_with(model_folder, tokenizer, pooling):
    gpt2 = GPT2Model.from_pretrained(str(model_folder)).eval()
    model = ParaphraseGPT(gpt2, pooling=PoolingSettings(pooling=pooling)).eval()
    words, weights = pooling_weights(model, tokenizer, TEXT)
    ids = torch.tensor([tokenizer.encode(TEXT).ids])
    assert weights.shape == (1, len(words))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1))
    if pooling == "attention":
        hidden = gpt2(ids, torch.ones_like(ids))["last_hidden_state"]
        torch.testing.assert_close(weights @ hidden[0], model.pooling(hidden, torch.ones_like(ids))[0])
    assert pooling_weights(ParaphraseGPT(gpt2), tokenizer, TEXT) is None


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_singular_values_are_those_of_the_whole_update(gpt2, method):
    attach(gpt2, CHOICES[method])
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in gpt2.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    updates = low_rank_updates(gpt2)
    assert updates
    for (layer, linear), (values, norm) in updates.items():
        parent = gpt2.gpt_layers[layer]
        module = getattr(parent.self_attention if linear in ("query", "key", "value") else parent, linear)
        update = module.merged().weight - module.weight
        expected = torch.linalg.svdvals(update.detach())[: len(values)]
        torch.testing.assert_close(torch.tensor(values), expected, atol=1e-4, rtol=1e-4)
        assert norm == pytest.approx((update.norm() / module.weight.norm()).item(), rel=1e-4)
    ranks = final_ranks(gpt2)
    assert set(ranks) == (set(updates) if method == "adalora" else set())


def test_reliability_is_counted_as_by_hand():
    p = torch.tensor([[0.95, 0.05], [0.91, 0.09], [0.35, 0.65], [0.5, 0.5], [0.0, 1.0]])
    bins, error = reliability(p, [0, 1, 1, 0, 1])
    assert [(low, count) for low, count, *_ in bins] == [(0.5, 1), (0.6, 1), (0.9, 3)]
    assert bins[2][2:] == (pytest.approx((0.95 + 0.91 + 1.0) / 3), pytest.approx(2 / 3))
    by_hand = (abs(0.5 - 1) + abs(0.65 - 1) + 3 * abs((0.95 + 0.91 + 1.0) / 3 - 2 / 3)) / 5
    assert error == pytest.approx(by_hand)


# --- the page ---------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """What a page holds: headings, alternative texts, whatever it would load, and whether its elements are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.alts, self.loads, self.scripts = [], [], [], [], 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.scripts += tag == "script"
        links = [values.get(name) for name in ("src", "href", "xlink:href")]
        self.loads += [link for link in links if link and not link.startswith(("#", "data:"))]
        self.alts += [values["aria-label"]] if tag == "svg" else []
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def make(folders, *more):
    main(parse([*map(str, folders), "--out", "page.html", *more]))
    text = Path("page.html").read_text(encoding="utf-8")
    return Page(text), text


def test_sonnets(sonnet_flags, tmp_path, capsys):
    for number, rank in enumerate(("2", "3")):
        more = ["--lora", "--lora_rank", rank, "--run_dir", f"lora-{number}"]
        run(sonnet_generation, [*sonnet_flags, *more])
    page, text = make(["lora-0", "lora-1"], "--png", "png", "--text", "hen & <b>noon</b>")
    assert page.headings[:2] == ["Figures", "Training"] and "Updates of lora-1" in page.headings
    assert not page.loads and not page.scripts and all(page.alts)
    assert "&lt;" in text and "<b" not in text.replace("<body", "")
    assert re.search(r"Model, sonnet 1: \d+\.\d\d nats a token", text) and "is rank 3 used?" in text
    drawn = {file.name for file in (tmp_path / "png").iterdir()}
    assert {"loss.png", "lr.png", "dev-loss.png", "spectra-lora-0.png", "attention-lora-1.png"} <= drawn
    assert len(drawn) == len(page.alts)
    assert all((tmp_path / "png" / name).read_bytes().startswith(b"\x89PNG") for name in drawn)
    assert "page.html: 8 sections" in capsys.readouterr().out


@torch.no_grad()
def test_alignment_is_what_aligned_pooling_compares(writer_model, mini_tokenizer):
    """A word that comes back finds itself; what stands in no question finds nothing."""
    model = ParaphraseGPT(writer_model, pooling=PairPoolingSettings(pooling="aligned")).eval()
    rows = [("how old is it ?", "is it old ?", 0, "a"), ("why ?", "", 0, "b")]
    dataset = ParaphraseDetectionDataset(rows, mini_tokenizer, token_types=True)
    for row in range(2):
        ids, types = dataset.token_ids[row], dataset.token_types[row]
        found = alignment(model, mini_tokenizer, ids, types)
        assert [piece for piece, _, _ in found] == [mini_tokenizer.decode([token]) for token in ids.tolist()]
        assert [best is not None for _, best, _ in found] == [bool(kind) and row == 0 for kind in types.tolist()]
        again = [(piece, best, cosine) for piece, best, cosine in found if piece == best]
        assert [piece for piece, _, _ in again].count(" old") == 2 * (row == 0)
        assert all(cosine > 0.9 for _, _, cosine in again)


@pytest.mark.slow
def test_pairs_and_reviews(pair_flags, review_flags, capsys):
    run(paraphrase_detection, [*pair_flags, "--pooling", "attention", "--head", "linear", "--run_dir", "pairs"])
    run(classifier, [*review_flags, "--run_dir", "reviews"])
    run(paraphrase_detection, [*pair_flags, "--pooling", "aligned", "--run_dir", "aligned"])
    assert "What aligned pooling finds of each token in the other question" in make(["aligned"])[1]
    page, text = make(["pairs", "reviews/sst"], "--rows", "5")
    assert {"Training: paraphrase_detection", "Training: classifier", "Answers of sst"} <= set(page.headings)
    assert "is 4" in text and "said yes" in text and "What pooling takes of each token" in text
    assert "The first 5 dev rows in fp32" in text


@pytest.mark.slow
def test_without_its_data_a_run_still_has_a_page(sonnet_flags, tmp_path):
    run(sonnet_generation, [*sonnet_flags, "--lora", "--run_dir", "run"])
    (tmp_path / "gold.txt").unlink()
    page, text = make(["run"])
    assert "Left out: gold.txt does not exist" in text and "Attention of run" in page.headings


@pytest.mark.slow
@pytest.mark.parametrize("method", TUNING_METHODS)
def test_every_method_has_a_page(sonnet_flags, method):
    run(
        sonnet_generation, [*without(sonnet_flags, "--epochs"), "--epochs", "1", "--tuning", method, "--run_dir", "run"]
    )
    page, _ = make(["run"])
    assert "Attention of run" in page.headings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing is no run folder"),
        (["run", "--rows", "0"], "--rows must be at least 1"),
        (["run", "run"], "a run is named twice"),
        (["run", "--text", " "], "--text is empty"),
        (["run", "--out", "run"], "run is a folder|cannot write|run"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(sonnet_flags, lora_run, tmp_path, arguments, message):
    shutil.copytree(lora_run, "run")
    with pytest.raises(UserError, match=message):
        main(parse(arguments))
    assert not (tmp_path / "report.html").exists()


def test_runs_are_named_by_what_tells_them_apart():
    assert names_of(["runs/a/sst", "runs/b/sst"]) == ["a/sst", "b/sst"] and names_of(["runs/a"]) == ["a"]


def test_hostile_names_stay_text():
    evil = '"><script>alert(1)</script>'
    plot = curves("loss", "Loss", {evil: [(1, 2.0), (2, 1.0)]}, "step", "loss")
    items = [("plot", plot), ("text", evil), ("table", Table(evil, [evil], [[evil]])), ("texts", [[evil]])]
    items[-1] = ("texts", [Shaded(evil, [(evil, 0.5, evil)])])
    page = Page(write_page([Section(evil, items)], evil, evil))
    assert not page.scripts


def test_long_curves_are_smoothed():
    plot = curves("loss", "Loss", {"run": [(step, float(step % 2)) for step in range(1000)]}, "step", "loss")
    (axes,) = _drawn(plot).axes
    raw, smooth = (line.get_ydata() for line in axes.lines)
    assert len(raw) == len(smooth) == 1000 and max(smooth[100:]) < 0.6
    assert all(abs(a - b) < 0.6 for a, b in pairwise(smooth[20:]))


def _drawn(plot):
    return plot._figure("#000000")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here (Debian's package of that name)")
@pytest.mark.parametrize("width", [390, 1000])
def test_in_a_browser(sonnet_flags, tmp_path, width):
    run(sonnet_generation, [*sonnet_flags, "--lora", "--run_dir", "run"])
    make(["run"])
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--window-size={width},3000", "--screenshot=page.png", "page.html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
    assert (tmp_path / "page.png").stat().st_size > 20_000

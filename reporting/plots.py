"""The plots of a report, each drawn once: as SVG for the page and as PNG for a paper.

In the page a plot takes the page's own text colour, so that it is readable on light and on dark. No pyplot: nothing
global, no window.
"""

import html
import io
import re
import warnings
from dataclasses import dataclass
from itertools import cycle

import matplotlib
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reporting.measures import BINS

INK = "#123456"  # stands for the page's text colour
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")  # Okabe & Ito (2008)
# Fonts of Windows, macOS and Linux with letters that matplotlib's own has not: for names of runs in Korean
MORE_FONTS = ("Malgun Gothic", "Apple SD Gothic Neo", "NanumGothic", "Noto Sans CJK KR", "Noto Sans CJK JP")
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass
class Plot:
    """name: its own among those of a page. title: above it. alt: what it shows, for who does not see it.

    draw(figure, ink): draws it, ink being the colour of text and lines. size: inches.
    """

    name: str
    title: str
    alt: str
    draw: callable
    size: tuple = (7.0, 3.4)

    @property
    def file(self):
        """The name of its PNG."""
        return f"{self.name.replace('/', '-')}.png"

    def _figure(self, ink):
        with matplotlib.rc_context(STYLE | {key: ink for key, value in STYLE.items() if value == INK}):
            figure = Figure(self.size, layout="constrained")
            self.draw(figure, ink)
        return figure

    def svg(self):
        """An <svg> element for a page."""
        text = io.StringIO()
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": self.name}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # text stays text: the reader's fonts draw it
            figure = self._figure(INK)
            figure.patch.set_alpha(0.0)
            for axes in figure.axes:
                axes.patch.set_alpha(0.0)
            FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
        svg = text.getvalue()
        svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(self.alt)}"', 1)

    def png(self):
        """The bytes of a PNG on white, 200 dots an inch."""
        buffer, installed = io.BytesIO(), {font.name for font in font_manager.fontManager.ttflist}
        fonts = ["DejaVu Sans", *(name for name in MORE_FONTS if name in installed)]
        with matplotlib.rc_context({"font.family": fonts}):
            FigureCanvasAgg(self._figure("#000000")).figure.savefig(buffer, format="png", dpi=200, facecolor="white")
        return buffer.getvalue()


def curves(name, title, series, x, y):
    """Lines over steps or epochs. series: {label: [(x, y)]}."""

    def draw(figure, ink):
        axes = figure.subplots()
        for colour, (label, points) in zip(cycle(COLOURS), series.items(), strict=False):
            xs, ys = zip(*points, strict=True)
            smooth = _smoothed(ys)
            if smooth is not ys:
                axes.plot(xs, ys, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(xs, smooth, color=colour, label=label, marker="o" if len(xs) <= 30 else None, markersize=3)
        axes.set(xlabel=x, ylabel=y)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(series) > 1:
            figure.legend(loc="outside lower center", ncols=2)

    ends = "; ".join(f"{label}: from {ps[0][1]:.4g} to {ps[-1][1]:.4g}" for label, ps in series.items())
    height = 3.2 + 0.12 * len(series)
    return Plot(name, title, f"{title}: {y} over {x}. {ends}", draw, (7.0, height))


def _smoothed(values):
    """The running mean over a fiftieth of the values, where there are more than a hundred."""
    width = len(values) // 50
    if width < 2:
        return values
    smooth, total = [], 0.0
    for place, value in enumerate(values):
        total += value - (values[place - width] if place >= width else 0.0)
        smooth.append(total / min(width, place + 1))
    return smooth


def grid(name, title, rows, columns, values, form="{:.2g}"):
    """A table as colours with its numbers. values: {(row, column): number}; what is missing stays empty."""

    def draw(figure, ink):
        axes = figure.subplots()
        matrix = [[values.get((row, column), float("nan")) for column in columns] for row in rows]
        axes.imshow(matrix, cmap="cividis", aspect="auto")
        axes.set_xticks(range(len(columns)), [str(c) for c in columns], rotation=20 if len(columns) > 4 else 0)
        axes.set_yticks(range(len(rows)), [str(row) for row in rows])
        middle = (min(values.values()) + max(values.values())) / 2
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                if (row, column) in values:
                    colour = "white" if values[row, column] <= middle else "black"
                    text = form.format(values[row, column])
                    axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)

    top = max(values, key=values.get)
    alt = f"{title}. Largest: {form.format(values[top])} at {top[0]}, {top[1]}"
    return Plot(name, title, alt, draw, (7.0, 1.4 + 0.28 * len(rows)))


def reliability_diagram(name, title, bins, error):
    """bins, error: as from `measures.reliability`."""

    def draw(figure, ink):
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=ink, linestyle=":", label="as sure as right")
        axes.bar(
            [low + 0.5 / BINS for low, *_ in bins],
            [good for *_, good in bins],
            width=0.9 / BINS,
            color=COLOURS[0],
            label="right",
        )
        for low, count, _, good in bins:
            axes.text(low + 0.5 / BINS, good + 0.01, str(count), ha="center", fontsize=8)
        axes.set(xlabel="probability of the chosen answer", ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1.1))
        figure.legend(loc="outside lower center", ncols=2)

    shown = "; ".join(f"{low:.1f} and more: {count} rows, {good:.2f} right" for low, count, _, good in bins)
    return Plot(name, title, f"{title}, expected calibration error {error:.3f}. {shown}", draw, (7.0, 3.6))


def spectra(name, title, lines):
    """lines: {label: singular values over the largest one}."""

    def draw(figure, ink):
        axes = figure.subplots()
        for colour, (label, values) in zip(cycle(COLOURS), lines.items(), strict=False):
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, color=colour, label=label)
        axes.set(xlabel="singular value", ylabel="over the largest", ylim=(0, 1.05))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.legend(loc="outside lower center", ncols=3)

    shown = "; ".join(f"{label}: the last is {values[-1]:.2f} of the first" for label, values in lines.items())
    return Plot(name, title, f"{title}. {shown}", draw, (7.0, 3.6))


def attention_maps(name, title, words, weights):
    """A small map for every layer (down) and head (across). weights: (L, H, T, T)."""
    layers, heads = weights.shape[:2]

    def draw(figure, ink):
        panels = figure.subplots(layers, heads, squeeze=False)
        for layer in range(layers):
            for head in range(heads):
                axes = panels[layer][head]
                axes.imshow(weights[layer, head].sqrt(), cmap="viridis", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
                if layer == 0:
                    axes.set_title(str(head + 1), fontsize=8)
                if head == 0:
                    axes.set_ylabel(str(layer + 1), fontsize=8, rotation=0, ha="right", va="center")
        figure.supxlabel("head", fontsize=9)
        figure.supylabel("layer", fontsize=9)

    first = weights[..., 0].mean(dim=-1)
    layer, head = divmod(int(first.flatten().argmax()), heads)
    alt = (
        f"{title}: {layers} layers of {heads} heads over {len(words)} tokens. Head {head + 1} of layer {layer + 1} "
        f"looks most at the first token ({first[layer, head]:.2f} on average)"
    )
    return Plot(name, title, alt, draw, (7.0, max(1.6, 7.0 * layers / heads + 0.4)))

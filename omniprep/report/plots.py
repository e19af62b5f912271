"""The plots of a dataset, by matplotlib: SVG that follows the page's theme, or PNG for a dataset card.

A plot is drawn with the colors of a palette. The SVG palette holds placeholder colors that are replaced by the page's
CSS variables, so one drawing serves both themes. Each bar of an SVG shows its value on hover. Text stays text: in the
page's font, searchable, and never read as mathematics.
"""

import html
import io as memory
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from omniprep.modalities import KINDS, MODALITIES
from omniprep.printable import printable
from omniprep.progress import duration, short

SIZE = (4.7, 2.8)
"""Inches, at 72 points each: readable at the width of a phone."""
_ROLES = ("fg", "dim", "line", "c0", "c1", "c2", "c3", "c4", "panel")
MARKS = {role: f"#0{n}f0e{n}" for n, role in enumerate(_ROLES, 1)}
LIGHT = {
    "fg": "#1d1f23", "dim": "#555a63", "line": "#dfe1e5", "panel": "#ffffff",
    "c0": "#4e79a7", "c4": "#d1605e",
    **{f"c{KINDS.index(name)}": modality.color for name, modality in MODALITIES.items()},
}  # fmt: skip
STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "omniprep", "text.parse_math": False, "font.size": 10.5,
    "axes.spines.top": False, "axes.spines.right": False, "font.family": "sans-serif",
}  # fmt: skip


@dataclass(slots=True)
class Canvas:
    """A figure that is being drawn: its axes, its colors, and the tooltips of its parts."""

    figure: Figure
    axes: Axes
    colors: Mapping[str, str]
    tips: dict[str, str] = field(default_factory=dict)

    def tip(self, artist: Any, text: str) -> None:
        """Give a part a tooltip."""
        name = f"tip{len(self.tips)}"
        artist.set_gid(name)
        self.tips[name] = text


def lengths(canvas: Canvas, data: Mapping[str, Any]) -> bool:
    """Rows by length, stacked by what they hold."""
    edges, series = data["lengths"]["edges"], data["lengths"]["series"]
    labels = [f"{short_range(a)}-{short_range(b)}" for a, b in pairwise(edges)]
    names = {kind: "text alone" if kind == "text" else kind for kind in series}
    _stack(canvas, labels, series, names, "rows")
    canvas.axes.set_xlabel("tokens of a row")
    return bool(series)


def sources(canvas: Canvas, data: Mapping[str, Any]) -> bool:
    """Tokens of the largest inputs, by what their rows hold."""
    shown = [s for s in data["sources"] if s["tokens"]][:12][::-1]
    axes, before = canvas.axes, [0] * len(shown)
    names = [printable(s["source"].rstrip("/").rsplit("/", 1)[-1]) for s in shown]
    for number, kind in enumerate(KINDS):
        values = [s["by_kind"].get(kind, 0) for s in shown]
        if not any(values):
            continue
        label = "text alone" if kind == "text" else kind
        bars = axes.barh(
            range(len(shown)), values, left=before, color=canvas.colors[f"c{number}"], label=label, height=0.7
        )
        for bar, source, value in zip(bars, shown, values, strict=True):
            canvas.tip(bar, f"{source['source']}, {label}: {value:,} tokens")
        before = [a + b for a, b in zip(before, values, strict=True)]
    axes.set_yticks(range(len(shown)), [name if len(name) <= 24 else f"…{name[-23:]}" for name in names])
    axes.set_xlabel("tokens")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_range(x)))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x", color=canvas.colors["line"], linewidth=0.7)
    _legend(canvas)
    return bool(shown)


def shares(canvas: Canvas, data: Mapping[str, Any]) -> bool:
    """Tokens by modality."""
    media = data["media"] or {"shares": {}}
    tokens = {name: count for name, count in media["shares"].get("by_modality", {}).items() if count}
    total = sum(tokens.values())
    colors = [canvas.colors[f"c{KINDS.index(name) if name in KINDS else 4}"] for name in tokens]
    names = list(tokens)[::-1]
    bars = canvas.axes.barh(names, [100 * tokens[name] / total for name in names], color=colors[::-1], height=0.7)
    for bar, name in zip(bars, names, strict=True):
        canvas.tip(bar, f"{name}: {tokens[name]:,} tokens")
        _beside(canvas, bar, f"{bar.get_width():.1f} %")
    canvas.axes.set_xlabel("% of the tokens")
    canvas.axes.set_xlim(0, 115)
    return bool(tokens)


def images(canvas: Canvas, data: Mapping[str, Any]) -> bool:
    """Width and height of the images, after resizing."""
    sizes = (data["media"] or {"images": []})["images"]
    for image in sizes:
        area = 18 + 14 * min(image["n"], 400) ** 0.5
        dot = canvas.axes.scatter(image["w"], image["h"], s=area, color=canvas.colors["c1"], alpha=0.7, linewidths=0)
        canvas.tip(dot, f"{image['w']} x {image['h']}: {image['n']:,}")
    canvas.axes.set(xlabel="width", ylabel="height")
    if sizes:
        canvas.axes.set_xlim(0, 1.08 * max(image["w"] for image in sizes))
        canvas.axes.set_ylim(0, 1.12 * max(image["h"] for image in sizes))
    canvas.axes.grid(color=canvas.colors["line"], linewidth=0.7)
    return bool(sizes)


def audio(canvas: Canvas, data: Mapping[str, Any]) -> bool:
    """Seconds of the clips."""
    return _bars(canvas, (data["media"] or {}).get("audio_seconds"), "c2", "seconds", "clips")


def video(canvas: Canvas, data: Mapping[str, Any]) -> bool:
    """Frames taken from the videos."""
    return _bars(canvas, (data["media"] or {}).get("video_frames"), "c3", "frames", "videos")


def fill(canvas: Canvas, data: Mapping[str, Any]) -> bool:
    """How full the bins are."""
    return _bars(canvas, data["bins"]["fill"], "c2", "% of a bin that holds tokens", "bins")


def cost(canvas: Canvas, data: Mapping[str, Any]) -> bool:
    """Work of the bins."""
    return _bars(canvas, data["bins"]["cost"], "c0", "work of a bin, in text tokens", "bins")


def seconds(canvas: Canvas, data: Mapping[str, Any]) -> bool:
    """Time of the stages."""
    stages = dict(reversed(data["seconds"].items()))
    bars = canvas.axes.barh(list(stages), list(stages.values()), color=canvas.colors["c3"], height=0.6)
    for bar, (name, value) in zip(bars, stages.items(), strict=True):
        canvas.tip(bar, f"{name}: {value:,} s")
        _beside(canvas, bar, duration(value))
    canvas.axes.set_xlim(0, 1.2 * max(stages.values(), default=0) or 1)
    canvas.axes.set_xlabel("seconds, summed over workers")
    canvas.axes.grid(axis="x", color=canvas.colors["line"], linewidth=0.7)
    return any(stages.values())


PLOTS: dict[str, Callable[[Canvas, Mapping[str, Any]], bool]] = {
    plot.__name__: plot for plot in (lengths, sources, shares, images, audio, video, fill, cost, seconds)
}
"""Each draws data of `omniprep.report.page.collect`, and returns whether there was anything to draw."""


def short_range(number: float) -> str:
    """A number for an axis: in full below 1,000, else abbreviated."""
    return f"{number:g}" if number < 1000 else short(number).replace(".0", "")


def _bars(canvas: Canvas, histogram: Mapping[str, Any] | None, role: str, xlabel: str, ylabel: str) -> bool:
    if not histogram or not histogram["counts"]:
        return False
    edges, counts = histogram["edges"], histogram["counts"]
    each = histogram.get("each") or edges[0] == edges[-1]
    width = [1.0] * len(counts) if each else [b - a for a, b in pairwise(edges)]
    left = [edge - 0.5 for edge in edges[: len(counts)]] if each else edges[:-1]
    bars = canvas.axes.bar(
        left, counts, width, align="edge", color=canvas.colors[role], edgecolor=canvas.colors["panel"], linewidth=0.6
    )
    for bar, start, count in zip(bars, edges, counts, strict=False):
        end = "" if each else f"-{short_range(start + bar.get_width())}"
        canvas.tip(bar, f"{short_range(start)}{end}: {count:,} {ylabel}")
    if edges[0] == edges[-1]:
        canvas.axes.set_xlim(edges[0] - 3, edges[0] + 3)
    canvas.axes.set(xlabel=xlabel, ylabel=ylabel)
    canvas.axes.xaxis.set_major_locator(MaxNLocator(6, integer=bool(each)))
    canvas.axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_range(x)))
    _count_axis(canvas)
    return True


def _stack(
    canvas: Canvas, labels: Sequence[str], series: Mapping[str, Sequence[int]], names: Mapping[str, str], unit: str
) -> None:
    before = [0] * len(labels)
    for kind, counts in series.items():
        color = canvas.colors[f"c{KINDS.index(kind)}"]
        bars = canvas.axes.bar(range(len(labels)), counts, 0.94, bottom=before, color=color, label=names[kind])
        for bar, label, count in zip(bars, labels, counts, strict=True):
            canvas.tip(bar, f"{label} tokens, {names[kind]}: {count:,} {unit}")
        before = [a + b for a, b in zip(before, counts, strict=True)]
    step = max(1, -(-len(labels) // 6))
    canvas.axes.set_xticks(range(0, len(labels), step), labels[::step])
    canvas.axes.set_ylabel(unit)
    _count_axis(canvas)
    _legend(canvas)


def _beside(canvas: Canvas, bar: Any, text: str) -> None:
    end = (bar.get_width(), bar.get_y() + bar.get_height() / 2)
    canvas.axes.annotate(
        text, end, xytext=(5, 0), textcoords="offset points", va="center", color=canvas.colors["fg"]
    )  # fmt: skip


def _count_axis(canvas: Canvas) -> None:
    canvas.axes.set_ylim(bottom=0)
    canvas.axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    canvas.axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short_range(y)))
    canvas.axes.grid(axis="y", color=canvas.colors["line"], linewidth=0.7)


def _legend(canvas: Canvas) -> None:
    if canvas.axes.get_legend_handles_labels()[0]:
        canvas.figure.legend(
            loc="outside upper center", ncols=5, frameon=False, labelcolor=canvas.colors["fg"], handlelength=0.9,
            columnspacing=1.2, handletextpad=0.4,
        )  # fmt: skip


def _draw(name: str, data: Mapping[str, Any], colors: Mapping[str, str]) -> Canvas | None:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.use_sticky_edges = False  # or the highest bar of a stack touches the frame where the bar on it has no height
    canvas = Canvas(figure, axes, colors)
    if not PLOTS[name](canvas, data):
        return None
    axes.tick_params(colors=colors["dim"], length=0)
    axes.xaxis.label.set_color(colors["dim"])
    axes.yaxis.label.set_color(colors["dim"])
    for spine in axes.spines.values():
        spine.set_color(colors["line"])
    return canvas


def draw_all(data: Mapping[str, Any]) -> dict[str, str]:
    """Every plot as an SVG element for the page; "" where there is nothing to draw."""
    with matplotlib.rc_context(STYLE):
        return {name: _svg(name, data) for name in PLOTS}


def _svg(name: str, data: Mapping[str, Any]) -> str:
    canvas = _draw(name, data, MARKS)
    if canvas is None:
        return ""
    target = memory.StringIO()
    with warnings.catch_warnings():
        # matplotlib's font may lack characters of file names; the page shows them as text, in the reader's own fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        canvas.figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    for role, mark in MARKS.items():
        text = text.replace(mark, f"var(--{role})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, 'DejaVu Sans', sans-serif", text)
    text = re.sub(r'id="(?!tip)', f'id="{name}-', text)
    text = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", text)

    def tip(match: re.Match[str]) -> str:
        return f"<g><title>{html.escape(printable(canvas.tips[match[1]]))}</title>"

    return re.sub(r'<g id="(tip\d+)">', tip, text)


def png(name: str, data: Mapping[str, Any]) -> bytes | None:
    """A plot as PNG on white, or None where there is nothing to draw."""
    with matplotlib.rc_context(STYLE):
        canvas = _draw(name, data, LIGHT)
        if canvas is None:
            return None
        target = memory.BytesIO()
        canvas.figure.savefig(target, format="png", dpi=160, facecolor="white", metadata={"Software": None})
        return target.getvalue()

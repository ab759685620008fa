"""The plot shapes that experiments and figures share.

A figure is a plain `matplotlib.figure.Figure`: pyplot and its global state are never used, so a figure can be drawn in
any process, with or without a display. Records hold accuracies as fractions; figures and captions show percent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from numpy.typing import ArrayLike, NDArray

from wsjax.results.stats import Interval, mean_interval
from wsjax.storage.records import write_whole
from wsjax.storage.rows import FIRST, Row

COSTS = {"seconds": ("train_seconds", "Seconds a round", 1), "steps": ("steps", "Steps a round", 1)}
"""What a round's cost can be drawn as: field, label, scale."""

Published = Mapping[tuple[str, str], ArrayLike]
"""Published curves: (field, method) to points [P, 2]. Offline (epoch, percent), the epochs counted from 1 within the
method's round; online (samples, percent or seconds)."""

WIDTH, HEIGHT = 6.5, 2.6  # inches: a paper's text width, so that the font sizes below are those on the page
FONT, SMALL = 8, 7  # points
DASHES = (0, (3, 1.5))

# Okabe and Ito's colours, which colour-blind readers can tell apart; shrink-perturb runs from dark (0) to light (1).
_COLORS = {FIRST: "#444444", "RI": "#0072B2", "WS": "#D55E00"}
_SP_DARK, _SP_LIGHT = "#003325", "#9CF5D3"

LABELS = {FIRST: "first round", "test_accuracy": "Test accuracy (%)", "train_accuracy": "Train accuracy (%)"}


def mean_band(axis: Axes, x: ArrayLike, curves: ArrayLike, *, label: str, color: Any) -> None:
    """Draws the mean of the seeds' curves in a band: its 95 % t-interval, or the range where only two seeds are.

    Args:
        axis: the axes to draw on.
        x: [E] positions.
        curves: [S, E], one curve a seed; NaN where a seed has no value. Positions where no seed has one are skipped.
        label: the legend's entry.
        color: of line and band.
    """
    columns = [column[~np.isnan(column)] for column in np.asarray(curves, float).T]
    x = np.asarray(x)[[len(column) > 0 for column in columns]]
    mean, low, high = np.array([_bounds(column) for column in columns if len(column)]).reshape(-1, 3).T
    marker = "o" if len(x) == 1 else None  # a line of one point cannot be seen
    axis.plot(x, mean, label=label, color=color, linewidth=1.2, marker=marker, markersize=3)
    axis.fill_between(x, low, high, color=color, alpha=0.22, linewidth=0)


def offline_curves(
    rows: Sequence[Row],
    fields: Sequence[str] = ("test_accuracy", "train_accuracy"),
    *,
    epochs: int | None = None,
    published: Published | None = None,
) -> Figure:
    """Draws accuracy by epoch in two rounds, a panel a field: first on a part of the data, then every method on all.

    Random initialisation has no first round: its curve starts where the others' second round starts. Rows without a
    first round (method "first") give the second round alone. A seed that a stop rule ended early holds its last value,
    so that the mean ends at the mean of the final accuracies; a seed under way counts as far as it has come.

    Args:
        rows: a run's rows, of any methods and seeds.
        fields: the accuracies to draw.
        epochs: a round's length where it is fixed, so that an unfinished run is drawn in its final frame.
        published: drawn dashed behind the measured curves of the same method, cut where the measured round ends.
    """
    published = published or {}
    first, second = ([row for row in rows if row["round"] == number] for number in (1, 2))
    start = (epochs or max(row["epoch"] for row in first)) if first else 0
    end = start + (epochs or max((row["epoch"] for row in second), default=0))
    methods = sorted({row["method"] for row in rows}, key=method_order)
    colors = method_colors(methods)

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    for axis, field in zip(figure.subplots(1, len(fields), squeeze=False)[0], fields, strict=True):
        for method in methods:
            offset, stop = (0, start) if method == FIRST else (start, end)
            curves = _seed_curves(rows, method, field)
            x = offset + 1 + np.arange(curves.shape[1])
            mean_band(axis, x, curves, label=LABELS.get(method, method), color=colors[method])
            if (field, method) in published:
                x, y = np.asarray(published[field, method]).T
                _dashed(axis, offset + x, y, stop, colors[method])
        _dress(axis, LABELS[field], end)
        if start:
            _mark_round(axis, 0, start, first)
            _mark_round(axis, start, end, second)
    _legend(figure, with_published=any(method in methods for _, method in published))
    return figure


def online_curves(rounds: Sequence[Row], *, published: Published | None = None, cost: str = "seconds") -> Figure:
    """Draws test accuracy, and what a round costs, by the number of samples.

    Args:
        rounds: a row a round, of any methods and seeds; each method is averaged over the seeds that reached a round.
        published: drawn dashed behind the measured curves: (field, method) to points (samples, percent or seconds).
        cost: one of `COSTS`: training seconds, or steps, which do not depend on the machine.
    """
    published = published or {}
    methods = sorted({row["method"] for row in rounds}, key=method_order)
    colors = method_colors(methods)
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    panels = (("test_accuracy", LABELS["test_accuracy"], 100), COSTS[cost])
    for axis, (field, label, scale) in zip(figure.subplots(1, 2), panels, strict=True):
        for method in methods:
            own = [row for row in rounds if row["method"] == method]
            samples = sorted({row["samples"] for row in own})
            seeds = sorted({row["seed"] for row in own})
            curves = np.full((len(seeds), len(samples)), np.nan)
            for row in own:
                curves[seeds.index(row["seed"]), samples.index(row["samples"])] = scale * row[field]
            mean_band(axis, samples, curves, label=method, color=colors[method])
            if (field, method) in published:
                x, y = np.asarray(published[field, method]).T
                _dashed(axis, x, y, max(samples), colors[method])
        _dress(axis, label, max(row["samples"] for row in rounds), x_label="Train images")
    _legend(figure, with_published=any(method in methods for _, method in published))
    return figure


def accuracies_at(published: Published, samples: int) -> dict[str, float]:
    """The published test accuracy of each method at exactly that number of samples, where its curve has one."""
    accuracies = {}
    for (field, method), points in published.items():
        there = [y for x, y in np.asarray(points) if x == samples]
        if field == "test_accuracy" and there:
            accuracies[method] = float(there[0])
    return accuracies


def method_colors(methods: Sequence[str]) -> dict[str, Any]:
    """The colour of each method, the same in every figure: SP is shaded by its shrink ("SP 0.3")."""
    shades = {method: method_order(method)[1] for method in methods if method not in _COLORS}
    if len(set(shades.values())) < len(shades):  # perturb varies too ("SP 0.3/0.01"): shaded by order
        shades = dict(zip(shades, np.linspace(0, 1, len(shades)), strict=True))
    return _COLORS | {method: _mix(_SP_DARK, _SP_LIGHT, shade) for method, shade in shades.items()}


def add_caption(figure: Figure, text: str) -> None:
    """Writes a caption under the picture, in room added to the figure's height."""
    width, height = figure.get_size_inches()
    lines = _wrap(text, 0.98 * width)
    figure.set_size_inches(width, height + len(lines) * 1.25 * SMALL / 72 + 0.1)
    # A label of the whole figure is the one text at its foot that the layout makes room for.
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=SMALL, linespacing=1.25, parse_math=False)


def save(figure: Figure, stem: Path | str) -> tuple[Path, Path]:
    """Writes stem.png and stem.pdf, both whole or neither; the same figure gives the same bytes.

    Raises:
        OSError: a file cannot be written; what was there before is kept.
    """
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in undated]
    parts = [path.with_name(f".{path.name}.{os.getpid()}.part") for path in paths]
    try:
        with matplotlib.rc_context({"pdf.fonttype": 42}):  # fonts as fonts, which journals ask for
            for part, (kind, metadata) in zip(parts, undated.items(), strict=True):
                figure.savefig(part, format=kind, metadata=metadata, dpi=200)
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return paths[0], paths[1]


def save_captioned(figure: Figure, caption: str, stem: Path) -> None:
    """Writes stem.png and stem.pdf with the caption under the picture, and the caption alone as stem.txt."""
    add_caption(figure, caption)
    save(figure, stem)
    write_whole(stem.with_name(f"{stem.name}.txt"), caption + "\n")


def _bounds(values: NDArray[np.float64]) -> Interval:
    if len(values) > 2:
        return mean_interval(values.tolist())
    return Interval(float(values.mean()), float(values.min()), float(values.max()))  # two values' t is 13 times as wide


def method_order(method: str) -> tuple[int, float, str]:
    """Sorts methods for a legend: the first round, RI, WS, then SP by its shrink, which "SP" alone does not name."""
    if method in _COLORS:
        return list(_COLORS).index(method), 0.0, method
    name = method.removeprefix("SP ").split("/")[0]
    return len(_COLORS), 0.5 if name == "SP" else float(name), method


def _seed_curves(rows: Sequence[Row], method: str, field: str) -> NDArray[np.float64]:
    """One method's curves in percent, [S, E]; beyond a seed's last epoch its last value if it ended there, else NaN."""
    rows = [row for row in rows if row["method"] == method]
    seeds = sorted({row["seed"] for row in rows})
    curves = np.full((len(seeds), max(row["epoch"] for row in rows)), np.nan)
    for row in rows:
        curves[seeds.index(row["seed"]), slice(row["epoch"] - 1, None if row["stop"] else row["epoch"])] = row[field]
    return 100 * curves


def _wrap(text: str, width: float) -> list[str]:
    """Lines of the small font that fit into a width in inches."""
    font, lines = FontProperties(size=SMALL), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if text_to_path.get_text_width_height_descent(longer, font, ismath=False)[0] > 72 * width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _mix(color: str, other: str, share: float) -> tuple[float, ...]:
    """The colour between two, at a share of the way to the other."""
    return tuple((1 - share) * np.array(to_rgb(color)) + share * np.array(to_rgb(other)))


def _dashed(axis: Axes, x: NDArray[Any], y: NDArray[Any], stop: float, color: str) -> None:
    """A published curve behind the measured one of that colour, cut where the measured one ends."""
    there = x <= stop
    light = _mix(color, "white", 0.45)
    marker = "D" if len(x) == 1 else None  # a line of one point cannot be seen
    axis.plot(x[there], y[there], color=light, linewidth=0.9, linestyle=DASHES, marker=marker, markersize=3, zorder=1.5)


def _dress(axis: Axes, label: str, end: int, x_label: str = "Epoch") -> None:
    axis.set_xlabel(x_label, fontsize=FONT)
    axis.set_ylabel(label, fontsize=FONT)
    axis.set_xlim(0, end * 1.01)
    axis.tick_params(labelsize=SMALL, length=2.5)
    axis.grid(color="#E6E6E6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _mark_round(axis: Axes, start: int, end: int, rows: Sequence[Row]) -> None:
    """A line where a round starts and, above the panel, how much data it trains on."""
    if start:
        axis.axvline(start, color="#999999", linewidth=0.8, zorder=1)
    if rows:
        text, place = f"{rows[0]['samples']:,} samples", ((start + end) / 2, 1.01)
        at = axis.get_xaxis_transform()
        axis.annotate(text, place, xycoords=at, ha="center", va="bottom", fontsize=SMALL, color="#666666")


def _legend(figure: Figure, with_published: bool) -> None:
    """One legend above the panels: a line a method, and the dashes."""
    handles = figure.axes[0].get_legend_handles_labels()[0]
    if with_published:
        handles.append(Line2D([], [], color="#888888", linewidth=0.9, linestyle=DASHES, label="published"))
    figure.legend(handles=handles, loc="outside upper center", ncols=6, fontsize=SMALL, frameon=False)

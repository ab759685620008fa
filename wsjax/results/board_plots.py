"""The picture of the board: a row a method, grouped by protocols, and a panel a measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from wsjax.errors import printable
from wsjax.results import names, plots
from wsjax.results.board import Block, Entry, tells_until
from wsjax.results.names import Style

ROW = 0.19  # inches of a method
HEAD, FOOT = 0.34, 0.5  # inches of a protocol's title, and of what stands below all
LABELS = ("Test accuracy less RI's (points)", "Steps (% of RI's)", "Steps until RI's accuracy\n(% of RI's)")
PUBLISHED = "#555555"
LEAST, MOST = "least", "most"  # what a point is that an arrow begins at
LONGEST = 84  # characters of a title that fit


def board(blocks: Sequence[Block]) -> Figure:
    """Draws the board; see `wsjax.results.board`. Random initialisation is the line that all stands against."""
    drawn = [[entry for entry in block.entries if entry.name != block.random] for block in blocks]
    panels = LABELS if tells_until(blocks) else LABELS[:2]
    rows = [max(len(own), 1) for own in drawn]
    figure = Figure(figsize=(plots.WIDTH, FOOT + sum(ROW * count + HEAD for count in rows)), layout="constrained")
    axes = figure.subplots(
        len(blocks), len(panels), squeeze=False, sharex="col", width_ratios=(1.3, 1, 1)[: len(panels)],
        height_ratios=[ROW * count + 0.05 for count in rows],
    )  # fmt: skip
    for axis in axes[:, 1:].flat:
        axis.set_xscale("log")
        axis.set_autoscalex_on(False)  # its limits come last; where a single line is all there is, they have no room
    for line, block, own in zip(axes, blocks, drawn, strict=True):
        styles = names.styles([entry.name for entry in own], block.run.methods)
        for number, entry in enumerate(own):
            _entry(line, number, entry, block, styles[entry.name])
        _dress_block(line, block, own)
    unit = blocks[0].unit
    labels = (panels[0] if unit.percent else f"Test {unit.word} less RI's", *panels[1:])
    for axis, label in zip(axes[-1], labels, strict=True):
        axis.set_xlabel(label, fontsize=plots.FONT)
    for column in axes.T[1:]:
        _percent_ticks(column)
    axes[0][0].xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    return figure


def _entry(line: Sequence[Axes], y: float, entry: Entry, block: Block, style: Style) -> None:
    """A method's points in the three panels."""
    scale = block.unit.scale
    if entry.win is not None:
        _point(line[0], y, entry.win, scale, style.color)
    if entry.published is not None:
        _diamond(line[0], y, entry.published)
    if entry.cost is not None:
        # A log axis has no room for a bound below 0.
        low = entry.cost["low"] and max(entry.cost["low"], entry.cost["mean"] / 10)
        _point(line[1], y, {**entry.cost, "low": low}, 100, style.color)
    if entry.published_cost is not None:
        _diamond(line[1], y, 100 * entry.published_cost)
    until = entry.until
    if until is None or until["steps"] is None:
        return
    share = _inverse(until["steps"])
    if not (until["at_most"] or until["at_least"]):
        _point(line[2], y, share, 100, style.color)
        return
    # At least so many, or at most: an arrow from there on.
    x = 100 * share["mean"]
    text, way, bound = (f"{until['reached']}/{until['seeds']}", 18, LEAST) if until["at_most"] else ("", -14, MOST)
    line[2].plot(x, y, "|", color=style.color, markersize=6, markeredgewidth=1.4, gid=bound)
    arrow = {"arrowstyle": "<-", "color": style.color, "shrinkB": 0}
    line[2].annotate(
        text, (x, y), (way, 0), textcoords="offset points", va="center", fontsize=plots.SMALL - 1, arrowprops=arrow
    )


def _point(axis: Axes, y: float, value: Mapping[str, Any], scale: float, color: str) -> None:
    """A mean in its interval; of one seed a hollow point."""
    alone = value["low"] is None
    if not alone:
        axis.plot([scale * value["low"], scale * value["high"]], [y, y], color=color, linewidth=1.4)
    face = "white" if alone else color
    axis.plot(scale * value["mean"], y, "o", color=color, markerfacecolor=face, markersize=4.5)


def _diamond(axis: Axes, y: float, x: float) -> None:
    axis.plot(x, y, "D", color=PUBLISHED, markerfacecolor="none", markersize=5, markeredgewidth=0.9, zorder=4)


def _inverse(ratio: Mapping[str, Any]) -> dict[str, Any]:
    """How much as long, of how many times as fast."""
    bounds = {"low": None, "high": None}
    if ratio["low"] is not None:
        bounds = {"low": 1 / ratio["high"], "high": 1 / ratio["low"]}
    return {"mean": 1 / ratio["mean"], **bounds}


def _dress_block(line: Sequence[Axes], block: Block, own: Sequence[Entry]) -> None:
    """Names, the title with random initialisation's score, and the lines that stand for it."""
    random = next((entry for entry in block.entries if entry.name == block.random), None)
    score = "" if random is None else f" (RI {block.unit.number(random.score['mean'], 1)}{' %' * block.unit.percent})"
    line[0].set_title(" ", fontsize=plots.FONT)  # room for the title, which goes on above the other panels
    title = plots.drawable(printable(block.title, LONGEST) + score)
    where = {"xycoords": "axes fraction", "textcoords": "offset points", "in_layout": False, "parse_math": False}
    line[0].annotate(title, (0, 1), (0, 4), fontsize=plots.FONT, **where)
    for axis, zero in zip(line, (0, 100, 100), strict=False):
        axis.axvline(zero, color="#999999", linewidth=0.9, zorder=1)
        axis.set_ylim(max(len(own), 1) - 0.4, -0.6)
        axis.set_yticks([])
        plots.plain(axis, "x")
        axis.spines["left"].set_visible(False)
        for y in range(0, len(own), 2):
            axis.axhspan(y - 0.5, y + 0.5, color="#F4F4F4", zorder=0, linewidth=0)
    line[0].set_yticks(range(len(own)), [plots.drawable(names.label(entry.name)) for entry in own])
    line[0].tick_params(axis="y", length=0)
    for text in line[0].get_yticklabels():
        text.set_parse_math(False)


def _percent_ticks(column: Sequence[Axes]) -> None:
    """The log axis of percent that a column's panels share.

    It has 50, 100 and 200 at least; a bar that goes far beyond all points is cut.
    """
    lines = [np.asarray(line.get_xdata(), float) for axis in column for line in axis.lines]
    points, ends = [x[0] for x in lines if len(x) == 1], [x for line in lines for x in line]
    low = min(max(min(ends), min([*points, 100]) / 3), 50) / 1.1
    high = max(min(max(ends), 3 * max([*points, 100])), 200) * 1.1
    least, most = (
        [np.max(line.get_xdata()) for axis in column for line in axis.lines if line.get_gid() == bound]
        for bound in (LEAST, MOST)
    )
    high = max([high, *(x * (high / low) ** 0.35 for x in least)])  # room for an arrow and what stands behind
    low = min([low, *(x / (high / low) ** 0.12 for x in most)])
    axis, wide = column[0], high / low
    axis.set_xlim(low, high)
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide > 60 else (1.0, 3.0) if wide > 12 else (1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())

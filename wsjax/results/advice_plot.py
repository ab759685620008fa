"""Accuracy over cost against training from scratch: a point a way, with intervals in both directions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from wsjax.results import names, plots
from wsjax.results.names import Methods

WIDTH, HEIGHT = 3.3, 2.5  # inches: a paper's column
_MARKERS = {names.RANDOM: "o", names.WARM: "s"}
_SP_MARKERS, _OTHER_MARKERS = "Ddph", "^vPX*"
_LEAST_RANGE = 0.2  # of scratch's steps: a smaller one would show chance as a difference
_APART = 0.055  # of the axis: how far points that would lie on one another are moved apart


def tradeoff(judged: Mapping[str, Any], table: Methods) -> Figure:
    """Draws what each way gains in accuracy over what it costs, against scratch, whose own point lies at (100 %, 0).

    Hollow points are at a learning rate of their own. A ring marks the recommended way.

    Args:
      judged: as `advice.judge` gives it.
      table: what each way is.
    """
    ways, scratch = judged["ways"], judged["scratch"]
    order = names.ordered(ways, table)
    looks = {name: _looks(name, table) for name in order}
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axis = figure.subplots()
    low, high = _range([ways[name]["share"] for name in order])
    places = _apart([100 * ways[name]["share"]["mean"] for name in order], _APART * (high - low))
    for name, x in zip(order, places, strict=True):
        _point(axis, x, ways[name], looks[name], name == judged["recommended"])
    axis.axhline(0, color="#999999", linewidth=0.6, zorder=1)
    axis.axvline(100, color="#999999", linewidth=0.6, zorder=1)
    axis.set_xlim(min(low, *places) - 0.04 * (high - low), max(high, *places) + 0.04 * (high - low))
    moved = any(abs(x - 100 * ways[name]["share"]["mean"]) > 1e-9 for name, x in zip(order, places, strict=True))
    beside = "\n(equal ones side by side)" * moved
    if len({way["share"]["mean"] for way in ways.values()}) == 1:
        axis.set_xticks([100])  # others would tell of differences where there are none
    axis.set_xlabel(f"Steps, % of those from {plots.drawable(names.label(scratch))}{beside}", fontsize=plots.FONT)
    axis.set_ylabel(f"Test accuracy, points over {plots.drawable(names.label(scratch))}", fontsize=plots.SMALL)
    plots.plain(axis)
    _legend(figure, order, looks, judged["recommended"])
    return figure


def _point(axis: Axes, x: float, way: Mapping[str, Any], looks: Mapping[str, Any], recommended: bool) -> None:
    """A way at its place, with its intervals, and a ring where it is recommended."""
    y = 100 * way["gain"]["mean"]
    bars: dict[str, Any] = {}
    for name, field in (("xerr", "share"), ("yerr", "gain")):
        own = way[field]
        if own["low"] is not None:
            bars[name] = [[100 * (own["mean"] - own["low"])], [100 * (own["high"] - own["mean"])]]
    color = looks["markeredgecolor"]
    axis.errorbar(x, y, **bars, ecolor=color, elinewidth=0.9, linestyle="none", **looks)
    if recommended:
        ring = {"marker": "o", "markersize": 13, "markerfacecolor": "none", "markeredgecolor": "black"}
        axis.plot(x, y, linestyle="none", markeredgewidth=1.1, zorder=4, **ring)


def _looks(name: str, table: Methods) -> dict[str, Any]:
    """A way's marker and colour: those of its method; hollow at a learning rate of its own."""
    plain = {way: {key: value for key, value in spec.items() if key != "learning_rate"} for way, spec in table.items()}
    like = next(way for way, spec in plain.items() if spec == plain[name])
    color = names.styles(table, plain)[like].color
    shrunk = [way for way, spec in plain.items() if spec["reinit"] == names.SHRINK]
    others = [way for way, spec in plain.items() if spec["reinit"] not in (*_MARKERS, names.SHRINK)]
    own = dict(zip(shrunk, itertools.cycle(_SP_MARKERS), strict=False))
    own |= dict(zip(others, itertools.cycle(_OTHER_MARKERS), strict=False))
    face = "white" if "learning_rate" in table[name] else color
    shape = {"marker": own.get(like, _MARKERS.get(plain[name]["reinit"])), "markersize": 5, "markeredgewidth": 1.1}
    return {**shape, "color": color, "markerfacecolor": face, "markeredgecolor": color}


def _range(shares: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """From where to where the intervals of costs reach, in percent; never a narrow range."""
    ends = [own[key] for own in shares for key in ("low", "mean", "high") if own[key] is not None]
    low, high = min(*ends, 1.0), max(*ends, 1.0)
    room = max(_LEAST_RANGE - (high - low), 0) / 2
    return 100 * (low - room), 100 * (high + room)


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Places moved so that each group that is as good as one stands side by side around its mean, a gap apart."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    groups: list[list[int]] = []
    for i in order:
        if groups and places[i] - places[groups[-1][-1]] < gap / 12:
            groups[-1].append(i)
        else:
            groups.append([i])
    moved = list(places)
    for group in groups:
        centre = sum(places[i] for i in group) / len(group)
        for number, i in enumerate(sorted(group)):
            if len(group) > 1:
                moved[i] = centre + gap * (number - (len(group) - 1) / 2)
    return moved


def _legend(figure: Figure, order: Sequence[str], looks: Mapping[str, Mapping[str, Any]], recommended: str) -> None:
    """All ways above the panel, in two columns; the figure grows with them."""
    labels = [plots.drawable(names.label(name)) + " (recommended)" * (name == recommended) for name in order]
    handles = [Line2D([], [], linestyle="none", **looks[name]) for name in order]
    rows = -(-len(handles) // 2)
    figure.set_size_inches(WIDTH, HEIGHT + rows * 1.5 * plots.SMALL / 72)
    where = {"loc": "outside upper center", "ncols": 2, "columnspacing": 1.0, "handletextpad": 0.2}
    drawn = figure.legend(handles, labels, **where, fontsize=plots.SMALL, frameon=False)
    for text, name in zip(drawn.get_texts(), order, strict=True):
        text.set_parse_math(False)
        if name == recommended:
            text.set_fontweight("bold")

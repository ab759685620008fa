"""Gradient norms of the old and the new half by epoch, and the ratio of the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from wsjax.results import gradients, names, plots
from wsjax.results.names import Methods, Style
from wsjax.storage.rows import Row

HALVES = {"old half": (gradients.OLD, "-"), "new half": (gradients.NEW, (0, (1, 1.2)))}
"""By its label: the field of each half and its line."""

NORM, RATIO = "Mean gradient norm", "New half's / old half's"


class Panel(NamedTuple):
    """What one run adds to a figure: its rows and what their methods are, under a title."""

    title: str
    rows: Sequence[Row]
    methods: Methods


def gradient_curves(panels: Sequence[Panel]) -> Figure:
    """Draws both halves' gradient norms by epoch, the two rounds side by side, and the second one's ratio of the two.

    Args:
        panels: a run each, from left to right, in one scale. The ratio stands beside a single one, else below each.
    """
    methods = {name: spec for panel in panels for name, spec in panel.methods.items()}
    drawn = {row["method"]: None for panel in panels for row in panel.rows}
    colors = _colors(names.ordered(drawn, methods), methods)
    axes, ratios = _axes(figure := Figure(layout="constrained"), len(panels))
    for panel, first, second in zip(panels, axes[::2], axes[1::2], strict=False):
        start, end = (_length(panel.rows, number) for number in (1, 2))
        for axis, number, begin, stop in ((first, 1, 0, start), (second, 2, start, start + end)):
            own = [row for row in panel.rows if row["round"] == number]
            for field, line in HALVES.values():
                _draw(axis, own, lambda row, field=field: row.get(field), begin, colors, line)
            _dress(axis, NORM if axis is axes[0] else "", begin, stop, own, panel.title)
    rows = [row for panel in panels for row in panel.rows]
    _scale(axes[0], [row[field] for row in rows for field, _ in HALVES.values() if row.get(field) is not None])
    for panel, axis in zip(panels, ratios, strict=True):
        start, end = (_length(panel.rows, number) for number in (1, 2))
        own = [row for row in panel.rows if row["round"] == 2]
        axis.axhline(1, color="#999999", linewidth=0.8, zorder=1)
        _draw(axis, own, gradients.ratio, start, colors, "-")
        _dress(axis, RATIO if axis is ratios[0] else "", start, start + end, own, panel.title)
    halves = {label: Style("#888888", line) for label, (_, line) in HALVES.items()}
    plots.legend(figure, {name: Style(color) for name, color in colors.items()}, halves)
    return figure


def _axes(figure: Figure, panels: int) -> tuple[list[Axes], list[Axes]]:
    """The axes of norms, two a panel, and those of ratios, each kind in one scale."""
    single = panels == 1
    figure.set_size_inches(plots.WIDTH, plots.HEIGHT * (1 if single else 1.7))
    widths = [1, 1.4] * panels + [1.4] * single
    grid = figure.add_gridspec(1 if single else 2, len(widths), width_ratios=widths)
    norms = [figure.add_subplot(grid[0, i]) for i in range(2 * panels)]
    places = [grid[0, 2]] if single else [grid[1, 2 * i : 2 * i + 2] for i in range(panels)]
    ratios = [figure.add_subplot(place) for place in places]
    for first, *others in (norms, ratios):
        for axis in others:
            axis.sharey(first)
            axis.tick_params(labelleft=False)
    return norms, ratios


def _draw(
    axis: Axes,
    rows: Sequence[Row],
    value: Callable[[Row], float | None],
    offset: int,
    colors: Mapping[str, str],
    line: object,
) -> None:
    """A curve a method: means over seeds of what a row gives; a seed whose round has ended holds its last value."""
    for name in [name for name in colors if any(row["method"] == name for row in rows)]:
        own = [row for row in rows if row["method"] == name]
        values = plots.by_epoch(own, value)
        if not np.isnan(values).all():
            x = offset + 1 + np.arange(values.shape[1])
            plots.mean_band(axis, x, values, label=names.label(name), style=Style(colors[name], line))


def _dress(axis: Axes, label: str, begin: int, end: int, rows: Sequence[Row], title: str) -> None:
    plots.dress(axis, label, end)
    margin = 0.02 * max(end - begin, 1)
    axis.set_xlim(begin + 1 - margin, max(end, begin + 1) + margin)
    axis.locator_params(axis="x", nbins=4, integer=True)
    samples = f"{rows[0]['samples']:,} samples" if rows else ""
    axis.set_title("\n".join(filter(None, [title, samples])), fontsize=plots.SMALL, color="#666666", pad=3)


def _scale(axis: Axes, values: Sequence[float]) -> None:
    """Norms by their logarithm, in plain numbers, where they are far enough apart."""
    if not values or max(values) < 3 * min(values) or min(values) <= 0:
        return
    axis.set_yscale("log")
    close = max(values) < 10 * min(values)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6, 8) if close else (1, 2, 5)))
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(NullFormatter())


def _length(rows: Sequence[Row], number: int) -> int:
    return max((row["epoch"] for row in rows if row["round"] == number), default=0)


def _colors(ordered: Sequence[str], methods: Methods) -> dict[str, str]:
    """A colour a method, for lines tell the halves apart: that of `names.styles`, lighter where it is taken."""
    styles = names.styles(ordered, methods)
    colors: dict[str, str] = {}
    for name in ordered:
        color = styles[name].color
        while color in colors.values():
            color = names.mix(color, "#FFFFFF", 0.4)
        colors[name] = color
    return colors

"""Small panels in a grid, one frame for all: scores by something that was varied, a curve a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsjax.results import names, plots
from wsjax.results.names import Methods, Style
from wsjax.results.stats import unit_of
from wsjax.storage.rows import Row

ROW_HEIGHT = 1.75  # inches of a row of panels, beside one for labels and legend
MOST_COLUMNS = 3
SHARE = "Share of the target's train images"
DOTTED = Style("#888888", ":")


class Panel(NamedTuple):
    """What one panel shows.

    Attributes:
        title: what stands above it.
        ends: a row for each method, seed and value of x.
        dotted: further rows, likewise: curves to compare with, drawn dotted.
    """

    title: str
    ends: Sequence[Row]
    dotted: Sequence[Row] = ()


def share_panels(panels: Sequence[Panel], methods: Methods, dotted_label: str = "") -> Figure:
    """Draws test scores by the share of a target that was trained on, means over seeds in their bands.

    Args:
        panels: three in a row at most; each has a scale of scores of its own.
        methods: what each method is, by name.
        dotted_label: what the dotted curves are, for the legend.
    """
    every = [row for panel in panels for row in (*panel.ends, *panel.dotted)]
    unit, styles = unit_of(every), names.styles({row["method"]: None for row in every}, methods)
    columns = min(len(panels), MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(plots.WIDTH, 0.85 + ROW_HEIGHT * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        for dots, found in ((True, panel.dotted), (False, panel.ends)):
            for name in names.ordered(dict.fromkeys(row["method"] for row in found), methods):
                own = [row for row in found if row["method"] == name]
                _curve(axis, own, unit.scale, names.label(name), styles[name], dots)
        last = max((row["fraction"] for row in panel.ends), default=1.0)
        left, below = number % columns == 0, number + columns >= len(panels)
        plots.dress(axis, plots.score_label("test_accuracy", unit) if left else "", last, SHARE if below else "")
        axis.set_title(plots.drawable(panel.title), fontsize=plots.FONT, parse_math=False)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    drawn = {row["method"] for panel in panels for row in panel.ends}
    dots = {dotted_label: DOTTED} if any(panel.dotted for panel in panels) else {}
    plots.legend(figure, {name: style for name, style in styles.items() if name in drawn}, dots)
    return figure


def transfer_panels(source: str, ends: Sequence[Row], methods: Methods) -> Figure:
    """Draws the transfers from one source, a panel a target; `ends` and `methods` are those of kinds."""
    targets = dict.fromkeys(end["target"] for end in ends)
    panels = [Panel(f"{source} to {target}", [end for end in ends if end["target"] == target]) for target in targets]
    return share_panels(panels, methods)


def _curve(axis: Axes, ends: Sequence[Row], scale: float, label: str, style: Style, dotted: bool) -> None:
    places, scores = plots.by_seed(ends, "fraction", "test_accuracy")
    if dotted:
        axis.plot(
            places, scale * np.nanmean(scores, axis=0), color=style.color, linestyle=":", linewidth=1.4, zorder=1.5
        )
    else:
        plots.mean_band(axis, places, scale * scores, label=label, style=style)
        axis.plot(places, scale * np.nanmean(scores, axis=0), "o", color=style.color, markersize=2.5)


def by_learning_rate(ends: Sequence[Row], methods: Methods, marks: Mapping[str, float]) -> Figure:
    """Draws test scores by the learning rate of the second round, on a log axis: means in `plots.bounds`.

    Args:
        ends: a row for each method, seed and "learning_rate".
        methods: what each method is, by name.
        marks: learning rates to mark with a vertical line in a method's colour.
    """
    unit, styles = unit_of(ends), names.styles({row["method"]: None for row in ends}, methods)
    drawn = names.ordered(dict.fromkeys(row["method"] for row in ends), methods)
    figure = Figure(figsize=(plots.WIDTH, plots.HEIGHT), layout="constrained")
    axis = figure.subplots()
    there = {(row["learning_rate"], row["method"]) for row in ends}
    at_rate = {rate: [name for name in drawn if (rate, name) in there] for rate in sorted({rate for rate, _ in there})}
    for name in drawn:
        own = [row for row in ends if row["method"] == name]
        rates, scores = plots.by_seed(own, "learning_rate", "test_accuracy")
        mean, low, high = (
            unit.scale * value for value in np.transpose([plots.bounds(s[~np.isnan(s)]) for s in scores.T])
        )
        # Side by side around the rate, by 3 % of it: several methods have the very same ones.
        x = [rate * 1.03 ** (at_rate[rate].index(name) - (len(at_rate[rate]) - 1) / 2) for rate in rates]
        style = styles[name]
        axis.errorbar(
            x, mean, [mean - low, high - mean], color=style.color, linestyle=style.line, linewidth=1.2,
            marker="o", markersize=3.5, capsize=2, elinewidth=0.9,
        )  # fmt: skip
    for name, rate in marks.items():
        axis.axvline(rate, color=styles[name].color, linewidth=0.9, linestyle=":", zorder=1)
    plots.dress(axis, plots.score_label("test_accuracy", unit), 1, "Learning rate of the second round")
    axis.set_xscale("log")
    ticks = list(at_rate)
    axis.set_xlim(ticks[0] / 1.5, max([*ticks, *marks.values()]) * 1.5)
    axis.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
    axis.minorticks_off()
    more = {"1 / shrink² of SP's rate": DOTTED} if marks else {}
    plots.legend(figure, {name: styles[name] for name in drawn}, more)
    return figure

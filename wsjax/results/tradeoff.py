"""Cost against accuracy: a point a run, a panel a set of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from wsjax.results import names, plots
from wsjax.storage.rows import Row

COSTS = {
    "samples_seen": "Samples seen",
    "steps": "Steps",
    "train_seconds": "Training seconds",
}
"""What can be drawn as the cost of a round on all of the data: fields and labels."""

_MARKERS = "osD^vP*X<>"
_SMALLEST, _LARGEST = 2.6, 6.0  # points, of the smallest and the largest batch


def panels(sets: Mapping[str, Sequence[Row]], cost: str = "samples_seen") -> Figure:
    """Draws test accuracy against cost, with one scale for all panels.

    Colours tell random initialisation from warm starts, markers the learning rates and their sizes the batches, both of
    the round that is drawn. A round that ended at its cap is hollow.

    Args:
        sets: a panel each, by its title: ends of rounds on all of the data, as `hyperparameters.summarize` has them.
        cost: one of `COSTS`.
    """
    rows = [row for own in sets.values() for row in own]
    rates = sorted({row["learning_rate"] for row in rows}, reverse=True)
    markers = {rate: _MARKERS[number % len(_MARKERS)] for number, rate in enumerate(rates)}
    sizes = _sizes(sorted({row["batch_size"] for row in rows}))
    table = {"RI": {"reinit": names.RANDOM}, "WS": {"reinit": names.WARM}}
    colors = {name: style.color for name, style in names.styles(table, table).items()}

    figure = Figure(figsize=(plots.WIDTH, 3.0), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (title, own) in zip(axes, sets.items(), strict=True):
        for row in own:
            color = colors[row["start"]]
            looks: dict[str, Any] = {"marker": markers[row["learning_rate"]], "markersize": sizes[row["batch_size"]]}
            face = color if row["converged"] else "none"
            axis.plot(
                row[cost], 100 * row["test_accuracy"], color=color, markerfacecolor=face, alpha=0.75,
                markeredgewidth=0.7, linestyle="none", **looks,
            )  # fmt: skip
        _dress(axis, title, COSTS[cost])
    axes[0].set_ylabel("Test accuracy (%)", fontsize=plots.FONT)
    handles = [_handle(name, color=color) for name, color in colors.items() if any(r["start"] == name for r in rows)]
    handles += [_handle(f"rate {rate:g}", marker=marker) for rate, marker in markers.items()]
    handles += [_handle(f"batch {size}", markersize=points) for size, points in sizes.items()]
    if not all(row["converged"] for row in rows):
        handles.append(_handle("not converged", markerfacecolor="none"))
    figure.legend(handles=handles, loc="outside upper center", ncols=6, fontsize=plots.SMALL, frameon=False)
    return figure


def _sizes(batches: Sequence[int]) -> dict[int, float]:
    """A marker's size for each batch, in even steps."""
    step = (_LARGEST - _SMALLEST) / max(len(batches) - 1, 1)
    return {batch: _SMALLEST + step * number for number, batch in enumerate(batches)}


def _handle(label: str, **looks: Any) -> Line2D:
    usual = {"color": "#555555", "marker": "o", "markersize": 4, "markeredgewidth": 0.7, "linestyle": "none"}
    return Line2D([], [], label=label, **usual | looks)


def _dress(axis: Axes, title: str, label: str) -> None:
    axis.set_xscale("log")
    for ticks, subs in ((axis.xaxis.set_major_locator, (1, 2, 5)), (axis.xaxis.set_minor_locator, range(2, 10))):
        ticks(LogLocator(subs=subs))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_title(title, fontsize=plots.FONT)
    axis.set_xlabel(label, fontsize=plots.FONT)
    axis.tick_params(labelsize=plots.SMALL, length=2.5, which="both")
    axis.grid(color="#E6E6E6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)

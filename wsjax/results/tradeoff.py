"""Cost against accuracy: a point a run, a panel a set of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from wsjax.results import names, plots

COSTS = {
    "samples_seen": "Samples seen",
    "steps": "Steps",
    "train_seconds": "Training seconds",
}
"""What can be drawn as the cost of a round on all of the data: fields and labels."""

_MARKERS = "osD^vP*X<>"
_ONE_ROW = 7  # entries of a legend
_SMALLEST, _LARGEST = 3.2, 6.5  # points, of the smallest and the largest batch


def panels(summaries: Mapping[str, Mapping[str, Any]], cost: str = "samples_seen") -> Figure:
    """Draws test accuracy against cost, with one scale for all panels.

    Colours tell random initialisation from warm starts, markers the learning rates and their sizes the batches, both of
    the round that is drawn. A round that did not converge is hollow. A star is the mean of the best cell of either.

    Args:
        summaries: a panel each, by its title, as `hyperparameters.summarize` gives them.
        cost: one of `COSTS`.
    """
    rows = [row for summary in summaries.values() for row in summary["rows"]]
    cells = {tuple(row["cell"]) for row in rows}
    rates = sorted({rate for rate, _ in cells}, reverse=True)
    markers = {rate: _MARKERS[number % len(_MARKERS)] for number, rate in enumerate(rates)}
    sizes = _sizes(sorted({batch for _, batch in cells}))
    table = {"RI": {"reinit": names.RANDOM}, "WS": {"reinit": names.WARM}}
    colors = {name: style.color for name, style in names.styles(table, table).items()}

    figure = Figure(figsize=(plots.WIDTH, 3.0), layout="constrained")
    axes = figure.subplots(1, len(summaries), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (title, summary) in zip(axes, summaries.items(), strict=True):
        for row in summary["rows"]:
            color, (rate, batch) = colors[row["start"]], row["cell"]
            looks = {"marker": markers[rate], "markersize": sizes[batch]}
            # A white edge tells points apart that lie on one another.
            looks |= {"color": color, "markeredgecolor": "white"} if row["converged"] else _hollow(color)
            axis.plot(row[cost], 100 * row["test_accuracy"], alpha=0.8, markeredgewidth=0.5, linestyle="none", **looks)
        for start, cell in _best(summary).items():
            x, y = cell[cost]["mean"], 100 * cell["test_accuracy"]["mean"]
            axis.plot(x, y, "*", color=colors[start], markersize=11, markeredgecolor="black", markeredgewidth=0.8)
        _dress(axis, title, COSTS[cost])
    axes[0].set_ylabel("Test accuracy (%)", fontsize=plots.FONT)
    handles = [_handle(name, color=color) for name, color in colors.items() if any(r["start"] == name for r in rows)]
    handles += [_handle(f"rate {rate:g}", marker=marker) for rate, marker in markers.items()]
    handles += [_handle(f"batch {size}", markersize=points) for size, points in sizes.items()]
    if not all(row["converged"] for row in rows):
        handles.append(_handle("not converged", **_hollow("#555555")))
    if any(_best(summary) for summary in summaries.values()):
        handles.append(_handle("best cell's mean", marker="*", markersize=8, markeredgecolor="black"))
    columns = len(handles) if len(handles) <= _ONE_ROW else -(-len(handles) // 2)
    where = {"loc": "outside upper center", "ncols": columns, "columnspacing": 1.2, "handletextpad": 0.3}
    figure.legend(handles=handles, fontsize=plots.SMALL, frameon=False, **where)
    return figure


def _best(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The best cell of random initialisations and of warm starts, where both have one."""
    best = summary["best"] or {}
    return {cell["start"]: cell for cell in summary["cells"] if best.get(cell["start"]) == cell["cell"]}


def _hollow(color: str) -> dict[str, Any]:
    return {"color": color, "markerfacecolor": "none", "markeredgecolor": color}


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
    plots.plain(axis)
    axis.tick_params(length=2.5, which="minor")

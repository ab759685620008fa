"""Offline runs without and with augmentation beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from wsjax.results import names, plots
from wsjax.results.captions import scores
from wsjax.results.groups import merge_groups
from wsjax.results.merge import DrawnRun
from wsjax.results.stats import Unit
from wsjax.results.summary import differences, less, paired, with_half
from wsjax.storage.records import RunRecords

TITLES = {False: "without augmentation", True: "with augmentation"}
FIELDS = ("test_accuracy", "train_accuracy")


def merge_augmented(runs: Sequence[RunRecords]) -> tuple[DrawnRun, dict[bool, DrawnRun]]:
    """Merges offline runs of RI and WS into those without and with augmentation, which may differ in their epochs.

    Where seeds have both, these are drawn: other seeds' luck would stand between the two.

    Returns:
      All of them, for a caption, and each of the two that is there.

    Raises:
      RunError: as `merge_groups`.
    """
    groups = merge_groups(runs, "offline", ["augment"], ["epochs", "first_epochs"], reinits=(names.RANDOM, names.WARM))
    found = {bool(augment): run for (augment,), run in groups.runs.items()}
    own = {augment: found[augment] for augment in TITLES if augment in found}
    seeds = [{row["seed"] for row in run.rows} for run in own.values()]
    shared = set.intersection(*seeds) or set.union(*seeds)
    whole, *kept = (
        run._replace(rows=[row for row in run.rows if row["seed"] in shared]) for run in (groups.whole, *own.values())
    )
    own = dict(zip(own, kept, strict=True))
    epochs = list(dict.fromkeys(run.settings["epochs"] for run in own.values()))
    settings = whole.settings | {"augment": list(own), "epochs": epochs if len(epochs) > 1 else epochs[0]}
    return whole._replace(settings=settings), own


def panels(runs: Mapping[bool, DrawnRun]) -> Figure:
    """Draws test and train accuracy by epoch, a row without and one with augmentation, on the same scales."""
    table, _ = names.merge([run.methods for run in runs.values()])
    styles = names.styles(dict.fromkeys(row["method"] for run in runs.values() for row in run.rows), table)
    figure = Figure(figsize=(plots.WIDTH, 0.5 + 2.0 * len(runs)), layout="constrained")
    axes = figure.subplots(len(runs), len(FIELDS), squeeze=False, sharey="col")
    drawn: dict[str, None] = {}
    for row, (augment, run) in zip(axes, runs.items(), strict=True):
        drawn |= dict.fromkeys(plots.draw_offline(row, run.rows, run.methods, FIELDS, styles, epochs=run.epochs))
        for axis in row:
            axis.set_ylabel(f"{axis.get_ylabel()}\n{TITLES[augment]}", fontsize=plots.FONT)
    for axis in axes[:-1].flat:
        axis.set_xlabel("")
    plots.legend(figure, {name: styles[name] for name in names.ordered(drawn, table)})
    return figure


def told(runs: Mapping[bool, DrawnRun], unit: Unit) -> tuple[str, str]:
    """How much of the gap augmentation takes, paired over seeds; and how every method ended."""
    gaps: dict[str, Mapping[str, Any] | None] = {TITLES[augment]: gap_of(run) for augment, run in runs.items()}
    gaps["the second less the first"] = change_of_gap(runs)
    numbers = [f"{title} {with_half(gap, unit, 1)}" for title, gap in gaps.items() if gap is not None]
    points = " in points" * unit.percent
    ended = [
        scores(run, f"Final test {unit.word} {TITLES[augment]}", ends)
        for augment, run in runs.items()
        if (ends := run.ends)
    ]
    return f"RI - WS{points}: {'; '.join(numbers)}." if numbers else "", " ".join(ended)


def gap_of(run: DrawnRun) -> dict[str, Any] | None:
    """The gap RI - WS at the end of the second round, paired by seed."""
    return paired(run.ends, *names.both(run.methods))


def change_of_gap(runs: Mapping[bool, DrawnRun]) -> dict[str, Any] | None:
    """The gap RI - WS with augmentation less the gap without, paired by seed; None where no seed has all four."""
    gaps = {augment: differences(run.ends, *names.both(run.methods)) for augment, run in runs.items()}
    return less(gaps.get(True, {}), gaps.get(False, {}))


def missing(runs: Mapping[bool, DrawnRun]) -> str:
    """Which of the two is not there, in a sentence; empty where both are."""
    lacks = [title for augment, title in TITLES.items() if augment not in runs]
    return f"There is no run {lacks[0]}." if lacks else ""

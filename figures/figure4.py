"""Figure 4: learning rates and batch sizes. What training on all of the data costs, and the test accuracy it reaches.

    python figures/figure4.py RUN_FOLDER [RUN_FOLDER ...] [--cost steps] [--out figures/results/figure4]

Draws runs of experiments/hyperparameters.py, a point a run, as PNG and PDF with the caption beside them as TXT. Takes
seconds. Runs with and without --chained get a panel each. The report's answer, from chained warm starts: with the right
settings WS is as accurate as RI, sooner.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.figure import Figure

from wsjax.errors import RunError
from wsjax.results import captions, hyperparameters, names, published, tradeoff
from wsjax.results.captions import Caption
from wsjax.results.groups import merge_groups
from wsjax.results.merge import DrawnRun
from wsjax.results.stats import ACCURACY
from wsjax.results.summary import with_half
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords

TITLES = {False: "a half-data network for each warm start", True: "chained warm starts, as the report ran"}
WHAT = "Figure 4: test accuracy by the cost of training on all of the data, a point a run (learning rates and batches)."
NOTES = (
    "Markers and their sizes tell the learning rate and batch of the round that is drawn; a warm start's first round "
    "had others, and what it cost is not counted, as in the report. The best cell is chosen by its mean accuracy over "
    "these same seeds, among those that half of them have or more and whose rounds all converged. No published point "
    "is drawn: the report's numbers were not published."
)


@dataclass(frozen=True)
class Config(drawing.Config):
    """What to draw, and where to."""

    cost: Literal["samples_seen", "steps", "train_seconds"] = "samples_seen"
    """What a round costs: samples seen, steps, or seconds, which depend on the machine."""


def draw(runs: Sequence[RunRecords], cost: str = "samples_seen") -> tuple[Figure, Caption]:
    """The figure of hyperparameters runs and its caption."""
    groups = merge_groups(runs, "hyperparameters", ["chained"])
    drawn = {chained: groups.runs[chained,] for chained in TITLES if (chained,) in groups.runs}
    if len(drawn) == 2:  # where one lacks random initialisations, it gets the other's
        drawn = {chained: _with_random(run, drawn[not chained]) for chained, run in drawn.items()}
    summaries = {chained: hyperparameters.summarize(run.rows, run.methods) for chained, run in drawn.items()}
    if not any(summary["rows"] for summary in summaries.values()):
        raise RunError("no round on all of the data has ended yet: wait for the first one")
    panels = {TITLES[chained]: summary for chained, summary in summaries.items()}
    return tradeoff.panels(panels, cost), _caption(groups.whole, drawn, summaries, cost)


def _with_random(run: DrawnRun, other: DrawnRun) -> DrawnRun:
    if any(_is_random(run, row) for row in run.rows):
        return run
    rows = [row for row in other.rows if _is_random(other, row)]
    return run._replace(rows=[*run.rows, *rows], methods={**other.methods, **run.methods})


def _is_random(run: DrawnRun, row: Mapping[str, Any]) -> bool:
    return run.methods.get(row["method"], {}).get("reinit") == names.RANDOM


def _caption(
    whole: DrawnRun, drawn: Mapping[bool, DrawnRun], summaries: Mapping[bool, Mapping[str, Any]], cost: str
) -> Caption:
    (settings,) = published.read(__file__, "settings")
    own = settings["offline"] | settings["figure4"]
    rows = [row for run in drawn.values() for row in run.rows]  # by the methods' own names
    known = whole.settings
    if len(drawn) > 1:  # the panels tell them apart
        own, known = ({name: value for name, value in part.items() if name != "chained"} for part in (own, known))
    whole = whole._replace(settings=known, rows=rows)
    came = " ".join(_came(summary, chained, cost) for chained, summary in summaries.items())
    capped = "".join(
        f"{text} ({TITLES[chained]}). "
        for chained, summary in summaries.items()
        for text in hyperparameters.not_converged(summary)
    )
    means = "What follows ± are 95 % t-intervals of means over seeds."
    return captions.compose(whole, WHAT, own, came, f"{capped}{NOTES}", means)


def _came(summary: Mapping[str, Any], chained: bool, cost: str) -> str:
    """The best cells of a panel, and how they differ."""
    seeds = captions.seeds_told(sorted({end["seed"] for end in summary["rows"]}))
    word, best = f"{'Chained' if chained else 'Unchained'}, {seeds}", summary["best"]
    if best is None:
        return f"{word}: RI and WS have no cells to compare: such whose rounds all converged, of one seed at least."
    accuracy = {(own["start"], tuple(own["cell"])): own["test_accuracy"] for own in summary["cells"]}
    cells = [
        f"{start} {best[start][0]:g}/{best[start][1]}: {_number(accuracy[start, tuple(best[start])])}"
        for start in ("RI", "WS")
    ]
    share = best["of_RI"].get(cost)
    took = "" if share is None else f", for {_number(share)} % of RI's {hyperparameters.COSTS[cost]}"
    same = "" if summary["same"] is None else f"; with the same settings on all {_number(summary['same']['gap'])}"
    return f"{word}: best {cells[0]}, best {cells[1]}; RI - WS {_number(best['gap'])}{took}{same}."


def _number(value: Mapping[str, Any]) -> str:
    return with_half(value, ACCURACY, 1, sign=False)


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__, Config)

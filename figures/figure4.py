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
from wsjax.results import captions, hyperparameters, names, published, tradeoff, words
from wsjax.results.captions import Caption
from wsjax.results.merge import DrawnRun, merge_runs
from wsjax.results.stats import ACCURACY
from wsjax.results.summary import with_half
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords, differing

TITLES = {False: "a half-data network for each warm start", True: "chained warm starts, as the report ran"}
WHAT = "Figure 4: test accuracy by the cost of training on all of the data, a point a run (learning rates and batches)."
NOTES = (
    "Markers and their sizes tell the learning rate and batch of the round that is drawn. The best cell is chosen by "
    "its mean accuracy over these same seeds, among those whose rounds all converged; a warm start's cell is that of "
    "its first round. What that round cost is not counted, as in the report. No published point is drawn: the report's "
    "numbers were not published."
)


@dataclass(frozen=True)
class Config(drawing.Config):
    """What to draw, and where to."""

    cost: Literal["samples_seen", "steps", "train_seconds"] = "samples_seen"
    """What a round costs: samples seen, steps, or seconds, which depend on the machine."""


def draw(runs: Sequence[RunRecords], cost: str = "samples_seen") -> tuple[Figure, Caption]:
    """The figure of hyperparameters runs and its caption."""
    drawn = _merged(runs)
    summaries = {chained: hyperparameters.summarize(run.rows, run.methods) for chained, run in drawn.items()}
    if not any(summary["rows"] for summary in summaries.values()):
        raise RunError("no round on all of the data has ended yet: wait for the first one")
    panels = {TITLES[chained]: summary for chained, summary in summaries.items()}
    return tradeoff.panels(panels, cost), _caption(drawn, summaries, cost)


def _merged(runs: Sequence[RunRecords]) -> dict[bool, DrawnRun]:
    """The runs without and with chained warm starts; where one lacks random initialisations, it gets the other's."""
    kinds = [run.config.get("config", {}).get("chained", False) is True for run in runs]
    groups = {kind: [run for run, own in zip(runs, kinds, strict=True) if own == kind] for kind in sorted({*kinds})}
    drawn = {kind: merge_runs(own, "hyperparameters") for kind, own in (groups or {False: []}).items()}
    if len(drawn) < 2:
        return drawn
    free = {*words.NEUTRAL, "chained", "perturb"}
    pairs = {name: pair for name, pair in differing(*(run.settings for run in drawn.values())).items()}
    if differ := [f"{name} {first} and {second}" for name, (first, second) in pairs.items() if name not in free]:
        raise RunError(f"runs of different settings cannot share a figure: {'; '.join(differ)}")
    return {kind: _with_random(run, drawn[not kind]) for kind, run in drawn.items()}


def _with_random(run: DrawnRun, other: DrawnRun) -> DrawnRun:
    if any(_is_random(run, row) for row in run.rows):
        return run
    rows = [row for row in other.rows if _is_random(other, row)]
    return run._replace(rows=[*run.rows, *rows], methods={**other.methods, **run.methods})


def _is_random(run: DrawnRun, row: Mapping[str, Any]) -> bool:
    return run.methods.get(row["method"], {}).get("reinit") == names.RANDOM


def _caption(drawn: Mapping[bool, DrawnRun], summaries: Mapping[bool, Mapping[str, Any]], cost: str) -> Caption:
    (settings,) = published.read(__file__, "settings")
    own = settings["offline"] | settings["figure4"]
    first, *others = drawn.values()
    whole = first._replace(
        settings={name: value for name, value in first.settings.items() if name != "chained" or not others},
        rows=[row for run in drawn.values() for row in run.rows],
        finished=all(run.finished for run in drawn.values()),
        about="; ".join(dict.fromkeys(run.about for run in drawn.values())),
    )
    if others:
        del own["chained"]
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
        return f"{word}: no cell of both RI and WS has all rounds converged."
    accuracy = {(own["start"], tuple(own["cell"])): own["test_accuracy"] for own in summary["cells"]}
    cells = [
        f"{what} {best[start][0]:g}/{best[start][1]}: {_number(accuracy[start, tuple(best[start])])}"
        for start, what in (("RI", "RI"), ("WS", "WS, first"))
    ]
    share = best["of_RI"].get(cost)
    took = "" if share is None else f", for {_number(share)} % of RI's {hyperparameters.COSTS[cost]}"
    same = "" if summary["same"] is None else f"; with the same settings on all {_number(summary['same']['gap'])}"
    return f"{word}: best {cells[0]}, best {cells[1]}; RI - WS {_number(best['gap'])}{took}{same}."


def _number(value: Mapping[str, Any]) -> str:
    return with_half(value, ACCURACY, 1, sign=False)


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__, Config)

"""Figure 3: early stopping. What a warm start (WS) loses by the number of epochs before it.

    python figures/figure3.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/figure3]

Draws runs of experiments/early_stopping.py, as PNG and PDF with the caption beside them as TXT. Takes seconds. Damage
is RI - WS, positive where warm starting loses; the report draws 100 (WS - RI) / RI, its opposite, and has a gap after
20 epochs already.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from wsjax.results import captions, early_stopping, names, published
from wsjax.results.captions import Caption
from wsjax.results.merge import merge_runs
from wsjax.results.stats import PERCENT
from wsjax.results.summary import with_half
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords

WHAT = (
    "Figure 3: test accuracy while training on a part of the data (left); what a warm start from there loses on all "
    "(right)."
)
NOTES = (
    "The report draws 100 (WS - RI) / RI, the opposite sign, of one seed; its text has a gap after 20 epochs already. "
    "No published curve is drawn: its numbers were not published."
)


def draw(runs: Sequence[RunRecords]) -> tuple[Figure, Caption]:
    """The figure of early-stopping runs and its caption."""
    run = merge_runs(runs, "early_stopping", reinits=(names.RANDOM, names.WARM))
    (settings,) = published.read(__file__, "settings")
    own = settings["offline"] | settings["figure3"]
    summary = early_stopping.summarize(run.rows, run.methods)
    came, notes = _came(summary, run.methods)
    caption = captions.compose(run, WHAT, own, came, f"{notes} {NOTES}")
    return early_stopping.curves(run.rows, run.methods), caption


def _came(summary: Mapping[str, Any], methods: names.Methods) -> tuple[str, str]:
    """How the shortest and the longest training before a warm start came out, and all of them."""
    afters = sorted(spec[early_stopping.AFTER] for spec in methods.values() if early_stopping.AFTER in spec)
    there = {own[early_stopping.AFTER]: with_half(own["percent"], PERCENT, 1) for own in summary["damage"]}
    missing = ", ".join(str(after) for after in afters if after not in there)
    lacks = f"No seed has both RI and WS yet after {missing} epochs." if missing else ""
    if not there:
        return lacks, ""
    ends = dict.fromkeys((min(there), max(there)))
    came = f"Damage in percent of RI: {'; '.join(f'{there[after]} after {after} epochs' for after in ends)}"
    if summary["slope"] is not None:
        came += f"; {with_half(summary['slope']['percent'], PERCENT, 3)} an epoch"
    damage = "; ".join(f"{after}: {number}" for after, number in there.items())
    return f"{came}. {lacks}".strip(), f"Damage in percent of RI by the epochs before: {damage}."


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__)

"""Figure 10: gradient norms of the old and the new half of the data by epoch, without and with augmentation.

    python figures/figure10.py RUN_FOLDER AUGMENTED_RUN_FOLDER [...] [--out figures/results/figure10]

Draws runs of experiments/gradients.py side by side, those with --augment on the right, as PNG and PDF with the caption
beside them as TXT. Takes seconds. At the report's settings expect augmentation to lessen the halves' difference after a
warm start; its curves are in no published file.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from wsjax.results import captions, gradient_plots, gradients, published
from wsjax.results.captions import Caption
from wsjax.results.groups import merge_groups
from wsjax.results.merge import DrawnRun
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords

SIDES = {"without augmentation": False, "with augmentation": True}


def draw(runs: Sequence[RunRecords]) -> tuple[Figure, Caption]:
    """The figure of gradients runs and its caption."""
    groups = merge_groups(runs, "gradients", ["augment"], ["first_epochs"]).runs
    drawn = {side: groups[on,] for side, on in SIDES.items() if (on,) in groups}
    (settings,) = published.read(__file__, "settings")
    own = {"without augmentation": settings["gradients"]}
    own["with augmentation"] = settings["gradients"] | settings["figure10"]
    # What ran on one side alone would be nothing to compare.
    both = set.intersection(*({row["method"] for row in run.rows} for run in drawn.values()))
    panels = [
        gradient_plots.Panel(side, [row for row in run.rows if row["method"] in both], run.methods)
        for side, run in drawn.items()
    ]
    return gradient_plots.gradient_curves(panels), caption_of(drawn, own)


def caption_of(drawn: Mapping[str, DrawnRun], settings: Mapping[str, Mapping[str, Any]]) -> Caption:
    """One caption for the runs of both sides, or of the one that there is, beside each side's published settings."""
    what = "Figure 10: mean gradient norm at each epoch's start, on the first round's half (old) and the other (new), "
    what += f"{' and '.join(drawn)}."
    came = gradients.came(list(drawn.values()), f", {' / '.join(drawn)}")
    each = [captions.compose(run, what, settings[side], came, gradients.NOTES) for side, run in drawn.items()]
    caption = captions.joined(each, [side.capitalize() for side in drawn])
    lacks = "".join(f"No run {side} is given. " for side in SIDES if side not in drawn)
    return caption._replace(differs=lacks + caption.differs)


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__)

"""Figure 8: gradient norms of the old and the new half of the data by epoch, for RI, WS and shrink-perturb (SP).

    python figures/figure8.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/figure8]

Draws runs of experiments/gradients.py, as PNG and PDF with the caption beside them as TXT. Takes seconds. At the
report's settings expect the new half's gradients above the old half's after a warm start, and SP at shrink 0.3 to even
them out; its curves are in no published file, and its RI has none.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections.abc import Sequence

from matplotlib.figure import Figure

from wsjax.results import captions, gradient_plots, gradients, published
from wsjax.results.captions import Caption
from wsjax.results.merge import merge_runs
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords


def draw(runs: Sequence[RunRecords]) -> tuple[Figure, Caption]:
    """The figure of gradients runs and its caption."""
    run = merge_runs(runs, "gradients")
    (settings,) = published.read(__file__, "settings")
    what = "Figure 8: mean gradient norm at each epoch's start, on the first round's half (old) and on the other "
    what += "(new); their ratio."
    caption = captions.compose(run, what, settings["gradients"], gradients.came([run]), gradients.NOTES)
    figure = gradient_plots.gradient_curves([gradient_plots.Panel("", run.rows, run.methods)])
    return figure, caption


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__)

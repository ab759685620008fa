"""Figure 5: shrink-perturb (SP) against RI and WS, test accuracy by epoch on all of the data.

    python figures/figure5.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/figure5]

Draws runs of experiments/offline.py over the report's curves, as PNG and PDF with the caption beside them as TXT.
Takes seconds. At the report's settings expect SP near 80.9, 64.7 and 59.7 % at shrink 0.1, 0.3 and 0.6.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from wsjax.results import captions, names, plots, published, words
from wsjax.results.captions import Caption
from wsjax.results.merge import merge_runs
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords

CURVES = {
    published.RI: "RI", published.WS: "WS",
    published.sp(0.1): "lam0.1", published.sp(0.3): "lam0.3", published.sp(0.6): "lam0.6",
}  # fmt: skip
FINALS = {
    published.RI: "random", published.WS: "warm",
    published.sp(0.1): "shrink_0_1", published.sp(0.3): "shrink_0_3", published.sp(0.6): "shrink_0_6",
}  # fmt: skip


def draw(runs: Sequence[RunRecords]) -> tuple[Figure, Caption]:
    """The figure of offline runs and its caption."""
    run = merge_runs(runs, "offline", first_round=False)
    settings, report = published.read(__file__, "settings", "report")
    what = (
        "Figure 5: training on all of the data: a new network (RI), one trained on a part of them (WS), and that one "
        "after shrink-perturb (SP)."
    )
    own, ends, curves = settings["offline"], None, None
    notes = "No published curve is drawn: the report's Figure 5 is ResNet-18 of width 64 on CIFAR-10 by SGD."
    if words.is_published(run.settings, own):
        curves = published_curves(report["figure1_and_5_curves_epoch_accuracy"], run.methods)
        notes = "Dashed: the report's curves (one seed); perturb 0.01 as run, 0.0001 in its text."
    if words.is_alike(run.settings, own):
        ends = {name: report["figure5_final"][key] for name, key in published.by_method(FINALS, run.methods).items()}
    groups = names.with_controls(run.methods)
    figure = plots.grouped_curves(run.rows, run.methods, groups, epochs=run.epochs, published=curves)
    return figure, captions.offline_caption(run, what, own, ends, notes)


def published_curves(curves: dict[str, Any], methods: names.Methods) -> published.Curves:
    """The report's curves by (field, method). It counts epochs from 0."""
    found = published.by_method(CURVES, methods).items()
    points = {name: np.array(curves[f"fig5_offline_sp_sigma0.01:{key}"]) for name, key in found}
    return {("test_accuracy", name): there + np.array([1, 0]) for name, there in points.items()}


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__)

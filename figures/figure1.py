"""Figure 1: warm starting (WS) against random initialisation (RI), test and train accuracy by epoch.

    python figures/figure1.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/figure1]

Draws runs of experiments/offline.py over the report's curves, as PNG and PDF with the caption beside them as TXT.
Takes seconds. At the report's settings expect RI near 60.3 % and WS near 58.7 %.
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

ROUND = 200  # epochs of each of the report's two rounds


def draw(runs: Sequence[RunRecords]) -> tuple[Figure, Caption]:
    """The figure of offline runs and its caption."""
    run = merge_runs(runs, "offline", reinits=(names.RANDOM, names.WARM))
    settings, report = published.read(__file__, "settings", "report")
    what = "Figure 1: RI trains on all of the data from scratch, WS first on a part of them."
    own, final, ends, curves = settings["offline"], report["figure5_final"], None, None
    notes = "No published curve is drawn: the report's Figure 1 is ResNet-18 of width 64 on CIFAR-10 by SGD."
    if words.is_published(run.settings, own):
        curves = published_curves(report["figure1_and_5_curves_epoch_accuracy"], run.methods)
        notes = "Dashed: the report's curves (one seed) by the epochs of each round."
    if words.is_alike(run.settings, own):
        ends = published.by_method({published.RI: final["random"], published.WS: final["warm"]}, run.methods)
    figure = plots.offline_curves(run.rows, run.methods, epochs=run.epochs, published=curves)
    return figure, captions.offline_caption(run, what, own, ends, notes)


def published_curves(curves: dict[str, Any], methods: names.Methods) -> published.Curves:
    """The report's curves by (field, method). It counts epochs from 0, and on through both rounds."""
    drawn = {}
    for panel in ("test", "train"):
        warm = np.array(curves[f"fig1_{panel}:half_then_full(WS)"])
        random = np.array(curves[f"fig1_{panel}:full(RI),shifted200"])
        first, second = np.array([1, 0]), np.array([1 - ROUND, 0])
        later = {published.RI: random + second, published.WS: warm[warm[:, 0] >= ROUND] + second}
        drawn[f"{panel}_accuracy", "first"] = warm[warm[:, 0] < ROUND] + first
        drawn |= {(f"{panel}_accuracy", name): points for name, points in published.by_method(later, methods).items()}
    return drawn


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__)

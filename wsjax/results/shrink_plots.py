"""Accuracy by shrink: a curve a network, and of a ResNet one for each way to evaluate it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from wsjax.results import plots, shrinking
from wsjax.results.names import Style
from wsjax.results.shrinking import Curve

COLORS = dict(zip(shrinking.LABELS, ("#444444", "#0072B2", "#56B4E9", "#D55E00", "#E69F00"), strict=True))
LINES = {"running": "-", "reestimated": (0, (6, 1.5, 1, 1.5)), "batch": (0, (1, 1.2))}


def shrink_curves(curves: Sequence[Curve], published: Mapping[str, ArrayLike] | None = None) -> Figure:
    """Draws test accuracies by shrink, means over seeds in their bands.

    Args:
        curves: those of a run; see `shrinking.Curve`.
        published: by network, points [P, 2] of (shrink, percent), drawn dashed behind.
    """
    published = published or {}
    figure = Figure(figsize=(plots.WIDTH, 3.0), layout="constrained")
    axis = figure.subplots()
    styles: dict[str, Style] = {}
    for network in shrinking.LABELS:
        for evaluation, line in LINES.items():
            own = [one for one in curves if (one["network"], one["evaluation"]) == (network, evaluation)]
            if own:
                label, style = shrinking.title(network, evaluation), Style(COLORS[network], line)
                values = [100 * np.asarray(one["accuracies"]) for one in own]
                plots.mean_band(axis, own[0]["shrinks"], values, label=label, style=style)
                styles[label] = style
        if network in published:
            x, y = np.asarray(published[network]).T
            plots.dashed(axis, x, y, 1, Style(COLORS[network]))
    plots.dress(axis, "Test accuracy (%)", 1, "Shrink")
    axis.set_ylim(bottom=0)
    dashes = {"published": Style("#888888", plots.DASHES)} if published else {}
    plots.legend(figure, styles, dashes)
    return figure

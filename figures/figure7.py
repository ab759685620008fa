"""Figure 7: the accuracy of trained networks after shrinking alone, by the factor.

    python figures/figure7.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/figure7]

Draws runs of experiments/shrink_only.py over the report's curves, as PNG and PDF with the caption beside them as TXT;
each network may have been trained in a way of its own. Takes seconds. At the report's settings expect ReLU without
biases to be flat above 0 at 48 %, ReLU with biases to fall from a shrink of 0.6 down, and ResNet-18, evaluated with
each batch's statistics, to be flat above 0.05 at 78 %.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from wsjax.errors import RunError
from wsjax.results import captions, published, shrink_plots, shrinking, words
from wsjax.results.captions import Caption
from wsjax.results.groups import merge_groups
from wsjax.results.merge import DrawnRun, merge_runs
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords, differing

KEYS = {
    "resnet18": "resnet18", "relu": "mlp_relu_bias", "relu_no_bias": "mlp_relu_nobias",
    "tanh": "mlp_tanh_bias", "tanh_no_bias": "mlp_tanh_nobias",
}  # fmt: skip
NOTES = (
    "All parameters are multiplied by the factor. Two curves are flat by an identity: ReLU layers without biases, and "
    "BatchNorm on a batch's own statistics but for eps and the last bias, compute the same function up to a factor. "
    "The report evaluates ResNet-18 with each batch's statistics."
)


def draw(runs: Sequence[RunRecords]) -> tuple[Figure, Caption]:
    """The figure of shrink-only runs and its caption."""
    parts, curves = parts_of(runs), curves_of(runs)
    settings, report = published.read(__file__, "settings", "report")
    own = settings["shrink_only"]
    drawn, captioned = {}, []
    what = "Figure 7: test accuracy of trained networks all of whose parameters are multiplied by a factor, the shrink."
    for run in parts:
        of_run = [curve for curve in curves if curve["network"] in run.methods]
        drawn |= published_curves(run, own, report["figure7_shrink_lambda_index_accuracy"], of_run)
        captioned.append(captions.compose(run, what, own, shrinking.came(curves), NOTES))
    notes = "Dashed: the report's curves (one seed)." if drawn else "No published curve is drawn: settings differ."
    whole = captions.joined(captioned, [shrinking.labels(run.methods) for run in parts])
    caption = whole._replace(notes=f"{notes} {captioned[0].notes}")
    missing = [shrinking.LABELS[name] for name in KEYS if not any(curve["network"] == name for curve in curves)]
    if missing:
        caption = caption._replace(differs=f"{caption.differs} Not run: {'; '.join(missing)}.".strip())
    return shrink_plots.shrink_curves(curves, drawn), caption


def parts_of(runs: Sequence[RunRecords]) -> list[DrawnRun]:
    """The runs, merged where their settings are the same: each network may have been trained in a way of its own.

    Raises:
        RunError: as `merge_runs`; or a network was trained in two ways.
    """
    differ = {name for other in runs[1:] for name in differing(runs[0].config["config"], other.config["config"])}
    by = sorted(differ - words.NEUTRAL - {"networks", "perturb"})
    parts = list(merge_groups(runs, "shrink_only", by, None).runs.values())
    if max(Counter(name for run in parts for name in run.methods).values()) > 1:
        merge_runs(runs, "shrink_only")  # which says in what the trainings of a network differ
    return parts


def curves_of(runs: Sequence[RunRecords]) -> list[dict[str, Any]]:
    """The curves that finished runs hold, each network, seed and evaluation once.

    Raises:
        RunError: no run has finished.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in runs:
        for curve in (run.summary or {}).get("measured") or ():
            found.setdefault((curve["network"], curve["seed"], curve["evaluation"]), curve)
    if not found:
        raise RunError("there are no curves to draw yet: networks are shrunk when all have been trained")
    return list(found.values())


def published_curves(
    run: DrawnRun, own: dict[str, Any], report: dict[str, Any], curves: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The report's curves of those drawn networks that are trained as published."""
    drawn = {}
    for network in dict.fromkeys(curve["network"] for curve in curves):
        alone = {"networks": [network]}
        same_epochs = run.settings.get("epochs") == own["epochs"]
        if same_epochs and words.is_published(run.settings | alone, own | alone):
            values = report[KEYS[network]]
            drawn[network] = np.stack([np.linspace(0, 1, len(values)), 100 * np.array(values)], axis=1)
    return drawn


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__)

"""Figure 6: online shrink-perturb (SP) from random initialisation to warm start, accuracy and time by number of images.

    python figures/figure6.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/figure6]

Draws runs of experiments/online.py, as PNG and PDF with the caption beside them as TXT, over the report's RI and WS
(its Figure 2a) and what the paper reached at the end, by shrink (its Figure 7, read off the image). Takes seconds. At
their settings expect SP at shrink 0.4 or 0.6 near or above RI, at a third to a half of its time.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from wsjax.results import captions, names, plots, published, words
from wsjax.results.captions import Caption
from wsjax.results.merge import merge_runs, summarize_drawn
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords


def draw(runs: Sequence[RunRecords], cost: str = "steps") -> tuple[Figure, Caption]:
    """The figure of online runs and its caption."""
    run = merge_runs(runs, "online")
    ends = summarize_drawn(run)
    settings, report, paper = published.read(__file__, "settings", "report", "paper")
    what = "Figure 6: images arrive every round; parameters are shrunk and perturbed (SP, by shrink), kept (WS) or "
    what += "drawn anew (RI)."
    own, points, drawn = settings["online"] | settings["figure6"], None, {}
    notes = "No published curve is drawn: the report's Figure 6 is ResNet-18 of width 64 on CIFAR-10, stopped at 99 %."
    if words.is_alike(run.settings, own, "threshold"):
        pool = words.share(own["num_train"], own["pool"])
        curves = published.online(report["figure2_online"]["f2c99"], pool, run.methods)
        diamonds = paper_points(paper, pool, run.methods)
        curves |= diamonds
        if words.is_published(run.settings, own):
            drawn = curves
            notes = "Dashed: RI and WS of the report's Figure 2a (+1,000 images a round, one seed)"
            if diamonds and max(row["samples"] for row in run.rows) >= pool:
                notes += "; diamonds: where the paper's Figure 7 ends, ResNet-18 too"
            notes += (
                ", as far as this run goes; their seconds, which --cost=seconds draws, are those of other machines."
            )
        else:
            notes += " Published accuracies are those of its Figure 2a (+1,000 images a round) at as many images."
        points = published.accuracies_at(curves, captions.common_samples(ends["rounds"]))
    caption = captions.online_caption(run, what, ends, own, points, notes)
    figure = plots.online_curves(
        ends["rounds"], run.methods, published=drawn, cost=cost, groups=names.with_controls(run.methods)
    )
    return figure, caption


def paper_points(paper: dict[str, Any], pool: int, methods: names.Methods) -> published.Curves:
    """The paper's last points of SP by (field, method)."""
    ends = {published.sp(float(name.removeprefix("lambda_"))): end for name, end in paper["figure7_at_34k"].items()}
    drawn = {}
    for name, end in published.by_method(ends, methods).items():
        drawn["test_accuracy", name] = [[pool, end["accuracy"]]]
        drawn["train_seconds", name] = [[pool, end["seconds_per_round"]]]
    return drawn


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__, drawing.OnlineConfig)

"""Figure 2: online warm starting (WS) against random initialisation (RI), accuracy and time by the number of images.

    python figures/figure2.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/figure2]

Draws runs of experiments/online.py over the report's curves, as PNG and PDF with the caption beside them as TXT: its
panel a for CIFAR-10 stopped at 99 % train accuracy, b and c for SVHN at 99 % and 99.9 %. Takes seconds. At the
report's settings expect RI near 78.3 % and WS near 73.2 % (panel a), and WS 9.5 times as fast.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections.abc import Sequence

from matplotlib.figure import Figure

from wsjax.results import captions, names, plots, published, words
from wsjax.results.captions import Caption
from wsjax.results.merge import merge_runs, summarize_drawn
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords


def draw(runs: Sequence[RunRecords], cost: str = "steps") -> tuple[Figure, Caption]:
    """The figure of online runs and its caption."""
    run = merge_runs(runs, "online", reinits=(names.RANDOM, names.WARM))
    ends = summarize_drawn(run)
    settings, report = published.read(__file__, "settings", "report")
    what = "Figure 2: images arrive every round; RI trains on all of them from scratch, WS on from the round before."
    panels = {name: settings["online"] | panel for name, panel in settings["figure2"].items()}
    panel = next((name for name, own in panels.items() if words.is_alike(run.settings, own, "threshold")), None)
    own, points, drawn = None, None, {}
    notes = "No published curve is drawn: the report's Figure 2 is ResNet-18 of width 64, on CIFAR-10 stopped at 99 % "
    notes += "train accuracy and on SVHN at 99 % and 99.9 %."
    if panel is not None:
        own = panels[panel]
        pool = words.share(own["num_train"], own["pool"])
        curves = published.online(report["figure2_online"][panel], pool, run.methods)
        if words.is_published(run.settings, own):
            drawn = curves
            notes = "Dashed: the report's curves (one seed, BatchNorm evaluated with each test batch's statistics), as "
            notes += "far as this run goes; its seconds, of which --cost=seconds draws the curves too, are those of "
            notes += "another machine and include evaluation."
        points = published.accuracies_at(curves, captions.common_samples(ends["rounds"]))
    caption = captions.online_caption(run, what, ends, own, points, notes)
    figure = plots.online_curves(ends["rounds"], run.methods, published=drawn, cost=cost)
    return figure, caption


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__, drawing.OnlineConfig)

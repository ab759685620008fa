"""Figure 11: transfer between data sets, test accuracy by the share of the target that is trained on.

    python figures/figure11.py RUN_FOLDER [RUN_FOLDER ...] [--as_report] [--out figures/results/figure11]

Draws runs of experiments/transfer.py, one or more for each source, a panel a pair of data sets, as PNG and PDF with the
caption beside them as TXT. Takes seconds. --as_report adds, dotted, the RI curve that the report drew by mistake: that
of the source, where the pair is compared on the target; it needs a run in which that set is a target.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from wsjax.results import captions, panels, published, transfer
from wsjax.results.captions import Caption
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords


@dataclass(frozen=True)
class Config(drawing.Config):
    """What to draw, and where to."""

    as_report: bool = False
    """Draw the report's wrong RI curve too, that of the source."""


def draw(runs: Sequence[RunRecords], *, as_report: bool = False) -> tuple[Figure, Caption]:
    """The figure of transfer runs and its caption."""
    run, pairs = transfer.merge_sources(runs)
    (settings,) = published.read(__file__, "settings")
    own = settings["transfer"]
    here = [
        panels.Panel(pair.title, ends, transfer.of_source(pair, pairs, run.methods) if as_report else ())
        for pair, ends in pairs.items()
    ]
    figure = panels.share_panels(here, run.methods, "RI of the source, as the report drew it")
    came, notes = transfer.told(pairs, run.methods)
    if as_report:
        notes += " " + transfer.told_wrong(pairs, run.methods)
    what = "Figure 11: a share of a data set from scratch (RI), after another set (WS), after its shrink-perturb (SP)."
    published_sets = set(run.settings["datasets"]) <= set(own["datasets"]) and run.settings["model"] == own["model"]
    caption = captions.compose(run, what, own if published_sets else None, came, notes)
    return figure, caption._replace(differs=f"{caption.differs} {transfer.missing(pairs)}".strip())


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__, Config)

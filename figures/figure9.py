"""Figure 9: warm starting (WS) against random initialisation (RI), without and with augmentation of train images.

    python figures/figure9.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/figure9]

Draws runs of experiments/offline.py, with --augment and without, as PNG and PDF with the caption beside them as TXT: a
row each, test and train accuracy by epoch. Takes seconds. As the report ran it, the augmented run takes --epochs=350
and the other 200; it drew RI with augmentation only. Its curves are not among the published numbers.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections.abc import Sequence

from matplotlib.figure import Figure

from wsjax.results import augmentation, captions, published
from wsjax.results.captions import Caption
from wsjax.results.stats import unit_of
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords


def draw(runs: Sequence[RunRecords]) -> tuple[Figure, Caption]:
    """The figure of offline runs and its caption."""
    whole, own = augmentation.merge_augmented(runs)
    (settings,) = published.read(__file__, "settings")
    came, notes = augmentation.told(own, unit_of(whole.rows))
    what = "Figure 9: all of the data from scratch (RI) and after a part of them (WS), without and with augmentation."
    notes += " Train accuracy is that of the images as they are trained on, augmented ones in the lower row."
    caption = captions.compose(whole, what, settings["offline"] | settings["figure9"], came, notes)
    return augmentation.panels(own), caption._replace(differs=f"{caption.differs} {augmentation.missing(own)}".strip())


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__)

"""Controls: what is left of shrink-perturb's win when RI and WS take other learning rates in the second round.

    python figures/controls.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/controls]

Draws runs of experiments/offline.py whose methods have learning rates of their own, as PNG and PDF with the caption
beside them as TXT: final test accuracy by the learning rate of the second round. Takes seconds. Runs may differ in
--learning_rate and --warmup. On the digits, in half a minute:

    python experiments/offline.py --dataset=digits --optimizer=sgd --learning_rate=0.01 \\
      --methods RI RI@0.11 WS WS@0.11 SP --evaluate=round --seeds 0 1 2 3 4 5 6 7 8 9 --run=controls

There SP of shrink 0.3 is 3 points above RI at the same rate, and 31 below RI at 0.11, which is 1 / 0.3^2 times that.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections.abc import Sequence

from matplotlib.figure import Figure

from wsjax.results import captions, controls, panels, published
from wsjax.results.captions import Caption
from wsjax.results.stats import unit_of
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords


def draw(runs: Sequence[RunRecords]) -> tuple[Figure, Caption]:
    """The figure of offline runs and its caption."""
    run, ends = controls.merge_rates(runs)
    marks = controls.raised(run.methods, ends)
    drawn = controls.of_shared_seeds(ends)
    figure = panels.by_learning_rate(drawn, run.methods, marks)
    (settings,) = published.read(__file__, "settings")
    came = controls.told(controls.compare(ends, run.methods), unit_of(ends))
    what = "Controls: final test accuracy after training on all of the data, by the learning rate of that second round."
    notes = "The best rate is that of the highest mean over seeds on the test images, in favour of RI and WS."
    if marks:
        notes += (
            " Vertical lines: 1 / shrink^2 times the rate of that shrink-perturb, where steps would be as large for "
        )
        notes += "weights that BatchNorm makes scale-invariant."
    run = run._replace(rows=drawn)
    means = captions.bands(run, "Points", "bars")
    return figure, captions.compose(run, what, settings["offline"], came, notes, means)


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__)

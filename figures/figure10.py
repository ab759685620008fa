"""Figure 10: gradient norms of the old and the new half of the data by epoch, without and with augmentation.

    python figures/figure10.py RUN_FOLDER AUGMENTED_RUN_FOLDER [...] [--out figures/results/figure10]

Draws runs of experiments/gradients.py side by side, those with --augment on the right, as PNG and PDF with the caption
beside them as TXT. Takes seconds. At the report's settings expect augmentation to lessen the halves' difference after a
warm start; its curves are in no published file.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from wsjax.errors import RunError
from wsjax.results import captions, gradient_plots, gradients, published, words
from wsjax.results.captions import Caption
from wsjax.results.merge import DrawnRun, merge_runs
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords, differing

SIDES = {"without augmentation": False, "with augmentation": True}
VARIED = ("augment", "first_epochs")


def draw(runs: Sequence[RunRecords]) -> tuple[Figure, Caption]:
    """The figure of gradients runs and its caption."""
    grouped = {side: [run for run in runs if _is_augmented(run) == on] for side, on in SIDES.items()}
    drawn = {side: merge_runs(own, "gradients") for side, own in grouped.items() if own or not runs}
    check_alike(list(drawn.values()))
    (settings,) = published.read(__file__, "settings")
    own = {"without augmentation": settings["gradients"]}
    own["with augmentation"] = settings["gradients"] | settings["figure10"]
    panels = [gradient_plots.Panel(side, run.rows, run.methods) for side, run in drawn.items()]
    return gradient_plots.gradient_curves(panels, ratio=len(panels) == 1), caption_of(drawn, own)


def caption_of(drawn: Mapping[str, DrawnRun], settings: Mapping[str, Mapping[str, Any]]) -> Caption:
    """One caption for the runs of both sides, or of the one that there is, beside each side's published settings."""
    what = "Figure 10: mean gradient norm at each epoch's start, on the first round's half (old) and the other (new), "
    what += f"{' and '.join(drawn)}."
    came = gradients.came(list(drawn.values()), f", {' / '.join(drawn)}")
    each = {side: captions.compose(run, what, settings[side], came, gradients.NOTES) for side, run in drawn.items()}
    if len(each) == 1:
        ((side, caption),) = each.items()
        other = next(name for name in SIDES if name != side)
        return caption._replace(differs=f"No run {other} is given. {caption.differs}")

    def both(part: int) -> str:
        texts = {side: caption[part] for side, caption in each.items() if caption[part]}
        if len(set(texts.values())) == 1 and len(texts) == len(each):
            return next(iter(texts.values()))
        return " ".join(f"{side.capitalize()}: {text}" for side, text in texts.items())

    return Caption(what, *map(both, range(1, len(Caption._fields))))


def check_alike(drawn: Sequence[DrawnRun]) -> None:
    """Raises a RunError where the two sides differ in more than the augmentation and the first round's length."""
    free = {*words.NEUTRAL, *VARIED, "perturb"}
    for other in drawn[1:]:
        pairs = differing(drawn[0].settings, other.settings).items()
        if differ := [f"{name} {first} and {second}" for name, (first, second) in pairs if name not in free]:
            raise RunError(f"runs of different settings cannot share a figure: {'; '.join(differ)}")


def _is_augmented(run: RunRecords) -> bool:
    settings = run.config.get("config")
    return isinstance(settings, dict) and bool(settings.get("augment"))


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__)

"""Table 2: final test accuracy of RI and WS by weight decay, beside the published numbers.

    python figures/table2.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/table2]

Reads runs of experiments/offline.py, each of one weight decay, and writes Markdown and LaTeX with the caption beside
them as TXT. Takes seconds. A run as the report ran it:

    python experiments/offline.py --dataset=cifar10 --weight_decay=0.01 --methods RI WS --run=decay-0.01
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections.abc import Sequence

from wsjax.results import cells, published
from wsjax.results.captions import Caption
from wsjax.results.sheets import Sheet
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords

BY = ("model", "dataset", "optimizer", "weight_decay")


def draw(runs: Sequence[RunRecords]) -> tuple[Sheet, Caption]:
    """The table of offline runs and its caption."""
    what = (
        "Table 2: final test accuracy in percent by weight decay, from scratch (RI) and from half of the data on (WS)."
    )
    notes = "The report's numbers are of one seed, and taken to scatter as ours do."
    return cells.table(runs, BY, entries(), what, notes)


def entries() -> list[cells.Entry]:
    """What was published of each weight decay."""
    settings, report = published.read(__file__, "settings", "report")
    made = []
    for cell in report["table2"]:
        own = settings["offline"] | {"weight_decay": cell["weight_decay"]}
        scores = {reinit: cells.published_score(cell[init], None) for init, reinit in cells.INITS.items()}
        printed = {reinit: cells.with_error(cell[init], None) for init, reinit in cells.INITS.items()}
        made.append(cells.Entry(tuple(own[name] for name in BY), scores, printed, own))
    return made


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__)

"""The board of methods: accuracy, cost and time to from-scratch accuracy of every method, on every protocol that ran.

    python figures/board.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/board]

Draws runs of experiments/offline.py and online.py, of any settings and methods, as PNG and PDF with the caption beside
them as TXT, and as a table in Markdown and LaTeX. Runs that differ in seeds and methods only are one protocol. Where
numbers were published for the very settings that ran, they stand beside those measured. Takes seconds. On the digits:

    python experiments/offline.py --dataset=digits --methods RI WS SP DASH FIRE L2 HT SWR RI@0.003 --run=board
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from collections.abc import Sequence

from matplotlib.figure import Figure

from wsjax.results import board, board_plots, published
from wsjax.results.captions import Caption
from wsjax.results.sheets import Sheet
from wsjax.scripts import draw as drawing
from wsjax.storage.records import RunRecords


def draw(runs: Sequence[RunRecords]) -> tuple[Figure, Caption]:
    """The board of offline and online runs, and its caption."""
    blocks = board.blocks(runs, protocols())
    return board_plots.board(blocks), board.caption(blocks)


def table(runs: Sequence[RunRecords]) -> Sheet:
    """The same as a table."""
    return board.table(board.blocks(runs, protocols()))


def protocols() -> list[dict]:
    """What was published on which protocols."""
    (known,) = published.read(__file__, "board")
    return known["protocols"]


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__, table=table)

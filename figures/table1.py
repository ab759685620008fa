"""Table 1: final test accuracy of RI and WS over models, data sets and optimisers, beside the published numbers.

    python figures/table1.py RUN_FOLDER [RUN_FOLDER ...] [--out figures/results/table1]

Reads runs of experiments/offline.py, any number of the 27 cells, and writes Markdown and LaTeX with the caption beside
them as TXT. Takes seconds. A run of a cell, as the report ran it:

    python experiments/offline.py --dataset=cifar10 --model=mlp --optimizer=adam --stop accuracy plateau \\
      --train_accuracy=after --opt_state=keep --fresh=first --methods RI WS --seeds 42 43 44 45 46 --epochs=1000

ResNet-18 has further columns where runs with --evaluation=batch, the report's way, or reestimated are given.
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

BY = ("model", "dataset", "optimizer")
OPTIMIZERS = {"sgd": "sgd", "adam": "adam", "sgd_momentum": "msgd"}
_BY_SEED = {"random": "random", "warm": "warm-start", "sgd": "sgd", "adam": "adam", "sgd_momentum": "sgd-momentum"}


def draw(runs: Sequence[RunRecords]) -> tuple[Sheet, Caption]:
    """The table of offline runs and its caption."""
    what = "Table 1: final test accuracy in percent, trained from scratch (RI) and from half of the data on (WS)."
    notes = "The report took a learning rate of 0.005 for the MLP by SGD on SVHN, and tested with batch statistics."
    return cells.table(runs, BY, entries(), what, notes)


def entries() -> list[cells.Entry]:
    """What was published of each cell."""
    settings, report = published.read(__file__, "settings", "report")
    made: dict[tuple[str, ...], cells.Entry] = {}
    for cell in report["table1"]:
        key = cell["model"], cell["dataset"], OPTIMIZERS[cell["optimizer"]]
        rate = {"learning_rate": cell["learning_rate"]} if "learning_rate" in cell else {}
        own = settings["offline"] | settings["table1"] | settings["table1_sets"][cell["dataset"]] | rate
        own |= dict(zip(BY, key, strict=True))
        score = cells.published_score(cell["accuracy"], cell["spread"])
        if not rate:  # the report's runs by seed have those of another rate
            seeds = report["table1_per_seed"].values()
            optimizer, init = _BY_SEED[cell["optimizer"]], _BY_SEED[cell["init"]]
            score = cells.score_of([run[init][cell["dataset"]][optimizer][cell["model"]] / 100 for run in seeds])
        printed = cells.with_error(cell["accuracy"], cell["spread"])
        entry = made.get(key) or cells.Entry(key, {}, {}, own)
        made[key] = entry._replace(
            scores={**entry.scores, cells.INITS[cell["init"]]: score},
            printed={**entry.printed, cells.INITS[cell["init"]]: printed},
        )
    return list(made.values())


if __name__ == "__main__":
    drawing.run_script(draw, __file__, __doc__)

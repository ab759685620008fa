"""Learning rates and batch sizes: with the right ones, is a warm start as accurate as the best random initialisation?

    python experiments/hyperparameters.py                      the embedded digits
    python experiments/hyperparameters.py --dataset=cifar10    Figure 4: ResNet-18, SGD, 12 cells, 9 seeds
    ... --chained --run=chained                                warm starts one after the other, as the report's code

A cell is a learning rate with a batch size. RI trains on all of the data with a cell's settings, from scratch. WS
trains on half of the data with a cell's settings, then on all of them with those of another cell, drawn for each seed
and cell; every WS has a half-data network of its own. With --chained there is one for each cell and seed, and it
trains on all of the data again and again, with the second settings that the unchained runs of its cell have, each time
from where it was: from the second time on it has seen all of the data already. Rounds end at a train accuracy; one
whose loss is not finite ends there, is reported and drawn as not converged, and the others go on. The run's folder
holds a row per epoch, a summary of cost and accuracy, and a picture. The same command continues a run, however it was
stopped.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

import dataclasses
import itertools
from typing import Any

import tyro

from wsjax.results import hyperparameters, words
from wsjax.scripts import build, cli, config, grid, run

METHODS = ("RI", "WS")


@dataclasses.dataclass(frozen=True)
class Config(config.Common):
    """Settings of the hyperparameters experiment."""

    methods: tuple[str, ...] = METHODS
    """RI (random initialisation) and WS (warm start)."""
    learning_rates: tuple[float, ...] = (0.1, 0.01, 0.001)
    """The cells' learning rates, in place of --learning_rate."""
    batch_sizes: tuple[int, ...] = (128, 64, 32, 16)
    """The cells' batch sizes, in place of --batch_size."""
    fraction: float = 0.5
    """Share of the train images that a warm start's first round has, in (0, 1]."""
    chained: tyro.conf.FlagCreatePairsOff[bool] = False
    """Chain the warm starts of a cell and seed, each from the one before, as the report's code did."""
    stack: bool | None = False
    """Train all seeds together as one program. Default: no, since each stops at its own epoch and its seconds count."""


TO_THE_END: dict[str, Any] = {"stop": ("accuracy",), "evaluate": "round"}
ON_DIGITS: dict[str, Any] = {"learning_rates": (0.003, 0.001), "batch_sizes": (64, 16), "epochs": 200}
DIGITS = Config(**config.DIGITS | TO_THE_END | ON_DIGITS, seeds=tuple(range(6)))
FIGURE_4 = Config(**TO_THE_END, model="resnet18", optimizer="sgd", epochs=701, seeds=tuple(range(9)))


def defaults(dataset: str | None) -> Config:
    """The settings for a data set where nothing else is said: Figure 4's, but for the embedded digits."""
    return DIGITS if dataset in (None, "digits") else dataclasses.replace(FIGURE_4, dataset=dataset)


def main(settings: Config) -> None:
    """Runs the experiment, or what is left of it, prints what came out, and draws it."""
    check(settings)
    from wsjax.results import tradeoff
    from wsjax.rounds.legs import Method

    dataset = run.load_data(settings)
    total = len(dataset.train_labels)
    sizes = words.share(total, settings.fraction), total
    setup = build.build_setup(settings, dataset)
    half, whole = build.build_rounds(settings, setup, [(size, settings.epochs) for size in sizes])
    cells = list(itertools.product(settings.learning_rates, settings.batch_sizes))
    setups = {cell: grid.build_setup(settings, setup, cell) for cell in cells}
    planned = grid.plan(cells, settings.seeds, settings.chained)
    methods, table = {}, {}
    for start, own, seeds in [method for method in planned if method[0] in settings.methods]:
        name = hyperparameters.name_of(start, own)
        table[name] = hyperparameters.spec_of(start, own)
        parts = [half if start == "WS" else whole, *[whole] * (len(own) - 1)]
        rounds = [part._replace(setup=setups[cell]) for part, cell in zip(parts, own, strict=True)]
        methods[name] = Method(build.build_start(settings, table[name]), after=0, rounds=rounds, seeds=seeds)
    outcome = run.run(
        "hyperparameters", settings, setup, [whole], methods, hyperparameters.summarize, table, diverged="end"
    )
    summary = outcome.summary
    picture = tradeoff.panels({"": summary})
    run.conclude(
        outcome, "On all of the data", hyperparameters.table(summary), picture, hyperparameters.verdict(summary)
    )


def check(settings: Config) -> None:
    """Checks every field; raises UsageError."""
    cli.check(set(settings.stop) != {"epochs"}, "--stop=epochs: cells are compared where they converge; give accuracy")
    config.check_config(settings, defaults(settings.dataset))
    strangers = [method for method in settings.methods if method not in METHODS]
    cli.check(not strangers, f"--methods: this experiment compares RI and WS, not {' '.join(strangers)}")
    for one, many in (("learning_rate", "learning_rates"), ("batch_size", "batch_sizes")):
        config.check_list(many, getattr(settings, many))
        why = f"here: give the cells' own with --{many}"
        config.check_unused(settings, defaults(settings.dataset), one, why)


if __name__ == "__main__":
    cli.run_script(main, defaults, __doc__)

"""Early stopping: does a shorter training on half of the data spare a warm start its loss?

    python experiments/early_stopping.py                      the embedded digits
    python experiments/early_stopping.py --dataset=cifar10    Figure 3: ResNet-18, SGD 0.001, 200 epochs, every 20

One network per seed trains on half of the data for --first_epochs epochs. After each --every of them a warm start (WS)
branches off and trains on all of the data for --epochs epochs; the half's own training goes on as if nothing had
happened, optimiser state included. RI trains on all of the data from scratch. The run's folder holds a row per epoch,
a summary with the damage RI - WS by the epochs before (positive where warm starting loses) and its slope, and a
picture. The same command continues a run, however it was stopped.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

import dataclasses
import itertools
from typing import Any

from wsjax.results import early_stopping, names, words
from wsjax.scripts import build, cli, config, optimisers, run

METHODS = ("RI", "WS")


@dataclasses.dataclass(frozen=True)
class Config(config.Common):
    """Settings of the early-stopping experiment."""

    methods: tuple[str, ...] = METHODS
    """RI (random initialisation) and WS (a warm start after each --every epochs)."""
    fraction: float = 0.5
    """Share of the train images that the network before the warm starts trains on, in (0, 1]."""
    first_epochs: int | None = None
    """Epochs of that training. Default: --epochs. It always runs all of them: --stop does not apply there."""
    every: int = 20
    """Epochs of it between two warm starts; before the last one there may be fewer."""


DIGITS_EPOCHS: dict[str, Any] = {"first_epochs": 40, "every": 5, "epochs": 8}
DIGITS = Config(**config.DIGITS | DIGITS_EPOCHS, seeds=tuple(range(20)))
FIGURE_3 = Config(model="resnet18", optimizer="sgd", learning_rate=0.001, epochs=200)


def defaults(dataset: str | None) -> Config:
    """The settings for a data set where nothing else is said: Figure 3's, but for the embedded digits."""
    return DIGITS if dataset in (None, "digits") else dataclasses.replace(FIGURE_3, dataset=dataset)


def main(settings: Config) -> None:
    """Runs the experiment, or what is left of it, prints what came out, and draws it."""
    check(settings)
    first = settings.first_epochs or settings.epochs
    from wsjax.rounds.legs import Method, Round

    dataset = run.load_data(settings)
    total = len(dataset.train_labels)
    half = words.share(total, settings.fraction)
    ends = [*range(settings.every, first, settings.every), first]
    setup = build.build_setup(settings, dataset)
    # A schedule runs over the whole of the half's training: no warm start of it begins it again.
    own = optimisers.paced(settings, setup, first)
    shared = [Round(half, None, end - begin, own) for begin, end in itertools.pairwise([0, *ends])]
    later = build.build_rounds(settings, setup, [(total, settings.epochs)])
    methods, table = {}, {}
    if "RI" in settings.methods:  # it takes what the offline experiment's takes: the network drawn after round 1
        table["RI"] = {"reinit": names.RANDOM}
        methods["RI"] = Method(build.build_start(settings, table["RI"]), after=1, rounds=later)
    for number, end in enumerate(ends if "WS" in settings.methods else [], 1):
        name = f"WS {end}"
        table[name] = {"reinit": names.WARM, early_stopping.AFTER: end}
        methods[name] = Method(build.build_start(settings, table[name]), after=number, rounds=later)
    outcome = run.run("early_stopping", settings, setup, shared, methods, early_stopping.summarize, table)
    lines, picture = early_stopping.table(outcome.summary), early_stopping.curves(outcome.rows, outcome.methods)
    run.conclude(outcome, "All of the data, by the start", lines, picture, early_stopping.verdict(outcome.summary))


def check(settings: Config) -> None:
    """Checks every field; raises UsageError."""
    config.check_config(settings, defaults(settings.dataset))
    strangers = [method for method in settings.methods if method not in METHODS]
    cli.check(not strangers, f"--methods: early stopping compares RI and WS, not {' '.join(strangers)}")
    first = settings.first_epochs or settings.epochs
    cli.check(settings.every <= first, f"--every={settings.every}: there are {first} epochs before the last warm start")


if __name__ == "__main__":
    cli.run_script(main, defaults, __doc__)

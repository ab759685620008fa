"""Transfer: train on one data set, then on a share of another, from three starting points.

    python experiments/transfer.py                                    between two halves of the embedded digits
    python experiments/transfer.py --datasets cifar10 cifar100 svhn   Figure 11: ResNet-18, SGD 0.001, 200 + 200 epochs

Every data set is the source once, in a run and folder of its own, and all others are its targets. The first round
trains on all of the source. Then, for each target and fraction, RI trains a new network on that share of the target,
WS continues from the parameters of the first round, and SP from their shrink-perturb; where the numbers of classes
differ all draw a new head, which is not shrunk. Every set is normalised by its own statistics, CIFAR and SVHN by the
report's. The same command continues runs, however they were stopped; figures/figure11.py draws all of them together.

On the digits (half a minute): WS ends 5 to 28 points below RI on every share, and SP beside it. Their halves have as
many classes, so that the head is kept.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

import dataclasses
import itertools
from typing import TYPE_CHECKING, NamedTuple

import tyro

from wsjax.data.embedded import EMBEDDED
from wsjax.results import names, transfer, words
from wsjax.scripts import build, cli, config, run

if TYPE_CHECKING:
    from wsjax.data.datasets import Dataset
    from wsjax.rounds.legs import Method, Round
    from wsjax.training.train import Setup


@dataclasses.dataclass(frozen=True)
class Config(config.Common):
    """Settings of the transfer experiment."""

    dataset: tyro.conf.Suppress[tyro.conf.Fixed[str]] = ""  # a run's source
    datasets: tuple[str, ...] = ("cifar10", "cifar100", "svhn")
    """Data sets to transfer between, two or more, as --dataset of the other experiments has them."""
    fractions: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0)
    """Shares of a target's train images to train on, each in (0, 1]."""
    first_epochs: int | None = None
    """Epochs on the source, where they are not --epochs."""


HALVES = ("digits_low", "digits_high")
DIGITS = Config(**config.DIGITS, datasets=HALVES, first_epochs=40, epochs=20, seeds=tuple(range(10)), evaluate="round")
FIGURE_11 = Config(model="resnet18", epochs=200, shrink=(0.3,), perturb=(0.0001,), evaluate="round")


def defaults(dataset: str | None) -> Config:
    """The settings where nothing else is said: Figure 11's, but for embedded data sets."""
    return DIGITS if dataset is None or dataset in EMBEDDED else FIGURE_11


def main(settings: Config) -> None:
    """Runs the transfers from every source, or what is left of them, prints what came out, and draws it."""
    check(settings)
    stems = [names.of_data(name) for name in settings.datasets]
    loaded = dict(zip(stems, run.load_several(settings, settings.datasets), strict=True))
    shapes = {name: each.train_images.shape[1:] for name, each in loaded.items()}
    told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    cli.check(len(set(shapes.values())) == 1, f"--datasets must have images of one shape: {told}")
    cli.check(
        settings.opt_state == "rebuild" or len({each.num_classes for each in loaded.values()}) == 1,
        "--opt_state=keep needs data sets of one number of classes: a new head has no optimiser's state to keep",
    )
    plans = []
    for source, dataset in zip(stems, settings.datasets, strict=True):
        name = settings.run and f"{settings.run}-{source}"
        plans.append(plan_source(dataclasses.replace(settings, dataset=dataset, run=name), loaded, source))
    for plan in plans:  # before the first is trained
        run.check_folder("transfer", plan.settings, plan.setup, plan.trunk, plan.methods)
    for plan in plans:
        run_source(plan)


def check(settings: Config) -> None:
    """Checks every field; raises UsageError."""
    for name in ("datasets", "fractions"):
        config.check_list(name, getattr(settings, name))
    config.check_unused(settings, Config, "own_first", "here: all methods share the rounds before their own")
    own = " ".join(config.in_optimizer(settings.methods))
    cli.check(
        own == "" or settings.opt_state == "rebuild",
        f"--opt_state=keep: {own} cannot go on with the source's optimiser; leave --opt_state or {own} out",
    )
    config.check_config(settings, defaults(settings.datasets[0]))
    stems = [names.of_data(name) for name in settings.datasets]
    cli.check(len(stems) > 1, f"--datasets needs two or more to transfer between, not {' '.join(stems)}")
    cli.check(len(set(stems)) == len(stems), f"--datasets must differ in their names: {' '.join(stems)}")


class Plan(NamedTuple):
    """The transfers from one source: its name, and what trains; `table` says what each method is."""

    source: str
    settings: Config
    setup: Setup
    trunk: list[Round]
    methods: dict[str, Method]
    table: dict[str, names.Spec]


def plan_source(settings: Config, loaded: dict[str, Dataset], source: str) -> Plan:
    """The transfers from one source to all other data sets."""

    setups = {name: build.build_setup(settings, dataset) for name, dataset in loaded.items()}
    size, epochs = len(loaded[source].train_labels), settings.first_epochs or settings.epochs
    trunk = build.build_rounds(settings, setups[source], [(size, epochs)])
    methods: dict[str, Method] = {}
    table: dict[str, names.Spec] = {}
    for target, fraction in itertools.product([name for name in loaded if name != source], settings.fractions):
        size = words.share(len(loaded[target].train_labels), fraction)
        later = build.build_rounds(settings, setups[target], [(size, settings.epochs)])
        new_head = loaded[target].num_classes != loaded[source].num_classes
        for kind, method in build.after_trunk(settings, setups[target], later, new_head).items():
            name = transfer.name_of(kind, target, fraction)
            methods[name] = method
            table[name] = transfer.spec_of(kind, build.methods_table(settings)[kind], target, fraction)
    return Plan(source, settings, setups[source], trunk, methods, table)


def run_source(plan: Plan) -> None:
    """Runs the transfers from one source, or what is left of them, prints what came out, and draws it."""
    from wsjax.results import panels

    source, settings, setup, trunk, methods, table = plan
    outcome = run.run("transfer", settings, setup, trunk, methods, transfer.summarize, table)
    figure = panels.transfer_panels(source, outcome.summary["rows"], transfer.kinds(table))
    sentences = transfer.verdict(outcome.summary, source)
    run.conclude(outcome, f"From {source}", transfer.table(outcome.summary, table), figure, sentences)


if __name__ == "__main__":
    cli.run_script(main, defaults, __doc__)

"""Gradients of old and new data: train on half of the data, then on all of it, and measure both halves' gradients.

    python experiments/gradients.py                                 the embedded digits
    python experiments/gradients.py --dataset=cifar10               Figure 8: ResNet-18, SGD 0.001, 100 + 30 epochs
    python experiments/gradients.py --dataset=cifar10 --augment --run=augmented    Figure 10's other side: 350 + 30

At every epoch's start, the mean over batches of the L2 norm of the batch gradient is measured over the first round's
half and over the half that comes with the second, in both rounds, for every start: from scratch (RI), warm (WS) and
shrink-perturbed (SP). The run's folder holds a row per epoch, a summary with the halves' ratio, and a picture. The
measurement counts towards the training seconds. The same command continues a run, however it was stopped.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

import dataclasses
from typing import Any

from wsjax.results import gradients, words
from wsjax.scripts import build, cli, config, run

AS_RUN, AUGMENTED = 100, 350  # epochs of the report's first round


@dataclasses.dataclass(frozen=True)
class Config(config.Common):
    """Settings of the gradients experiment."""

    first_epochs: int | None = None
    """Epochs of the first round. Default: 100, with --augment 350."""


SHRINKS = (0.9, 0.7, 0.5, 0.3)
ON_DIGITS: dict[str, Any] = config.DIGITS | {"shrink": SHRINKS, "seeds": tuple(range(10))}
DIGITS = Config(**ON_DIGITS, first_epochs=40, epochs=8)
FIGURE_8 = Config(model="resnet18", optimizer="sgd", learning_rate=0.001, epochs=30, shrink=SHRINKS, perturb=(0.01,))


def defaults(dataset: str | None) -> Config:
    """The settings for a data set where nothing else is said: Figure 8's, but for the embedded digits."""
    return DIGITS if dataset in (None, "digits") else dataclasses.replace(FIGURE_8, dataset=dataset)


def main(settings: Config) -> None:
    """Runs the experiment, or what is left of it, prints what came out, and draws it."""
    check(settings)
    if settings.first_epochs is None:
        settings = dataclasses.replace(settings, first_epochs=AUGMENTED if settings.augment else AS_RUN)
    assert settings.first_epochs is not None
    from wsjax.results import gradient_plots
    from wsjax.training import probes

    dataset = run.load_data(settings)
    total = len(dataset.train_labels)
    half = words.share(total, 0.5)
    setup, both = build.build_setup(settings, dataset), probes.gradient_norms(half, total)
    setup = setup._replace(probe=probes.together(both, setup.probe) if setup.probe else both)
    rounds = build.build_rounds(settings, setup, [(half, settings.first_epochs), (total, settings.epochs)])
    methods = build.build_methods(settings, setup, rounds)
    outcome = run.run("gradients", settings, setup, rounds, methods, gradients.summarize)
    table = gradients.table(outcome.summary)
    curves = gradient_plots.gradient_curves([gradient_plots.Panel("", outcome.rows, outcome.methods)])
    sentences = gradients.verdict(outcome.summary)
    run.conclude(outcome, "Gradients of the new half over those of the old", table, curves, sentences)


def check(settings: Config) -> None:
    """Checks every field; raises UsageError."""
    config.check_config(settings, defaults(settings.dataset))


if __name__ == "__main__":
    cli.run_script(main, defaults, __doc__)

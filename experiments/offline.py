"""Offline warm starts: train on half of the data, then on all of it, from three starting points.

    python experiments/offline.py                      digits that come with scikit-learn, seconds
    python experiments/offline.py --dataset=cifar10    Figure 1: ResNet-18, SGD 0.001, 200 + 200 epochs

RI starts the second round from scratch, WS from the parameters of the first, SP from their shrink-perturb. The run's
folder holds a row per epoch, a summary with the paired gap RI - WS, and a picture. The same command continues a run,
however it was stopped.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

import dataclasses

from wsjax.results import summary, tables, words
from wsjax.scripts import build, cli, config, protocols, run


@dataclasses.dataclass(frozen=True)
class Config(config.Common):
    """Settings of the offline experiment."""

    fraction: float = 0.5
    """Share of the train images that the first round has, in (0, 1]."""
    first_epochs: int | None = None
    """Epochs of the first round. Default: --epochs."""
    label_noise: float = 0.0
    """Share of the first round's labels that are drawn at random, in [0, 1], the same for every seed; the second round
    has them right."""
    protocol: str | None = None
    """Published settings as defaults: fire, hare-tortoise or offline-50."""


# The report's MLP on digits at nine places each: there a warm start ends below even where all are trained to the end.
SHIFTED = Config(
    dataset="digits_shifted", model="mlp", optimizer="adam", learning_rate=0.004, batch_size=128, stop=("accuracy",),
    epochs=100, shrink=(0.6,), perturb=(0.1,), seeds=tuple(range(20)),
)  # fmt: skip
# A short second round, in which a network that starts from scratch is at its best: when trained on for 40 epochs
# every method memorises the noise of the digits, and the three end within half a point of each other.
DIGITS = Config(**config.DIGITS, first_epochs=40, epochs=8, seeds=tuple(range(40)))
FIGURE_1 = Config(model="resnet18", optimizer="sgd", learning_rate=0.001, epochs=200, shrink=(0.3,), perturb=(0.01,))


def defaults(dataset: str | None) -> Config:
    """The settings for a data set where nothing else is said: Figure 1's, but for the embedded digits."""
    embedded = {None: SHIFTED, "digits_shifted": SHIFTED, "digits": DIGITS}
    return embedded.get(dataset) or dataclasses.replace(FIGURE_1, dataset=dataset)


def main(settings: Config) -> None:
    """Runs the experiment, or what is left of it, prints what came out, and draws it."""
    check(settings)
    from wsjax.results import plots

    dataset = run.load_data(settings)
    total = len(dataset.train_labels)
    half = words.share(total, settings.fraction)
    setup = build.build_setup(settings, dataset)
    plan = [(half, settings.first_epochs or settings.epochs), (total, settings.epochs)]
    first, *later = build.build_rounds(settings, setup, plan)
    if settings.label_noise:
        noisy = build.with_label_noise(first.setup or setup, dataset.num_classes, settings.label_noise)
        first = first._replace(setup=noisy)
    rounds = [first, *later]
    methods = build.build_methods(settings, setup, rounds)
    outcome = run.run("offline", settings, setup, rounds, methods, summary.summarize_offline)
    table, curves = tables.offline_table(outcome.summary), plots.offline_curves(outcome.rows, outcome.methods)
    run.conclude(outcome, "All of the data, after the first round", table, curves)


def check(settings: Config) -> None:
    """Checks every field; raises UsageError."""
    config.check_config(settings, protocols.applied(defaults(settings.dataset), settings.protocol))


if __name__ == "__main__":
    cli.run_script(main, defaults, __doc__)

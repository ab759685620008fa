"""Offline warm starts: train on half of the data, then on all of it, from three starting points.

    python experiments/offline.py                      the embedded digits
    python experiments/offline.py --dataset=cifar10    Figure 1: ResNet-18, SGD 0.001, 200 + 200 epochs

RI starts the second round from scratch, WS from the parameters of the first, SP from their shrink-perturb. The run's
folder gets a row an epoch, a summary with the paired gap RI - WS, and a picture. The same command continues a run that
was stopped, however it was.
"""

from __future__ import annotations

import dataclasses

from wsjax.results import summary
from wsjax.scripts import cli, experiment


@dataclasses.dataclass(frozen=True)
class Config(experiment.Common):
    """Settings of the offline experiment."""

    fraction: float = 0.5
    """Share of the train images that the first round has, in (0, 1]."""
    first_epochs: int | None = None
    """Epochs of the first round, where they are not --epochs."""


# A short second round, in which a network that starts from scratch is at its best: when trained on for 40 epochs
# every way memorises the noise of the digits, and the three end within half a point of each other.
DIGITS = Config(**experiment.DIGITS, first_epochs=40, epochs=8, seeds=tuple(range(40)))
FIGURE_1 = Config(model="resnet18", optimizer="sgd", learning_rate=0.001, epochs=200, shrink=(0.3,), perturb=(0.01,))


def defaults(dataset: str | None) -> Config:
    """The settings for a data set where nothing else is said: Figure 1's, but for the embedded digits."""
    return DIGITS if dataset in (None, "digits") else dataclasses.replace(FIGURE_1, dataset=dataset)


def main(config: Config) -> None:
    """Runs the experiment, or what is left of it, prints what came out, and draws it."""
    experiment.check_config(config)
    first = config.first_epochs
    cli.check(first is None or first > 0, f"--first_epochs must be positive, not {first}")
    from wsjax.data import datasets
    from wsjax.results import plots

    dataset = experiment.load_data(config)
    total = len(dataset.train_labels)
    half = datasets.fraction_size(total, config.fraction)
    plan = [(half, config.first_epochs or config.epochs), (total, config.epochs)]
    folder, rows, ends = experiment.run("offline", config, dataset, plan, summary.summarize_offline)

    title = "All of the data, after the first round"
    experiment.conclude(folder, title, summary.offline_table(ends), ends, plots.offline_curves(rows))


if __name__ == "__main__":
    cli.run_script(main, defaults, __doc__)

"""A cell of Table 1 in PyTorch's own layers and optimisers: what somebody else's code gets by the same rules.

python -m benchmarks.table1 --optimizer=msgd --seeds 42 43 44 45 46              RI of the MLP on CIFAR-10
python -m benchmarks.table1 --optimizer=msgd --fraction=0.5                      its half run: where does it stop?
python -m benchmarks.table1 --optimizer=msgd --std 0.247 0.243 0.262             images by their own deviations
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch

from benchmarks import torch_side
from wsjax.data import datasets
from wsjax.results import words
from wsjax.results.stats import mean_interval
from wsjax.scripts import cli, console
from wsjax.training.stopping import after_epochs, any_of, at_accuracy, at_plateau


@dataclasses.dataclass(frozen=True)
class Config:
    """Which cell, and of which seeds."""

    dataset: str = "cifar10"
    """cifar10, cifar100 or digits."""
    data_dir: Path | None = None
    """Folder of NAME.npz files. Default: $WSJAX_DATA_DIR."""
    optimizer: str = "msgd"
    """sgd, msgd (momentum 0.9) or adam, all at 0.001."""
    hidden: tuple[int, ...] = (100, 100, 100)
    """Sizes of the hidden layers; none is logistic regression."""
    fraction: float = 1.0
    """Share of the train images, drawn by the seed."""
    std: tuple[float, float, float] = datasets.REPORT_STD
    """What channels are divided by."""
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46)
    """Of the network and of the order of images."""
    epochs: int = 2000
    """The most that there are."""


OPTIMIZERS = {
    "sgd": torch_side.sgd,
    "msgd": lambda net: torch.optim.SGD(net.parameters(), 0.001, momentum=0.9),
    "adam": lambda net: torch.optim.Adam(net.parameters(), 0.001),
}


def main(config: Config) -> list[float]:
    """Trains network after network until its stop rule holds, and returns their test accuracies."""
    cli.choose("optimizer", config.optimizer, list(OPTIMIZERS))
    data = datasets.load(config.dataset, config.data_dir)
    train = torch_side.tensors(data.train_images, data.train_labels, config.std)
    test = torch_side.tensors(data.test_images, data.test_labels, config.std)
    scores = []
    for seed in config.seeds:
        torch.manual_seed(seed)
        net = torch_side.mlp(config.hidden, math.prod(data.train_images.shape[1:]), data.num_classes)
        rows = torch.randperm(len(train[1]))[: words.share(len(train[1]), config.fraction)]
        accuracies = fit(net, config, train[0][rows], train[1][rows])
        scores.append(torch_side.accuracy(net, *test, batch_size=1000))
        console.say(f"seed {seed}: {len(accuracies)} epochs, train {accuracies[-1]:.2%}, test {scores[-1]:.2%}")
    whole = mean_interval(scores)
    console.say(f"test accuracy {whole.mean:.2%}" + f" ± {whole.mean - whole.low:.2%}" * (len(scores) > 1))
    return scores


def fit(net: torch.nn.Module, config: Config, inputs: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """Trains as Table 1 did: to 99 % train accuracy or a plateau, measured after each epoch; returns what it was."""
    optimizer = OPTIMIZERS[config.optimizer](net)
    stop = any_of(at_accuracy(0.99), at_plateau(), after_epochs(config.epochs))
    accuracies: list[float] = []
    while stop(accuracies) is None:
        torch_side.epoch(net, optimizer, torch_side.shuffled(inputs, targets, 128))
        accuracies.append(torch_side.accuracy(net, inputs, targets, batch_size=1000))
    return accuracies


if __name__ == "__main__":
    cli.run_program(main, Config, __doc__)

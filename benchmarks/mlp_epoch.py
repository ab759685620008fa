"""Times an epoch of the study's MLP on images of CIFAR-10's size, against the same epoch in PyTorch.

    python -m benchmarks.mlp_epoch

PyTorch gets float32 images, normalised beforehand, in memory, shuffled by an index; wsjax gathers uint8 images and
normalises them in the step. Both use SGD, batch 128, and all cores that they can. The ratio is wsjax's time over
PyTorch's, pair by pair, in one process. Needs torch; takes under a minute on 2 CPU cores.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.timing import all_seconds
from wsjax import models
from wsjax.data import REPORT_MEAN, REPORT_STD
from wsjax.rounds import over_replicas
from wsjax.train import image_task, init_state, make_epoch, make_optimizer

HIDDEN, CLASSES, LEARNING_RATE = (100, 100, 100), 10, 0.001


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed."""

    num_samples: int = 50_000
    """Images an epoch."""
    batch_size: int = 128
    seeds: int = 1
    """Networks: as one stack in wsjax, one after the other in PyTorch."""
    repeats: int = 5
    """Pairs."""


def main(config: Config) -> float:
    """Prints both times and returns the median ratio."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (config.num_samples, 32, 32, 3), np.uint8)
    labels = random.integers(0, CLASSES, config.num_samples)
    runs = {"wsjax": wsjax_epoch(config, images, labels), "PyTorch": torch_epoch(config, images, labels)}
    seconds = all_seconds(runs, config.repeats)
    ratio = statistics.median(ours / theirs for ours, theirs in zip(*seconds.values(), strict=True))
    medians = ", ".join(f"{name} {statistics.median(values):.2f} s" for name, values in seconds.items())
    print(f"MLP epoch, {config.num_samples:,} images, {config.seeds} seeds: {medians}, ratio {ratio:.2f}")
    return ratio


def wsjax_epoch(config: Config, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """One epoch of all seeds as one compiled program."""
    task = image_task(models.mlp(CLASSES, HIDDEN), (32, 32, 3), REPORT_MEAN, REPORT_STD)
    optimizer = make_optimizer("sgd", LEARNING_RATE)
    epoch = over_replicas(make_epoch(task, optimizer, config.batch_size), (0, None, 0, None, 0))
    keys = jax.random.split(jax.random.key(0), config.seeds)
    state: Any = jax.vmap(lambda key: init_state(task, optimizer, key))(keys)
    data = (jnp.asarray(images), jnp.asarray(labels, jnp.int32))
    pools = jnp.tile(jnp.arange(config.num_samples), (config.seeds, 1))
    compiled = jax.jit(epoch, donate_argnums=0)

    def run() -> object:
        nonlocal state
        state, metrics = compiled(state, data, pools, jnp.asarray(config.num_samples), keys)
        return metrics

    return run


def torch_epoch(config: Config, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """One epoch of every seed in turn."""
    import torch

    mean, std = (torch.tensor(values) for values in (REPORT_MEAN, REPORT_STD))
    inputs = ((torch.from_numpy(images) / 255 - mean) / std).flatten(1)
    targets = torch.from_numpy(labels)
    sizes = (inputs.shape[1], *HIDDEN)
    nets = []
    for _ in range(config.seeds):
        pairs = itertools.pairwise(sizes)
        layers = [layer for n, m in pairs for layer in (torch.nn.Linear(n, m), torch.nn.Tanh())]
        nets.append(torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], CLASSES)))
    optimizers = [torch.optim.SGD(net.parameters(), LEARNING_RATE) for net in nets]

    def run() -> object:
        for net, optimizer in zip(nets, optimizers, strict=True):
            for rows in torch.randperm(config.num_samples).split(config.batch_size):
                loss = torch.nn.functional.cross_entropy(net(inputs[rows]), targets[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        return None

    return run


if __name__ == "__main__":
    main(tyro.cli(Config))

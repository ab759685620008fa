"""What a job of the study costs, about, before it runs: steps and seconds. Imports no jax.

Rounds that end at an accuracy end when they do, so all of this is a guess, made better by the jobs that have run.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from wsjax.results import names, words

SIZES = {
    "digits": 600, "digits_low": 279, "digits_high": 321, "digits_shifted": 2_700, "cifar10": 50_000,
    "cifar100": 50_000, "svhn": 73_257,
}  # fmt: skip
"""Train images of the known data sets."""
TYPICAL = 20
"""Epochs that a round takes to fit its data, where it ends at an accuracy."""
OPERATIONS = 1e11
"""Floating-point operations a second, of 2 cores."""
START, STEP = 15.0, 1e-3
"""Seconds that a job takes to start and compile, and a step beside its arithmetic."""


class Cost(NamedTuple):
    """About what a job takes: training steps, and seconds on the machine that the constants are of."""

    steps: float
    seconds: float


def cost(experiment: str, config: Any) -> Cost:
    """About what a run takes.

    Args:
      experiment: the script's name.
      config: its settings.
    """
    samples = len(config.seeds) * sum(size * epochs for size, epochs in PASSES[experiment](config))
    batches = getattr(config, "batch_sizes", (config.batch_size,))  # a grid's cells divide the samples evenly
    steps = samples * statistics.mean(1 / batch for batch in batches)
    networks = getattr(config, "networks", (config.model,))  # which train on as many samples each
    products = statistics.mean(_products(config, network) for network in networks)
    return Cost(steps, START + steps * STEP + samples * 6 * products / OPERATIONS)


def _products(config: Any, network: str) -> float:
    """Multiply-adds of one sample's forward pass through a ResNet-18, a logistic regression, or else an MLP."""
    dataset = config.dataset or config.datasets[0]
    pixels = 8 * 8 if "digits" in str(dataset) else 32 * 32
    values = pixels * (1 if pixels < 100 else 3)
    if network == "resnet18":
        return 0.56e9 * (config.width / 64) ** 2 * pixels / 1024 / (4 if config.stem_pool else 1)
    sizes = [values, *(() if network == "logistic" else config.hidden), 10]
    return sum(a * b for a, b in itertools.pairwise(sizes))


def _total(config: Any) -> int:
    return config.num_train or SIZES.get(str(config.dataset), 10_000)


def _epochs(config: Any) -> int:
    return config.epochs if tuple(config.stop) == ("epochs",) else min(config.epochs, TYPICAL)


def _methods(config: Any) -> int:
    return len(names.from_settings(config.methods, config.shrink, config.perturb))


Passes = Sequence[tuple[float, float]]
"""(train images, epochs) of what one seed runs."""


def _offline(config: Any) -> Passes:
    total, epochs = _total(config), _epochs(config)
    half = words.share(total, config.fraction)
    return [(half, config.first_epochs or epochs), (_methods(config) * total, epochs)]


def _online(config: Any) -> Passes:
    pool = words.share(_total(config), config.pool) if config.pool <= 1 else config.pool
    rounds = math.ceil(pool / config.increment)
    rounds = min(rounds, config.max_rounds or rounds)
    return [(_methods(config) * config.increment * number, _epochs(config)) for number in range(1, rounds + 1)]


def _early_stopping(config: Any) -> Passes:
    total, epochs = _total(config), config.epochs
    first = config.first_epochs or epochs
    branches = math.ceil(first / config.every)
    return [(words.share(total, config.fraction), first), ((branches + 1) * total, epochs)]


def _hyperparameters(config: Any) -> Passes:
    total, cells = _total(config), len(config.learning_rates) * len(config.batch_sizes)
    rounds = len(config.seeds) if config.chained else 1
    typical = min(config.epochs, TYPICAL)
    warm = typical / 4 if config.chained else typical  # a network that has seen all the data fits them at once
    random = cells * total * ("RI" in config.methods)
    return [(cells * words.share(total, config.fraction), typical), (cells * total * rounds, warm), (random, typical)]


def _gradients(config: Any) -> Passes:
    total = _total(config)
    probed = 2.2 * total  # every epoch begins with a pass over all images
    first = config.first_epochs or (350 if config.augment else 100)
    half = words.share(total, 0.5)
    return [(half + probed, first), (_methods(config) * (total + probed), config.epochs)]


def _shrink_only(config: Any) -> Passes:
    return [(len(config.networks) * _total(config), config.epochs)]


def _transfer(config: Any) -> Passes:
    sizes = [config.num_train or SIZES.get(name, 10_000) for name in config.datasets]
    own = [(size, config.first_epochs or config.epochs) for size in sizes]
    each = _methods(config) * sum(config.fractions) * (len(sizes) - 1)
    return [*own, *((each * size, config.epochs) for size in sizes)]


PASSES: Mapping[str, Callable[[Any], Passes]] = {
    "offline": _offline,
    "online": _online,
    "early_stopping": _early_stopping,
    "hyperparameters": _hyperparameters,
    "gradients": _gradients,
    "shrink_only": _shrink_only,
    "transfer": _transfer,
}
"""What one seed of each experiment runs."""

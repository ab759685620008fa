"""What a job of the study costs, about, before it runs: samples, steps and seconds. Imports no jax.

Rounds that end at an accuracy end when they do, so all of this is a guess, made better by the jobs that have run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from wsjax.results import names, words

SIZES = {"digits": 600, "cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257}
"""Train images of the known data sets."""
TYPICAL = 20
"""Epochs that a round takes to fit its data, where it ends at an accuracy."""
OPERATIONS = 1e11
"""Floating-point operations a second, of 2 cores."""
START, STEP = 15.0, 1e-3
"""Seconds that a job takes to start and compile, and a step beside its arithmetic."""


class Cost(NamedTuple):
    """About what a job takes: samples trained on, steps, and seconds on the machine that the constants are of."""

    samples: float
    steps: float
    seconds: float


def cost(experiment: str, config: Any) -> Cost:
    """About what a run takes.

    Args:
      experiment: the script's name.
      config: its settings.
    """
    samples = len(config.seeds) * sum(size * epochs for size, epochs in PASSES[experiment](config))
    steps = samples / config.batch_size
    return Cost(samples, steps, START + steps * STEP + samples * 6 * _products(config) / OPERATIONS)


def _products(config: Any) -> float:
    """Multiply-adds of one sample's forward pass."""
    pixels = 8 * 8 if "digits" in str(config.dataset) else 32 * 32
    values = pixels * (1 if pixels < 100 else 3)
    if config.model == "resnet18":
        return 0.56e9 * (config.width / 64) ** 2 * pixels / 1024 / (4 if config.stem_pool else 1)
    sizes = [values, *(config.hidden if config.model == "mlp" else ()), 10]
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


PASSES: Mapping[str, Callable[[Any], Passes]] = {"offline": _offline, "online": _online}

"""Times ResNet-18's training step in a Python loop and inside one `fori_loop`, with our convolution and with XLA's own.

    python -m benchmarks.conv_in_scan --width=16 --batch-size=128

On a CPU our convolution takes the same time inside a loop as outside; XLA's own takes several times longer inside it.
The table's times are milliseconds a step, medians of interleaved repeats in one process. Takes a few minutes on 2 CPU
cores, most of them for the XLA rows; `--no-contrast` leaves those out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
import tyro
from jax import Array, lax
from rich.console import Console
from rich.table import Table

from benchmarks.timing import median_seconds
from wsjax import models

Params = Any


@dataclass(frozen=True)
class Config:
    """What is timed."""

    width: int = 16
    """Channels of the first stage."""
    batch_size: int = 128
    stem_pool: bool = True
    """Whether a max pool follows the stem."""
    steps: int = 3
    """Steps in one loop."""
    repeats: int = 5
    """Timed runs of each loop; the median counts."""
    contrast: bool = True
    """Whether XLA's own convolution and max pool are timed as well."""


def main(config: Config) -> dict[str, float]:
    """Prints the table and returns it: milliseconds a step by "<convolution> <loop>"."""
    runs = compiled_loops(config)
    if config.contrast:
        with xla_convolution():
            runs |= {f"xla {name}": run for name, run in compiled_loops(config).items()}
    times = {name: 1e3 * seconds / config.steps for name, seconds in median_seconds(runs, config.repeats).items()}
    table = Table("convolution", "Python loop (ms)", "fori_loop (ms)", "ratio")
    for prefix, label in (("", "wsjax"), ("xla ", "XLA's own")):
        if f"{prefix}python" in times:
            outside, inside = times[f"{prefix}python"], times[f"{prefix}fori"]
            table.add_row(label, f"{outside:.1f}", f"{inside:.1f}", f"{inside / outside:.2f}")
    Console().print(table)
    return times


def compiled_loops(config: Config) -> dict[str, Callable[[], object]]:
    """The same steps as a Python loop over a jitted step ("python") and as one compiled loop ("fori")."""
    model = models.resnet18(10, config.width, config.stem_pool)
    images = jax.random.normal(jax.random.key(0), (config.batch_size, 32, 32, 3))
    labels = jnp.arange(config.batch_size) % 10
    start = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(1))

    def loss(params: Params, batch_stats: Params) -> tuple[Array, Params]:
        variables = {"params": params, "batch_stats": batch_stats}
        logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new["batch_stats"]

    def step(variables: Params) -> Params:
        grads, batch_stats = jax.grad(loss, has_aux=True)(variables["params"], variables["batch_stats"])
        params = jax.tree.map(lambda p, g: p - 1e-3 * g, variables["params"], grads)
        return {"params": params, "batch_stats": batch_stats}

    one = jax.jit(step).lower(start).compile()
    many = jax.jit(lambda v: lax.fori_loop(0, config.steps, lambda _, v: step(v), v)).lower(start).compile()

    def python_loop() -> Params:
        variables = start
        for _ in range(config.steps):
            variables = one(variables)
        return variables

    return {"python": python_loop, "fori": lambda: many(start)}


@contextmanager
def xla_convolution() -> Iterator[None]:
    """Has the models use XLA's own convolution and max pool, with autodiff's gradients."""

    def conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
        pads = [(padding, padding)] * 2
        return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def max_pool(x: Array) -> Array:
        pads = ((0, 0), (1, 1), (1, 1), (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)

    with mock.patch.object(models, "conv", conv), mock.patch.object(models, "max_pool", max_pool):
        yield


if __name__ == "__main__":
    main(tyro.cli(Config))

"""Probes: what is measured of a network at the start of each epoch, inside the compiled run, for fields of its row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wsjax.training.train import Batch, Metrics, Samples, Setup, TrainState, batch_gradient, over_batches

OLD, NEW = "old_gradient", "new_gradient"

Probe = Callable[[Setup, TrainState, Samples, jax.Array], Metrics]


def gradient_norms(first: int, total: int) -> Probe:
    """A probe of the gradients that the first round's samples give, and those that come with the second.

    Both are measured in every round, whether it trains on those samples or not.

    Args:
      first: how many samples the first round has: the old ones.
      total: how many there are with the new ones.

    Returns:
      A probe of "old_gradient" and "new_gradient", as `mean_gradient_norm` has them.
    """
    sizes = jnp.asarray([first, total - first])

    def probe(setup: Setup, state: TrainState, samples: Samples, key: jax.Array) -> Metrics:
        orders = jnp.stack([samples.order, jnp.roll(samples.order, -first)])

        def norm(part: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            order, size, own = part
            return mean_gradient_norm(setup, state, Samples(order, size, jnp.zeros_like(size)), own)

        # One after the other: side by side they would be grouped convolutions, and twice in the code compiled twice.
        old, new = jax.lax.map(norm, (orders, sizes, jax.random.split(key)))
        return {OLD: old, NEW: new}

    return probe


def mean_gradient_norm(setup: Setup, state: TrainState, samples: Samples, key: jax.Array | None = None) -> jax.Array:
    """The mean over batches of the L2 norm of a batch's gradient [], of all parameters.

    The gradient is that of the batch's mean loss, in train mode, without weight decay; the state stays as it is. The
    batches are those of the samples' own order, the last one smaller.

    Args:
      setup: gives task, data, batch size and, where batches are split over devices, the mapped axis.
      state: where the gradient is taken.
      samples: the first `size` of them.
      key: for what the task draws in training, as in augmentation; None for nothing.
    """

    def body(_: jax.Array, sums: tuple[Any, Any], batch: Batch) -> tuple[Any, Any]:
        gradient = batch_gradient(setup.task, state, batch, setup.axis_name)[0]
        return sums[0] + optax.tree.norm(gradient), sums[1] + 1

    zero = jnp.zeros((), jax.dtypes.canonicalize_dtype(float))
    norms, batches = over_batches(body, (zero, zero), setup.train, samples, setup.batch_size, setup.axis_name, key)
    return norms / batches

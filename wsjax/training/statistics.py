"""BatchNorm's running statistics under parameters that have changed since these were taken."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from wsjax.parallel import total
from wsjax.training.train import Batch, Samples, Setup, TrainState, over_batches, wide_zeros

FAR = 1e6
"""Statistics far from 0, where what is no moving average does not do as it does there."""


def reestimated(setup: Setup, state: TrainState, samples: Samples) -> TrainState:
    """The state with BatchNorm statistics under its own parameters: the mean over the batches, by their samples.

    After a short round the running statistics lag behind the parameters. What is no floating-point number, such as a
    count of batches or a random key, stays as it is. So does what no batch changes, where a batch's share is measured;
    the `stats_momentum` of a task is taken for that of every floating-point leaf.
    """
    leaves, structure = jax.tree.flatten(state.batch_stats)
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not moving:
        return state
    zeros = wide_zeros([leaves[i] for i in moving])

    def updated(batch: Batch, given: list[Any]) -> list[Any]:
        """What a batch makes of the statistics that move."""
        places = dict(zip(moving, given, strict=True))
        whole = structure.unflatten([places.get(i, leaf) for i, leaf in enumerate(leaves)])
        new = jax.tree.leaves(setup.task.apply(state.params, whole, batch.inputs, batch.weights, True, None)[1])
        return [new[i] for i in moving]

    def add(_: jax.Array, sums: list[Any], batch: Batch) -> list[Any]:
        count = total(jnp.sum(batch.weights), setup.axis_name)
        # From statistics of zero, one update leaves momentum times the batch's own.
        return [old + new.astype(old.dtype) * count for old, new in zip(sums, updated(batch, zeros), strict=True)]

    def keeps(_: jax.Array, shares: list[Any], batch: Batch) -> list[Any]:
        """What an update keeps of the statistics before it, as a derivative: a difference would drown in large ones.

        1 of a leaf that others move too, and of one whose derivative is another elsewhere, such as a maximum: these are
        no moving averages, and are let be.
        """
        function = partial(updated, batch)
        alike = [jnp.ones_like(leaf) for leaf in zeros]
        each = [jnp.full_like(leaf, i) for i, leaf in enumerate(zeros, 1)]
        _, kept = jax.jvp(function, (zeros,), (alike,))
        _, own = jax.jvp(function, (zeros,), (each,))
        _, far = jax.jvp(function, ([jnp.full_like(leaf, FAR) for leaf in zeros],), (alike,))
        found = []
        for i, (share, *derivatives) in enumerate(zip(shares, kept, own, far, strict=True), 1):
            one, other, there = (jnp.mean(leaf.astype(share.dtype)) for leaf in derivatives)
            is_average = jnp.isclose(other, i * one, rtol=1e-3) & jnp.isclose(there, one, rtol=1e-3)
            found.append(jnp.where(is_average, one, 1))
        return found

    momentum: list[Any] = [setup.task.stats_momentum] * len(moving)
    if setup.task.stats_momentum is None:
        first = samples._replace(size=jnp.minimum(samples.size, min(setup.batch_size, samples.order.shape[0])))
        room = [jnp.zeros((), leaf.dtype) for leaf in zeros]
        kept = over_batches(keeps, room, setup.train, first, setup.batch_size, setup.axis_name)
        momentum = [1 - share for share in kept]
    sums = over_batches(add, zeros, setup.train, samples, setup.batch_size, setup.axis_name)
    for i, own, moment in zip(moving, sums, momentum, strict=True):
        mean = own / (moment * samples.size)
        leaves[i] = jnp.where(moment == 0, leaves[i], mean.astype(leaves[i].dtype))
    return state._replace(batch_stats=structure.unflatten(leaves))

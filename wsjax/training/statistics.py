"""BatchNorm's running statistics under parameters that have changed since these were taken."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from wsjax.training.train import Batch, Samples, Setup, TrainState, over_batches, total, wide_zeros


def reestimated(setup: Setup, state: TrainState, samples: Samples) -> TrainState:
    """The state with BatchNorm statistics under its own parameters: the mean over the batches, by their samples.

    After a short round the running statistics lag behind the parameters. What is no floating-point number, such as a
    count of batches or a random key, stays as it is, and so does what no batch changes.
    """
    leaves, structure = jax.tree.flatten(state.batch_stats)
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not moving:
        return state
    nothing = wide_zeros({i: leaves[i] for i in moving})

    def updated(batch: Batch, start: float) -> list[Any]:
        """What a batch makes of statistics that are a number everywhere."""
        given = structure.unflatten([nothing[i] + start if i in moving else leaf for i, leaf in enumerate(leaves)])
        new = jax.tree.leaves(setup.task.apply(state.params, given, batch.inputs, batch.weights, True, None)[1])
        return [new[i] for i in moving]

    def add(_: jax.Array, sums: list[Any], batch: Batch) -> list[Any]:
        count = total(jnp.sum(batch.weights), setup.axis_name)
        # From statistics of zero, one update leaves momentum times the batch's own.
        return [old + new.astype(old.dtype) * count for old, new in zip(sums, updated(batch, 0), strict=True)]

    def keeps(_: jax.Array, shares: list[Any], batch: Batch) -> list[Any]:
        """What an update keeps of the statistics before it: what a start of one has more than one of zero."""
        both = zip(shares, updated(batch, 1), updated(batch, 0), strict=True)
        return [jnp.mean(one.astype(share.dtype) - zero.astype(share.dtype)) for share, one, zero in both]

    momentum: list[Any] = [setup.task.stats_momentum] * len(moving)
    if setup.task.stats_momentum is None:
        first = samples._replace(size=jnp.minimum(samples.size, min(setup.batch_size, samples.order.shape[0])))
        room = [jnp.zeros((), nothing[i].dtype) for i in moving]
        kept = over_batches(keeps, room, setup.train, first, setup.batch_size, setup.axis_name)
        momentum = [1 - share for share in kept]
    sums = over_batches(add, [nothing[i] for i in moving], setup.train, samples, setup.batch_size, setup.axis_name)
    for i, own, moment in zip(moving, sums, momentum, strict=True):
        mean = own / (moment * samples.size)
        leaves[i] = jnp.where(moment == 0, leaves[i], mean.astype(leaves[i].dtype))
    return state._replace(batch_stats=structure.unflatten(leaves))

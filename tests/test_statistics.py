"""Batch statistics that are taken anew: of a task that does not say what share a batch has in them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsjax import Setup, Task, TrainState
from wsjax.training.statistics import reestimated
from wsjax.training.train import all_samples

DECAY = 0.9


def task_of(update):
    """A task whose statistics become what `update(batch_stats, values of the batch)` makes of them."""

    def apply(params, stats, inputs, weights, train, keys):
        return inputs, update(stats, inputs)

    return Task(lambda key: ({}, {}), apply, lambda outputs, targets: outputs, lambda outputs, targets: outputs)


def found(update, stats, values):
    """The statistics after a pass over values, in two batches."""
    data = (jnp.asarray(values), jnp.zeros(len(values)))
    setup = Setup(task_of(update), optax.identity(), data, data, batch_size=len(values) // 2)
    state = TrainState({}, stats, (), jnp.zeros((), jnp.int32))
    return jax.jit(lambda state: reestimated(setup, state, all_samples(data)))(state).batch_stats


@pytest.mark.parametrize("scale", [1, 1e3, 1e4, 1e5])
def test_a_moving_average_becomes_the_mean_over_batches_however_large(scale):
    """Variances of 1e10 once drowned the tenth that an update keeps of the statistics before it."""
    values = scale * np.random.default_rng(0).normal(size=8).astype(np.float32)

    def update(stats, batch):
        return {"var": DECAY * stats["var"] + (1 - DECAY) * jnp.var(batch), "seen": stats["seen"] + 1}

    own = found(update, {"var": jnp.ones(()), "seen": jnp.zeros((), jnp.int32)}, values)
    assert float(own["var"]) == pytest.approx((values[:4].var() + values[4:].var()) / 2, rel=1e-3)
    assert own["seen"] == 0  # no number of the parameters


def test_a_leaf_that_another_moves_is_let_be():
    """An average without its bias, as Haiku keeps one: of the hidden one, over what a count of batches makes of 1."""
    values = np.arange(8, dtype=np.float32)

    def update(stats, batch):
        hidden = DECAY * stats["hidden"] + (1 - DECAY) * jnp.mean(batch)
        return {"average": hidden / (1 - DECAY ** (stats["count"] + 1)), "count": stats["count"] + 1, "hidden": hidden}

    stats = {"average": jnp.full((), 7.0), "count": jnp.full((), 3, jnp.int32), "hidden": jnp.full((), 2.0)}
    own = found(update, stats, values)
    assert own["average"] == 7
    assert float(own["hidden"]) == pytest.approx(3.5)

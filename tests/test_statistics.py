"""Batch statistics taken anew: of any model, whatever the share that a batch has in them, and however large."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsjax.training.statistics import reestimated
from wsjax.training.task import Task, correct, cross_entropy
from wsjax.training.train import Setup, TrainState, all_samples, init_state

RANDOM = np.random.default_rng(0)
DATA = (3 + RANDOM.normal(size=(32, 2))).astype(np.float32), RANDOM.integers(0, 2, 32)
DECAY = 0.9


class Net(nn.Module):
    momentum: float

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x))


def task(momentum, **options):
    net = Net(momentum)

    def init(key):
        variables = net.init(key, DATA[0][:1], False)
        return variables["params"], variables["batch_stats"]

    def apply(params, batch_stats, inputs, weights, train, keys):
        variables = {"params": params, "batch_stats": batch_stats}
        if not train:
            return net.apply(variables, inputs, False), batch_stats
        outputs, new = net.apply(variables, inputs, True, mutable=["batch_stats"])
        return outputs, new["batch_stats"]

    return Task(init, apply, cross_entropy, correct, **options)


def taken(own, change=lambda stats: stats):
    data = tuple(map(jnp.asarray, DATA))
    setup = Setup(own, optax.sgd(0.1), data, data, batch_size=8)
    state = init_state(own, setup.optimizer, jax.random.key(0))
    state = state._replace(batch_stats=change(state.batch_stats))
    return jax.jit(lambda state: reestimated(setup, state, all_samples(DATA)))(state).batch_stats


@pytest.mark.parametrize("momentum", [0.99, 0.9, 0.5, 0.0])
def test_the_share_of_a_batch_is_measured(momentum):
    """Flax's own default leaves a hundredth to a batch."""
    (stats,) = taken(task(momentum)).values()
    batches = DATA[0].reshape(4, 8, 2)
    np.testing.assert_allclose(stats["mean"], batches.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(stats["var"], batches.var(1).mean(0), rtol=1e-4)
    (told,) = taken(task(momentum, stats_momentum=1 - momentum)).values()
    np.testing.assert_allclose(stats["var"], told["var"], rtol=1e-4)


def test_what_is_no_statistic_stays():
    """A random key, a count, and a number that no batch changes."""
    inner = task(0.9)

    def apply(params, own, inputs, weights, train, keys):
        outputs, stats = inner.apply(params, own["stats"], inputs, weights, train, keys)
        return outputs, own | {"stats": stats, "count": own["count"] + train}

    own = inner._replace(apply=apply)
    more = {"key": jax.random.key(3), "count": jnp.int32(7), "scale": jnp.float32(2.5)}
    data = tuple(map(jnp.asarray, DATA))
    setup = Setup(own, optax.sgd(0.1), data, data, batch_size=8)
    params, stats = inner.init(jax.random.key(0))
    state = TrainState(params, {"stats": stats, **more}, (), jnp.int32(0))
    found = reestimated(setup, state, all_samples(DATA)).batch_stats
    assert jnp.all(jax.random.key_data(found["key"]) == jax.random.key_data(more["key"]))
    assert (int(found["count"]), float(found["scale"])) == (7, 2.5)
    np.testing.assert_allclose(found["stats"]["BatchNorm_0"]["mean"], DATA[0].mean(0), rtol=1e-4)


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


@pytest.mark.parametrize("now", [0.0, 50.0])
def test_a_maximum_is_no_average_and_is_let_be(now):
    """Nothing of it depends on what was before where that is small, as of an average that forgets all."""
    own = found(lambda stats, batch: {"max": jnp.maximum(stats["max"], jnp.max(batch))}, {"max": jnp.asarray(now)},
                np.arange(8, dtype=np.float32))  # fmt: skip
    assert own["max"] == now


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

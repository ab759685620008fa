"""BatchNorm's statistics taken anew: of any model, whatever the share that a batch has in them."""

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

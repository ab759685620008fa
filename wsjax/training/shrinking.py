"""What shrinking alone does to a trained network: its accuracy when all its parameters are multiplied by a factor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.training.train import Data, Setup, TrainState, all_samples, evaluate

K = TypeVar("K")


def shrink_curve(setup: Setup, state: TrainState, shrinks: jax.Array) -> jax.Array:
    """The test accuracies [L] of a network whose parameters, all of them, are multiplied by each of `shrinks` [L].

    Args:
      setup: says how it is tested; its `judged` sees the shrunk network, and all train samples.
      state: the trained network's; batch statistics stay as they are.
      shrinks: factors, which are tried one after the other: all at once, an MLP takes three times as long on a CPU, and
        convolutions become grouped ones.
    """

    def accuracy(shrink: jax.Array) -> jax.Array:
        shrunk = state._replace(params=jax.tree.map(lambda x: (shrink * x).astype(x.dtype), state.params))
        return evaluate(setup, shrunk, all_samples(setup.train))["accuracy"]

    return jax.lax.map(accuracy, shrinks)


def shrink_curves(setup: Setup, states: Mapping[K, TrainState], shrinks: np.ndarray) -> dict[K, np.ndarray]:
    """The `shrink_curve` of several networks of one setup, by one compiled program, on one device."""

    @jax.jit
    def program(state: TrainState, train: Data, test: Data) -> jax.Array:
        return shrink_curve(setup._replace(train=train, test=test), state, jnp.asarray(shrinks))

    data = jax.device_put((setup.train, setup.test))
    return {name: np.asarray(program(jax.device_get(state), *data)) for name, state in states.items()}

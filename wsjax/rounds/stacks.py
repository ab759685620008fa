"""Stacks of replicas: some of one, several as one, and one as its replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wsjax.training.train import TrainState


@jax.jit
def taken(tree: Any, where: jax.Array) -> Any:
    """A copy of some replicas of a stacked tree."""
    return jax.tree.map(lambda x: x[where], tree)


@jax.jit
def joined(states: Sequence[TrainState]) -> TrainState:
    """Stacks of replicas as one, a copy: the next epoch donates it, and others start from the same arrays."""
    return jax.tree.map(lambda *parts: jnp.copy(jnp.concatenate(parts)), *states)


@jax.jit
def unstacked(state: TrainState) -> list[TrainState]:
    """The state of each replica of a stack."""
    replicas = jax.tree.leaves(state)[0].shape[0]
    return [jax.tree.map(lambda x, i=i: x[i], state) for i in range(replicas)]

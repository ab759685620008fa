"""Anchors: the parameters of the seed's first network and of the round's start, kept in the state to measure from.

They lie in the optimiser's state, so that a checkpoint has them, and a run that is continued measures the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

from wsjax.errors import TaskError
from wsjax.training.train import Setup, TrainState
from wsjax.trees import map_nodes, nodes


class Anchors(NamedTuple):
    """Parameters of one structure: `first`, of the seed's first network; `begin`, of the start of the round.

    Rounds that methods share after the first go on as if nothing had happened: their start is that of the first.
    """

    first: Any
    begin: Any


def optimizer_of(setup: Setup) -> optax.GradientTransformation:
    """The setup's optimiser, which keeps anchors where the setup says so."""
    return optax.chain(setup.optimizer, _keep()) if setup.anchors else setup.optimizer


def put(state: TrainState, first: Any) -> TrainState:
    """A state that starts a round, with its own parameters and those of the first network as its anchors."""
    own = Anchors(first, state.params)
    return state._replace(opt_state=map_nodes(lambda _: own, state.opt_state, Anchors))


def of(state: TrainState) -> Anchors:
    """The anchors of a state. Raises a TaskError where it keeps none."""
    if not (found := nodes(state.opt_state, Anchors)):
        raise TaskError("the state keeps no anchors to measure distances from: give the setup anchors=True")
    return found[0]


def _keep() -> optax.GradientTransformation:
    """Keeps copies of the parameters that it is built for, and changes no update."""

    def init(params: Any) -> Anchors:
        return Anchors(*(jax.tree.map(lambda x: x.copy(), params) for _ in Anchors._fields))

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))

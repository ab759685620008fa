"""Starts: what happens to all of a network's state between two rounds of training.

A start is a pure function of what there is at the boundary, a `Boundary`, and gives the state that the next round
starts from. Most are re-initialisers of parameters (`wsjax.methods.reinit`), lifted by `mixed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from wsjax.errors import TaskError
from wsjax.training.train import Samples, Setup, TrainState

Reinit = Callable[[Any, Any], Any]
"""`(params, fresh) -> params`, of two pytrees of one structure."""

BatchStatsChoice = Literal["keep", "reset"]
OptStateChoice = Literal["rebuild", "keep"]


class Boundary(NamedTuple):
    """What a start may look at, for one seed.

    Attributes:
      key: a random key of this seed's and round's own.
      old: the state at the end of the round before.
      fresh: that of a network drawn anew for this seed and round, the same for all methods.
      samples: those of the round that starts.
      setup: that round's; its data are there to be used.
    """

    key: jax.Array
    old: TrainState
    fresh: TrainState
    samples: Samples
    setup: Setup


Start = Callable[[Boundary], TrainState]


def scratch(boundary: Boundary) -> TrainState:
    """The newly drawn network: nothing is inherited."""
    return boundary.fresh


def mixed(reinit: Reinit, batch_stats: BatchStatsChoice = "keep", opt_state: OptStateChoice = "rebuild") -> Start:
    """Lifts a re-initialiser of parameters.

    Args:
      reinit: `(params, fresh) -> params`.
      batch_stats: "keep" BatchNorm's running statistics, or "reset" them to those of a new network.
      opt_state: "rebuild" the optimiser's state, for the parameters that the round starts from, or "keep" it.
    """
    choices = {"batch_stats": (batch_stats, BatchStatsChoice), "opt_state": (opt_state, OptStateChoice)}
    for name, (value, choice) in choices.items():
        if value not in get_args(choice):
            raise TaskError(f"unknown {name} '{value}'; available: {', '.join(get_args(choice))}")

    def start(boundary: Boundary) -> TrainState:
        old, fresh = boundary.old, boundary.fresh
        params = reinit(old.params, fresh.params)
        stats = old.batch_stats if batch_stats == "keep" else fresh.batch_stats
        kept = old.opt_state if opt_state == "keep" else boundary.setup.optimizer.init(params)
        return TrainState(params, stats, kept, jnp.zeros_like(fresh.step))

    return start


def new_heads(reinit: Reinit) -> Reinit:
    """A re-initialiser that takes leaves of another shape, a head for other classes, as they are newly drawn."""

    def reinitialise(params: Any, fresh: Any) -> Any:
        fits = jax.tree.map(lambda old, new: jnp.shape(old) == jnp.shape(new), params, fresh)
        # A leaf that does not fit stands in for itself, so that `reinit` sees two trees of the same shapes.
        old = jax.tree.map(lambda fit, old, new: old if fit else new, fits, params, fresh)
        return jax.tree.map(lambda fit, kept, new: kept if fit else new, fits, reinit(old, fresh), fresh)

    return reinitialise


def grown(reinit: Reinit) -> Reinit:
    """A re-initialiser whose fresh leaves may be larger: the old leaf lies at the start of every axis of the new one.

    What is beyond it, the units of classes that have come since, stays newly drawn.
    """

    def corner(new: Any, old: Any) -> Any:
        return new[tuple(map(slice, jnp.shape(old)))]

    def reinitialise(params: Any, fresh: Any) -> Any:
        within = reinit(params, jax.tree.map(corner, fresh, params))
        return jax.tree.map(lambda new, old: new.at[tuple(map(slice, old.shape))].set(old), fresh, within)

    return reinitialise

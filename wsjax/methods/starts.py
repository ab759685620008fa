"""Starts: what happens to all of a network's state between two rounds of training.

A start is a pure function of what there is at the boundary, a `Boundary`, and gives the state that the next round
starts from. Most are re-initialisers of parameters (`wsjax.methods.reinit`), lifted by `mixed`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.checks import called, check_can_start, check_choice, takes
from wsjax.errors import TaskError
from wsjax.methods.reinit import Where, chosen_by
from wsjax.training.schedules import restarted
from wsjax.training.statistics import reestimated
from wsjax.training.train import Samples, Setup, TrainState
from wsjax.trees import named_leaves, norm_of

Reinit = Callable[[Any, Any], Any]
"""`(params, fresh) -> params`, of two pytrees of one structure."""

BatchStatsChoice = Literal["keep", "reset", "reestimate"]
OptStateChoice = Literal["rebuild", "keep"]


class Boundary(NamedTuple):
    """What a start may look at, for one seed.

    Attributes:
      key: a random key of this seed's and round's own; all methods of a seed get the same one.
      old: the state at the end of the round before.
      fresh: that of a network drawn anew for this seed and round, the same for all methods.
      samples: those of the round that starts.
      setup: that round's; its data are there to be used.
      first: the state of the seed's first network: what this round's task draws from round 1's key, or the one that the
        run was given as `initial`.
    """

    key: jax.Array
    old: TrainState
    fresh: TrainState
    samples: Samples
    setup: Setup
    first: TrainState


Start = Callable[[Boundary], TrainState]


def scratch(boundary: Boundary) -> TrainState:
    """The newly drawn network: nothing is inherited."""
    return boundary.fresh


class Mixed(NamedTuple):
    """A start that re-initialises the parameters and says what else is inherited; see `mixed`."""

    reinit: Reinit
    batch_stats: BatchStatsChoice
    opt_state: OptStateChoice

    def __call__(self, boundary: Boundary) -> TrainState:
        """The state that the round starts from."""
        params = self.reinit(boundary.old.params, boundary.fresh.params)
        return started(boundary, params, self.batch_stats, self.opt_state)


def started(
    boundary: Boundary, params: Any, batch_stats: BatchStatsChoice = "keep", opt_state: OptStateChoice = "rebuild"
) -> TrainState:
    """The state that starts a round from parameters, with the rest as `mixed` says; for starts of one's own."""
    old, fresh, setup = boundary.old, boundary.fresh, boundary.setup
    stats = fresh.batch_stats if batch_stats == "reset" else old.batch_stats
    state = restarted(old.opt_state) if opt_state == "keep" else setup.optimizer.init(params)
    new = TrainState(params, stats, state, jnp.zeros_like(fresh.step))
    return reestimated(setup, new, boundary.samples) if batch_stats == "reestimate" else new


def mixed(reinit: Reinit, batch_stats: BatchStatsChoice = "keep", opt_state: OptStateChoice = "rebuild") -> Mixed:
    """Lifts a re-initialiser of parameters to a start.

    Args:
      reinit: `(params, fresh) -> params`.
      batch_stats: "keep" BatchNorm's running statistics, "reset" them to those of a new network, or "reestimate" them
        in a pass over the round's samples, under the parameters that it starts from.
      opt_state: "rebuild" the optimiser's state, for the parameters that the round starts from, or "keep" it, but that
        a schedule in epochs (`wsjax.training.schedules`) begins again.

    Raises:
      TaskError: it is no re-initialiser, or there is no such choice.
    """
    check_choices(batch_stats, opt_state)
    if not takes(reinit, 2):
        hint = "; a start becomes a method by Method(...)" * takes(reinit, 1)
        raise TaskError(f"mixed takes a re-initialiser (params, fresh) -> params, not {called(reinit)}{hint}")
    return Mixed(reinit, batch_stats, opt_state)


def lifted(params: Callable[[Boundary], Any], batch_stats: BatchStatsChoice, opt_state: OptStateChoice) -> Start:
    """A start from the params that are made of the boundary, with the rest as `mixed` says."""
    check_choices(batch_stats, opt_state)
    return lambda boundary: started(boundary, params(boundary), batch_stats, opt_state)


def check_choices(batch_stats: str, opt_state: str) -> None:
    """Raises a TaskError where one is not among its choices."""
    check_choice("batch_stats", batch_stats, get_args(BatchStatsChoice))
    check_choice("opt_state", opt_state, get_args(OptStateChoice))


def anchored(start: Start) -> Start:
    """The start, with an optimiser's state that is built for the seed's first network.

    What the optimiser keeps of the parameters that its state is built for, L2-Init's anchor and the norms of soft
    weight rescaling, is then the first network's in every round.

    Raises:
      TaskError: it is no start, as a re-initialiser is none before `mixed` makes it one.
    """
    check_can_start("anchored", start)

    def begun(boundary: Boundary) -> TrainState:
        return start(boundary)._replace(opt_state=boundary.setup.optimizer.init(boundary.first.params))

    return begun


def forgotten(start: Start) -> Start:
    """A start from a new network, each of whose leaves has the norm that `start` would give it: the control of that.

    What the start gains by the size of weights is left, as under BatchNorm, where that sets the effective learning
    rate; what it gains by what they had learnt is gone. A leaf of zeros, as a new bias, has no direction and stays.
    Batch statistics and the optimiser's state are those of a new network.

    Raises:
      TaskError: it is no start, as a re-initialiser is none before `mixed` makes it one.
    """
    check_can_start("forgotten", start)

    def begun(boundary: Boundary) -> TrainState:
        params = jax.tree.map(_resized, boundary.fresh.params, start(boundary).params)
        return started(boundary, params, "reset")

    return begun


def _resized(leaf: jax.Array, like: jax.Array) -> jax.Array:
    """A leaf at the norm of another; zeros stay."""
    norm = norm_of(leaf)
    return jnp.where(norm > 0, leaf * (norm_of(like) / jnp.where(norm > 0, norm, 1)), leaf).astype(leaf.dtype)


def new_heads(reinit: Reinit, where: Where | None = None) -> Reinit:
    """A re-initialiser that takes leaves of another shape, a head for other classes, as they are newly drawn.

    With `where`, a predicate on a leaf's path, it takes those leaves so whatever their shape: for as many other classes
    a head has the same one. Where it chooses none of the leaves, a start raises TaskError.
    """

    def reinitialise(params: Any, fresh: Any) -> Any:
        headed = _headed(params, fresh, where)
        # A leaf that is newly drawn stands in for itself, so that `reinit` sees two trees of the same shapes.
        return headed(reinit(headed(params), fresh))

    return reinitialise


def with_new_heads(start: Start) -> Start:
    """A start that takes leaves of another shape, a head for other classes, as they are newly drawn.

    It is given a boundary whose old and first networks have that head too, so that whatever looks at the data, or keeps
    anchors, does so with the head that is trained. Of a re-initialiser `new_heads` makes one that is lifted as before.
    """
    if isinstance(start, Mixed):
        return start._replace(reinit=new_heads(start.reinit))

    def begun(boundary: Boundary) -> TrainState:
        with_heads = _headed(boundary.old.params, boundary.fresh.params)

        def headed(state: TrainState) -> TrainState:
            return state._replace(params=with_heads(state.params))

        return headed(start(boundary._replace(old=headed(boundary.old), first=headed(boundary.first))))

    return begun


def _headed(old: Any, fresh: Any, where: Where | None = None) -> Callable[[Any], Any]:
    """Puts fresh leaves into params: those that `where` chooses, and those whose shape differs in the old ones."""

    def is_kept(is_head: bool, old: Any, new: Any) -> bool:
        return jnp.shape(old) == jnp.shape(new) and not is_head

    heads = chosen_by(where, old, lambda leaf: where is not None)  # none, where there is no `where`
    news, structure = jax.tree.flatten(fresh)
    kept = list(map(is_kept, jax.tree.leaves(heads), _leaves_of(old, fresh), news))

    def headed(params: Any) -> Any:
        own = _leaves_of(params, fresh)
        return structure.unflatten([mine if keep else new for keep, mine, new in zip(kept, own, news, strict=True)])

    return headed


def _leaves_of(tree: Any, like: Any) -> list[Any]:
    """A tree's leaves, of the same names as those of another; of nodes whose own fields tell sizes, these may differ.

    Raises:
      TaskError: a leaf is missing in one of them.
    """
    own, there = ({name for name, _ in named_leaves(each)} for each in (tree, like))
    for name in sorted(own ^ there):
        missing, which = ("old", "fresh") if name in there else ("fresh", "old")
        raise TaskError(f"the {missing} parameters have no leaf '{name}', which the {which} ones have")
    return jax.tree.leaves(tree)


def grown(reinit: Reinit) -> Reinit:
    """A re-initialiser whose fresh leaves may be larger: the old leaf lies at the start of every axis of the new one.

    What is beyond it, the units of classes that have come since, stays newly drawn.
    """

    def corner(name: str, new: Any, old: Any) -> Any:
        if not hasattr(old, "shape"):
            return new
        larger = np.ndim(new) == old.ndim and all(map(operator.ge, np.shape(new), old.shape))
        if not larger:
            raise TaskError(f"grown: the fresh '{name}' is {list(np.shape(new))}, too small for {list(old.shape)}")
        return new[_within(old)]

    def put(new: Any, old: Any) -> Any:
        if not hasattr(old, "shape"):
            return old
        if isinstance(old, np.ndarray):  # whose dtype JAX might not keep
            whole = np.array(new, old.dtype)
            whole[_within(old)] = old
            return whole
        return jnp.asarray(new, old.dtype).at[_within(old)].set(old)

    def reinitialise(params: Any, fresh: Any) -> Any:
        olds, named = _leaves_of(params, fresh), named_leaves(fresh)
        corners = [corner(name, new, old) for (name, new), old in zip(named, olds, strict=True)]
        within = jax.tree.leaves(reinit(params, jax.tree.structure(params).unflatten(corners)))
        return jax.tree.structure(fresh).unflatten(map(put, jax.tree.leaves(fresh), within))

    return reinitialise


def _within(leaf: Any) -> tuple[slice, ...]:
    """Where a leaf lies in a larger one."""
    return tuple(map(slice, leaf.shape))

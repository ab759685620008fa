"""Hare and Tortoise: a slow copy follows the trained parameters, and at times they are set back to it.

Lee et al., "Slow and Steady Wins the Race: Maintaining Plasticity with Hare and Tortoise Networks" (ICML 2024,
https://arxiv.org/abs/2406.02596).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wsjax.checks import check_can_start, check_count, check_epoch_steps, check_number
from wsjax.errors import TaskError
from wsjax.methods.leaves import check_params, chosen, map_chosen, towards
from wsjax.methods.starts import Boundary, Start
from wsjax.training.statistics import reestimated
from wsjax.training.train import Samples, Setup, TrainState
from wsjax.trees import map_nodes, nodes


class TortoiseState(NamedTuple):
    """`slow`: the slow copy, like the params, in 32 bits at least; `steps` []: those so far."""

    slow: Any
    steps: jax.Array


def hare_tortoise(
    momentum: Any, every: int, first: int | None = None, in_epochs: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Keeps `slow = momentum * slow + (1 - momentum) * params` after each step, and puts it in their place at times.

    Put it last in the chain. What is tested is the slow copy: `tortoise` as the setup's `judged`. The authors build
    the optimiser anew when data come and keep the slow copy: a round's start is then `tortoise_kept`.

    Args:
      momentum: in [0, 1], or a traced scalar; the authors' is 0.999. With 0 the slow copy is the params. As one of
        `optax.inject_hyperparams` it needs `hyperparam_dtype=jnp.float32` where params are of 16 bits: there 0.999 is
        1, and the slow copy would never move.
      every: steps between two times at which the params become the slow copy.
      first: steps until the first such time; None for `every`.
      in_epochs: whether these two are epochs; `update` is then given `epoch_steps`, as `wsjax.run_rounds` does. The
        authors' are 10 and 1. Steps are counted from the state's beginning: one that lives on into a round of longer
        epochs (`opt_state="keep"`) goes back within them.

    Returns:
      A transformation whose update needs the params.

    Raises:
      TaskError: a setting is none; in `update`, params or `epoch_steps` are missing, or the params are another
        network's.
    """
    who = "hare_tortoise"
    offset = every if first is None else first
    check_number(f"{who}: momentum", momentum, least=0, most=1)
    check_count(f"{who}: every", every)
    check_count(f"{who}: first", offset)

    def init(params: Any) -> TortoiseState:
        return TortoiseState(chosen(params, widened=True), jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, *, epoch_steps: Any = None, **_: Any
    ) -> tuple[Any, TortoiseState]:
        check_params(who, params, state.slow)
        if in_epochs:
            check_epoch_steps(f"{who}: in_epochs", epoch_steps)
        unit, count = epoch_steps if in_epochs else 1, state.steps + 1
        back = (count >= offset * unit) & ((count - offset * unit) % (every * unit) == 0)
        fast = optax.apply_updates(params, updates)
        slow = map_chosen(partial(_average, momentum), state.slow, fast)
        near = map_chosen(_rounded, slow, fast)
        updates = map_chosen(lambda _, *leaves: _pinned(towards(back, *leaves)), slow, updates, fast, near)
        # What the params become is rounded: where they become the slow copy, it is exactly that.
        new = jax.tree.map(_pinned, optax.apply_updates(params, updates))
        slow = map_chosen(lambda own, new: jnp.where(back, new, own), slow, new)
        return updates, TortoiseState(slow, count)

    return optax.GradientTransformationExtraArgs(init, update)


def tortoise(setup: Setup, state: TrainState, samples: Samples) -> TrainState:
    """The slow copy in the place of the parameters, for a setup's `judged`.

    The authors average BatchNorm's running statistics too. An optimiser has no place for them, and training looks at
    no running statistics: so only the slow copy's, for its test, are wanted, and these are re-estimated under its own
    parameters by a pass over the round's samples.
    """
    found, params = nodes(state.opt_state, TortoiseState), state.params
    if not found:
        raise TaskError("tortoise: the optimiser keeps no slow copy; put wsjax.hare_tortoise last in its chain")
    for own in found:  # several where an optimiser is one of parts, each of which keeps its own leaves
        params = map_chosen(_rounded, own.slow, params)
    return reestimated(setup, state._replace(params=params), samples)


def tortoise_kept(start: Start) -> Start:
    """The start with the slow copies of the round before, if that had any.

    Steps are counted anew, also where the rest of the optimiser's state is kept: a round's returns begin with it.

    Raises TaskError for what is no start, as `anchored` does; calling the start does so where its own optimiser keeps
    another number of them.
    """
    check_can_start("tortoise_kept", start)

    def begun(boundary: Boundary) -> TrainState:
        state, old = start(boundary), nodes(boundary.old.opt_state, TortoiseState)
        if not old:
            return state
        if len(old) != (own := len(nodes(state.opt_state, TortoiseState))):
            raise TaskError(f"tortoise_kept: {own} slow copies cannot go on from {len(old)} of the round before")
        left = iter(old)

        def kept(own: TortoiseState) -> TortoiseState:
            return TortoiseState(next(left).slow, jnp.zeros_like(own.steps))

        opt_state = map_nodes(kept, state.opt_state, TortoiseState)
        return state._replace(opt_state=opt_state)

    return begun


def _average(momentum: Any, slow: Any, fast: Any) -> Any:
    # In 16 bits it would stand still: 0.999 is 1 there, and a thousandth of a step is nothing.
    fast = fast.astype(slow.dtype)
    return jnp.where(momentum == 0, fast, (momentum * slow + (1 - momentum) * fast).astype(slow.dtype))


def _rounded(slow: Any, like: Any) -> Any:
    """The slow copy in the dtype of the parameters."""
    return slow.astype(jnp.result_type(like))


def _pinned(leaf: Any) -> Any:
    """The leaf as its dtype has it; a compiler is free to go on with what it was before it was rounded to 16 bits."""
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 2:
        return leaf
    return jax.lax.reduce_precision(leaf, jnp.finfo(dtype).nexp, jnp.finfo(dtype).nmant)

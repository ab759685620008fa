"""Learning rates that change in the course of a round, by its epochs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wsjax.checks import check_choice, check_count, check_epoch_steps, check_number
from wsjax.errors import TaskError
from wsjax.trees import map_nodes


class Schedule(NamedTuple):
    """What a learning rate is multiplied by, as a function of the epochs since the round began; of shared rounds, since
    the first of them did.

    Attributes:
      kind: "constant"; "cosine", half a wave from 1 at the warm-up's end to 0 at the last epoch's; or "steps".
      epochs: those of the round, or the most that it may have: where it ends before, so does the schedule.
      warmup: the share of them, in [0, 1], over which the rate rises to its height, step by step.
      milestones: the epochs, from 0, at whose start "steps" multiplies by `decay`.
      decay: see there.
    """

    kind: str = "constant"
    epochs: int = 1
    warmup: float = 0.0
    milestones: tuple[int, ...] = ()
    decay: float = 0.1


class ScheduleState(NamedTuple):
    """`count` []: the steps since the round began."""

    count: jax.Array  # type: ignore[assignment]


KINDS = ("constant", "cosine", "steps")


def factor(schedule: Schedule, count: Any, epoch_steps: Any, warmup: int = 0) -> jax.Array:
    """What the learning rate is multiplied by at step `count`, from 0, with `epoch_steps` steps an epoch.

    `warmup` steps of warm-up come to the schedule's own. The rate rises by equal amounts, and is at its height behind
    the last of them.
    """
    total = schedule.epochs * epoch_steps
    rise = warmup + schedule.warmup * total
    height = jnp.minimum((count + 1) / (rise + 1), 1.0)
    if schedule.kind == "cosine":
        done = jnp.clip((count - rise) / jnp.maximum(total - rise, 1), 0.0, 1.0)
        height *= 0.5 * (1 + jnp.cos(math.pi * done))
    if schedule.kind == "steps":
        passed = sum((count >= epoch * epoch_steps).astype(jnp.float32) for epoch in schedule.milestones)
        height *= schedule.decay**passed
    return height


def scale_by_schedule(
    learning_rate: float, schedule: Schedule, warmup: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by `-learning_rate * factor`; the last of a chain, whose update is given `epoch_steps`.

    Its state is the number of steps: where the optimiser's state is new or `restarted`, the schedule begins again, and
    the warm-up with it.

    Raises:
      TaskError: the schedule is none, or `update` is not told how many steps an epoch has.
    """
    if not isinstance(schedule, Schedule):
        raise TaskError(f"a schedule is a wsjax.training.schedules.Schedule, not {schedule!r:.60}")
    check_choice("schedule", schedule.kind, KINDS)
    if schedule.kind == "steps" and not schedule.milestones:
        raise TaskError("the schedule 'steps' needs milestones: the epochs at which the rate falls")
    check_count("a schedule's epochs", schedule.epochs)
    check_number("a schedule's decay", schedule.decay, least=0)
    check_number("a schedule's warmup, a share of its epochs,", schedule.warmup, least=0, most=1)
    for milestone in schedule.milestones:
        check_count("a schedule's milestone", milestone, least=0)

    def init(params: Any) -> ScheduleState:
        del params
        return ScheduleState(jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, *, epoch_steps: Any = None, **_: Any
    ) -> tuple[Any, ScheduleState]:
        del params
        check_epoch_steps("a schedule", epoch_steps)
        rate = -learning_rate * factor(schedule, state.count, epoch_steps, warmup)
        updates = jax.tree.map(lambda update: (rate * update).astype(update.dtype), updates)
        return updates, ScheduleState(jnp.asarray(state.count) + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def restarted(opt_state: Any) -> Any:
    """An optimiser's state for a new round that keeps all of it, but that its schedule begins again.

    The epochs of a schedule are a round's, and rounds have epochs of more and more steps.
    """
    return map_nodes(lambda node: ScheduleState(jnp.zeros_like(node.count)), opt_state, ScheduleState)

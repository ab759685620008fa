"""Schedules by epochs: their heights step by step, where they begin again, and what an optimiser makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsjax.errors import TaskError
from wsjax.methods.reinit import warm_start
from wsjax.methods.starts import mixed
from wsjax.rounds.legs import Method, Round
from wsjax.rounds.loop import run_rounds
from wsjax.training.schedules import Schedule, factor, scale_by_schedule
from wsjax.training.task import stateless_task
from wsjax.training.train import Setup, make_optimizer


def heights(schedule, epoch_steps, warmup=0):
    return [float(factor(schedule, jnp.int32(i), jnp.int32(epoch_steps), warmup)) for i in range(epoch_steps * 10)]


def test_a_cosine_falls_from_one_to_nothing_behind_its_warm_up():
    found = heights(Schedule("cosine", 10, warmup=0.2), 4)
    expected = [(i + 1) / 9 if i < 8 else 0.5 * (1 + np.cos(np.pi * (i - 8) / 32)) for i in range(40)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_steps_fall_at_the_milestones():
    found = heights(Schedule("steps", 10, milestones=(3, 7), decay=0.2), 5)
    np.testing.assert_allclose(found, [0.2 ** ((i >= 15) + (i >= 35)) for i in range(50)], rtol=1e-5)


def test_a_warm_up_in_steps_and_a_share_come_to_one():
    found = heights(Schedule("constant", 10, warmup=0.1), 5, warmup=2)
    np.testing.assert_allclose(found, [min((i + 1) / 8, 1) for i in range(50)], rtol=1e-6)
    # The same as the warm-up that has no schedule.
    optimizer, state = make_optimizer("sgd", 1.0, warmup=7), None
    state = optimizer.init(jnp.zeros(()))
    for height in found[:10]:
        update, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        assert -float(update) == pytest.approx(height)


def test_gradients_are_cut_before_weight_decay():
    params, gradient = jnp.array([10.0, 0.0]), jnp.array([3.0, 4.0])
    optimizer = make_optimizer("sgd", 1.0, weight_decay=0.1, clip_norm=0.5)
    update, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(update, -(gradient / 10 + 0.1 * params), rtol=1e-6)


def test_adamw_decays_by_the_learning_rate_alone():
    params, gradient = jnp.array([10.0, -2.0]), jnp.array([3.0, 4.0])
    own, given = make_optimizer("adamw", 0.01, weight_decay=0.1), optax.adamw(0.01, weight_decay=0.1)
    updates = [o.update(gradient, o.init(params), params)[0] for o in (own, given)]
    np.testing.assert_allclose(*updates, rtol=1e-6)


def test_rounds_begin_it_again_and_know_their_steps():
    """A parameter whose gradient is 1 goes down by the sum of the rates of its rounds."""
    task = stateless_task(lambda key: {"w": jnp.zeros(())}, lambda p, x: p["w"] * x, lambda y, t: y, lambda y, t: y * 0)
    data = (np.ones(20, np.float32), np.zeros(20, np.float32))
    schedule = Schedule("cosine", 4, warmup=0.25)
    setup = Setup(task, make_optimizer("sgd", 0.1, schedule=schedule), data, data, 5)
    rounds = [Round(10, max_epochs=4), Round(20, max_epochs=4)]
    down = 0.1 * sum(
        float(factor(schedule, jnp.int32(i), jnp.int32(steps // 4))) for steps in (8, 16) for i in range(steps)
    )
    for choice in ("rebuild", "keep"):
        states = run_rounds(setup, rounds, {"WS": Method(mixed(warm_start, opt_state=choice))}).states
        assert float(states["WS", 0].params["w"]) == pytest.approx(-down, rel=1e-5)


def test_what_is_no_schedule_is_refused():
    with pytest.raises(TaskError, match="unknown schedule 'linear'; available: constant, cosine, steps"):
        scale_by_schedule(0.1, Schedule("linear"))
    with pytest.raises(TaskError, match="the schedule 'steps' needs milestones"):
        make_optimizer("sgd", 0.1, schedule=Schedule("steps"))
    optimizer = make_optimizer("sgd", 0.1, schedule=Schedule("cosine", 3))
    with pytest.raises(TaskError, match="a schedule needs the steps of an epoch"):
        optimizer.update(jnp.ones(()), optimizer.init(jnp.ones(())), jnp.ones(()))


def test_the_states_of_optimisers_without_any_are_as_optax_makes_them():
    params = {"w": jnp.ones(2)}
    for own, given in (
        (make_optimizer("sgd", 0.1), optax.chain(optax.sgd(0.1))),
        (make_optimizer("msgd", 0.1, 0.1), optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9))),
        (make_optimizer("adam", 0.1, warmup=3), optax.chain(optax.adam(optax.linear_schedule(0.1, 0.1, 3)))),
    ):
        assert jax.tree.structure(own.init(params)) == jax.tree.structure(given.init(params))

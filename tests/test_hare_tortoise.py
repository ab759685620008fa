"""Hare and Tortoise: the slow copy and its returns against NumPy, what is tested, and what a new round keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsjax.errors import TaskError
from wsjax.methods.hare_tortoise import hare_tortoise, tortoise, tortoise_kept
from wsjax.methods.reinit import warm_start
from wsjax.methods.starts import Boundary, mixed
from wsjax.networks import models
from wsjax.rounds.legs import Method, Round
from wsjax.rounds.loop import run_rounds
from wsjax.training.statistics import reestimated
from wsjax.training.task import image_task
from wsjax.training.train import Setup, all_samples, evaluate, init_state

RANDOM = np.random.default_rng(0)
START = RANDOM.normal(size=(2, 3)).astype(np.float32)
GRADIENTS = RANDOM.normal(size=(9, 2, 3)).astype(np.float32)


def stepped(transformation, **extra):
    """The parameters and the slow copy after each step of SGD 0.1."""
    params, state, seen = jnp.asarray(START), transformation.init(jnp.asarray(START)), []
    for gradient in GRADIENTS:
        updates, state = jax.jit(transformation.update)(-0.1 * gradient, state, params, **extra)
        params = optax.apply_updates(params, updates)
        seen.append((params, state.slow))
    return seen


@pytest.mark.parametrize(
    ("options", "extra", "times"),
    [
        ({"every": 3}, {}, (3, 6, 9)),
        ({"every": 4, "first": 1}, {}, (1, 5, 9)),
        ({"every": 2, "first": 1, "in_epochs": True}, {"epoch_steps": jnp.int32(2)}, (2, 6)),
    ],
)
def test_the_slow_copy_and_its_returns_in_numpy(options, extra, times):
    fast = slow = START.astype(np.float64)
    for step, (params, copy) in enumerate(stepped(hare_tortoise(0.8, **options), **extra), 1):
        fast = fast - 0.1 * GRADIENTS[step - 1]
        slow = 0.8 * slow + 0.2 * fast
        fast = slow if step in times else fast
        np.testing.assert_allclose(params, fast, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(copy, slow, rtol=1e-5, atol=1e-6)
        assert (step in times) == (np.asarray(params).tobytes() == np.asarray(copy).tobytes())


def test_without_momentum_the_slow_copy_is_the_parameters_and_no_bit_changes():
    params = jnp.asarray(START)
    for gradient, (found, slow) in zip(GRADIENTS, stepped(hare_tortoise(0.0, every=2)), strict=True):
        params = optax.apply_updates(params, jnp.asarray(-0.1 * gradient))
        assert np.asarray(params).tobytes() == np.asarray(found).tobytes() == np.asarray(slow).tobytes()


def test_epochs_need_the_steps_of_one():
    transformation, params = hare_tortoise(0.5, 1, in_epochs=True), jnp.ones(2)
    with pytest.raises(TaskError, match="in_epochs needs the steps of an epoch"):
        transformation.update(params, transformation.init(params), params)


DATA = jnp.asarray(RANDOM.integers(0, 256, (20, 4, 4, 1)), jnp.uint8), jnp.arange(20) % 3
RESNET = image_task(models.ResNet(3, stage_sizes=(1,), width=2, stem_pool=False), (4, 4, 1), (0.5,), (0.25,))
MLP = image_task(models.mlp(3, (4,)), (4, 4, 1), (0.5,), (0.25,))


def setup(task, momentum=0.5, every=1000):
    optimizer = optax.chain(optax.sgd(0.1), hare_tortoise(momentum, every))
    return Setup(task, optimizer, DATA, DATA, 8, judged=tortoise)


def test_what_is_tested_is_the_slow_copy_under_statistics_of_its_own():
    own = setup(RESNET)._replace(batch_size=20)
    result = run_rounds(own, [Round(20, max_epochs=3)], {})
    state, samples = result.states["first", 0], all_samples(DATA)
    slow = state.opt_state[-1].slow
    assert np.any(slow["head"]["kernel"] != state.params["head"]["kernel"])
    judged = reestimated(own, state._replace(params=slow), samples)
    expected = evaluate(own._replace(judged=None), judged, samples)
    assert result.rows[-1]["test_loss"] == pytest.approx(float(expected["loss"]), rel=1e-4)
    hare = evaluate(own._replace(judged=None), state, samples)
    assert result.rows[-1]["test_loss"] != pytest.approx(float(hare["loss"]), rel=1e-4)


def test_an_optimiser_without_a_slow_copy_is_refused():
    own = setup(MLP)._replace(optimizer=optax.sgd(0.1))
    with pytest.raises(TaskError, match="tortoise: the optimiser keeps no slow copy"):
        tortoise(own, init_state(MLP, own.optimizer, jax.random.key(0)), all_samples(DATA))


@pytest.mark.parametrize("wrap", [tortoise_kept, lambda start: start], ids=["kept", "rebuilt"])
@pytest.mark.parametrize("opt_state", ["rebuild", "keep"])
def test_a_new_round_keeps_the_slow_copy_and_counts_anew(wrap, opt_state):
    """With momentum 1 the slow copy never moves: it is that of the network where it was made."""
    rounds = [Round(10, max_epochs=2), Round(20, max_epochs=2)]
    methods = {"own": Method(wrap(mixed(warm_start, opt_state=opt_state)), after=1)}
    states = run_rounds(setup(MLP, momentum=1.0), rounds, methods).states
    first, own = states["first", 0], states["own", 0]
    goes_on = wrap is tortoise_kept or opt_state == "keep"
    wanted = first.opt_state[-1].slow if goes_on else first.params
    jax.tree.map(np.testing.assert_array_equal, own.opt_state[-1].slow, wanted)
    steps_before = 0 if wrap is tortoise_kept or opt_state == "rebuild" else 2 * 2
    assert int(own.opt_state[-1].steps) == steps_before + 2 * 3


def test_a_round_behind_another_optimiser_begins_with_a_slow_copy_of_its_start():
    plain = setup(MLP)._replace(optimizer=optax.sgd(0.1), judged=None)
    rounds = [Round(10, max_epochs=2), Round(20, max_epochs=1)]
    own = Method(tortoise_kept(mixed(warm_start)), rounds=[Round(20, max_epochs=1, setup=setup(MLP, momentum=1.0))])
    states = run_rounds(plain, rounds, {"own": own}).states
    jax.tree.map(np.testing.assert_array_equal, states["own", 0].opt_state[-1].slow, states["first", 0].params)


def test_the_slow_copy_of_16_bits_moves_as_that_of_32():
    wide, narrow = jnp.asarray(START), jnp.asarray(START, jnp.bfloat16)
    own = hare_tortoise(0.999, every=4)
    states = [own.init(wide), own.init(narrow)]
    assert states[1].slow.dtype == jnp.float32
    for step in range(1, 5):
        moved = [
            own.update(0.1 * jnp.ones_like(params), state, params)
            for params, state in zip((wide, narrow), states, strict=True)
        ]
        states = [state for _, state in moved]
        wide, narrow = (optax.apply_updates(p, updates) for p, (updates, _) in zip((wide, narrow), moved, strict=True))
        assert narrow.dtype == jnp.bfloat16
        np.testing.assert_allclose(states[1].slow, states[0].slow, atol=0.02)
        if step < 4:
            assert np.all(np.asarray(states[1].slow) != np.asarray(START.astype(jnp.bfloat16), np.float32))
    np.testing.assert_array_equal(np.asarray(narrow, np.float32), np.asarray(states[1].slow))


def test_a_momentum_that_may_be_set_is_not_rounded_to_16_bits():
    """As docs/methods.md has it; without `hyperparam_dtype` 0.999 would be 1."""
    inject = optax.inject_hyperparams
    own = inject(hare_tortoise, static_args=("every", "first"), hyperparam_dtype=jnp.float32)(0.999, every=10)
    params = jnp.asarray(START, jnp.bfloat16)
    state = own.init(params)
    _, new = own.update(jnp.ones_like(params), state, params)
    assert np.all(np.asarray(new.inner_state.slow) != np.asarray(state.inner_state.slow))


def test_params_of_16_bits_become_the_slow_copy_to_the_bit_in_a_compiled_step_too():
    """XLA fuses a bfloat16 sum with what follows, and rounds it once less."""
    optimizer = optax.chain(optax.sgd(0.1), hare_tortoise(0.9, every=3))
    params = jnp.asarray(RANDOM.normal(size=1000), jnp.bfloat16)
    gradients, state = jnp.asarray(RANDOM.normal(size=(3, 1000)), jnp.bfloat16), optimizer.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(params, state, gradient)
    np.testing.assert_array_equal(np.asarray(params, np.float32), state[-1].slow)


def test_parts_of_an_optimiser_keep_a_slow_copy_each():
    """All of them are tested, and go on in the next round."""
    parts = {name: optax.chain(optax.sgd(rate), hare_tortoise(0.9, 1000)) for name, rate in (("a", 0.1), ("b", 0.3))}
    optimizer = optax.partition(parts, lambda params: {**_all(params, "a"), "head": "b"})
    own = setup(MLP)._replace(optimizer=optimizer, judged=tortoise)
    rounds, kept = [Round(10, max_epochs=2), Round(20, max_epochs=1)], Method(tortoise_kept(mixed(warm_start)))
    first = run_rounds(own, rounds, {"own": kept}).states["first", 0]
    judged = tortoise(own, first, all_samples(DATA)).params
    assert all(np.any(_flat(judged[name]) != _flat(first.params[name])) for name in judged)
    fresh = init_state(own.task, optimizer, jax.random.key(1))
    boundary = Boundary(jax.random.key(0), first, fresh, all_samples(DATA), own, fresh)
    begun = tortoise_kept(lambda boundary: boundary.fresh)(boundary)
    jax.tree.map(np.testing.assert_array_equal, tortoise(own, begun, all_samples(DATA)).params, judged)
    other = fresh._replace(opt_state=hare_tortoise(0.9, 3).init(fresh.params))
    with pytest.raises(TaskError, match="tortoise_kept: 1 slow copies cannot go on from 2 of the round before"):
        tortoise_kept(lambda boundary: other)(boundary)


def test_a_slow_copy_of_some_leaves_only():
    """Under `optax.masked` the others are tested as they are trained."""
    optimizer = optax.chain(
        optax.sgd(0.1), optax.masked(hare_tortoise(1.0, 1000), lambda p: {**_all(p, False), "head": True})
    )
    own = Setup(MLP, optimizer, DATA, DATA, 8, judged=tortoise)
    result = run_rounds(own, [Round(20, max_epochs=2)], {})
    state = result.states["first", 0]
    judged = tortoise(own, state, all_samples(DATA)).params
    assert {name: bool(np.any(_flat(judged[name]) != _flat(state.params[name]))) for name in judged} == {
        name: name == "head" for name in judged
    }


def _all(params, value):
    return dict.fromkeys(params, value)


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

"""L2-Init: the pull, against the loss that it is the gradient of, and what its anchor is in a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsjax.errors import TaskError
from wsjax.methods.hare_tortoise import tortoise_kept
from wsjax.methods.l2_init import l2_init
from wsjax.methods.reinit import not_normalization, warm_start
from wsjax.methods.starts import anchored, mixed
from wsjax.networks import models
from wsjax.rounds.legs import Method, Round
from wsjax.rounds.loop import run_rounds
from wsjax.training.task import image_task
from wsjax.training.train import Setup, make_optimizer

RANDOM = np.random.default_rng(0)
START = {"conv": RANDOM.normal(size=(2, 3)).astype(np.float32), "norm": np.ones(3, np.float32)}
GRADIENTS = [{name: RANDOM.normal(size=x.shape).astype(np.float32) for name, x in START.items()} for _ in range(6)]


def trained(transformation):
    params = jax.tree.map(jnp.asarray, START)
    state = transformation.init(params)
    for gradient in GRADIENTS:
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_coupled_it_goes_through_the_optimiser():
    """Momentum SGD in NumPy: the pull is part of the gradient."""
    found = trained(optax.chain(l2_init(0.3), optax.sgd(0.1, momentum=0.9)))
    for name, start in START.items():
        x, velocity = start.astype(np.float64), 0.0
        for gradient in GRADIENTS:
            velocity = 0.9 * velocity + gradient[name] + 0.3 * (x - start)
            x = x - 0.1 * velocity
        np.testing.assert_allclose(found[name], x, rtol=1e-5, atol=1e-6)


def test_decoupled_it_goes_by_the_learning_rate_alone():
    """Adam in NumPy, with the pull beside its scaled gradient; `where` leaves normalisation alone."""
    pull = l2_init(0.3, where=not_normalization)
    found = trained(make_optimizer("adam", 0.1, decoupled=pull))
    for name, start in START.items():
        x, mean, square = start.astype(np.float64), 0.0, 0.0
        for t, gradient in enumerate(GRADIENTS, 1):
            mean, square = 0.9 * mean + 0.1 * gradient[name], 0.999 * square + 0.001 * gradient[name] ** 2
            scaled = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
            x = x - 0.1 * (scaled + 0.3 * (x - start) * (name != "norm"))
        np.testing.assert_allclose(found[name], x, rtol=1e-5, atol=1e-5)


def test_it_is_the_gradient_of_the_penalty_and_zero_at_the_anchor():
    start = jax.tree.map(jnp.asarray, START)
    params = jax.tree.map(lambda x: x + 1.5, start)

    def penalty(params):
        return 0.7 / 2 * sum(jnp.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (params, start)), strict=True))

    transformation = l2_init(0.7)
    zero = jax.tree.map(jnp.zeros_like, start)
    found, _ = transformation.update(zero, transformation.init(start), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, jax.grad(penalty)(params))
    nothing, _ = transformation.update(zero, transformation.init(start), start)
    assert all(not np.any(x) for x in jax.tree.leaves(nothing))


def test_a_where_that_chooses_nothing_is_refused_but_in_a_part():
    params = jax.tree.map(jnp.asarray, START)

    def none(path):
        return path.startswith("head")

    with pytest.raises(
        TaskError, match=r"^where chooses none of the leaves; it is asked for their paths, 'conv', 'norm'$"
    ):
        l2_init(0.3, where=none).init(params)
    parts = optax.partition({"a": l2_init(0.3, where=lambda path: path == "conv"), "b": optax.identity()}, MADE_OF)
    assert parts.init(params).inner_states["a"].inner_state.anchor["conv"] is not None
    parts = optax.partition({"a": optax.identity(), "b": l2_init(0.3, where=lambda path: path == "conv")}, MADE_OF)
    parts.init(params)  # the part without any: its other leaves are not there to be chosen


def test_a_model_with_functions_is_told_to_give_its_arrays():
    with pytest.raises(TaskError, match=r"^leaf 'act' is a function, no array: .* eqx.filter\(tree, eqx.is_array\)$"):
        l2_init(0.3).init({"act": jax.nn.relu, "w": jnp.ones(2)})


def test_a_reinitialiser_is_no_start():
    with pytest.raises(
        TaskError, match=r"^anchored takes a start .*, not warm_start; .* make anchored\(mixed\(...\)\)$"
    ):
        anchored(warm_start)
    with pytest.raises(TaskError, match=r"^tortoise_kept takes a start .*, not warm_start; "):
        tortoise_kept(warm_start)


MADE_OF = {"conv": "a", "norm": "b"}


@pytest.mark.parametrize("wrap", [anchored, lambda start: start], ids=["anchored", "rebuilt"])
def test_the_anchor_is_the_first_network_or_what_the_state_is_built_for(wrap):
    images, labels = RANDOM.integers(0, 256, (20, 4, 4, 1)).astype(np.uint8), np.arange(20, dtype=np.int32) % 3
    task = image_task(models.mlp(3, (4,)), (4, 4, 1), (0.5,), (0.25,))
    setup = Setup(task, optax.chain(l2_init(0.1), optax.sgd(0.1)), (images, labels), (images, labels), 8)
    rounds = [Round(10, max_epochs=2), Round(20, max_epochs=2)]
    states = run_rounds(setup, rounds, {"own": Method(wrap(mixed(warm_start)))}, (0, 1)).states
    for seed in (0, 1):
        first, own = (states[name, seed] for name in ("first", "own"))
        anchor = own.opt_state[0].anchor
        wanted = first.opt_state[0].anchor if wrap is anchored else first.params
        jax.tree.map(np.testing.assert_array_equal, anchor, wanted)
        assert np.any(first.params["head"]["kernel"] != first.opt_state[0].anchor["head"]["kernel"])

"""Shrink-perturb's variants: Gaussian noise and the pull to the first network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_dash import near, tree
from test_rounds import FROZEN, run, same

from wsjax.errors import TaskError
from wsjax.methods.reinit import kernels_only, not_normalization, warm_start
from wsjax.methods.variants import gaussian_perturb, gaussian_start, toward_initial
from wsjax.rounds.legs import Method, Round, Settings


def test_gaussian_noise_has_one_deviation_everywhere():
    params = {"a": jnp.full((100, 100), 5.0), "b": (jnp.full(10_000, -5.0), 3, None)}
    new = gaussian_perturb(params, jax.random.key(0), 0.4, 0.01)
    for old, noisy in ((params["a"], new["a"]), (params["b"][0], new["b"][0])):
        noise = np.asarray(noisy - 0.4 * old)
        np.testing.assert_allclose([noise.mean(), noise.std()], [0, 0.01], atol=4e-4)
    assert abs(np.corrcoef(np.ravel(new["a"]), new["b"][0])[0, 1]) < 0.05  # each leaf draws its own
    assert new["b"][1:] == (3, None)
    near(jax.jit(gaussian_perturb)(params, jax.random.key(0), 0.4, 0.01), new)
    assert not same(gaussian_perturb(params, jax.random.key(1), 0.4, 0.01)["a"], new["a"])


def test_the_exact_ends():
    params, initial = tree(0), tree(1)
    assert same(gaussian_perturb(params, jax.random.key(0), 1, 0), params)
    assert same(toward_initial(params, initial, 0), params)
    assert same(toward_initial(params, initial, 1), initial)
    near(toward_initial(params, initial, 0.8), jax.tree.map(lambda x, y: 0.2 * x + 0.8 * y, params, initial))


@pytest.mark.parametrize("where", [not_normalization, kernels_only])
def test_scopes(where):
    params = tree()
    for new in (
        gaussian_perturb(params, jax.random.key(0), 0.5, 0.1, where=where),
        toward_initial(params, tree(1), 0.8, where=where),
    ):
        assert same(new["norm"], params["norm"])
        assert same(new["conv"]["bias"], params["conv"]["bias"]) == (where is kernels_only)
        assert not same(new["conv"]["kernel"], params["conv"]["kernel"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(dtype):
    params = {"a": np.ones(1000, dtype)} if dtype == "float64" else {"a": jnp.ones(1000, dtype)}
    new = gaussian_perturb(params, jax.random.key(0), 0.5, 0.1)["a"]
    assert new.dtype == dtype
    np.testing.assert_allclose(np.asarray(new, np.float64).std(), 0.1, atol=0.01)


ROUNDS = [Round(10, max_epochs=3), Round(30, max_epochs=1)]


def test_in_a_run_noise_comes_of_the_seed_and_the_pull_is_to_its_first_network():
    methods = {
        "noise": Method(gaussian_start(0.3, 0.01)),
        "no noise": Method(gaussian_start(0.3, 0)),
        "back": partial(toward_initial, rate=0.8),
        "WS": warm_start,
    }
    settings = Settings(fresh="first")
    states = run(ROUNDS, methods, seeds=(0, 1), optimizer=FROZEN, settings=settings).states
    began = run([Round(30, max_epochs=1)], {}, seeds=(0, 1), optimizer=FROZEN).states
    noise = []
    for seed in (0, 1):
        old, first = states["WS", seed].params, began["first", seed].params
        near(states["back", seed].params, jax.tree.map(lambda x, y: 0.2 * x + 0.8 * y, old, first))
        near(states["no noise", seed].params, jax.tree.map(lambda x: 0.3 * x, old))
        noise.append(states["noise", seed].params["hidden1"]["kernel"] - 0.3 * old["hidden1"]["kernel"])
    assert 0.005 < np.std(noise[0]) < 0.015
    assert np.abs(noise[0] - noise[1]).max() > 0.005


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ValueError, match="std must be finite"):
        gaussian_perturb(tree(), jax.random.key(0), 0.4, float("inf"))
    with pytest.raises(ValueError, match="rate must be a real number, not None"):
        toward_initial(tree(), tree(1), None)
    with pytest.raises(TaskError, match="unknown opt_state 'new'; available: rebuild, keep"):
        gaussian_start(0.3, 0.01, opt_state="new")


@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
def test_numpy_s_long_doubles_get_noise_too(dtype):
    new = gaussian_perturb({"a": np.ones(1000, dtype)}, jax.random.key(0), 0.5, 0.1)["a"]
    assert new.dtype == dtype
    assert 0.08 < new.std() < 0.12


def test_noise_of_16_bits_is_drawn_in_32_and_rounded_once():
    """bfloat16's own draws have a few hundred values: rounding hides that, but not where they are scaled up."""
    params = jnp.zeros(20_000, jnp.bfloat16)
    noisy = gaussian_perturb(params, jax.random.key(0), 1, 1)
    assert noisy.dtype == jnp.bfloat16
    assert same(noisy, gaussian_perturb(params.astype(jnp.float32), jax.random.key(0), 1, 1).astype(jnp.bfloat16))

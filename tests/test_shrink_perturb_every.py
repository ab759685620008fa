"""Shrink-perturb every n steps: against a loop that does it by hand, and its exact end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsjax.methods.reinit import kernels_only, shrink_perturb
from wsjax.methods.shrink_perturb_every import shrink_perturb_every

KEY = jax.random.key(3)
RANDOM = np.random.default_rng(0)
START = {"kernel": RANDOM.normal(size=(2, 3)).astype(np.float32), "bias": RANDOM.normal(size=3).astype(np.float32)}
GRADIENTS = [{name: RANDOM.normal(size=x.shape).astype(np.float32) for name, x in START.items()} for _ in range(7)]


def draw(key):
    return {name: jax.random.normal(jax.random.fold_in(key, len(name)), x.shape) for name, x in START.items()}


def trained(transformation):
    optimizer = optax.chain(optax.sgd(0.1), transformation)
    params = jax.tree.map(jnp.asarray, START)
    state, seen = optimizer.init(params), []
    for gradient in GRADIENTS:
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen


@pytest.mark.parametrize("where", [None, kernels_only])
def test_every_third_step_in_numpy(where):
    expected = {name: x.astype(np.float64) for name, x in START.items()}
    for step, found in enumerate(trained(shrink_perturb_every(3, 0.6, 0.2, draw, KEY, where)), 1):
        drawn = draw(jax.random.fold_in(KEY, step // 3))
        for name in START:
            expected[name] = expected[name] - 0.1 * GRADIENTS[step - 1][name]
            if step % 3 == 0 and (where is None or name == "kernel"):
                expected[name] = 0.6 * expected[name] + 0.2 * np.asarray(drawn[name], np.float64)
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_with_shrink_1_and_perturb_0_no_bit_changes(monkeypatch):
    monkeypatch.setitem(START, "bias", np.array([np.inf, -0.0, 1.0], np.float32))
    plain, found = trained(optax.identity()), trained(shrink_perturb_every(1, 1.0, 0.0, draw, KEY))
    for a, b in zip(*map(jax.tree.leaves, (plain, found)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_it_is_shrink_perturb_to_a_rounding():
    plain, found = trained(optax.identity()), trained(shrink_perturb_every(7, 0.4, 0.1, draw, KEY))
    expected = shrink_perturb(plain[-1], draw(jax.random.fold_in(KEY, 1)), 0.4, 0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found[-1], expected)


def test_another_networks_draw_is_refused_by_the_leafs_name():
    transformation = shrink_perturb_every(1, 0.5, 0.5, lambda key: {**draw(key), "bias": jnp.ones(4)}, KEY)
    params = jax.tree.map(jnp.asarray, START)
    with pytest.raises(ValueError, match="leaf 'bias' differs"):
        transformation.update(params, transformation.init(params), params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_leaves_of_16_bits_become_what_they_are_to_become(dtype):
    start = jnp.asarray(RANDOM.normal(size=1000), dtype)

    def small(key):
        return (0.02 * jax.random.normal(key, (1000,))).astype(dtype)

    optimizer = optax.chain(optax.sgd(0.1), shrink_perturb_every(1, 0.0, 1.0, small, KEY))

    @jax.jit
    def step(params, gradient):
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    found = step(start, jnp.asarray(RANDOM.normal(size=1000), dtype))
    assert found.dtype == dtype
    drawn = np.asarray(small(jax.random.fold_in(KEY, 1)), np.float32)
    np.testing.assert_allclose(np.asarray(found, np.float32), drawn, rtol=0, atol=2.0**-23)  # the sum's, in 32 bits


def test_leaves_of_64_bits_are_mixed_in_these_whatever_their_updates_have():
    with jax.enable_x64(True):
        params, drawn = {"w": jnp.array([1.0, 3.0])}, {"w": jnp.array([0.1, 0.7])}
        assert params["w"].dtype == jnp.float64
        transformation = shrink_perturb_every(1, 1 / 3, 1.0, lambda key: drawn, KEY)
        updates, _ = transformation.update({"w": jnp.ones(2, jnp.float32)}, transformation.init(params), params)
        found = optax.apply_updates(params, updates)["w"]
        np.testing.assert_allclose(found, (params["w"] + 1) / 3 + drawn["w"], rtol=1e-15)


def test_as_a_part_of_an_optimiser_it_leaves_other_leaves_alone():
    own = optax.chain(optax.sgd(0.1), shrink_perturb_every(1, 0.5, 0.1, draw, KEY))
    optimizer = optax.partition({"a": optax.sgd(0.1), "b": own}, {"kernel": "a", "bias": "b"})
    params = jax.tree.map(jnp.asarray, START)
    updates, _ = optimizer.update(GRADIENTS[0], optimizer.init(params), params)
    found = optax.apply_updates(params, updates)
    np.testing.assert_allclose(found["kernel"], START["kernel"] - 0.1 * GRADIENTS[0]["kernel"], rtol=1e-6)
    mixed = 0.5 * (START["bias"] - 0.1 * GRADIENTS[0]["bias"]) + 0.1 * draw(jax.random.fold_in(KEY, 1))["bias"]
    np.testing.assert_allclose(found["bias"], mixed, rtol=1e-5)

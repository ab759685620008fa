import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from wsjax.networks import kernels
from wsjax.networks.norm import batch_norm, moments, normalise

# Images [B, H, W, C]: channels that fill vectors and that do not, pixels that fold together and that do not.
SHAPES = [(4, 8, 8, 16), (3, 5, 7, 3), (17, 1, 1, 5), (2, 4, 6, 300)]


@pytest.fixture(params=["compiled", "xla"], autouse=True)
def way(request, monkeypatch):
    """Runs a test with the compiled kernels, and with what takes their place where there is no compiler."""
    if request.param == "compiled":
        assert kernels.available()
    else:
        monkeypatch.setattr(kernels, "support", lambda *arrays: False)
    return request.param


def arrays(shape, dtype=np.float32):
    random = np.random.default_rng(0)
    x, shortcut, dz = (random.normal(size=shape).astype(dtype) for _ in range(3))
    scale, bias = (random.normal(size=shape[-1]).astype(dtype) for _ in range(2))
    weights = np.ones(shape[0], dtype)
    weights[-1] = 0
    return x * 2 + 3, weights, scale, bias, shortcut, dz


def plain(x, weights, scale, bias, shortcut, relu):
    """The formula, for autodiff."""
    share = weights[:, None, None, None] / (weights.sum() * x.shape[1] * x.shape[2])
    mean = (x * share).sum((0, 1, 2))
    var = ((x - mean) ** 2 * share).sum((0, 1, 2))
    y = (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias
    y = y if shortcut is None else y + shortcut
    return (jax.nn.relu(y) if relu else y), (mean, var)


def assert_near(ours, expected, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(float(jnp.abs(b).max()), 1))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("has_shortcut", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_moments_and_gradients_equal_the_formula(shape, has_shortcut, relu):
    x, weights, scale, bias, shortcut, dz = arrays(shape)
    if not has_shortcut:
        shortcut = None

    @jax.jit
    def both(x, scale, bias, shortcut):
        def ours(x, scale, bias, shortcut):
            z, (mean, var, count) = batch_norm(x, weights, scale, bias, shortcut, 1e-5, relu)
            return z, (mean, var, count)

        def expected(x, scale, bias, shortcut):
            return plain(x, weights, scale, bias, shortcut, relu)

        z, pull, (mean, var, count) = jax.vjp(ours, x, scale, bias, shortcut, has_aux=True)
        expected_z, expected_pull, expected_moments = jax.vjp(expected, x, scale, bias, shortcut, has_aux=True)
        return (z, (mean, var), pull(dz)), (expected_z, expected_moments, expected_pull(dz)), count

    found, expected, count = both(x, scale, bias, shortcut)
    assert_near(found, expected)
    assert count == (shape[0] - 1) * shape[1] * shape[2]


@pytest.mark.parametrize("relu", [True, False])
def test_gradients_agree_with_finite_differences(relu):
    with jax.enable_x64(True):
        x, weights, scale, bias, shortcut, _ = (jnp.asarray(a) for a in arrays((3, 2, 4, 3), np.float64))

        def value(x, scale, bias, shortcut):
            return batch_norm(x, weights, scale, bias, shortcut, 1e-5, relu)[0]

        check_grads(value, (x, scale, bias, shortcut), order=1, modes=["rev"])


@pytest.mark.parametrize("relu", [True, False])
def test_a_program_calls_the_kernels_on_a_cpu_alone(way, relu):
    x, weights, scale, bias, shortcut, _ = arrays((4, 3, 3, 5))

    def value(x, scale, bias, shortcut):
        z, (mean, var, _) = batch_norm(x, weights, scale, bias, shortcut, 1e-5, relu)
        return (z * normalise(x, mean, var, scale, bias, None, 1e-5)).sum()

    program = jax.jit(jax.grad(value, argnums=(0, 1, 2, 3))).trace(x, scale, bias, shortcut)

    def calls(platform):
        return sorted(re.findall(r"@wsjax_(\w+)_float32", program.lower(lowering_platforms=(platform,)).as_text()))

    each = ["moments", "normalise", "normalise", "normalise_gradient"]
    assert calls("cpu") == (each if way == "compiled" else [])
    assert calls("cuda") == []


def test_moments_by_hand():
    x = jnp.asarray([[1.0, 10.0], [3.0, 10.0], [100.0, 100.0]]).reshape(3, 1, 1, 2)
    mean, var, count = moments(x, jnp.asarray([1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(mean, [2, 10])
    np.testing.assert_array_equal(var, [1, 0])
    assert count == 2


def test_moments_stay_exact_where_the_mean_is_large():
    x = 10_000 + np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype(np.float32)
    mean, var, _ = moments(jnp.asarray(x), jnp.ones(16))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-3)


def test_moments_of_padding_alone_are_zero():
    mean, var, count = moments(jnp.ones((2, 3, 3, 4)), jnp.zeros(2))
    assert (np.asarray(mean) == 0).all()
    assert (np.asarray(var) == 0).all()
    assert count == 0


def test_a_nan_is_not_hidden_by_the_relu():
    x, weights, scale, bias, shortcut, _ = arrays((2, 4, 4, 16))
    shortcut[0, 0, 0, 0] = np.nan
    z, _ = batch_norm(x, weights, scale, bias, shortcut, 1e-5, True)
    assert np.isnan(z[0, 0, 0, 0])
    assert np.isnan(z).sum() == 1


@pytest.mark.parametrize("has_shortcut", [True, False])
def test_normalise_and_its_gradient_equal_the_formula(has_shortcut):
    x, _, scale, bias, shortcut, dz = arrays((4, 6, 6, 5))
    mean, var = bias + 1, scale**2 + 0.5
    arguments = x, mean, var, scale, bias, shortcut if has_shortcut else None

    def formula(x, mean, var, scale, bias, shortcut):
        y = (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias
        return jax.nn.relu(y if shortcut is None else y + shortcut)

    def ours(*arguments):
        return normalise(*arguments, 1e-5, True)

    found, expected = (jax.jit(lambda *a, f=f: (f(*a), jax.vjp(f, *a)[1](dz)))(*arguments) for f in (ours, formula))
    assert_near(found, expected, 1e-5)


def test_bfloat16_images_stay_bfloat16_with_float32_moments():
    x, weights, scale, bias, shortcut, dz = arrays((4, 8, 8, 16))
    half = [jnp.asarray(a, jnp.bfloat16) for a in (x, shortcut, dz)]

    def value(x, scale, bias, shortcut):
        return batch_norm(x, weights, scale, bias, shortcut, 1e-5, True)

    z, pull, (mean, var, _) = jax.vjp(value, half[0], scale, bias, half[1], has_aux=True)
    assert z.dtype == jnp.bfloat16
    assert (mean.dtype, var.dtype) == (jnp.float32, jnp.float32)
    assert [g.dtype for g in pull(half[2])] == [jnp.bfloat16, jnp.float32, jnp.float32, jnp.bfloat16]
    assert_near(z.astype(jnp.float32), plain(x, weights, scale, bias, shortcut, True)[0], 0.02)


def test_parts_of_a_batch_over_an_axis_are_the_whole_batch():
    x, weights, scale, bias, shortcut, dz = arrays((4, 3, 3, 5))
    parts = [a.reshape(2, 2, *a.shape[1:]) for a in (x, weights, shortcut, dz)]

    def gradients(axis_name, x, weights, shortcut, dz):
        def value(x, scale, bias, shortcut):
            return batch_norm(x, weights, scale, bias, shortcut, 1e-5, True, axis_name)

        z, pull, found = jax.vjp(value, x, scale, bias, shortcut, has_aux=True)
        dx, dscale, dbias, dshortcut = pull(dz)
        return z, dx, dshortcut, dscale, dbias, found

    whole = gradients(None, x, weights, shortcut, dz)
    z, dx, dshortcut, dscale, dbias, found = jax.vmap(partial(gradients, "data"), axis_name="data")(*parts)
    assert_near([a.reshape(4, *a.shape[2:]) for a in (z, dx, dshortcut)], whole[:3])
    assert_near((dscale.sum(0), dbias.sum(0)), whole[3:5])
    assert_near(jax.tree.map(lambda a: a[1], found), whole[5])

"""FIRE: its steps against loops, its exact limit, what it does not depend on, and its controls."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_dash import near, tree
from test_rounds import FROZEN, TWO_ROUNDS, run, same

from wsjax.methods.fire import fire, isometry_error, with_norms_of
from wsjax.methods.layouts import wsjax_layout
from wsjax.methods.reinit import warm_start
from wsjax.rounds.legs import Round
from wsjax.training.probes import ranks_of


def product(a, b):
    return np.array([[sum(x * y for x, y in zip(row, column, strict=True)) for column in b.T] for row in a])


def by_loops(matrix, steps):
    """The steps of a matrix [out, in] at Frobenius norm 1, always on the side of its columns."""
    x = np.array(matrix, np.float64)
    x = x / np.sqrt(sum(value * value for value in x.ravel()))
    for _ in range(steps):
        x = 1.5 * x - 0.5 * product(product(x, x.T), x)
    return x


def polar(matrix):
    left, _, right = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return left @ right


def by_position(params, near_polar):
    """FIRE of the tree of `test_dash`, matrix by matrix."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    new = jax.tree.map(np.copy, params)
    for layer in ("conv", "shortcut"):
        height, width, inputs, outputs = new[layer]["kernel"].shape
        for y in range(height):
            for x in range(width):
                matrix = params[layer]["kernel"][y, x].T
                scaled = (outputs / inputs) ** 0.5 / (height * width) * near_polar(matrix)
                new[layer]["kernel"][y, x] = scaled.T
    inputs, outputs = params["head"]["kernel"].shape
    new["head"]["kernel"] = ((outputs / inputs) ** 0.5 * near_polar(params["head"]["kernel"].T)).T
    return new


@pytest.mark.parametrize("steps", [0, 1, 5, 10])
def test_the_authors_steps(steps):
    expected = by_position(tree(), partial(by_loops, steps=steps))
    near(fire(tree(), steps=steps), expected)
    near(jax.jit(partial(fire, steps=steps))(tree()), expected)


def test_the_limit():
    expected = by_position(tree(), polar)
    near(fire(tree(), steps=None), expected)
    near(jax.jit(partial(fire, steps=None))(tree()), expected)
    near(fire(tree(), steps=40), expected)


def test_hand_worked_tree():
    # The matrix is diagonal: from (4, 3) / 5, a step takes 0.8 to 1.5 * 0.8 - 0.5 * 0.8^3 = 0.944, and 0.6 to 0.792.
    params = {"head": {"kernel": jnp.array([[4.0, 0.0], [0.0, -3.0]]), "bias": jnp.array([1.0, 2.0])}}
    new = fire(params, steps=1)["head"]
    np.testing.assert_allclose(new["kernel"], [[0.944, 0], [0, -0.792]], rtol=1e-6)
    np.testing.assert_array_equal(new["bias"], [1, 2])
    np.testing.assert_allclose(fire(params, steps=None)["head"]["kernel"], [[1, 0], [0, -1]], atol=1e-6)


@pytest.mark.parametrize("steps", [10, None])
def test_what_it_does_not_depend_on(steps):
    step = partial(fire, steps=steps)
    new = step(tree())
    for scale in (1e-30, 1e-3, 3.0, 1e25):  # the squares of the first and the last are no numbers of float32
        near(step(jax.tree.map(lambda x, scale=scale: scale * x, tree()))["conv"]["kernel"], new["conv"]["kernel"])
    # A transposed matrix gives the transposed result, but for sqrt(out / in).
    turned = step({"head": {"kernel": tree()["head"]["kernel"].T}})["head"]["kernel"].T
    near(turned * (4 / 6), new["head"]["kernel"])
    # Positions in space are on their own.
    other = tree()
    other["conv"]["kernel"] = other["conv"]["kernel"].at[1, 0].multiply(jnp.arange(1.0, 6))
    changed = np.abs(step(other)["conv"]["kernel"] - new["conv"]["kernel"]).max((2, 3)) > 1e-4
    np.testing.assert_array_equal(changed, np.arange(6).reshape(3, 2) == 2)


def test_an_isometry_stays_but_for_its_scale():
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0]
    params = {"head": {"kernel": jnp.asarray(7 * orthogonal, jnp.float32)}}
    for steps in (20, None):
        np.testing.assert_allclose(fire(params, steps=steps)["head"]["kernel"], orthogonal, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 10, None])
def test_zeros_stay(steps):
    params = {"a": {"kernel": jnp.zeros((3, 3, 2, 4))}, "b": {"kernel": jnp.diag(jnp.array([2.0, 0.0]))}}
    new = fire(params, steps=steps)
    np.testing.assert_array_equal(new["a"]["kernel"], 0)
    np.testing.assert_allclose(new["b"]["kernel"], [[1, 0], [0, 0]], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree())
        expected = by_position(params, polar)
        for steps in (30, None):
            new = fire(params, steps=steps)
            assert {leaf.dtype.name for leaf in jax.tree.leaves(new)} == {dtype}
            rounding = max(float(jnp.finfo(dtype).eps), 1e-11 if dtype == "float64" else 1e-5)
            for layer in ("conv", "shortcut", "head"):
                own = np.asarray(new[layer]["kernel"], np.float64)
                np.testing.assert_allclose(own, expected[layer]["kernel"], rtol=0, atol=rounding)


@pytest.mark.parametrize("steps", [10, None])
def test_vmap_is_one_after_the_other(steps):
    trees = [tree(seed) for seed in range(3)]
    together = jax.vmap(partial(fire, steps=steps))(jax.tree.map(lambda *x: jnp.stack(x), *trees))
    for i, own in enumerate(trees):
        near(jax.tree.map(lambda x, i=i: x[i], together), fire(own, steps=steps))


def norm(matrix):
    return np.sqrt(np.sum(np.asarray(matrix, np.float64) ** 2))


def test_the_controls():
    params, fresh = tree(0), tree(1)
    new = fire(params)
    rescaled = with_norms_of(params, new, each="matrix")
    kernels = [np.asarray(t["conv"]["kernel"]).reshape(6, 4, 5) for t in (params, rescaled, new)]
    for old, own, there in zip(*kernels, strict=True):
        np.testing.assert_allclose(own, old * norm(there) / norm(old), rtol=1e-5)
    at_initial_norm = with_norms_of(new, fresh)
    kernel, there = new["conv"]["kernel"], fresh["conv"]["kernel"]
    np.testing.assert_allclose(at_initial_norm["conv"]["kernel"], kernel * norm(there) / norm(kernel), rtol=1e-5)
    assert same(at_initial_norm["norm"], params["norm"])
    assert same(at_initial_norm["head"]["bias"], params["head"]["bias"])
    zeros = jax.tree.map(jnp.zeros_like, params)
    for nothing in (with_norms_of(zeros, fresh), with_norms_of(params, zeros)):
        np.testing.assert_array_equal(nothing["head"]["kernel"], 0)


def test_how_far_it_is_from_an_isometry():
    wide = {"head": {"kernel": jax.random.normal(jax.random.key(0), (256, 256))}}
    # Ten steps leave a wide Gaussian matrix short of it, and five leave nearly all of the way.
    five, ten, limit = (float(isometry_error(fire(wide, steps=n))["head/kernel"]) for n in (5, 10, None))
    assert 0.6 < five < 0.9
    assert 0.05 < ten < 0.25
    assert limit < 1e-6
    errors = isometry_error(tree())
    kernel = np.asarray(tree()["conv"]["kernel"], np.float64)
    own = []
    for y, x in np.ndindex(3, 2):
        matrix = kernel[y, x] * 6 / (5 / 4) ** 0.5  # [in, out] = [4, 5]: the rows are the smaller side
        own.append(np.sum((matrix @ matrix.T - np.eye(4)) ** 2) / 4)
    np.testing.assert_allclose(errors["conv/kernel"], np.mean(own), rtol=1e-5)
    assert errors.keys() == {"conv/kernel", "shortcut/kernel", "head/kernel"}


def test_what_cannot_be_done_is_refused_in_one_line():
    for match, call in (
        ("steps must be a whole number, 0 or more, not -1", lambda: fire(tree(), steps=-1)),
        ("steps must be a whole number, 0 or more, not 2.5", lambda: fire(tree(), steps=2.5)),  # type: ignore[arg-type]
        (
            "steps must be known before a program is traced.* static_argnames",
            lambda: jax.jit(lambda steps: fire(tree(), steps=steps))(3),
        ),
        ("leaf 'kernel' is float128, which JAX rounds here", lambda: fire({"kernel": np.ones((2, 2), np.longdouble)})),
        ("no leaf is a kernel by flax_layout; the first one is 'a'", lambda: fire({"a": jnp.ones(3)})),
        ("unknown each 'row'; available: kernel, matrix", lambda: with_norms_of(tree(), tree(), each="row")),
        ("trees differ: only params has leaf 'b'", lambda: with_norms_of({"a": 1.0, "b": 1.0}, {"a": 1.0})),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_it_is_a_reinitialiser_of_a_run():
    rounds = [TWO_ROUNDS[0], Round(30, max_epochs=1)]
    own = partial(fire, layout=wsjax_layout)
    states = run(rounds, {"WS": warm_start, "FIRE": own}, seeds=(0, 1), optimizer=FROZEN).states
    for seed in (0, 1):
        near(states["FIRE", seed].params, own(states["WS", seed].params))


@pytest.mark.parametrize("seeds", [1, 3])
def test_singular_values_are_of_one_matrix_at_a_time(seeds):
    """Several batches of them at once hang on a CPU for ever, where matrices are large and cores are few."""
    kernels = {"a": {"kernel": jnp.ones((seeds, 3, 3, 4, 5))}, "b": {"kernel": jnp.ones((seeds, 3, 3, 5, 6))}}
    for function, given in (
        (partial(fire, steps=None), kernels), (ranks_of, jnp.ones((seeds, 7, 4))),
    ):  # fmt: skip
        lines = str(jax.make_jaxpr(jax.vmap(function))(given)).splitlines()
        found = [line for line in lines if "= svd[" in line]
        assert found
        assert all(re.search(r":f32\[\d+\]", line) for line in found), found  # one vector of values each


@pytest.mark.parametrize("steps", [10, None])
def test_a_kernel_without_weights_stays(steps):
    params = {"a": {"kernel": jnp.zeros((0, 3))}, "b": {"kernel": jnp.ones((2, 2))}}
    assert fire(params, steps=steps)["a"]["kernel"].shape == (0, 3)


def test_a_kernel_without_numbers_is_passed_over():
    params = {"a": {"kernel": jnp.eye(3)}, "none": {"kernel": jnp.ones((0, 3))}}
    assert list(isometry_error(params)) == ["a/kernel"]
    assert fire(params)["none"]["kernel"].shape == (0, 3)

"""Parseval regularisation: the penalty against loops, its gradient, and as part of an optimiser."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_dash import near, tree

from wsjax.methods.layouts import Axes, equinox_layout, flax_layout
from wsjax.methods.parseval import add_parseval, parseval


def rows_of(kernel):
    """The rows, one an output, of a kernel in Flax's layout."""
    kernel = np.asarray(kernel, np.float64)
    return [kernel[..., o].ravel() for o in range(kernel.shape[-1])]


def by_loops(params, strength, scale):
    total = 0.0
    for layer in ("conv", "shortcut", "head"):
        rows = rows_of(params[layer]["kernel"])
        for i, one in enumerate(rows):
            for j, other in enumerate(rows):
                total += (sum(a * b for a, b in zip(one, other, strict=True)) - scale * (i == j)) ** 2
    return strength * total


@pytest.mark.parametrize(("strength", "scale"), [(1e-3, 1.0), (0.2, 2.0)])
def test_the_penalty(strength, scale):
    expected = by_loops(tree(), strength, scale)
    np.testing.assert_allclose(parseval(tree(), strength, scale), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(parseval)(tree(), strength, scale), expected, rtol=1e-5)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), tree(0), tree(1))
    both = [by_loops(tree(seed), strength, scale) for seed in (0, 1)]
    np.testing.assert_allclose(jax.vmap(lambda p: parseval(p, strength, scale))(stacked), both, rtol=1e-5)


def test_hand_worked():
    # Rows (1, 1) and (0, 2): W Wᵀ = [[2, 2], [2, 4]], less 2 on the diagonal: 0 + 4 + 4 + 4.
    kernel = {"kernel": jnp.array([[1.0, 0.0], [1.0, 2.0]])}
    assert parseval(kernel, 1.0, 2.0) == 12
    # 4 [[0, 2], [2, 2]] [[1, 1], [0, 2]] = [[0, 16], [8, 24]], by outputs
    gradient, _ = add_parseval(1.0, 2.0).update({"kernel": jnp.zeros((2, 2))}, None, kernel)
    np.testing.assert_array_equal(gradient["kernel"], [[0, 8], [16, 24]])
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 3)))[0]
    np.testing.assert_allclose(parseval({"kernel": jnp.asarray(3 * orthogonal, jnp.float32)}, 1.0, 9.0), 0, atol=1e-8)


def test_the_transformation_adds_its_gradient():
    updates, params = tree(5), tree()
    found, _ = jax.jit(add_parseval(0.1, 2.0).update)(updates, optax.EmptyState(), params)
    gradient = jax.grad(lambda p: parseval(p, 0.1, 2.0))(params)
    near(found, jax.tree.map(jnp.add, updates, gradient))
    assert jnp.all(gradient["norm"]["scale"] == 0)
    step, width = 1e-3, params["head"]["kernel"]
    for place in ((0, 0), (5, 3)):
        up, down = (params | {"head": {"kernel": width.at[place].add(d)}} for d in (step, -step))
        slope = (by_loops(up, 0.1, 2.0) - by_loops(down, 0.1, 2.0)) / (2 * step)
        np.testing.assert_allclose(gradient["head"]["kernel"][place], slope, rtol=1e-3)


def test_descending_it_makes_rows_orthogonal():
    kernel = {"kernel": jax.random.normal(jax.random.key(0), (6, 3))}
    optimizer = optax.chain(add_parseval(1.0, 2.0), optax.sgd(0.02))

    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return optax.apply_updates(params, updates), state

    (end, _) = jax.lax.fori_loop(0, 300, step, (kernel, optimizer.init(kernel)))
    np.testing.assert_allclose(end["kernel"].T @ end["kernel"], 2 * np.eye(3), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == "float64"):
        params, updates = (jax.tree.map(lambda x: jnp.asarray(x, dtype), tree(seed)) for seed in (0, 1))
        penalty = parseval(params)
        assert penalty.dtype == ("float64" if dtype == "float64" else "float32")
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        np.testing.assert_allclose(penalty, by_loops(wide, 1e-3, 1.0), rtol=1e-12 if dtype == "float64" else 1e-5)
        new, _ = add_parseval().update(updates, None, params)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(new)} == {dtype}


def test_layers_can_be_left_out_and_modules_hold_them():
    no_head = partial(parseval, layout=lambda path, leaf: None if "head" in path else flax_layout(path, leaf))
    whole, rest = tree(), tree() | {"head": {"kernel": jnp.zeros((6, 4)), "bias": jnp.zeros(4)}}
    assert no_head(whole) == no_head(rest) < parseval(whole)
    linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    own = np.sum((linear.weight @ linear.weight.T - np.eye(2)) ** 2)
    np.testing.assert_allclose(parseval(linear, 1.0, layout=equinox_layout), own, rtol=1e-5)
    # Two layers that lie side by side count as two.
    stack = jax.random.normal(jax.random.key(1), (2, 4, 3))
    together = parseval({"w": stack}, layout=lambda *_: Axes((2,), (1,)))
    np.testing.assert_allclose(together, sum(parseval({"w": kernel}) for kernel in stack), rtol=1e-5)


def test_what_cannot_be_done_is_refused_in_one_line():
    for match, call in (
        ("strength must be finite, not nan", lambda: parseval(tree(), float("nan"))),
        ("scale must be a real number, not 'one'", lambda: add_parseval(1.0, "one")),
        ("no leaf is a kernel by flax_layout; the first one is 'a'", lambda: parseval({"a": jnp.ones(3)})),
        ("needs the parameters: call update", lambda: add_parseval().update(tree(), None)),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)

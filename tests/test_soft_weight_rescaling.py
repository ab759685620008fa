"""Soft weight rescaling: the formula, the property that only the logits' scale changes, and the layers' order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsjax.errors import TaskError
from wsjax.methods.soft_weight_rescaling import Layer, model_layers, soft_weight_rescaling
from wsjax.networks import models

few = settings(max_examples=15, deadline=None, database=None, derandomize=True)


def mlp(hidden=(5, 4)):
    model = models.mlp(3, hidden, activation="relu")
    return model, model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)), train=False)["params"]


def random_like(tree, seed, scale=0.3):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * random.normal(size=x.shape), x.dtype), tree)


def test_the_formula_layer_by_layer_in_numpy():
    _, params = mlp()
    transformation = soft_weight_rescaling(0.2, head_rate=0.6)
    state, rates = transformation.init(params), {"hidden1": 0.2, "hidden2": 0.2, "head": 0.6}
    drawn = {name: np.linalg.norm(params[name]["kernel"]) for name in rates}
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for step in range(5):
        update = random_like(params, step)
        updates, state = transformation.update(update, state, params)
        params = optax.apply_updates(params, updates)
        product = 1.0
        for name, rate in rates.items():
            weight = expected[name]["kernel"] + update[name]["kernel"]
            factor = (rate * drawn[name] + (1 - rate) * np.linalg.norm(weight)) / np.linalg.norm(weight)
            product *= factor
            expected[name] = {
                "kernel": factor * weight,
                "bias": product * (expected[name]["bias"] + np.asarray(update[name]["bias"], np.float64)),
            }
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected)


@few
@given(st.integers(0, 999), st.floats(0.0, 1.0), st.lists(st.integers(1, 6), max_size=3))
def test_logits_of_relu_layers_in_a_row_are_only_rescaled(seed, rate, hidden):
    model, params = mlp(tuple(hidden))
    transformation = soft_weight_rescaling(rate)
    update = random_like(params, seed)
    updates, _ = transformation.update(update, transformation.init(params), params)
    images = jnp.asarray(np.random.default_rng(seed).normal(size=(7, 2, 2, 1)), jnp.float32)
    plain, rescaled = (
        np.asarray(model.apply({"params": optax.apply_updates(params, own)}, images, train=False))
        for own in (update, updates)
    )
    scale = np.sum(plain * rescaled) / np.sum(plain * plain)
    assert scale > 0
    np.testing.assert_allclose(rescaled, scale * plain, rtol=1e-4, atol=1e-5 * scale)


@few
@given(st.integers(0, 999))
def test_rate_0_changes_no_bit(seed):
    _, params = mlp()
    update = random_like(params, seed)
    update["hidden1"]["bias"] = update["hidden1"]["bias"].at[0].set(-0.0)
    params["hidden1"]["bias"] = params["hidden1"]["bias"].at[1].set(jnp.inf)
    for rate in (0.0, jnp.float32(0)):
        transformation = soft_weight_rescaling(rate)
        found, _ = jax.jit(transformation.update)(update, transformation.init(params), params)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(*map(jax.tree.leaves, (found, update)), strict=True))


def test_rate_1_keeps_the_norms_and_a_zero_weight_stays_zero():
    _, params = mlp()
    params["hidden2"]["kernel"] *= 0
    transformation = soft_weight_rescaling(1.0)
    update = random_like(params, 1)
    update["hidden2"]["kernel"] *= 0
    updates, _ = transformation.update(update, transformation.init(params), params)
    moved = optax.apply_updates(params, updates)
    for name in ("hidden1", "hidden2", "head"):
        old, new = (np.linalg.norm(tree[name]["kernel"]) for tree in (params, moved))
        np.testing.assert_allclose(new, old, rtol=1e-6)
    assert np.isfinite(moved["hidden2"]["bias"]).all()


def test_the_product_begins_anew_at_a_normalisation():
    """conv (with a bias) -> norm -> head: the head's bias has the factors of the norm and of itself."""
    random = np.random.default_rng(3)
    params = {
        name: jnp.asarray(random.normal(size=shape), jnp.float32)
        for name, shape in {"w": (4, 2), "b": (2,), "scale": (2,), "shift": (2,), "v": (2, 3), "c": (3,)}.items()
    }
    layers = [Layer("w", "b"), Layer("scale", "shift", normalises=True), Layer("v", "c")]
    transformation = soft_weight_rescaling(0.5, layers)
    update = random_like(params, 4)
    updates, _ = transformation.update(update, transformation.init(params), params)
    moved, new = optax.apply_updates(params, update), optax.apply_updates(params, updates)

    def factor(name):
        norm = np.linalg.norm(moved[name])
        return (0.5 * np.linalg.norm(params[name]) + 0.5 * norm) / norm

    expected = {
        "w": factor("w"), "b": factor("w"), "scale": factor("scale"), "shift": factor("scale"), "v": factor("v"),
        "c": factor("scale") * factor("v"),
    }  # fmt: skip
    for name, times in expected.items():
        np.testing.assert_allclose(new[name], times * np.asarray(moved[name]), rtol=1e-5)


def test_the_order_of_the_study_s_networks():
    names = [layer.weight for layer in model_layers(mlp((3,) * 11)[1])]
    assert names == [*(f"hidden{n}/kernel" for n in range(1, 12)), "head/kernel"]
    model = models.ResNet(3, stage_sizes=(1, 2), width=2)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)["params"]
    layers = model_layers(params)
    block = [f"{name}/{leaf}" for name, leaf in (("conv1", "kernel"), ("norm1", "scale"), ("conv2", "kernel"))]
    shortcut = ["shortcut_conv/kernel", "shortcut_norm/scale"]
    assert [layer.weight for layer in layers] == [
        "stem_conv/kernel", "stem_norm/scale",
        *(f"stage1_block1/{name}" for name in [*block, "norm2/scale"]),
        *(f"stage2_block1/{name}" for name in [*shortcut, *block, "norm2/scale"]),
        *(f"stage2_block2/{name}" for name in [*block, "norm2/scale"]),
        "head/kernel",
    ]  # fmt: skip
    assert [layer.normalises for layer in layers] == ["norm" in layer.weight for layer in layers]
    named = {name for layer in layers for name in (layer.weight, layer.bias)} - {None}
    assert len(named) == len(jax.tree.leaves(params))  # none is left out


def test_a_state_of_other_layers_is_refused_by_name():
    _, params = mlp()
    own, other = (soft_weight_rescaling(0.1, [Layer(f"{name}/kernel")]) for name in ("hidden1", "hidden2"))
    with pytest.raises(TaskError, match="its state and the network differ in 'hidden1/kernel', 'hidden2/kernel'"):
        own.update(params, other.init(params), params)


def test_layers_that_there_are_not_are_refused_by_name():
    _, params = mlp()
    with pytest.raises(TaskError, match="the parameters have no leaf 'body/kernel'; there is head/bias, head/kernel"):
        soft_weight_rescaling(0.1, [Layer("body/kernel")]).init(params)
    with pytest.raises(TaskError, match="'dense' is no layer of wsjax's networks; say which layers"):
        soft_weight_rescaling(0.1).init({"dense": {"kernel": jnp.ones(2)}})

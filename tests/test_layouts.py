"""Layouts: which axes of whose kernels are outputs, inputs and space, and what is refused."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsjax.methods.layouts import Axes, equinox_layout, flax_layout, kernels_of, map_layers, wsjax_layout
from wsjax.networks import models
from wsjax.trees import path_name


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(3, (2, 4))(x))
        return nn.Dense(7)(nn.LayerNorm()(x.mean((1, 2))))


def ones(net, **options):
    """Parameters of a net for images, all 1."""
    images = jnp.zeros((1, 8, 8, 1))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), images, **options))["params"]
    return jax.tree.map(lambda x: jnp.ones(x.shape), params)


def shapes(layout, params):
    return {path: kernel.shape for path, kernel in kernels_of(layout, params).items()}


def scaled_layers(layout, params):
    """The leaves that are kernels or biases."""
    twice = map_layers(lambda axes, kernel: 2 * kernel + 1, layout, params, biases=True)
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(twice), strict=True)
    return {path_name(path) for (path, a), b in pairs if not np.array_equal(a, b)}


def test_flax():
    params = ones(Net())
    assert shapes(flax_layout, params) == {"Conv_0/kernel": (1, 8, 3, 1), "Dense_0/kernel": (1, 1, 7, 3)}
    assert scaled_layers(flax_layout, params) == {"Conv_0/kernel", "Conv_0/bias", "Dense_0/kernel", "Dense_0/bias"}
    (state,) = nnx.split(nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))[1:]
    assert list(shapes(flax_layout, state).values()) == [(1, 1, 3, 2)]


def test_the_networks_of_this_package():
    resnet = ones(models.ResNet(3, stage_sizes=(1, 1), width=2), train=False)
    found = shapes(wsjax_layout, resnet)
    assert found["stem_conv/kernel"] == (1, 9, 2, 1)
    assert found["stage2_block1/shortcut_conv/kernel"] == (1, 1, 4, 2)
    assert found["head/kernel"] == (1, 1, 3, 4)
    assert not any("norm" in path for path in scaled_layers(wsjax_layout, resnet))
    mlp = ones(models.mlp(3, (5,)), train=False)
    assert shapes(wsjax_layout, mlp) == {"head/kernel": (1, 1, 3, 5), "hidden1/kernel": (1, 1, 5, 64)}


def test_equinox():
    keys = jax.random.split(jax.random.key(0))
    module = {"conv": eqx.nn.Conv2d(2, 3, (1, 4), key=keys[0]), "head": eqx.nn.Linear(5, 6, key=keys[1])}
    assert shapes(equinox_layout, module) == {"conv/weight": (1, 4, 3, 2), "head/weight": (1, 1, 6, 5)}
    assert scaled_layers(equinox_layout, module) == {"conv/weight", "conv/bias", "head/weight", "head/bias"}


def test_a_layer_comes_as_it_is_said_and_goes_back_as_it_was():
    kernel = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    own = {"attention": {"kernel": jnp.asarray(kernel)}}
    axes = Axes(output=(3, 1), input=(0,))  # and axis 2 a stack
    (laid_out,) = kernels_of(lambda path, leaf: axes, own).values()
    assert laid_out.shape == (4, 1, 15, 2)
    for stack, out, part, inner in np.ndindex(4, 5, 3, 2):
        assert laid_out[stack, 0, 3 * out + part, inner] == kernel[inner, part, stack, out]
    back = map_layers(lambda got, kernel: kernel, lambda path, leaf: axes, own)
    np.testing.assert_array_equal(back["attention"]["kernel"], kernel)


def test_all_other_leaves_stay_as_they_are():
    others = {"kernel": jnp.arange(4).reshape(2, 2), "rate": 0.5, "none": None, "w": jax.random.key(0), "bias": "text"}
    params = {"a": others, "b": {"kernel": jnp.ones((2, 2))}}
    new = map_layers(lambda axes, kernel: kernel + 1, flax_layout, params, biases=True)
    assert all(new["a"][name] is leaf for name, leaf in others.items())
    np.testing.assert_array_equal(new["b"]["kernel"], 2)


@pytest.mark.parametrize(
    ("layout", "params", "message"),
    [
        (flax_layout, {"attn": {"kernel": jnp.ones((2, 3, 4))}}, r"'attn/kernel' of shape \(2, 3, 4\) may be .*layout"),
        (flax_layout, {"head": {"weight": jnp.ones((3, 2))}}, r"'head/weight' of shape \(3, 2\) .*=equinox_layout, or"),
        (flax_layout, {"a": {"scale": jnp.ones(2)}}, "no leaf is a kernel by flax_layout; the first one is 'a/scale'"),
        (flax_layout, {}, "no leaf is a kernel by flax_layout$"),
        (lambda *_: Axes((1,), (1,)), {"w": jnp.ones((2, 2))}, r"'w' of shape \(2, 2\) cannot have Axes.*axis once"),
        (lambda *_: Axes((1,), (2,)), {"w": jnp.ones((2, 2))}, r"'w' of shape \(2, 2\) cannot have Axes"),
        (lambda *_: Axes((), (1,)), {"w": jnp.ones((2, 2))}, r"'w' of shape \(2, 2\) cannot have Axes"),
        (flax_layout, {"kernel": jnp.ones((2, 2), complex)}, "'kernel' is complex64; .* real numbers"),
        (flax_layout, {"kernel": np.ones((2, 2))}, "'kernel' is float64, which JAX rounds here; set jax_enable_x64"),
    ],
)
def test_what_cannot_be_laid_out_is_named(layout, params, message):
    for look in (kernels_of, lambda layout, params: map_layers(lambda axes, kernel: kernel, layout, params)):
        with pytest.raises(ValueError, match=message) as caught:
            look(layout, params)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bias", [np.ones(2), jnp.ones(2, complex)], ids=["float64", "complex64"])
def test_a_bias_may_be_of_any_kind_where_none_is_looked_at(bias):
    params = {"kernel": jnp.eye(2), "bias": bias}
    found = map_layers(lambda axes, kernel: 2 * kernel, flax_layout, params)
    assert found["bias"] is bias
    np.testing.assert_array_equal(found["kernel"], 2 * np.eye(2))
    with pytest.raises(ValueError, match="leaf 'bias' is "):
        map_layers(lambda axes, kernel: kernel, flax_layout, params, biases=True)

"""Re-initialisers: the formula on any pytree, its two exact ends, its transforms, and what is refused."""

from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from wsjax.errors import TaskError
from wsjax.methods.reinit import kernels_only, not_normalization, random_init, shrink_perturb, warm_start
from wsjax.trees import path_name

DTYPES = {"float16": jnp.float16, "bfloat16": jnp.bfloat16, "float32": jnp.float32, "float64": np.float64}
BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def leaves_with_names(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def assert_same_bits(a, b):
    """Equal bit for bit; any NaN equals any other."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        x, y = (np.asarray(value).reshape(-1) for value in (x, y))
        bits = x.view(BITS[x.dtype.itemsize]) == y.view(BITS[y.dtype.itemsize])
        assert (bits | (np.isnan(x) & np.isnan(y))).all(), (x, y)


# Trees of any shape. A leaf is drawn as (dtype, shape, seed), so that two trees of one structure come from one drawing.

floats = st.tuples(st.sampled_from(list(DTYPES)), st.sampled_from([(), (2,), (2, 3)]), st.integers(0, 999))
others = st.sampled_from(["int32", "uint8", "bool", "key", "none", "text", "number"])


def trees(leaves):
    def branches(inner):
        as_dict = st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        as_list = st.lists(inner, max_size=2).map(lambda items: ["list", *items])
        as_tuple = st.lists(inner, max_size=2).map(lambda items: ["tuple", *items])
        return as_dict | as_list | as_tuple

    return st.recursive(leaves, branches, max_leaves=5)


def build(drawing, draw, shift):
    """A tree from its drawing; `draw(random, dtype, shape)` makes the floats."""
    if isinstance(drawing, dict):
        return {name: build(item, draw, shift) for name, item in drawing.items()}
    if isinstance(drawing, list):
        items = [build(item, draw, shift) for item in drawing[1:]]
        return tuple(items) if drawing[0] == "tuple" else items
    if isinstance(drawing, tuple):
        dtype, shape, seed = drawing
        array = draw(np.random.default_rng(seed + 1000 * shift), DTYPES[dtype], shape)
        return array if dtype == "float64" else jnp.asarray(array)
    return {
        "int32": jnp.arange(3) + shift,
        "uint8": np.array([shift], np.uint8),
        "bool": np.array([True, bool(shift)]),
        "key": jax.random.key(shift),
        "none": None,
        "text": f"text {shift}",
        "number": shift,
    }[drawing]


def normal(random, dtype, shape):
    return np.asarray(random.normal(size=shape)).astype(dtype)


def any_bits(random, dtype, shape):
    """Every bit pattern may come: infinities, NaN, subnormal numbers, negative zeros."""
    size = np.dtype(dtype).itemsize
    bits = random.integers(0, 2 ** (8 * size), shape, dtype=BITS[size], endpoint=False)
    special = np.array([-0.0, 0.0, np.inf, -np.inf, np.nan, np.finfo(np.float32).tiny / 8, 1.0]).astype(dtype)
    return np.where(random.random(shape) < 0.5, np.asarray(bits).view(dtype), random.choice(special, shape))


few = settings(max_examples=25, deadline=None, database=None, derandomize=True)


@few
@given(trees(floats | others), st.floats(-2, 2), st.floats(-2, 2))
def test_structure_dtypes_shapes_and_the_formula(drawing, shrink, perturb):
    params, fresh = (build(drawing, normal, shift) for shift in (0, 1))
    mixed = shrink_perturb(params, fresh, shrink, perturb)
    assert jax.tree.structure(mixed) == jax.tree.structure(params)
    for old, new, out in zip(*map(jax.tree.leaves, (params, fresh, mixed)), strict=True):
        if hasattr(old, "dtype") and jnp.issubdtype(old.dtype, jnp.inexact):
            assert (out.dtype, out.shape) == (old.dtype, old.shape)
            expected = shrink * np.asarray(old, np.float64) + perturb * np.asarray(new, np.float64)
            # The unit of rounding of the terms: their sum may be nearly 0.
            size = abs(shrink * np.asarray(old, np.float64)) + abs(perturb * np.asarray(new, np.float64))
            epsilon = float(jnp.finfo(old.dtype).eps) + 2e-7 * (old.dtype != np.float64)
            assert (abs(np.asarray(out, np.float64) - expected) <= 2 * epsilon * size + 1e-7 * (size > 0)).all()
        else:
            assert out is old


@few
@given(trees(floats))
def test_the_two_ends_are_exact_bit_for_bit(drawing):
    params, fresh = (build(drawing, any_bits, shift) for shift in (0, 1))
    assert_same_bits(warm_start(params, fresh), params)
    assert_same_bits(random_init(params, fresh), fresh)
    assert_same_bits(shrink_perturb(params, fresh, 1, 0), params)
    assert_same_bits(shrink_perturb(params, fresh, 0, 1), fresh)


JAX_FLOATS = floats.filter(lambda leaf: leaf[0] != "float64")


@settings(few, max_examples=12)
@given(trees(JAX_FLOATS))
def test_the_two_ends_are_exact_under_jit(drawing):
    params, fresh = (build(drawing, any_bits, shift) for shift in (0, 1))
    mix = jax.jit(shrink_perturb)
    assert_same_bits(mix(params, fresh, 1.0, 0.0), params)
    assert_same_bits(mix(params, fresh, 0.0, 1.0), fresh)
    assert_same_bits(jax.jit(warm_start)(params, fresh), params)
    assert_same_bits(jax.jit(random_init)(params, fresh), fresh)


@settings(few, max_examples=12)
@given(trees(JAX_FLOATS), st.sampled_from([-1.5, 0.3, 1.0]), st.sampled_from([0.0, 0.1]))
def test_jit_equals_eager(drawing, shrink, perturb):
    params, fresh = (build(drawing, normal, shift) for shift in (0, 1))
    eager, compiled = (mix(params, fresh, shrink, perturb) for mix in (shrink_perturb, jax.jit(shrink_perturb)))
    for x, y in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
        rounding = 2 * float(jnp.finfo(x.dtype).eps)
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=rounding, atol=rounding)


def test_hand_worked_tree():
    params = {"a": jnp.array([2.0, -4.0]), "b": (jnp.array(8.0), None)}
    fresh = {"a": jnp.array([10.0, 20.0]), "b": (jnp.array(-30.0), None)}
    mixed = jax.jit(shrink_perturb)(params, fresh, 0.5, 0.25)
    np.testing.assert_array_equal(mixed["a"], [3.5, 3.0])
    np.testing.assert_array_equal(mixed["b"][0], -3.5)
    assert mixed["b"][1] is None


def test_half_precision_is_rounded_once():
    # In float16, 1024 * 1.0004 and 1024 + 0.4 both round to 1024; in float32 the sum is 1024.81.
    out = shrink_perturb(jnp.array([1024.0], jnp.float16), jnp.array([1.0], jnp.float16), 1.0004, 0.4)
    assert out.dtype == jnp.float16
    np.testing.assert_array_equal(np.asarray(out, np.float32), [1025.0])


def test_a_dropped_term_does_no_harm():
    bad = jnp.array([jnp.inf, -jnp.inf, jnp.nan, -0.0])
    good = jnp.array([-0.0, 0.0, -1.5, 1e-40])
    for mix in (shrink_perturb, jax.jit(shrink_perturb)):
        assert_same_bits(mix(good, bad, 1.0, 0.0), good)
        assert_same_bits(mix(bad, good, 0.0, 1.0), good)
        np.testing.assert_array_equal(mix(jnp.array([2.0]), bad[:1], 0.5, 0.0), [1.0])
        np.testing.assert_array_equal(mix(bad[:1], jnp.array([2.0]), 0.0, 0.5), [1.0])
        np.testing.assert_array_equal(mix(bad, bad, 0.0, 0.0), np.zeros(4))


def test_a_kept_nan_stays():
    bad = jnp.array([jnp.nan, jnp.inf])
    np.testing.assert_array_equal(shrink_perturb(bad, jnp.ones(2), 0.5, 0.5), [np.nan, np.inf])


def test_float64_on_the_host_keeps_its_digits_and_warns_of_nothing():
    old, new = np.array([1.0, np.inf]), np.array([1e-12, -np.inf])
    out = shrink_perturb(old, new, 1.0, 0.5)
    assert type(out) is np.ndarray
    assert out.dtype == np.float64
    assert out[0] == 1 + 0.5e-12
    assert np.isnan(out[1])
    kept = warm_start(old, new)
    assert_same_bits(kept, old)
    kept[0] = 7.0
    assert old[0] == 1.0  # the caller's array is not handed back
    np.testing.assert_array_equal(shrink_perturb(old, new, 0.0, 0.0), [0.0, 0.0])


def test_float64_where_a_program_would_round_it():
    factors = jnp.array([0.5, 1.0])
    message = r"leaf 'a' is float64, which a traced program rounds; set jax_enable_x64, or cast it"
    with pytest.raises(ValueError, match=message):
        jax.vmap(lambda shrink: shrink_perturb({"a": np.ones(2)}, {"a": np.ones(2)}, shrink, 0.1))(factors)
    with jax.enable_x64(True):
        out = shrink_perturb({"a": np.ones(2)}, {"a": np.full(2, 1e-12)}, 1.0, 0.5)
        assert out["a"].dtype == np.float64
        np.testing.assert_array_equal(out["a"], 1 + 0.5e-12)


def test_complex_leaves():
    old, new = jnp.array([1 + 2j, complex(-0.0, -1.0)]), jnp.array([10 - 4j, complex(np.inf, 1)])
    np.testing.assert_array_equal(shrink_perturb(old, new, 0.5, 0.25)[:1], [3 + 0j])
    for first, second in ((old, new), (new, old)):
        for out in (warm_start(first, second), random_init(second, first)):
            np.testing.assert_array_equal(out, first)
            np.testing.assert_array_equal(np.signbit(out.real), np.signbit(first.real))


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float8_e4m3b11fnuz, jnp.float4_e2m1fn])
def test_float8_leaves(dtype):
    out = shrink_perturb(jnp.array([2.0], dtype), jnp.array([4.0], dtype), 0.5, 0.25)
    assert out.dtype == dtype
    assert float(out[0]) == 2.0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_vmap_over_a_grid_of_factors_equals_a_loop(dtype):
    params = {"w": jnp.array([[2.0, -4.0]], dtype), "n": jnp.arange(2)}
    fresh = {"w": jnp.array([[10.0, 30.0]], dtype), "n": jnp.arange(2) + 5}
    shrinks, perturbs = jnp.array([(s, p) for s in (0.0, 0.5, 1.0) for p in (0.0, 0.1, 1.0)]).T
    many = jax.jit(jax.vmap(shrink_perturb, (None, None, 0, 0)))(params, fresh, shrinks, perturbs)
    assert many["w"].shape == (9, 1, 2)
    for i in range(9):
        one = shrink_perturb(params, fresh, float(shrinks[i]), float(perturbs[i]))
        np.testing.assert_array_equal(np.asarray(many["w"][i], np.float32), np.asarray(one["w"], np.float32))
        np.testing.assert_array_equal(many["n"][i], [0, 1])


def test_vmap_over_stacked_networks():
    params, fresh = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[10.0, 20.0], [30.0, 40.0]])
    out = jax.vmap(shrink_perturb)(params, fresh, jnp.array([1.0, 0.0]), jnp.array([0.0, 0.5]))
    np.testing.assert_array_equal(out, [[1.0, 2.0], [15.0, 20.0]])


@pytest.mark.parametrize(
    ("shrink", "perturb"), [(0.5, 0.25), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.0), (0.0, 2.0)]
)
def test_gradients_with_respect_to_all_four_arguments(shrink, perturb):
    old, new, weight = np.array([1.0, -2.0, 3.0]), np.array([5.0, 7.0, -1.0]), np.array([2.0, 3.0, 5.0])

    def loss(params, fresh, shrink, perturb):
        return jnp.sum(weight * shrink_perturb(params, fresh, shrink, perturb)["w"] ** 2) / 2

    arguments = {"w": jnp.float32(old)}, {"w": jnp.float32(new)}, shrink, perturb
    d_params, d_fresh, d_shrink, d_perturb = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*arguments)
    # With m = s p + q f, the loss is sum(w m^2) / 2, and its derivative with respect to m is w m.
    slope = weight * (shrink * old + perturb * new)
    np.testing.assert_allclose(d_params["w"], slope * shrink, rtol=1e-6)
    np.testing.assert_allclose(d_fresh["w"], slope * perturb, rtol=1e-6)
    np.testing.assert_allclose(d_shrink, np.sum(slope * old), rtol=1e-6)
    np.testing.assert_allclose(d_perturb, np.sum(slope * new), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_gradients_of_half_precision_leaves(dtype):
    def loss(params, shrink):
        return shrink_perturb(params, jnp.ones(2, dtype), shrink, 0.0).astype(jnp.float32).sum()

    d_params, d_shrink = jax.grad(loss, (0, 1))(jnp.array([3.0, 4.0], dtype), 0.5)
    assert d_params.dtype == dtype
    np.testing.assert_array_equal(np.asarray(d_params, np.float32), [0.5, 0.5])
    assert d_shrink == 7.0


def test_second_derivatives_and_forward_mode():
    def loss(factors):
        return jnp.sum(shrink_perturb(jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0]), *factors) ** 2) / 2

    # The Hessian is the Gram matrix of params and fresh, at every point.
    hessian = jax.jit(jax.hessian(loss))
    for factors in ([1.0, 0.0], [0.0, 1.0], [0.3, 0.1]):
        np.testing.assert_allclose(hessian(jnp.array(factors)), [[5.0, 1.0], [1.0, 10.0]], rtol=1e-6)
    old, new = jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])
    value, slope = jax.jvp(lambda q: shrink_perturb(old, new, 1.0, q), (0.0,), (1.0,))
    np.testing.assert_array_equal(value, old)
    np.testing.assert_array_equal(slope, new)


def test_what_is_left_out_does_no_harm_to_derivatives_either():
    far = jnp.array([jnp.inf, 2.0])
    one = jnp.ones(2)
    _, slope = jax.jvp(lambda old: shrink_perturb(old, far, 1.0, 0.0), (one,), (one,))
    np.testing.assert_array_equal(slope, one)
    np.testing.assert_array_equal(jax.jacfwd(lambda old: random_init(old, one))(far), np.zeros((2, 2)))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (1, 1), name="conv")(x)
        x = nn.BatchNorm(use_running_average=False, name="bn1")(x)
        x = nn.LayerNorm()(x)
        return nn.Dense(2)(nn.Embed(3, 2)(jnp.zeros(1, jnp.int32)) + x.mean((1, 2)))


class Equinox(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    layers: list

    def __init__(self, key):
        self.linear = eqx.nn.Linear(2, 3, key=key)
        self.norm = eqx.nn.LayerNorm(3)
        self.layers = [eqx.nn.Linear(3, 1, use_bias=False, key=key), jax.nn.relu]


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.bn = nnx.BatchNorm(3, rngs=rngs)


def linen_params(seed):
    shapes = jax.eval_shape(Linen().init, jax.random.key(0), jnp.ones((1, 1, 1, 2)))["params"]
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.float32(random.normal(size=leaf.shape)), shapes)


def equinox_params(seed):
    return Equinox(jax.random.key(seed))


def nnx_params(seed):
    return nnx.split(Nnx(nnx.Rngs(seed)), nnx.Param, ...)[1]


def haiku_params(seed):
    random = np.random.default_rng(seed)
    shapes = {
        "net/~/conv_1": {"w": (2, 2), "b": (2,)},
        "net/~/bn1": {"scale": (2,), "offset": (2,)},
        "net/~/layer_norm": {"scale": (2,)},
        "net/~/linear": {"w": (2, 3)},
    }
    return jax.tree.map(
        lambda shape: jnp.float32(random.normal(size=shape)), shapes, is_leaf=lambda x: type(x) is tuple
    )


CASES = {
    "linen": (
        linen_params,
        {"conv/kernel", "Dense_0/kernel"},
        {"bn1/scale", "bn1/bias", "LayerNorm_0/scale", "LayerNorm_0/bias"},
    ),
    "equinox": (equinox_params, {"linear/weight", "layers/0/weight"}, {"norm/weight", "norm/bias"}),
    "nnx": (nnx_params, {"linear/kernel"}, {"bn/scale", "bn/bias"}),
    "haiku": (
        haiku_params,
        {"net/~/conv_1/w", "net/~/linear/w"},
        {"net/~/bn1/scale", "net/~/bn1/offset", "net/~/layer_norm/scale"},
    ),
}


@pytest.mark.parametrize("library", CASES)
def test_where_on_the_trees_of_each_library(library):
    make, kernels, normalization = CASES[library]
    params, fresh = (jax.tree.map(lambda x: x + 0.5 if eqx.is_array(x) else x, make(seed)) for seed in (0, 1))

    def names_mixed(where):
        mixed = shrink_perturb(params, fresh, 0.5, 0.25, where=where)
        assert jax.tree.structure(mixed) == jax.tree.structure(params)
        old, new, out = (leaves_with_names(tree) for tree in (params, fresh, mixed))
        for name in old:
            if out[name] is not old[name]:
                np.testing.assert_allclose(out[name], 0.5 * old[name] + 0.25 * new[name], rtol=1e-6)
        return {name.removesuffix("/value") for name in old if out[name] is not old[name]}

    every = {
        name.removesuffix("/value") for name, leaf in leaves_with_names(params).items() if eqx.is_inexact_array(leaf)
    }
    assert kernels | normalization < every
    assert names_mixed(None) == every
    assert names_mixed(not_normalization) == every - normalization
    assert names_mixed(kernels_only) == kernels
    with pytest.raises(TaskError, match="where chooses none of the leaves"):
        names_mixed(lambda path: path.startswith("no such leaf"))


def test_a_mixed_equinox_module_still_runs():
    mixed = shrink_perturb(equinox_params(0), equinox_params(1), 0.5, 0.1)
    assert mixed.layers[1] is jax.nn.relu
    assert mixed.linear(jnp.ones(2)).shape == (3,)


def test_paths_as_the_predicates_see_them():
    seen = []
    tree = {"block": [{"conv": {"kernel": jnp.ones(1)}}, (jnp.ones(1), jnp.arange(2))]}
    shrink_perturb(tree, tree, 0.5, 0.5, where=lambda path: seen.append(path) or True)
    assert seen == ["block/0/conv/kernel", "block/1/0"]  # leaves that are not mixed are not asked for


def test_a_where_that_chooses_nothing_is_refused_with_the_paths_it_is_asked_for():
    tree = {"params": {f"Dense_{i}": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)} for i in range(2)}}
    said = (
        r"^where chooses none of the leaves; it is asked for their paths, 'params/Dense_0/bias', "
        "'params/Dense_0/kernel', 'params/Dense_1/bias' and 1 more$"
    )
    with pytest.raises(TaskError, match=said):
        shrink_perturb(tree, tree, 0.5, 0.5, where=lambda path: path.startswith("Dense_1"))
    with pytest.raises(TaskError, match="their paths, 'ln/scale'"):
        shrink_perturb(
            {"ln": {"scale": jnp.ones(2)}}, {"ln": {"scale": jnp.ones(2)}}, 0.5, 0.5, where=not_normalization
        )
    for nothing in ({}, {"ln": {"count": jnp.arange(2)}}):  # without a leaf to mix there is nothing to choose
        shrink_perturb(nothing, nothing, 0.5, 0.5, where=not_normalization)


@pytest.mark.parametrize(
    "layer",
    [
        *("norm", "norm1", "norm_2", "norms", "layer_norm", "batch_norm", "group_norm", "rms_norm", "stem_norm"),
        *("shortcut_norm", "final_layer_norm", "layernorm", "batchnorm2", "RMSNorm", "LayerNorm", "LayerNorm_3"),
        *("BatchNorm_0", "GroupNorm_1", "InstanceNorm_0", "SpectralNorm_0", "WeightNorm_0", "BatchNorm2d", "preNorm"),
        *("bn", "bn1", "bn_2", "BN", "BN_0", "ln_f", "ln1", "gn1", "norm_layer", "batch_normalization"),
        *("Normalisation", "~/bn1", "layer1.0.bn1", "features.norm5", "downsample.1.norm", "encoder-norm"),
    ],
)
def test_names_of_normalisation_layers(layer):
    for path in (f"{layer}/weight", f"block_0/{layer}/kernel/value", f"{layer}/1/w"):
        assert not not_normalization(path)
        assert not kernels_only(path)


@pytest.mark.parametrize(
    "layer",
    [
        *("normal_head", "NormalHead_0", "enormous", "abnormal", "subnet", "bnb", "carbn", "bnconv", "bottleneck"),
        *("norma", "normed_linear", "informative", "Dense_0", "conv1", "layers/0", "net/~/linear", "linear.0", "Lnet"),
    ],
)
def test_names_of_other_layers(layer):
    for name in ("kernel", "weight", "w", "kernel/value"):
        assert not_normalization(f"{layer}/{name}")
        assert kernels_only(f"{layer}/{name}")
    for name in ("bias", "scale", "b", "embedding", "weights", "kernel_0", "weight/g", "kernels/0", "Kernel"):
        assert not_normalization(f"{layer}/{name}")
        assert not kernels_only(f"{layer}/{name}")


def test_names_by_themselves():
    assert kernels_only("w")
    assert kernels_only("features.0.weight")
    assert not kernels_only("flow")
    assert not not_normalization("bn")


ONE = np.float32(1)


@pytest.mark.parametrize(
    ("params", "fresh", "message"),
    [
        ({"a": ONE, "b": ONE}, {"a": ONE, "c": ONE}, r"trees differ: params has leaf 'b' where fresh has 'c'"),
        ({"a": ONE, "b": {"c": ONE}}, {"a": ONE}, r"trees differ: only params has leaf 'b/c'"),
        ({"a": ONE}, {"a": ONE, "b": [ONE, ONE]}, r"trees differ: only fresh has leaf 'b/0'"),
        ([ONE, ONE], (ONE, ONE), r"trees differ: of fresh, .* it has a tuple where there is a list, with"),
        ({"a": None, "b": ONE}, {"a": ONE, "b": ONE}, r"trees differ: params has leaf 'b' where fresh has 'a'"),
        ({"a": {}}, {"a": None}, r"trees differ: of fresh, .* it has a NoneType where there is a dict"),
        (
            {"a": ONE, "b": np.ones((2, 3), np.float32)},
            {"a": ONE, "b": np.ones((3, 2), np.float32)},
            r"leaf 'b' differs: shape \(2, 3\) of float32 in params, shape \(3, 2\) of float32 in fresh",
        ),
        (
            {"a": [np.ones(2, np.float32)]},
            {"a": [np.ones(2, np.int32)]},
            r"leaf 'a/0' differs: shape \(2,\) of float32 in params, shape \(2,\) of int32 in fresh",
        ),
        (
            {"a": ONE},
            {"a": np.complex64(1)},
            r"leaf 'a' differs: shape \(\) of float32 in params, .* complex64 in fresh",
        ),
        ({"a": np.bool_(1)}, {"a": np.int8(1)}, r"leaf 'a' differs: shape \(\) of bool in params"),
        ({"a": ONE}, {"a": "text"}, r"leaf 'a' differs: shape \(\) of float32 in params, str 'text' in fresh"),
        ({"a": jax.random.key(0)}, {"a": ONE}, r"leaf 'a' differs: shape \(\) of key<fry> in params"),
    ],
)
def test_trees_that_differ_are_refused_by_the_leaf(params, fresh, message):
    for mix in (shrink_perturb, lambda *arguments: warm_start(*arguments[:2])):
        with pytest.raises(ValueError, match=message):
            mix(params, fresh, 0.5, 0.5)


def test_trees_that_differ_are_refused_under_jit():
    with pytest.raises(ValueError, match=r"leaf 'a' differs: shape \(2,\) of float32"):
        jax.jit(warm_start)({"a": jnp.ones(2)}, {"a": jnp.ones(3)})


def test_equinox_modules_of_other_static_fields_are_refused():
    one, other = (eqx.nn.Linear(2, 2, use_bias=bias, key=jax.random.key(0)) for bias in (True, False))
    with pytest.raises(ValueError, match=r"trees differ: only params has leaf 'bias'"):
        warm_start(one, other)


def test_dtypes_of_one_kind_may_differ():
    out = shrink_perturb(jnp.ones(2, jnp.bfloat16), jnp.full(2, 3.0, jnp.float32), 0.5, 0.5)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), [2.0, 2.0])


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -float("inf"), np.float32("nan"), np.array(np.inf)])
def test_factors_that_are_not_finite_are_refused(factor):
    with pytest.raises(ValueError, match=r"shrink must be finite, not (nan|-?inf)"):
        shrink_perturb(jnp.ones(2), jnp.ones(2), factor, 0.1)
    with pytest.raises(ValueError, match=r"perturb must be finite, not (nan|-?inf)"):
        shrink_perturb(jnp.ones(2), jnp.ones(2), 0.1, factor)


@pytest.mark.parametrize("factor", [np.ones(2), jnp.ones((2, 1)), [0.1, 0.2]])
def test_factors_that_are_arrays_are_refused(factor):
    shape = np.shape(factor)
    message = rf"shrink must be a scalar, not an array of shape \({', '.join(map(str, shape))},?\); use jax.vmap"
    with pytest.raises(ValueError, match=message):
        shrink_perturb(jnp.ones(2), jnp.ones(2), factor, 0.1)


def test_traced_factors_that_are_arrays_are_refused():
    with pytest.raises(ValueError, match=r"perturb must be a scalar, not an array of shape \(3,\)"):
        jax.jit(shrink_perturb)(jnp.ones(()), jnp.ones(()), 1.0, jnp.ones(3))


@pytest.mark.parametrize("factor", [1, True, np.float16(1), np.int32(1), jnp.int32(1), jnp.bfloat16(1), np.array(1.0)])
def test_scalars_of_any_type_are_factors(factor):
    np.testing.assert_array_equal(shrink_perturb(jnp.full(2, 3.0), jnp.ones(2), factor, 0), [3.0, 3.0])


@pytest.mark.parametrize("factor", ["0.5", None, 1j, {"a": 1}, 10**400, np.array("1"), np.complex64(1)])
def test_factors_that_are_no_real_numbers_are_refused(factor):
    for arguments, name in (((factor, 0.1), "shrink"), ((0.1, factor), "perturb")):
        with pytest.raises(ValueError, match=rf"^{name} must be a real number, not "):
            shrink_perturb(jnp.ones(2), jnp.ones(2), *arguments)


def test_a_tree_in_a_factors_place_is_told_to_go_by_name():
    with pytest.raises(ValueError, match=r"^shrink must be a real number, not a tree of type dict: .* shrink=\.\.\.$"):
        partial(shrink_perturb, 0.4, 0.1)({"a": jnp.ones(2)}, {"a": jnp.ones(2)})


@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
def test_long_doubles_are_mixed_on_the_host(dtype):
    old, new = np.array([1.0, 2.0], dtype), np.array([np.finfo(dtype).eps, 4.0], dtype)
    out = shrink_perturb({"a": old}, {"a": new}, 1.0, 0.5)["a"]
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, old + new / 2)


def test_leaves_that_are_no_arrays_stay():
    params = {"rate": 0.5, "list": [1.0, None], "text": "x", "f": jax.nn.relu, "object": np.array([None])}
    fresh = {"rate": 0.7, "list": [2.0, None], "text": "y", "f": jax.nn.gelu, "object": np.array([1], object)}
    out = shrink_perturb(params, fresh, 0.5, 0.5)
    for old, kept in zip(jax.tree.leaves(params), jax.tree.leaves(out), strict=True):
        assert kept is old


class Foreign:
    """An array of another library."""

    shape, dtype = (2,), "float32"


def test_arrays_without_values_to_mix_are_refused_by_the_leaf():
    gone = jnp.ones(2)
    gone.delete()
    here = jnp.ones(2)
    for params, fresh, message in (
        (gone, here, r"^leaf 'block/w' of params was deleted: a compiled function took it"),
        (here, gone, r"^leaf 'block/w' of fresh was deleted"),
        (Foreign(), Foreign(), r"^leaf 'block/w' of params is a [\w.]*Foreign, no array of JAX or NumPy"),
        (*[jax.ShapeDtypeStruct((2,), jnp.float32)] * 2, r"^leaf 'block/w' of params is a jax.ShapeDtypeStruct"),
    ):
        for factors in ((0.5, 0.5), (1, 0), (0, 1)):
            with pytest.raises(ValueError, match=message):
                shrink_perturb({"block": {"w": params}}, {"block": {"w": fresh}}, *factors)


def test_it_compiles_once_for_all_factors():
    traces = []

    @jax.jit
    def mix(shrink, perturb):
        traces.append(1)
        return shrink_perturb({"w": jnp.ones(2)}, {"w": jnp.ones(2)}, shrink, perturb)

    for factors in ((1.0, 0.0), (0.0, 1.0), (0.4, 0.1)):
        mix(*factors)
    assert len(traces) == 1


def test_a_factor_of_a_complex_array_is_refused():
    for shrink in (jnp.complex64(0.5), jnp.asarray(0.5 + 0j)):
        with pytest.raises(ValueError, match=r"^shrink must be a real number, not .*complex64"):
            shrink_perturb({"w": jnp.ones(2)}, {"w": jnp.ones(2)}, shrink, 0.1)


@pytest.mark.parametrize("block", ["PreNormBlock_0", "norm_mlp", "layers/PostNorm/0", "bn_block/~"])
def test_what_a_normalisation_is_part_of_is_none_itself(block):
    for name in ("kernel", "Dense_0/kernel", "linear/weight/value"):
        path = f"{block}/Dense_0/{name}" if "/" not in name else f"{block}/{name}"
        assert not_normalization(path)
        assert kernels_only(path)
    assert not not_normalization(f"{block}/LayerNorm_0/scale")
    assert not not_normalization("block/ln_scale")

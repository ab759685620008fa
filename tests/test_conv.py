import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from wsjax.networks import kernels
from wsjax.networks.conv import conv, max_pool

# size, channels, features, kernel, stride, padding: every way that conv may take, and the borders between them.
CASES = [
    (1, 3, 4, 3, 1, 1),
    (1, 3, 4, 3, 2, 1),
    (2, 16, 16, 3, 1, 1),
    (3, 3, 4, 3, 2, 1),
    (4, 3, 4, 3, 2, 1),
    (5, 4, 3, 3, 2, 1),
    (7, 3, 4, 3, 1, 0),
    (7, 2, 3, 3, 3, 1),
    (16, 16, 17, 3, 1, 1),
    (17, 16, 16, 5, 1, 2),
    (9, 4, 6, 1, 2, 0),
    (8, 4, 6, 1, 2, 0),
    (33, 1, 2, 3, 1, 1),
    (8, 3, 48, 3, 1, 1),
    (9, 33, 35, 3, 2, 1),
    # Large enough for Winograd's transforms, on even and odd sizes, with whole and broken vectors of channels.
    (26, 33, 64, 3, 1, 1),
    (23, 70, 33, 3, 1, 0),
    (11, 32, 40, 3, 1, 1),  # summed by one task
    (11, 160, 150, 3, 1, 1),  # too large a window for so few patches
    # The same of patches of 4 by 4.
    (24, 32, 32, 3, 1, 1),
    (26, 34, 48, 3, 1, 0),
    (22, 70, 33, 3, 1, 2),
]


@pytest.fixture(params=["compiled", "xla"])
def way(request, monkeypatch):
    """Runs a test with the compiled kernels, and with what takes their place where there is no compiler."""
    if request.param == "compiled":
        assert kernels.available()
    else:
        monkeypatch.setattr(kernels, "support", lambda *arrays: False)
    return request.param


def plain_conv(x, kernel, stride, padding):
    pads = [(padding, padding)] * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_max_pool(x):
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)


def arrays(case, dtype=np.float32, batch=2):
    size, channels, features, taps, stride, padding = case
    rng = np.random.default_rng(0)
    by_four = ((size + 2 * padding - taps) // stride + 1) % 4 == 0
    width = size + (4 if by_four else 1)  # not square, lest rows and columns be swapped
    x = rng.normal(size=(batch, size, width, channels)).astype(dtype)
    return x, rng.normal(size=(taps, taps, channels, features)).astype(dtype)


def value_and_gradients(f, x, kernel):
    y, pull = jax.vjp(f, x, kernel)
    dy = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    return y, *pull(dy)


def assert_close(actual, expected, tolerance=1e-5):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * float(jnp.abs(e).max()))


@pytest.mark.parametrize("case", CASES)
def test_conv_and_gradients_equal_the_plain_convolution(case, way):
    *_, stride, padding = case
    x, kernel = arrays(case)

    @jax.jit
    def both(x, kernel):
        ours, plain = (lambda x, kernel, f=f: f(x, kernel, stride, padding) for f in (conv, plain_conv))
        return value_and_gradients(ours, x, kernel), value_and_gradients(plain, x, kernel)

    assert_close(*both(x, kernel))


@pytest.mark.parametrize("case", [(2, 2, 3, 3, 1, 1), (16, 16, 16, 3, 1, 1), (5, 2, 3, 3, 2, 1)])
def test_gradients_agree_with_finite_differences(case, way):
    *_, stride, padding = case
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(a) for a in arrays(case, np.float64, batch=1))
        check_grads(lambda x, kernel: conv(x, kernel, stride, padding), (x, kernel), order=1, modes=["rev"])


@pytest.mark.parametrize("case", [(2, 2, 3, 3, 1, 1), (16, 16, 16, 3, 1, 1)])
def test_vmap_over_images_and_kernels_equals_a_loop(case, way):
    *_, stride, padding = case
    x, kernel = arrays(case, batch=4)
    xs, kernels = x.reshape(2, 2, *x.shape[1:]), jnp.stack([kernel, -2 * kernel])
    run = jax.jit(partial(value_and_gradients, lambda x, kernel: conv(x, kernel, stride, padding)))
    loop = jax.tree.map(lambda *a: jnp.stack(a), *[run(x, kernel) for x, kernel in zip(xs, kernels, strict=True)])
    assert_close(jax.vmap(run)(xs, kernels), loop)


@pytest.mark.parametrize("case", [(2, 16, 16, 3, 1, 1), (16, 16, 16, 3, 1, 1)])
def test_gradients_inside_scan_equal_those_outside(case, way):
    *_, stride, padding = case
    x, kernel = arrays(case)
    run = partial(value_and_gradients, lambda x, kernel: conv(x, kernel, stride, padding))
    _, inside = jax.jit(lambda x, kernel: lax.scan(lambda c, _: (c, run(x, kernel)), None, length=1))(x, kernel)
    assert_close(jax.tree.map(lambda a: a[0], inside), jax.jit(run)(x, kernel), 1e-6)


@pytest.mark.parametrize("case", [(16, 16, 16, 3, 1, 1), (4, 3, 4, 3, 2, 1), (2, 2, 3, 3, 1, 1)])
def test_every_convolution_of_the_cpu_program_is_canonical_without_kernels(case, monkeypatch):
    monkeypatch.setattr(kernels, "support", lambda *arrays: False)
    # What makes a loop fast: NHWC images, HWIO kernels (XLA's b01f_01io->b01f), none of them smaller than its kernel.
    *_, stride, padding = case
    x, kernel = arrays(case)
    run = partial(value_and_gradients, lambda x, kernel: conv(x, kernel, stride, padding))
    text = jax.jit(run).lower(x, kernel).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line for line in convolutions)
    assert len(convolutions) == {16: 3, 4: 2, 2: 1}[case[0]]


@pytest.mark.parametrize("shape", [(0, 4, 4, 2), (2, 4, 4, 0)])
def test_nothing_gives_nothing(shape, way):
    x, kernel = jnp.ones(shape), jnp.ones((3, 3, shape[3], 5))
    y, dx, dkernel = value_and_gradients(lambda x, kernel: conv(x, kernel, 1, 0), x, kernel)
    assert y.shape == (shape[0], shape[1] - 2, 2, 5)
    assert not np.any(y)
    assert not np.any(dx)
    assert not np.any(dkernel)


def test_a_kernel_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match=r"the kernel is 3 x 1; it must be square\."):
        conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 1, 2, 2)))


def test_unused_gradient_of_the_images_is_not_computed():
    x, kernel = arrays((8, 3, 4, 3, 1, 1))

    def calls(argnums):
        gradient = jax.grad(lambda x, kernel: jnp.sin(conv(x, kernel, 1, 1)).sum(), argnums)
        return jax.jit(gradient).lower(x, kernel).compile().as_text().count('custom_call_target="wsjax_')

    assert (calls(1), calls((0, 1))) == (2, 3)


@pytest.mark.parametrize("case", [(8, 3, 4, 3, 1, 1), (2, 16, 16, 3, 1, 1)])
def test_a_program_calls_the_kernels_on_a_cpu_alone(case, way):
    x, kernel = arrays(case)
    run = partial(value_and_gradients, lambda x, kernel: conv(x, kernel, 1, 1))
    program = jax.jit(run).trace(x, kernel)

    def calls(platform):
        return sorted(re.findall(r"@wsjax_(\w+)_float32", program.lower(lowering_platforms=(platform,)).as_text()))

    assert calls("cpu") == (["convolve", "images_gradient", "kernel_gradient"] if way == "compiled" else [])
    assert calls("cuda") == []


def test_a_convolution_of_1x1_looks_at_no_more_pixels_than_it_needs():
    x, kernel = arrays((8, 4, 6, 1, 2, 0))
    text = jax.jit(lambda x, kernel: conv(x, kernel, 2)).lower(x, kernel).compile().as_text()
    assert "f32[2,4,6,4]" in text


def test_kernels_give_the_same_bits_on_one_thread_and_on_several():
    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("needs two cores")
    digests = [
        subprocess.run([sys.executable, "-c", BITS, cores], check=True, capture_output=True, text=True).stdout
        for cores in ("one", "all")
    ]
    assert digests[0] == digests[1] != ""


BITS = """
import hashlib, os, sys
if sys.argv[1] == "one":
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
import jax, numpy as np
from wsjax.networks import kernels
from wsjax.networks.conv import conv, max_pool
assert kernels.available()
from wsjax.networks.norm import batch_norm
for size, channels, features, stride in [(24, 40, 40, 1), (9, 16, 16, 2), (8, 3, 16, 1)]:
    x, kernel = (np.random.default_rng(0).normal(size=s).astype(np.float32)
                 for s in [(8, size, size, channels), (3, 3, channels, features)])
    y, pull = jax.vjp(jax.jit(lambda x, kernel: conv(x, kernel, stride, 1)), x, kernel)
    z, pull_norm = jax.vjp(jax.jit(lambda y: batch_norm(
        y, np.ones(8, np.float32), np.ones(features, np.float32), np.zeros(features, np.float32), None, 1e-5, True
    )[0]), y)
    pooled, pull_pool = jax.vjp(jax.jit(max_pool), y)
    for array in (y, z, pooled, *pull_norm(z), *pull_pool(pooled), *pull(y)):
        print(hashlib.sha256(np.asarray(array)).hexdigest())
"""


def test_bfloat16_images_stay_bfloat16():
    for case in [(2, 2, 3, 3, 1, 1), (16, 16, 16, 3, 1, 1)]:
        x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in arrays(case))
        ours = value_and_gradients(lambda x, kernel: conv(x, kernel, 1, 1), x, kernel)
        plain = value_and_gradients(lambda x, kernel: plain_conv(x, kernel, 1, 1), x, kernel)
        assert_close(ours, plain, 0.02)


@pytest.mark.parametrize(("size", "channels"), [(1, 3), (7, 3), (8, 16), (9, 21)])
def test_max_pool_equals_reduce_window_with_its_gradient(size, channels, way):
    x, _ = arrays((size, channels, 1, 1, 1, 0))
    dy = np.random.default_rng(1).normal(size=plain_max_pool(x).shape).astype(np.float32)

    @jax.jit
    def both(x):
        return [(y, *pull(dy)) for y, pull in (jax.vjp(f, x) for f in (max_pool, plain_max_pool))]

    assert_close(*both(x))


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 5, 3), (1, 1, 1, 2)])
def test_max_pool_breaks_ties_as_pytorch(shape, way):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)  # full of ties, as after a ReLU
    images = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(images, 3, 2, 1)
    dy = np.random.default_rng(1).normal(size=pooled.permute(0, 2, 3, 1).shape).astype(np.float32)
    pooled.backward(torch.tensor(dy).permute(0, 3, 1, 2))
    y, gradient = jax.jit(lambda x: (max_pool(x), *jax.vjp(max_pool, x)[1](dy)))(x)
    np.testing.assert_array_equal(y, pooled.detach().permute(0, 2, 3, 1))
    np.testing.assert_allclose(gradient, images.grad.permute(0, 2, 3, 1), atol=1e-6)


def test_max_pool_keeps_what_is_not_a_number(way):
    x = np.full((1, 4, 4, 9), -np.inf, np.float32)
    x[0, 1, 2, 8] = np.nan
    np.testing.assert_array_equal(max_pool(x)[0, :, :, 0], -np.inf)
    np.testing.assert_array_equal(max_pool(x)[0, :, :, 8], [[-np.inf, np.nan], [-np.inf, np.nan]])


def test_max_pool_by_hand(way):
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(max_pool(x)[0, :, :, 0], [[5, 7], [13, 15]])
    gradient = jax.grad(lambda x: (max_pool(x)[0, :, :, 0] * jnp.array([[1.0, 2.0], [3.0, 4.0]])).sum())(x)
    expected = np.zeros((4, 4))
    expected[1, 1], expected[1, 3], expected[3, 1], expected[3, 3] = 1, 2, 3, 4
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)

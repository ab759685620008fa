"""Parity with PyTorch, padding, initialisers, sizes and errors of the networks."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsjax.networks.models import BatchNorm, Conv, Linear, ResNet, logistic_regression, mlp, resnet18

NETWORKS = {
    "resnet18": resnet18(10, width=4),
    "no-pool": ResNet(7, stage_sizes=(1, 2), width=4, stem_pool=False),
    "mlp-tanh": mlp(10),
    "mlp-relu-no-bias": mlp(10, hidden=(20, 30), activation="relu", bias=False),
    "logistic": logistic_regression(10),
}
OPTIMISERS = {
    # Small steps: at a rate of 0.1 a step multiplies rounding errors by up to 600.
    "sgd": (lambda torch, p: torch.optim.SGD(p, 0.01, weight_decay=0.1), optax.sgd(0.01)),
    "msgd": (lambda torch, p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1), optax.sgd(0.01, momentum=0.9)),
    # A larger eps than usual: Adam turns rounding errors of near-zero gradients into whole steps.
    "adam": (lambda torch, p: torch.optim.Adam(p, 1e-3, weight_decay=0.1, eps=1e-4), optax.adam(1e-3, eps=1e-4)),
}


def initial(model, shape=(1, 16, 16, 3)):
    """Variables without a compilation, and with no scale at one and no bias at zero."""
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros(shape))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return values * math.sqrt(2 / (math.prod(leaf.shape[:-1]) if leaf.ndim == 4 else leaf.shape[1]))
        return 1 + 0.1 * np.abs(values) if path[-1].key in ("scale", "var") else 0.1 * values

    return jax.tree.map_with_path(draw, shapes)


def batch(size=6, shape=(16, 16, 3), classes=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, *shape)).astype(np.float32), rng.integers(0, classes, size)


def loss_fn(model, params, batch_stats, images, labels, weights):
    variables = {"params": params, "batch_stats": batch_stats}
    logits, new = model.apply(variables, images, train=True, weights=weights, mutable=["batch_stats"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (losses * weights).sum() / weights.sum(), (logits, new.get("batch_stats", {}))


@partial(jax.jit, static_argnums=0)
def gradients(model, variables, images, labels, weights):
    args = variables["params"], variables.get("batch_stats", {}), images, labels, weights
    (_, (logits, batch_stats)), grads = jax.value_and_grad(partial(loss_fn, model), has_aux=True)(*args)
    return logits, batch_stats, grads


# --- PyTorch's side: the same networks, as functions of named tensors ---


class TorchNet:
    """A network of ours, in PyTorch, from our variables: tensors by path, in PyTorch's layouts.

    In float64: a ReLU whose input is almost 0 can fall to either side in float32, in PyTorch as well as here.
    """

    def __init__(self, torch, model, variables):
        self.torch, self.model = torch, model
        tensors = {k: torch.tensor(to_torch(k, np.asarray(v, np.float64))) for k, v in flat(variables).items()}
        self.tensors = {k: t.requires_grad_(k.startswith("params/")) for k, t in tensors.items()}
        self.params = [t for k, t in self.tensors.items() if k.startswith("params/")]

    def __call__(self, images):
        return (self.resnet if isinstance(self.model, ResNet) else self.mlp)(self.torch.tensor(images).double())

    def mlp(self, images):
        x = images.flatten(1)
        for layer in range(len(self.model.hidden)):
            x = getattr(self.torch, self.model.activation)(self.linear(f"hidden{layer + 1}", x))
        return self.linear("head", x)

    def resnet(self, images):
        relu = self.torch.relu
        x = relu(self.norm("stem_norm", self.conv("stem_conv", images.permute(0, 3, 1, 2), 1)))
        if self.model.stem_pool:
            x = self.torch.nn.functional.max_pool2d(x, 3, stride=2, padding=1)
        for stage, blocks in enumerate(self.model.stage_sizes):
            for block in range(blocks):
                name, stride = f"stage{stage + 1}_block{block + 1}", 2 if stage > 0 and block == 0 else 1
                y = relu(self.norm(f"{name}/norm1", self.conv(f"{name}/conv1", x, stride)))
                y = self.norm(f"{name}/norm2", self.conv(f"{name}/conv2", y, 1))
                if stride == 2:
                    x = self.norm(f"{name}/shortcut_norm", self.conv(f"{name}/shortcut_conv", x, stride))
                x = relu(x + y)
        return self.linear("head", x.mean((2, 3)))

    def linear(self, name, x):
        weight, bias = self.tensors[f"params/{name}/kernel"], self.tensors.get(f"params/{name}/bias")
        return self.torch.nn.functional.linear(x, weight, bias)

    def conv(self, name, x, stride):
        kernel = self.tensors[f"params/{name}/kernel"]
        return self.torch.nn.functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[2] // 2)

    def norm(self, name, x):
        mean, var = self.tensors[f"batch_stats/{name}/mean"], self.tensors[f"batch_stats/{name}/var"]
        scale, bias = self.tensors[f"params/{name}/scale"], self.tensors[f"params/{name}/bias"]
        return self.torch.nn.functional.batch_norm(x, mean, var, scale, bias, training=True, momentum=0.1, eps=1e-5)


def flat(tree):
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def to_torch(path, leaf):
    return leaf.transpose(3, 2, 0, 1) if path.endswith("kernel") and leaf.ndim == 4 else leaf.copy()


def assert_near(ours, theirs, relative):
    """Both have the same leaves, and every one is near in norm, relative to the leaf's own norm."""
    assert flat(ours).keys() == theirs.keys()
    for path, leaf in flat(ours).items():
        expected = theirs[path].detach().numpy()
        error = np.linalg.norm(to_torch(path, np.asarray(leaf)) - expected)
        assert error <= relative * np.linalg.norm(expected) + 1e-6, (path, error, np.linalg.norm(expected))


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_gradients_and_statistics_equal_pytorch(name):
    torch = pytest.importorskip("torch")
    model, (images, labels) = NETWORKS[name], batch()
    variables = initial(model)
    net = TorchNet(torch, model, variables)
    expected = net(images)
    torch.nn.functional.cross_entropy(expected, torch.tensor(labels)).backward()
    logits, batch_stats, grads = gradients(model, variables, images, labels, np.ones(6))
    np.testing.assert_allclose(logits, expected.detach(), atol=1e-4)
    assert_near({"params": grads}, {k: t.grad for k, t in net.tensors.items() if t.requires_grad}, 1e-3)
    statistics = {k: t for k, t in net.tensors.items() if not t.requires_grad}
    assert (len(statistics) > 0) == isinstance(model, ResNet)
    assert_near({"batch_stats": batch_stats}, statistics, 1e-5)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("name", ["resnet18", "mlp-relu-no-bias"])
def test_three_steps_equal_pytorch(name, optimiser):
    torch = pytest.importorskip("torch")
    model = NETWORKS[name]
    make_torch_optimiser, tx = OPTIMISERS[optimiser]
    tx = optax.chain(optax.add_decayed_weights(0.1), tx)
    variables = initial(model)
    net = TorchNet(torch, model, variables)
    theirs, opt_state = make_torch_optimiser(torch, net.params), tx.init(variables["params"])

    @jax.jit
    def update(grads, opt_state, params):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for step in range(3):
        images, labels = batch(16, seed=step)
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(net(images), torch.tensor(labels)).backward()
        theirs.step()
        _, batch_stats, grads = gradients(model, variables, images, labels, np.ones(16))
        params, opt_state = update(grads, opt_state, variables["params"])
        variables = {"params": params, "batch_stats": batch_stats}
    assert_near(variables, net.tensors, 1e-4)


# --- BatchNorm and padding ---


@pytest.mark.parametrize("name", ["no-pool", "mlp-tanh"])
def test_padded_batch_equals_the_smaller_batch(name):
    model, (images, labels) = NETWORKS[name], batch(6)
    variables = initial(model)
    padded = np.concatenate([images[:4], 100 + images[4:]])
    logits, *rest = gradients(model, variables, padded, labels, np.array([1, 1, 1, 1, 0, 0]))
    expected_logits, *expected = gradients(model, variables, images[:4], labels[:4], np.ones(4))
    np.testing.assert_allclose(logits[:4], expected_logits, atol=1e-5)
    for a, e in zip(jax.tree.leaves(rest), jax.tree.leaves(expected), strict=True):
        assert jnp.linalg.norm(a - e) <= 1e-4 * jnp.linalg.norm(e) + 1e-6


def test_batch_norm_by_hand():
    x = jnp.array([1.0, 3.0, 50.0]).reshape(3, 1, 1, 1)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, True)
    y, new = norm.apply(variables, x, True, jnp.array([1, 1, 0]), mutable=["batch_stats"])
    np.testing.assert_allclose(y.ravel()[:2], [-1, 1], atol=1e-5)  # mean 2, biased variance 1
    np.testing.assert_allclose(new["batch_stats"]["mean"], [0.2], rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], [0.9 + 0.1 * 2], rtol=1e-6)  # unbiased variance 2


@pytest.mark.parametrize(("weights", "mean", "var"), [([1, 0], 0.7, 0.9), ([0, 0], 0.0, 1.0)])
def test_batch_norm_of_one_value_or_none_stays_finite(weights, mean, var):
    x = jnp.array([7.0, 9.0]).reshape(2, 1, 1, 1)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, True)
    y, new = norm.apply(variables, x, True, jnp.array(weights), mutable=["batch_stats"])
    assert jnp.isfinite(y).all()
    np.testing.assert_allclose(jax.tree.leaves(new["batch_stats"]), [[mean], [var]], rtol=1e-5)


def test_batch_norm_keeps_its_precision_beside_a_large_mean():
    x = 1e4 + jnp.array([-1.0, 1.0] * 8).reshape(4, 2, 2, 1)
    norm = BatchNorm()
    y, _ = norm.apply(norm.init(jax.random.key(0), x, True), x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(jnp.abs(y), 1.0, atol=1e-4)


def test_evaluation_uses_running_statistics_and_leaves_them():
    x = jnp.array([2.0, 4.0]).reshape(2, 1, 1, 1)
    variables = {
        "params": {"scale": jnp.array([3.0]), "bias": jnp.array([1.0])},
        "batch_stats": {"mean": jnp.array([2.0]), "var": jnp.array([4.0])},
    }
    y, new = BatchNorm().apply(variables, x, False, mutable=["batch_stats"])
    np.testing.assert_allclose(y.ravel(), [1, 4], rtol=1e-5)
    assert new["batch_stats"] == variables["batch_stats"]


def test_statistics_over_an_axis_equal_those_of_the_whole_batch():
    x = jnp.asarray(batch(6, (2, 2, 3))[0])
    weights = jnp.array([1, 1, 1, 1, 1, 0.0])
    variables = BatchNorm().init(jax.random.key(0), x, True)

    def loss(axis_name, variables, x, weights):
        y, new = BatchNorm(axis_name).apply(variables, x, True, weights, mutable=["batch_stats"])
        return (jnp.sin(y) * weights[:, None, None, None]).sum(), (y, new)

    def run(axis_name, x, weights):
        return jax.grad(partial(loss, axis_name, variables), has_aux=True)(x, weights)

    split = jax.tree.map(lambda a: a.reshape(2, 3, *a.shape[1:]), (x, weights))
    grads, (y, new) = jax.vmap(partial(run, "devices"), axis_name="devices")(*split)
    expected_grads, (expected_y, expected_new) = run(None, x, weights)
    np.testing.assert_allclose(y.reshape(x.shape), expected_y, atol=1e-5)
    np.testing.assert_allclose(grads.reshape(x.shape), expected_grads, atol=1e-5)
    for a, e in zip(jax.tree.leaves(new), jax.tree.leaves(expected_new), strict=True):
        np.testing.assert_allclose(a, [e, e], rtol=1e-5)


# --- Initialisers, sizes, errors ---


@pytest.mark.parametrize("size", [1, 3])
def test_convolutions_are_he_normal_with_fan_out(size):
    kernel = Conv(256, size=size).init(jax.random.key(0), jnp.zeros((1, 2, 2, 64)))["params"]["kernel"]
    std = math.sqrt(2 / (size * size * 256))
    assert kernel.std() == pytest.approx(std, rel=0.02)
    assert abs(kernel.mean()) < 0.02 * std
    assert jnp.abs(kernel).max() > 3.5 * std  # not truncated


def test_convolutions_as_the_paper_has_them_are_uniform_with_fan_in():
    model = resnet18(10, width=32, conv_init="uniform")
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)["params"]
    block = params["stage4_block1"]  # 128 to 256 channels
    for kernel, fan_in in ((block["conv1"]["kernel"], 9 * 128), (block["shortcut_conv"]["kernel"], 128)):
        assert jnp.abs(kernel).max() <= 1 / math.sqrt(fan_in)
        assert jnp.abs(kernel).max() > 0.99 / math.sqrt(fan_in)
        assert kernel.std() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.02)
    assert block["conv2"]["kernel"].std() == pytest.approx(1 / math.sqrt(3 * 9 * 256), rel=0.02)
    stem = params["stem_conv"]["kernel"]
    assert stem.std() == pytest.approx(1 / math.sqrt(3 * 9 * 3), rel=0.1)


def test_linear_kernel_and_bias_are_uniform():
    params = Linear(1000).init(jax.random.key(0), jnp.zeros((1, 100)))["params"]
    for leaf in params.values():
        assert jnp.abs(leaf).max() <= 0.1
        assert jnp.abs(leaf).max() > 0.098
        assert leaf.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.05 if leaf.ndim == 1 else 0.02)
    assert not jnp.array_equal(params["kernel"][:, 0], params["bias"])


@pytest.mark.parametrize("model", [resnet18(3, width=2, stem_pool=False), mlp(3, hidden=(4,))])
@pytest.mark.parametrize("x64", [False, True])
def test_parameters_and_statistics_are_of_float32_whatever_jax_enable_x64_says(model, x64):
    """A model's folder is read back under either."""
    with jax.enable_x64(x64):
        images = jnp.ones((2, 8, 8, 3), jnp.float32)
        variables = model.init(jax.random.key(0), images, train=False)
        _, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
    assert {leaf.dtype for leaf in jax.tree.leaves([variables, new])} == {np.dtype(np.float32)}


def test_batch_norm_starts_as_the_identity():
    variables = BatchNorm().init(jax.random.key(0), jnp.full((2, 1, 1, 3), 5.0), True)
    expected = {"params": {"scale": 1, "bias": 0}, "batch_stats": {"mean": 0, "var": 1}}
    assert jax.tree.map(lambda leaf: leaf.tolist(), variables) == jax.tree.map(lambda value: [value] * 3, expected)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (resnet18(10), 11_173_962),
        (resnet18(10, width=16, stem_pool=False), 701_466),
        (mlp(10), 328_510),
        (mlp(10, bias=False), 328_200),
        (logistic_regression(10), 30_730),
    ],
)
def test_numbers_of_parameters(model, count):
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
    assert ("batch_stats" in shapes) == isinstance(model, ResNet)


def test_small_grey_images():
    model = ResNet(10, stage_sizes=(1, 1, 1, 1), width=2)  # 8x8 images come down to 1x1
    images, _ = batch(4, (8, 8, 1))
    run = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, new = run(initial(model, (1, 8, 8, 1)), images)
    assert logits.shape == (4, 10)
    assert logits.dtype == jnp.float32
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((logits, new)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet18(0), "num_classes must be a whole number, 1 or more, not 0"),
        (lambda: resnet18(10, width=0), "width must be a whole number, 1 or more, not 0"),
        (lambda: mlp(-3), "num_classes must be a whole number, 1 or more, not -3"),
        (lambda: mlp(10, hidden=(5, 0)), "hidden must be a whole number, 1 or more, not 0"),
        (lambda: mlp(10, activation="gelu"), "Unknown activation 'gelu'; available: tanh, relu."),
        (lambda: resnet18(10, conv_init="he"), "Unknown conv_init 'he'; available: he_normal, uniform."),
        (lambda: logistic_regression(0), "num_classes must be a whole number, 1 or more, not 0"),
    ],
)
def test_bad_fields_raise(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()

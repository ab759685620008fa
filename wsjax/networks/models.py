"""The study's networks in Flax linen: ResNet-18, a small MLP and logistic regression, with PyTorch's initialisers.

Every network is called as `model.apply(variables, images, train=..., weights=...)` with normalised float images
[B, H, W, C], computes in their dtype, and returns float32 logits [B, num_classes]. `weights` [B] marks real rows by 1
and padding by 0. Only ResNets hold "batch_stats"; pass `mutable=["batch_stats"]` to have them updated when `train` is
true. With `mutable=["intermediates"]` they give "features", the last hidden layer's [B, D], and each ReLU's outputs.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from wsjax.checks import check_count
from wsjax.networks.conv import conv, max_pool
from wsjax.networks.norm import batch_norm, normalise

BN_MOMENTUM = 0.1
"""The new batch's share in BatchNorm's running statistics (PyTorch's convention)."""
BN_EPSILON = 1e-5
STORED = jnp.float32
"""Of parameters and statistics, under jax_enable_x64 too: a model is read back whatever that was."""
FEATURES, RELU = "features", "relu"
"""What networks call, among their intermediates, the last hidden layer's outputs, and how names of a ReLU's begin."""

CONV_INITS: dict[str, Callable[..., Array]] = {
    "he_normal": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "uniform": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}
"""Initialisers of convolutions: He et al.'s with the fan-out, as torchvision's ResNets have it, and PyTorch's default,
uniform in +-1 / sqrt(fan_in), whose standard deviation is sqrt(6 inputs / outputs) times smaller."""

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"tanh": jnp.tanh, "relu": nn.relu}


def resnet18(
    num_classes: int,
    width: int = 64,
    stem_pool: bool = True,
    axis_name: str | None = None,
    conv_init: str = "he_normal",
) -> "ResNet":
    """ResNet-18 for small images (He et al. 2016, https://arxiv.org/abs/1512.03385).

    Args:
        num_classes: size of the logits.
        width: channels of the first stage; the four stages have width * (1, 2, 4, 8). 64 gives 11.17 M parameters.
        stem_pool: whether a 3x3 stride-2 max pool follows the stem.
        axis_name: the mapped axis that BatchNorm's statistics are taken over, for use inside `jax.pmap`.
        conv_init: how convolutions are drawn, one of `CONV_INITS`.

    Raises:
        ValueError: if num_classes or width is below 1, or conv_init is unknown.
    """
    return ResNet(num_classes, width=width, stem_pool=stem_pool, axis_name=axis_name, conv_init=conv_init)


def mlp(
    num_classes: int, hidden: tuple[int, ...] = (100, 100, 100), activation: str = "tanh", bias: bool = True
) -> "MLP":
    """A multilayer perceptron on flattened images.

    Args:
        num_classes: size of the logits.
        hidden: sizes of the hidden layers.
        activation: "tanh" or "relu".
        bias: whether the layers have biases.

    Raises:
        ValueError: if a size is below 1 or the activation is unknown.
    """
    if not isinstance(hidden, tuple | list):
        raise ValueError(f"hidden must be sizes, such as (100, 100), not {hidden!r:.60}")
    return MLP(num_classes, hidden=tuple(hidden), activation=activation, bias=bias)


def logistic_regression(num_classes: int, bias: bool = True) -> "MLP":
    """Multinomial logistic regression on flattened images: the MLP with no hidden layer.

    Args:
        num_classes: size of the logits.
        bias: whether there is a bias.

    Raises:
        ValueError: if num_classes is below 1.
    """
    return MLP(num_classes, hidden=(), bias=bias)


class ResNet(nn.Module):
    """A residual network of basic blocks behind a 3x3 stem; see `resnet18` for the fields."""

    num_classes: int
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    stem_pool: bool = True
    axis_name: str | None = None
    conv_init: str = "he_normal"

    def __post_init__(self) -> None:
        check_count("num_classes", self.num_classes)
        check_count("width", self.width)
        if self.conv_init not in CONV_INITS:
            raise ValueError(f"Unknown conv_init {self.conv_init!r}; available: {', '.join(CONV_INITS)}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, *, train: bool, weights: Array | None = None) -> Array:
        """Maps images [B, H, W, C] to logits [B, num_classes]; rows of weight 0 don't enter batch statistics."""
        x = Conv(self.width, kernel_init=self.conv_init, name="stem_conv")(images)
        x = BatchNorm(self.axis_name, relu=True, name="stem_norm")(x, train, weights)
        if self.stem_pool:
            x = max_pool(x)
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage + 1}_block{block + 1}"
                features = self.width * 2**stage
                x = BasicBlock(features, stride, self.axis_name, self.conv_init, name=name)(x, train, weights)
        x = x.mean((1, 2))
        self.sow("intermediates", FEATURES, x)
        return Linear(self.num_classes, name="head")(x).astype(jnp.float32)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is projected where the shape changes (He et al. 2016)."""

    features: int
    stride: int = 1
    axis_name: str | None = None
    conv_init: str = "he_normal"

    @nn.compact
    def __call__(self, x: Array, train: bool, weights: Array | None = None) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        y = Conv(self.features, stride=self.stride, kernel_init=self.conv_init, name="conv1")(x)
        y = BatchNorm(self.axis_name, relu=True, name="norm1")(y, train, weights)
        y = Conv(self.features, kernel_init=self.conv_init, name="conv2")(y)
        if y.shape != x.shape:
            x = Conv(self.features, size=1, stride=self.stride, kernel_init=self.conv_init, name="shortcut_conv")(x)
            x = BatchNorm(self.axis_name, name="shortcut_norm")(x, train, weights)
        return BatchNorm(self.axis_name, relu=True, name="norm2")(y, train, weights, shortcut=x)


class MLP(nn.Module):
    """Linear layers with an activation between them, on flattened images; see `mlp` for the fields."""

    num_classes: int
    hidden: tuple[int, ...] = (100, 100, 100)
    activation: str = "tanh"
    bias: bool = True

    def __post_init__(self) -> None:
        check_count("num_classes", self.num_classes)
        for size in self.hidden:
            check_count("hidden", size)
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"Unknown activation {self.activation!r}; available: {', '.join(_ACTIVATIONS)}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, *, train: bool, weights: Array | None = None) -> Array:
        """Maps images [B, H, W, C] to logits [B, num_classes]; rows are independent, so the rest is ignored."""
        del train, weights
        x = images.reshape(images.shape[0], -1)
        for layer, size in enumerate(self.hidden):
            x = _ACTIVATIONS[self.activation](Linear(size, self.bias, name=f"hidden{layer + 1}")(x))
            if self.activation == "relu":
                self.sow("intermediates", f"{RELU}{layer + 1}", x)
        if self.hidden:
            self.sow("intermediates", FEATURES, x)
        return Linear(self.num_classes, self.bias, name="head")(x).astype(jnp.float32)


class Conv(nn.Module):
    """A square convolution without bias, padded by size // 2, drawn by one of `CONV_INITS`."""

    features: int
    size: int = 3
    stride: int = 1
    kernel_init: str = "he_normal"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", CONV_INITS[self.kernel_init], shape, STORED)
        return conv(x, kernel.astype(x.dtype), self.stride, self.size // 2)


class Linear(nn.Module):
    """An affine map with PyTorch's initialiser: kernel and bias uniform within +-1 / sqrt(inputs)."""

    features: int
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, C] to [B, features]."""
        init = _uniform(1 / math.sqrt(x.shape[-1]))
        # Stored as PyTorch does, [features, C]: the kernel's gradient is then the product that a CPU does faster.
        kernel = self.param("kernel", init, (self.features, x.shape[-1]), STORED).astype(x.dtype)
        y = lax.dot_general(x, kernel, (((1,), (1,)), ((), ())))
        return y + self.param("bias", init, (self.features,), STORED).astype(x.dtype) if self.bias else y


class BatchNorm(nn.Module):
    """Batch normalisation as PyTorch does it (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167).

    A batch is normalised by its biased variance; the running variance takes the unbiased one. Rows of weight 0 are
    normalised like the others but do not enter the statistics. With `relu`, a ReLU comes last.
    """

    axis_name: str | None = None
    relu: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool, weights: Array | None = None, shortcut: Array | None = None) -> Array:
        """Normalises [B, H, W, C] over B, H and W, or by the running statistics where `train` is false.

        Adds the shortcut, images of the same shape, where there is one.
        """
        features = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), STORED)
        var = self.variable("batch_stats", "var", jnp.ones, (features,), STORED)
        scale = self.param("scale", nn.initializers.ones, (features,), STORED)
        bias = self.param("bias", nn.initializers.zeros, (features,), STORED)
        if not train:
            y: Any = normalise(x, mean.value, var.value, scale, bias, shortcut, BN_EPSILON, self.relu)
            if self.relu:
                self.sow("intermediates", RELU, y)
            return y
        weights = jnp.ones(x.shape[0]) if weights is None else weights
        result: Any = batch_norm(x, weights, scale, bias, shortcut, BN_EPSILON, self.relu, self.axis_name)
        y, (batch_mean, batch_var, count) = result
        if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            # A batch of padding alone says nothing.
            momentum = jnp.where(count > 0, BN_MOMENTUM, 0.0)
            unbiased_var = batch_var * count / jnp.maximum(count - 1, 1)
            for running, own in ((mean, batch_mean), (var, unbiased_var)):
                running.value = (running.value + momentum * (own - running.value)).astype(STORED)
        return y


def _uniform(bound: float) -> Callable[..., Array]:
    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init

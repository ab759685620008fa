"""What the machine can do at most, and what the networks need at least, by hand."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from benchmarks.timing import in_turn

FLOAT = 4  # bytes
VALUE = {"float32": 4, "bfloat16": 2}  # bytes
FILLS_A_GPU = {"size": 2**14, "floats": 2**29}


def ceilings(precision: str = "float32", repeats: int = 5, size: int = 2**11, floats: int = 2**26) -> dict[str, float]:
    """Measured: operations a second of a large matrix product, bytes a second of a large copy; the better side's."""
    import torch

    from benchmarks.torch_side import DEVICE, run

    a, product = jnp.ones((size, size), precision), jax.jit(jnp.matmul)
    b = torch.ones(size, size, dtype=getattr(torch, precision), device=DEVICE)
    # In place: memory that is new to the process costs more than the traffic that is to be measured.
    x, add = [jnp.ones(floats)], jax.jit(lambda x: x + 1, donate_argnums=0)
    y = torch.ones(floats, device=DEVICE)

    def add_in_place() -> jax.Array:
        x[0] = add(x[0])
        return x[0]

    runs: dict[str, Callable[[], object]] = {
        "jax product": lambda: product(a, a),
        "torch product": run(torch.matmul, b, b),
        "jax copy": add_in_place,
        "torch copy": run(y.add_, 1),
    }
    seconds = {name: statistics.median(values) for name, values in in_turn(runs, repeats).items()}
    return {
        "flops": 2 * size**3 / min(seconds["jax product"], seconds["torch product"]),
        "bytes": 2 * FLOAT * floats / min(seconds["jax copy"], seconds["torch copy"]),
    }


def floor_seconds(flops: float, traffic: float, ceilings: dict[str, float]) -> float:
    """The least time that those operations and that traffic can take on the machine."""
    return max(flops / ceilings["flops"], traffic / ceilings["bytes"])


def resnet18_costs(
    width: int, stem_pool: bool, batch: int, train: bool = True, precision: str = "float32"
) -> tuple[float, float]:
    """Operations and bytes of a step of ResNet-18 on 32x32 images, or of its forward pass.

    A multiply-add is two operations; a step's gradients cost twice its forward pass. Every convolution reads its input
    and writes its output, in a step also their gradients, and reads the input again; parameters are read in both
    passes, and read and written with their gradients in the update, in float32.
    """
    size, channels, macs, values, params = 32, width, 32 * 32 * 9 * 3 * width, 32 * 32 * (3 + width), 27 * width
    if stem_pool:
        size = 16
    for stage in range(4):
        for block in range(2):
            features, stride = width * 2**stage, 2 if stage and not block else 1
            before, size = size, size // stride
            pairs = [(9, before, channels), (9, size, features)]
            if channels != features:
                pairs.append((1, before, channels))
            for taps, from_size, from_channels in pairs:
                macs += size**2 * taps * from_channels * features
                values += from_size**2 * from_channels + size**2 * features
                params += taps * from_channels * features
            channels = features
    macs, params = macs + channels * 10, params + channels * 10
    passes = (3, 5) if train else (1, 1)
    traffic = VALUE[precision] * passes[0] * values * batch + FLOAT * passes[1] * params
    return 2.0 * passes[0] * macs * batch, float(traffic)


def mlp_costs(hidden: Sequence[int], samples: int, batch: int, train: bool = True) -> tuple[float, float]:
    """Operations and bytes of an epoch of the MLP on 32x32x3 images, or of its forward pass; see `resnet18_costs`."""
    sizes = (3072, *hidden, 10)
    params = sum(n * m for n, m in itertools.pairwise(sizes))
    steps = -(-samples // batch)
    if not train:
        return 2.0 * params * samples, float(3072 * samples + FLOAT * params * steps)
    # The first layer needs no gradient for its input.
    macs = 3 * params - sizes[0] * sizes[1]
    return 2.0 * macs * samples, float(3072 * samples + FLOAT * 5 * params * steps)

"""What a training step communicates when its batch is split over devices, read from the compiled program.

    python -m benchmarks.communication --width=64 --batch_size=128 --devices=8

Compiles the step of ResNet-18 for so many virtual CPU devices, counts the bytes that its all-reduces sum, and says how
much a device has to compute for them. Nothing runs; it takes a minute.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any

from wsjax.scripts import cli, process
from wsjax.scripts.console import print_table, say

DTYPE_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f64": 8, "pred": 1}


@dataclasses.dataclass(frozen=True)
class Config:
    """The step."""

    width: int = 64
    """ResNet-18: channels of the first stage."""
    batch_size: int = 128
    """Samples a step, over all devices."""
    devices: int = 8
    teraflops: float = 30.0
    """What a device computes a second in practice, for the prediction (float32 with TF32 products on an H100: about
    30 for this network is a guess, to be replaced by a measurement)."""
    gigabytes: float = 300.0
    """What a device sends a second to the others (NVLink on an H100: 450 at most)."""
    microseconds: float = 20.0
    """What one all-reduce takes however small it is."""


def main(config: Config) -> dict[str, Any]:
    """Prints and returns the all-reduces of a step, and the predicted time of a step on one device and on several."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    process.use_devices(config.devices)
    from benchmarks.roofline import resnet18_costs

    text = compiled_step(config)
    sizes = all_reduces(text)
    total = sum(sizes)
    flops = resnet18_costs(config.width, True, config.batch_size)[0]
    alone = flops / (config.teraflops * 1e12)
    share = 2 * (config.devices - 1) / config.devices  # a ring's sends for each byte that it sums
    talk = share * total / (config.gigabytes * 1e9) + len(sizes) * config.microseconds * 1e-6
    several = alone / config.devices + talk
    print_table(
        f"ResNet-18, width {config.width}, batch {config.batch_size}, {config.devices} devices: a step",
        ["", "value"],
        [
            ["all-reduces", len(sizes)],
            ["summed, MB", f"{total / 1e6:.2f}"],
            ["largest, MB", f"{max(sizes) / 1e6:.2f}"],
            ["a device's operations, GFLOP", f"{flops / config.devices / 1e9:.1f}"],
        ],
    )
    say(
        f"Predicted, at {config.teraflops:g} TFLOP/s, {config.gigabytes:g} GB/s and {config.microseconds:g} us an "
        f"all-reduce: {1e3 * alone:.2f} ms on one device, {1e3 * several:.2f} ms on {config.devices}, of which "
        f"{1e3 * talk:.2f} ms talk: {alone / several:.1f} times as fast."
    )
    return {"count": len(sizes), "bytes": total, "alone": alone, "several": several}


def compiled_step(config: Config) -> str:
    """The step's program for one of the devices, as text."""
    from benchmarks import lowering
    from wsjax import parallel
    from wsjax.networks import models

    mesh = parallel.data_mesh(config.devices)
    model = models.resnet18(10, config.width, axis_name=parallel.axis_of(mesh))
    return str(lowering.step(model, "float32", mesh, config.batch_size).lower().compile().as_text())


def all_reduces(program: str) -> list[int]:
    """The bytes that each all-reduce of a compiled program sums."""
    sizes = []
    for line in program.splitlines():
        if match := re.search(r"= (.*?) all-reduce(?:-start)?\(", line):
            sizes.append(sum(_bytes(dtype, dims) for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", match.group(1))))
    return sizes


def _bytes(dtype: str, dims: str) -> int:
    return DTYPE_BYTES[dtype] * math.prod(int(size) for size in dims.split(",") if size)


if __name__ == "__main__":
    cli.run_program(main, Config, __doc__)

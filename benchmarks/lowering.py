"""What a GPU or a TPU would be given, read from programs that are lowered for it where there is none.

    python -m benchmarks.lowering [--platform=cuda] [--width=64] [--devices=4]

Lowers a run's programs, of ResNet-18 and the MLP in both precisions, on one device and with batches split over several,
and prints what a training epoch and an evaluation hold, their loop over batches counted once. A program that calls the
CPU's kernels or the host, computes in float64, or keeps a copy of the state is told. Nothing is compiled and nothing
runs; it takes about a minute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

from wsjax.scripts import cli, process
from wsjax.scripts.console import print_table, say

BYTES = {"f64": 8, "i64": 8, "ui64": 8, "f32": 4, "i32": 4, "ui32": 4, "bf16": 2, "f16": 2, "i8": 1, "ui8": 1, "i1": 1}
"""Of an element, by StableHLO's names."""
PLATFORMS = ("cuda", "rocm", "tpu")
DEVICE_CALLS = ("cu_threefry2x32_ffi", "hip_threefry2x32_ffi")
"""What JAX itself calls on a GPU: its random bits."""
HOST = ("infeed", "outfeed", "send", "recv")
PRODUCTS = ("convolution", "dot_general")


class Contents(NamedTuple):
    """What a program holds, each operation once for every call of the function that it is in.

    Attributes:
      operations: how many there are of each, by StableHLO's names.
      calls: how many calls of what is no operation, by their targets.
      dtypes: of all values.
      products: the dtypes of what convolutions and matrix products give.
      reduced: the bytes that each all-reduce sums, on a device.
      donated: the bytes of each argument that may be overwritten.
    """

    operations: Counter[str]
    calls: Counter[str]
    dtypes: set[str]
    products: set[str]
    reduced: list[int]
    donated: list[int]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is lowered, and for what."""

    platform: str = "cuda"
    """cuda, rocm or tpu."""
    width: int = 64
    """ResNet-18: channels of the first stage."""
    batch_size: int = 128
    """Samples a step, over all devices."""
    devices: int = 4
    """How many split a batch, where several do."""


def main(config: Config) -> list[str]:
    """Prints a table, and returns what is wrong with the programs."""
    known = config.platform in PLATFORMS
    cli.check(known, f"unknown platform '{config.platform}'; available: {', '.join(PLATFORMS)}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    process.use_devices(config.devices)
    from wsjax import parallel
    from wsjax.networks import models

    rows, wrong = [], []
    for name, precision, devices in (
        (name, precision, devices)
        for name in (f"ResNet-18, width {config.width}", "MLP")
        for precision in ("float32", "bfloat16")
        for devices in (1, config.devices)
    ):
        mesh = parallel.data_mesh(devices) if devices > 1 else None
        model = models.resnet18(10, config.width, axis_name=parallel.axis_of(mesh)) if "Res" in name else models.mlp(10)
        for what, traced in of_run(model, precision, mesh, config.batch_size).items():
            found = contents(traced, config.platform)
            if what != "draw":
                rows.append([name, precision, devices, what, *_cells(found)])
            wrong += [f"{name}, {precision}, {devices} devices, {what}: {problem}" for problem in problems(found)]
            if what == "epoch" and sum(found.donated) < state_bytes(model, precision):
                wrong.append(f"{name}, {precision}, {devices} devices: an epoch keeps the old state beside the new one")
    columns = ["", "computes in", "devices", "program", "operations", "convolutions", "products", "all-reduces",
               "summed, MB", "given away, MB"]  # fmt: skip
    print_table(f"Programs for {config.platform}, batch {config.batch_size}", columns, rows)
    for problem in wrong or [f"All of them lower for {config.platform}, and none calls the host or a CPU's kernels."]:
        say(problem)
    return wrong


def of_run(
    model: Any, precision: str = "float32", mesh: Any = None, batch_size: int = 128, seeds: int = 1
) -> dict[str, Any]:
    """The traces of a run's "draw", "epoch" and "evaluation", as `run_rounds` asks for them."""
    from benchmarks.jax_side import random_images, task_of
    from wsjax.rounds.legs import Round
    from wsjax.rounds.loop import run_rounds
    from wsjax.training.train import Setup, make_optimizer

    data, optimizer = random_images(2 * batch_size), make_optimizer("sgd", 0.001)
    setup = Setup(task_of(model, precision), optimizer, data, data, batch_size)
    with tracing() as traced:
        run_rounds(setup, [Round(2 * batch_size, max_epochs=1)], {}, range(seeds), mesh=mesh)
    return dict(zip(("draw", "epoch", "evaluation"), traced, strict=True))


def step(model: Any, precision: str = "float32", mesh: Any = None, batch_size: int = 128) -> Any:
    """The trace of one training step, whose batch a mesh's devices share in equal parts, rounded up."""
    import jax
    import jax.numpy as jnp

    from benchmarks.jax_side import SHAPE, task_of
    from wsjax import parallel
    from wsjax.training.train import Batch, init_state, make_optimizer, make_train_step

    task, optimizer = task_of(model, precision), make_optimizer("sgd", 0.001)
    one = parallel.over_mesh(make_train_step(task, optimizer, parallel.axis_of(mesh)), mesh, [False, False])
    state = jax.eval_shape(partial(init_state, task, optimizer), jax.random.key(0))
    part = math.ceil(batch_size / (1 if mesh is None else mesh.size))
    shapes = ((part, *SHAPE), jnp.uint8), ((part,), jnp.int32), ((part,), jnp.float32)
    arrays: Any = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    batch = Batch(*arrays)
    return jax.jit(one, donate_argnums=0).trace(state, batch)


@contextlib.contextmanager
def tracing() -> Iterator[list[Any]]:
    """Has every `Program` traced, in place of being compiled: one that is run gives zeros."""
    import jax
    import jax.numpy as jnp

    from wsjax.rounds.programs import Program

    traces: list[Any] = []
    known: dict[Any, Callable[..., Any]] = {}

    def stand_in(program: Program, *arguments: Any) -> Callable[..., Any]:
        # Known here alone: programs outlive a run, and must not keep what only gives zeros.
        place = program, str(jax.tree.map(jax.typeof, arguments))
        if place not in known:
            traces.append(program.trace(*arguments))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), traces[-1].out_info)
            known[place] = lambda *_: zeros
        return known[place]

    with mock.patch.object(Program, "prepare", stand_in):
        yield traces


def contents(traced: Any, platform: str) -> Contents:
    """What the program of a `jax.stages.Traced` holds where it is lowered for a platform."""
    module = traced.lower(lowering_platforms=(platform,)).compiler_ir("stablehlo")
    functions = {op.attributes["sym_name"].value: op.operation for op in module.body.operations if _is(op, "func")}
    found = Contents(Counter(), Counter(), set(), set(), [], [])
    entry = functions["main"]
    for argument, attributes in zip(entry.regions[0].blocks[0].arguments, entry.attributes["arg_attrs"], strict=True):
        if "tf.aliasing_output" in attributes or "jax.buffer_donor" in attributes:
            found.donated.append(_bytes(argument.type))
    _add(entry, functions, found)
    return found


def problems(found: Contents) -> list[str]:
    """What no program for a GPU or a TPU may hold."""
    wrong = [f"it calls {target}" for target in found.calls if target not in DEVICE_CALLS]
    wrong += [f"it talks to the host by {name}" for name in HOST if found.operations[name]]
    return wrong + [f"it has values of {dtype}" for dtype in sorted(found.dtypes) if "f64" in dtype or "token" in dtype]


def state_bytes(model: Any, precision: str = "float32") -> int:
    """The bytes of a network's state under the study's SGD."""
    import jax

    from benchmarks.jax_side import task_of
    from wsjax.training.train import init_state, make_optimizer

    draw = partial(init_state, task_of(model, precision), make_optimizer("sgd", 0.001))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(draw, jax.random.key(0))))


def _add(function: Any, functions: dict[str, Any], found: Contents) -> None:
    """Adds what one call of a function holds."""
    for operation, used in _walk(function):
        name = operation.name.rpartition(".")[2]
        if name in PRODUCTS and not used:
            continue  # as XLA leaves it out: the gradient for the first layer's images
        found.operations[name] += 1
        types = [value.type for value in operation.results]
        found.dtypes.update(map(_dtype, types))
        if name in PRODUCTS:
            found.products.update(map(_dtype, types))
        elif name == "all_reduce":
            found.reduced.append(sum(map(_bytes, types)))
        elif name == "custom_call":
            found.calls[operation.attributes["call_target_name"].value] += 1
        elif name == "call":
            _add(functions[operation.attributes["callee"].value], functions, found)


def _walk(operation: Any, used: bool = True) -> Iterator[tuple[Any, bool]]:
    """The operations within one, however deep, and whether anything takes what they, and those around them, give."""
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                taken = used and (not inner.results or any(True for value in inner.results for _ in value.uses))
                yield inner.operation, taken
                yield from _walk(inner.operation, taken)


def _is(operation: Any, name: str) -> bool:
    return operation.operation.name.rpartition(".")[2] == name


def _split(kind: Any) -> tuple[list[int], str]:
    """The sizes and the dtype of a value's type, such as tensor<2x3xf32>; no sizes where it is no tensor."""
    if match := re.fullmatch(r"tensor<((?:\d+x)*)(\w+)(?:,.*)?>", str(kind)):
        return [int(size) for size in match.group(1).split("x") if size], match.group(2)
    return [], str(kind)


def _dtype(kind: Any) -> str:
    return _split(kind)[1]


def _bytes(kind: Any) -> int:
    sizes, dtype = _split(kind)
    return BYTES[dtype] * math.prod(sizes)


def _cells(found: Contents) -> list[Any]:
    return [
        found.operations.total(), found.operations["convolution"], found.operations["dot_general"], len(found.reduced),
        f"{sum(found.reduced) / 1e6:.2f}", f"{sum(found.donated) / 1e6:.2f}",
    ]  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(bool(cli.run_program(main, Config, __doc__)))

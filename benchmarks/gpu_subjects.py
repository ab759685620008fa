"""What is timed on a GPU only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks import jax_side, roofline, torch_side
from benchmarks.jax_side import BATCH, random_images, task_of
from benchmarks.subjects import Scale
from benchmarks.timing import Case
from wsjax.networks import models

NAMES = {"float32": "TF32", "bfloat16": "bfloat16"}
"""What a GPU's tensor cores multiply, by precision."""


def resnet_gpu(scale: Scale) -> Iterator[Case]:
    """ResNet-18 with the stem's pool, a step and a whole epoch, in TF32 and bfloat16: PyTorch eager and compiled."""
    images, labels = random_images(scale.gpu_samples)
    steps = {"step": 1, "epoch": len(labels) / BATCH}
    for precision, name in NAMES.items():
        task = task_of(models.resnet18(10, scale.width), precision)
        ours = {
            "step": jax_side.step(task, images[:BATCH], labels[:BATCH]),
            "epoch": jax_side.epoch(task, images, labels),
        }
        flops, traffic = roofline.resnet18_costs(scale.width, True, BATCH, precision=precision)
        for compiler in scale.compilers:
            theirs, seconds = _torch_runs(scale.width, images, labels, precision, compiler)
            for what, run in ours.items():
                subject = f"ResNet-18 {what}, width {scale.width}, stem pool, {name}"
                yield Case(
                    subject, run, theirs[what], f"PyTorch, {compiler}", flops * steps[what], traffic * steps[what],
                    run.compile_seconds, precision, seconds,
                )  # fmt: skip


SUBJECTS: dict[str, Callable[[Scale], Iterator[Case]]] = {"resnet_gpu": resnet_gpu}


def _torch_runs(
    width: int, images: Any, labels: Any, precision: str, compiler: str
) -> tuple[dict[str, Callable[[], None]], float]:
    """PyTorch's step and epoch over tensors in memory, and the seconds that compiling took."""
    inputs, targets = torch_side.tensors(images, labels)
    net, seconds = torch_side.resnet18(width, True), 0.0
    optimizer = torch_side.sgd(net)
    batches = partial(torch_side.shuffled, inputs, targets, BATCH)
    if compiler == "torch.compile":
        sizes = {len(y): (x, y) for x, y in batches()}
        net, seconds = torch_side.compiled(net, optimizer, sizes.values(), precision)
    return {
        "step": torch_side.run(torch_side.step, net, optimizer, inputs[:BATCH], targets[:BATCH], precision),
        "epoch": lambda: torch_side.epoch(net, optimizer, batches(), precision),
    }, seconds

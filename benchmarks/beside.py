"""What there is beside training: boundaries between rounds, and what is measured of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch

from benchmarks import jax_side, roofline, torch_side
from benchmarks.jax_side import BATCH, random_images, task_of
from benchmarks.subjects import HIDDEN, Scale
from benchmarks.timing import Case
from wsjax.methods.dash import dash_start
from wsjax.methods.fire import fire
from wsjax.methods.reinit import shrink_perturb
from wsjax.methods.starts import Boundary
from wsjax.networks import models
from wsjax.rounds.programs import Program
from wsjax.training.probes import gradient_norms, mean_gradient_norm
from wsjax.training.shrinking import shrink_curve
from wsjax.training.train import Samples, Setup, all_samples

SHRINKS = 81  # as Figure 7 has them


def reinitialise(scale: Scale) -> Iterator[Case]:
    """Boundaries of a ResNet-18: shrink_perturb, FIRE, and DASH with its gradients of all samples."""
    task = task_of(models.resnet18(10, scale.width))
    params = jax.jit(lambda key: task.init(key)[0])(jax.random.key(0))
    other = jax.tree.map(jnp.copy, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    whole = f"{count / 1e6:.1f} M parameters"
    program = Program(lambda a, b: shrink_perturb(a, b, 0.4, 0.1))
    mix = program.prepare(params, other)
    old, new = (
        [torch.ones(leaf.shape, device=torch_side.DEVICE) for leaf in jax.tree.leaves(params)] for _ in range(2)
    )

    def theirs() -> Any:
        with torch.no_grad():
            return [a * 0.4 + b * 0.1 for a, b in zip(old, new, strict=True)]

    copy = Program(partial(jax.tree.map, jnp.copy)).prepare(params)
    yield Case(
        f"shrink_perturb of {whole}", lambda: mix(params, other), torch_side.run(theirs),
        flops=3.0 * count, bytes=12.0 * count, compile_seconds=program.compile_seconds,
    )  # fmt: skip
    yield Case(
        f"shrink_perturb of {whole}", lambda: mix(params, other), lambda: copy(params), "a copy",
        flops=3.0 * count, bytes=12.0 * count,
    )  # fmt: skip
    few, exact = (Program(partial(fire, steps=steps)).prepare(params) for steps in (10, None))
    yield Case(
        f"fire of {whole}, 10 steps", lambda: few(params), lambda: exact(params),
        "exact, by singular values", bytes=8.0 * count,
    )  # fmt: skip

    images, labels = random_images(scale.steps * BATCH)
    data, (state, optimizer) = (jnp.asarray(images), jnp.asarray(labels)), jax_side.start(task)
    begin = dash_start()

    def dash(state: Any, data: Any) -> Any:
        setup = Setup(task, optimizer, data, data, BATCH)
        return begin(Boundary(jax.random.key(0), state, state, all_samples(data), setup, state))

    def gradients(state: Any, data: Any) -> Any:
        return mean_gradient_norm(Setup(task, optimizer, data, data, BATCH), state, all_samples(data))

    start, gradient = (Program(function).prepare(state, data) for function in (dash, gradients))
    flops, traffic = (scale.steps * cost for cost in roofline.resnet18_costs(scale.width, True, BATCH))
    yield Case(
        f"dash_start of {whole}, {len(labels)} images", lambda: start(state, data),
        lambda: gradient(state, data), "a pass of gradients over them", flops=flops, bytes=traffic,
    )  # fmt: skip


def measures(scale: Scale) -> Iterator[Case]:
    """What is measured beside training: the gradients of old and new samples, and an MLP's curve over its shrinks."""
    width, count = scale.resnets[0][0], scale.steps * BATCH
    images, labels = random_images(count)
    task = task_of(models.resnet18(10, width))
    state, optimizer = jax_side.start(task)
    data = (jnp.asarray(images), jnp.asarray(labels))
    half, key = Samples(jnp.arange(count), jnp.asarray(count), jnp.asarray(count // 2)), jax.random.key(0)

    def measure(state: Any, data: Any, samples: Samples, key: jax.Array) -> Any:
        return gradient_norms()(Setup(task, optimizer, data, data, BATCH), state, samples, key)

    program = Program(measure)
    probe, epoch = program.prepare(state, data, half, key), jax_side.epoch(task, images, labels)
    flops, traffic = (scale.steps * cost for cost in roofline.resnet18_costs(width, True, BATCH))
    yield Case(
        f"gradient probe, ResNet-18, width {width}, {count} images", lambda: probe(state, data, half, key), epoch,
        "a training pass over them", flops, traffic, program.compile_seconds,
    )  # fmt: skip

    images, labels = random_images(scale.loader_samples)
    data = (jnp.asarray(images), jnp.asarray(labels))
    task = task_of(models.mlp(10, HIDDEN))
    state, optimizer = jax_side.start(task)
    program = Program(
        lambda state, data, shrinks: shrink_curve(Setup(task, optimizer, data, data, BATCH), state, shrinks)
    )
    shrinks = jnp.linspace(0, 1, SHRINKS)
    curve, net = program.prepare(state, data, shrinks), torch_side.mlp(HIDDEN)
    inputs, targets = torch_side.tensors(images, labels)

    def theirs() -> None:
        for _ in range(SHRINKS):  # the factor itself costs nothing beside the products
            torch_side.accuracy(net, inputs, targets, BATCH)

    flops, traffic = (SHRINKS * cost for cost in roofline.mlp_costs(HIDDEN, len(labels), BATCH, train=False))
    yield Case(
        f"{SHRINKS} shrinks of an MLP, {len(labels):,} images", lambda: curve(state, data, shrinks), theirs,
        flops=flops, bytes=traffic, compile_seconds=program.compile_seconds,
    )  # fmt: skip


SUBJECTS: dict[str, Callable[[Scale], Iterator[Case]]] = {"reinitialise": reinitialise, "measures": measures}

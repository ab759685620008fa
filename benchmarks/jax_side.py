"""wsjax's side: compiled steps and epochs that keep their state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wsjax import parallel
from wsjax.data.datasets import REPORT_MEAN, REPORT_STD
from wsjax.rounds.programs import Program, over_replicas
from wsjax.training.task import Task, image_task
from wsjax.training.train import (
    Batch,
    Samples,
    Setup,
    all_samples,
    init_state,
    make_optimizer,
    make_train_step,
    train_epoch,
)

BATCH = 128
SHAPE = (32, 32, 3)


class Stateful:
    """A compiled function `(state, ...) -> (state, metrics)` that keeps its state."""

    def __init__(self, function: Callable[..., Any], state: Any, *arguments: Any):
        program = Program(function, donate_argnums=(0,))
        self._state, self._arguments = jax.tree.map(jnp.copy, state), arguments
        self._run = program.prepare(self._state, *arguments)
        self.compile_seconds = program.compile_seconds

    def __call__(self) -> Any:
        """Runs it once more, from where it is; returns the metrics."""
        self._state, metrics = self._run(self._state, *self._arguments)
        return metrics


class SideBySide:
    """An epoch of several seeds, side by side on all devices, as `run_rounds` spreads them over a replica mesh."""

    def __init__(self, task: Task, images: np.ndarray, labels: np.ndarray, seeds: int):
        optimizer, count, self.compile_seconds = make_optimizer("sgd", 0.001), len(labels), 0.0

        def one(state: Any, data: Any, order: jax.Array, counts: Any, key: jax.Array) -> Any:
            return train_epoch(Setup(task, optimizer, data, data, BATCH), state, Samples(order, *counts), key)

        epoch = over_replicas(one, (0, None, 0, None, 0))
        self._runs = []
        for group in parallel.groups(range(seeds), False, parallel.replica_mesh()):
            mesh = parallel.fit(parallel.replica_mesh(), len(group))
            keys = jax.random.split(jax.random.key(0), len(group))
            state = parallel.place(jax.vmap(partial(init_state, task, optimizer))(keys), mesh)
            data = parallel.place((jnp.asarray(images), jnp.asarray(labels)), mesh, replicated=True)
            orders, keys = parallel.place((jnp.tile(jnp.arange(count), (len(group), 1)), keys), mesh)
            counts = parallel.place((jnp.asarray(count), jnp.asarray(0)), mesh, replicated=True)
            spread = parallel.over_mesh(epoch, mesh, [True, False, True, False, True])
            self._runs.append(Stateful(spread, state, data, orders, counts, keys))
            self.compile_seconds += self._runs[-1].compile_seconds

    def __call__(self) -> Any:
        """Runs an epoch of all seeds, to its end."""
        return [jax.block_until_ready(run()) for run in self._runs]


def random_images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images of CIFAR-10's size, and labels."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, *SHAPE), np.uint8), random.integers(0, 10, count).astype(np.int32)


def task_of(model: Any, precision: str = "float32") -> Task:
    """The task of classifying such images."""
    return image_task(model, SHAPE, REPORT_MEAN, REPORT_STD, precision)


def use_tensor_cores() -> None:
    """Float32 products in TF32, which is also what XLA does on such a GPU where nothing is said."""
    jax.config.update("jax_default_matmul_precision", "tensorfloat32")


def start(task: Task) -> tuple[Any, optax.GradientTransformation]:
    """A new state, and the study's SGD."""
    optimizer = make_optimizer("sgd", 0.001)
    return jax.jit(lambda key: init_state(task, optimizer, key))(jax.random.key(0)), optimizer


def step(task: Task, images: np.ndarray, labels: np.ndarray) -> Stateful:
    """A training step on a batch that lies on the device."""
    state, optimizer = start(task)
    batch = Batch(jnp.asarray(images), jnp.asarray(labels), jnp.ones(len(labels)))
    return Stateful(make_train_step(task, optimizer), state, batch)


def epoch(task: Task, images: np.ndarray, labels: np.ndarray) -> Stateful:
    """An epoch as one program."""
    state, optimizer = start(task)
    data = (jnp.asarray(images), jnp.asarray(labels))

    def run(state: Any, data: Any, key: jax.Array) -> Any:
        return train_epoch(Setup(task, optimizer, data, data, BATCH), state, all_samples(data), key)

    return Stateful(run, state, data, jax.random.key(0))

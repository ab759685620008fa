"""What is timed. A subject is a function that yields cases, built when their turn comes."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks import jax_side, roofline, torch_side
from benchmarks.jax_side import BATCH, SideBySide, random_images, task_of
from benchmarks.timing import Case
from wsjax.networks import models
from wsjax.rounds.legs import Round, Settings
from wsjax.rounds.loop import run_rounds
from wsjax.rounds.programs import Program
from wsjax.storage import checkpoint
from wsjax.training.augment import standard_augmentation
from wsjax.training.train import Setup, all_samples, evaluate, init_state, make_optimizer

HIDDEN = (100, 100, 100)


class Scale(NamedTuple):
    """How much work the subjects do."""

    resnets: tuple[tuple[int, int], ...] = ((16, 32), (16, 128), (64, 32), (64, 128))
    """(width, batch) of the steps."""
    steps: int = 4
    """Steps in a ResNet's epoch."""
    mlp_samples: int = 50_000
    loader_samples: int = 10_000
    loader_workers: tuple[int, ...] = (2,)
    """Of a DataLoader, beside none, which is the report's."""
    test_samples: int = 2_000
    increment: int = 1_000
    seeds: int = 5
    width: int = 64
    """Of the ResNet that a GPU trains, and whose state is saved and shrunk."""
    gpu_samples: int = 50_000
    compilers: tuple[str, ...] = ("eager", "torch.compile")
    """What PyTorch runs under on a GPU."""


TINY = Scale(
    resnets=((8, 4),), steps=1, mlp_samples=200, loader_samples=200, loader_workers=(1,), test_samples=50, increment=20,
    seeds=2, width=8, gpu_samples=200, compilers=("eager",),
)  # fmt: skip
"""To see that everything runs. Below 8 channels PyTorch 2.13 writes past its arrays (oneDNN, channels last, AMD EPYC):
it has then waited for ever or ended the process."""


def resnet_step(scale: Scale) -> Iterator[Case]:
    """A training step on a batch that lies on the device, without and with the stem's pool."""
    for stem_pool, (width, batch) in itertools.product((False, True), scale.resnets):
        images, labels = random_images(batch)
        ours = jax_side.step(task_of(models.resnet18(10, width, stem_pool)), images, labels)
        net = torch_side.resnet18(width, stem_pool)
        theirs = torch_side.run(torch_side.step, net, torch_side.sgd(net), *torch_side.tensors(images, labels))
        name = f"ResNet-18 step, width {width}, batch {batch}" + ", stem pool" * stem_pool
        flops, traffic = roofline.resnet18_costs(width, stem_pool, batch)
        yield Case(name, ours, theirs, flops=flops, bytes=traffic, compile_seconds=ours.compile_seconds)


def augmentation(scale: Scale) -> Iterator[Case]:
    """A batch's augmentation alone, as a share of the step that it adds to."""
    width, batch = scale.resnets[0][0], scale.resnets[-1][1]
    images, labels = random_images(batch)
    keys, inputs = jax.random.split(jax.random.key(0), batch), jnp.asarray(images)
    program = Program(jax.vmap(standard_augmentation))
    augment = program.prepare(keys, inputs)
    step = jax_side.step(task_of(models.resnet18(10, width)), images, labels)
    against = f"a ResNet-18 step, width {width}"
    yield Case(
        f"augmentation of a batch of {batch}", lambda: augment(keys, inputs), step, against,
        bytes=2.0 * images.nbytes, compile_seconds=program.compile_seconds,
    )  # fmt: skip


def resnet_epoch(scale: Scale) -> Iterator[Case]:
    """A whole epoch: against a loop over tensors in memory, the report's DataLoader, our own step in a Python loop."""
    width, samples = scale.resnets[0][0], scale.steps * BATCH
    images, labels = random_images(samples)
    task = task_of(models.resnet18(10, width))
    epoch = jax_side.epoch(task, images, labels)
    flops, traffic = (scale.steps * cost for cost in roofline.resnet18_costs(width, True, BATCH))
    costs: dict[str, Any] = {"flops": flops, "bytes": traffic, "compile_seconds": epoch.compile_seconds}
    net = torch_side.resnet18(width, True)
    for against, theirs in (_memory_epoch(net, images, labels), _loader_epoch(net, images, labels)):
        yield Case(f"ResNet-18 epoch, width {width}", epoch, theirs, against, **costs)

    one = jax_side.step(task, images[:BATCH], labels[:BATCH])

    def loop() -> Any:
        return [one() for _ in range(scale.steps)]

    yield Case(f"ResNet-18 epoch, width {width}", epoch, loop, "wsjax's step in a Python loop", **costs)


def mlp_epoch(scale: Scale) -> Iterator[Case]:
    """An epoch of the MLP and of logistic regression: one seed, several side by side, and against a DataLoader."""
    images, labels = random_images(scale.mlp_samples)
    for name, hidden in (("MLP", HIDDEN), ("logistic regression", ())):
        task = task_of(models.mlp(10, hidden))
        for seeds in (1, scale.seeds):
            epoch = jax_side.epoch(task, images, labels) if seeds == 1 else SideBySide(task, images, labels, seeds)
            inputs, targets = torch_side.tensors(images, labels)
            nets = [torch_side.mlp(hidden) for _ in range(seeds)]

            def in_memory(nets: Any = nets, inputs: Any = inputs, targets: Any = targets) -> None:
                for net in nets:
                    torch_side.epoch(net, torch_side.sgd(net), torch_side.shuffled(inputs, targets, BATCH))

            flops, traffic = (seeds * cost for cost in roofline.mlp_costs(hidden, len(labels), BATCH))
            subject = f"{name} epoch, {len(labels):,} images, {seeds} seed{'s' * (seeds > 1)}"
            yield Case(subject, epoch, in_memory, "tensors in memory", flops, traffic, epoch.compile_seconds)

    images, labels = images[: scale.loader_samples], labels[: scale.loader_samples]
    task = task_of(models.mlp(10, HIDDEN))
    epoch = jax_side.epoch(task, images, labels)
    flops, traffic = roofline.mlp_costs(HIDDEN, len(labels), BATCH)
    for workers in (0, *scale.loader_workers):
        against, theirs = _loader_epoch(torch_side.mlp(HIDDEN), images, labels, workers)
        yield Case(f"MLP epoch, {len(labels):,} images", epoch, theirs, against, flops, traffic, epoch.compile_seconds)


def evaluation(scale: Scale) -> Iterator[Case]:
    """Evaluation on a test split."""
    images, labels = random_images(scale.test_samples)
    inputs, targets = torch_side.tensors(images, labels)
    width = scale.resnets[0][0]
    for name, model, net, costs in (
        ("MLP", models.mlp(10, HIDDEN), torch_side.mlp(HIDDEN),
         roofline.mlp_costs(HIDDEN, len(labels), BATCH, train=False)),
        (f"ResNet-18, width {width}", models.resnet18(10, width), torch_side.resnet18(width, True),
         roofline.resnet18_costs(width, True, len(labels), train=False)),
    ):  # fmt: skip
        task = task_of(model)
        state, optimizer = jax_side.start(task)
        data = (jnp.asarray(images), jnp.asarray(labels))

        def run(state: Any, data: Any, task: Any = task, optimizer: Any = optimizer) -> Any:
            return evaluate(Setup(task, optimizer, data, data, BATCH), state, all_samples(data))

        program = Program(run)
        compiled = program.prepare(state, data)
        yield Case(
            f"{name}: evaluation on {len(labels):,} images",
            lambda compiled=compiled, state=state, data=data: compiled(state, data),
            torch_side.run(torch_side.accuracy, net, inputs, targets, BATCH),
            flops=costs[0], bytes=costs[1], compile_seconds=program.compile_seconds,
        )  # fmt: skip


def online(scale: Scale, epochs: int = 5, rounds: int = 10) -> Iterator[Case]:
    """A run of growing rounds, compilation, evaluation and records in memory included, each of as many epochs."""
    sizes = [scale.increment * number for number in range(1, rounds + 1)]
    train, test = random_images(sizes[-1]), random_images(scale.test_samples, seed=1)
    task, optimizer = task_of(models.mlp(10, HIDDEN)), make_optimizer("sgd", 0.001)
    notes: dict[str, Any] = {}

    def ours() -> None:
        begin = time.perf_counter()
        rows = run_rounds(
            Setup(task, optimizer, train, test, BATCH), [Round(size, max_epochs=epochs) for size in sizes],
            {"WS": lambda old, fresh: old}, settings=Settings(evaluate="round"),
        ).rows  # fmt: skip
        whole = time.perf_counter() - begin
        spent = sum(row["train_seconds"] + row["eval_seconds"] for row in rows)
        cost = [np.median([row["train_seconds"] for row in rows if row["round"] == n]) / size
                for n, size in enumerate(sizes, 1)]  # fmt: skip
        notes["compiling and starting, share of the run"] = 1 - spent / whole
        notes[f"a sample's cost in round {rounds} over round 1"] = float(cost[-1] / cost[0])

    inputs, targets = torch_side.tensors(*train)
    tested = torch_side.tensors(*test)

    def theirs() -> None:
        net = torch_side.mlp(HIDDEN)
        for size in sizes:
            optimizer = torch_side.sgd(net)
            for _ in range(epochs):
                torch_side.epoch(net, optimizer, torch_side.shuffled(inputs[:size], targets[:size], BATCH))
            torch_side.accuracy(net, *tested, BATCH)

    costs = [roofline.mlp_costs(HIDDEN, size * epochs, BATCH) for size in sizes]
    flops, traffic = (sum(values) for values in zip(*costs, strict=True))
    subject = f"online, MLP, {rounds} rounds of +{scale.increment:,}, {epochs} epochs each, all included"
    yield Case(subject, ours, theirs, "tensors in memory", flops, traffic, notes=notes)


def checkpoints(scale: Scale) -> Iterator[Case]:
    """Saving and loading a ResNet-18's training state with Adam's; ours checks a digest of every array."""
    task = task_of(models.resnet18(10, scale.width))
    state: Any = jax.jit(lambda key: init_state(task, optax.adam(1e-3), key))(jax.random.key(0))
    tensors = [torch.from_numpy(np.array(leaf)).to(torch_side.DEVICE) for leaf in jax.tree.leaves(state)]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    place = Path(tempfile.mkdtemp(prefix="wsjax-benchmark-"))
    folder = checkpoint.Folder(place / "orbax")
    numbers = itertools.count(1)
    try:
        for verb, ours, theirs in (
            ("save", lambda: checkpoint.save(folder, next(numbers), state), lambda: torch.save(tensors, place / "pt")),
            ("load", lambda: checkpoint.restore(folder, lambda _: state), lambda: torch.load(place / "pt")),
        ):
            yield Case(f"{verb} a checkpoint of {size / 1e6:.0f} MB", ours, theirs, bytes=float(size))
    finally:
        folder.close()
        shutil.rmtree(place)


def startup(scale: Scale) -> Iterator[Case]:
    """What a user waits for: import, help, and a ResNet's first step in a new process."""
    torch_import = _command("import torch")
    yield Case("import wsjax", _command("import wsjax"), torch_import, "import torch")
    root = Path(__file__).parents[1]
    script = [sys.executable, str(root / "experiments" / "offline.py"), "--help"]
    yield Case("offline.py --help", _process(script), torch_import, "import torch")
    width = scale.resnets[-1][0]
    step = f"import sys; from benchmarks.first_step import main; main({width}, {BATCH}, sys.argv[1])"
    torch_step = f"from benchmarks.subjects import torch_first_step; torch_first_step({width}, {BATCH})"
    with tempfile.TemporaryDirectory(prefix="wsjax-benchmark-") as place:
        numbers = itertools.count()

        def cold() -> None:
            _command(step, str(Path(place) / str(next(numbers))))()

        for name, ours in (("cold", cold), ("warm", _command(step, str(Path(place) / "0")))):
            subject = f"new process to ResNet-18's first step, width {width}, {name} compilation cache"
            yield Case(subject, ours, _command(torch_step), "PyTorch, eager")


SUBJECTS: dict[str, Callable[[Scale], Iterator[Case]]] = {
    "resnet_step": resnet_step,
    "augmentation": augmentation,
    "resnet_epoch": resnet_epoch,
    "mlp_epoch": mlp_epoch,
    "evaluation": evaluation,
    "online": online,
    "checkpoints": checkpoints,
    "startup": startup,
}


def torch_first_step(width: int, batch: int) -> None:
    """Trains a ResNet-18 for one step in PyTorch."""
    net = torch_side.resnet18(width, True)
    torch_side.run(torch_side.step, net, torch_side.sgd(net), *torch_side.tensors(*random_images(batch)))()


def _memory_epoch(net: Any, images: np.ndarray, labels: np.ndarray) -> tuple[str, Callable[[], None]]:
    """PyTorch's epoch over tensors in memory, normalised beforehand."""
    inputs, targets = torch_side.tensors(images, labels)
    optimizer = torch_side.sgd(net)
    return "tensors in memory", lambda: torch_side.epoch(net, optimizer, torch_side.shuffled(inputs, targets, BATCH))


def _loader_epoch(net: Any, images: np.ndarray, labels: np.ndarray, workers: int = 0) -> tuple[str, Callable[[], None]]:
    """PyTorch's epoch over a DataLoader as the report's."""
    optimizer, loader = torch_side.sgd(net), torch_side.loader(images, labels, BATCH, workers)
    against = "a DataLoader as the report's" + f", {workers} workers" * bool(workers)
    return against, lambda: torch_side.epoch(net, optimizer, loader)


def _command(code: str, *arguments: str) -> Callable[[], None]:
    return _process([sys.executable, "-c", code, *arguments])


def _process(command: list[str]) -> Callable[[], None]:
    def call() -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])

    return call

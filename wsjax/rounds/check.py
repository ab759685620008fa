"""What is looked at before a run begins, so that it does not fail hours later, or train on nonsense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.errors import TaskError
from wsjax.methods.reinit import path_name
from wsjax.rounds.legs import Method, Round
from wsjax.storage.rows import FIRST
from wsjax.training.task import Task, correct, cross_entropy
from wsjax.training.train import Data, Setup


def check(
    setup: Setup, rounds: Sequence[Round], methods: Mapping[str, Method], seeds: Sequence[int], settings: Any
) -> None:
    """Checks what `run_rounds` was given; raises a TaskError that names it."""
    _check_rounds(rounds, methods)
    everything = [*rounds, *(own for method in methods.values() for own in method.rounds or ())]
    setups = {id(own): own for own in (here.setup or setup for here in everything)}
    sizes = {key: _check_setup(own) for key, own in setups.items()}
    for here in everything:
        count = sizes[id(here.setup or setup)]
        _require(
            1 <= here.num_samples <= count,
            f"round {_number(here, rounds)} asks for {here.num_samples} samples; there are {count}, "
            "and it needs at least 1",
        )
    _require(len(seeds) > 0 and len(set(seeds)) == len(seeds), f"seeds must be given, each once, not {tuple(seeds)}")
    # JAX takes a key from 32 bits: seeds that differ above them would be one.
    _require(all(0 <= seed < 2**32 for seed in seeds), f"seeds must lie in [0, 2^32), not {tuple(seeds)}")
    for name, options in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if options is int:
            _require(value >= 1, f"{name} must be positive, not {value}")
        else:
            _require(value in get_args(options), f"unknown {name} '{value}'; available: {', '.join(get_args(options))}")


def _check_rounds(rounds: Sequence[Round], methods: Mapping[str, Method]) -> None:
    _require(len(rounds) > 0, "there is no round to run: rounds is empty")
    _require(FIRST not in methods, f"a method cannot be named '{FIRST}': that names the rounds that all methods share")
    for name, method in methods.items():
        _require(
            0 <= method.after <= len(rounds),
            f"method '{name}' begins after round {method.after}; there are {len(rounds)} rounds to share",
        )
    for number, here in enumerate(rounds, 1):
        _require(
            here.stop is not None or here.max_epochs is not None,
            f"round {number} would never end: give it a stop rule or max_epochs",
        )
        _require(here.max_epochs is None or here.max_epochs > 0, f"round {number}: max_epochs must be positive")


def _check_setup(setup: Setup) -> int:
    """Checks a setup; returns the number of its train samples."""
    _require(setup.batch_size >= 1, f"batch_size must be positive, not {setup.batch_size}")
    counts = [_count(name, data) for name, data in (("train", setup.train), ("test", setup.test))]
    params, _ = jax.eval_shape(setup.task.init, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        _require(
            jnp.issubdtype(leaf.dtype, jnp.inexact),
            f"the params' leaf '{path_name(path)}' is {leaf.dtype}; only floating-point leaves can be trained: keep "
            "others out of params",
        )
    if setup.task.loss is cross_entropy or setup.task.score is correct:
        _check_labels(setup)
    return counts[0]


def _count(name: str, data: Data) -> int:
    """The number of samples of inputs and targets."""
    leaves = jax.tree.leaves(data)
    _require(
        all(hasattr(leaf, "shape") for leaf in leaves),
        f"{name} inputs and targets must be arrays, not lists of numbers: give numpy.asarray(...) of them",
    )
    lengths = {leaf.shape[0] if leaf.shape else 0 for leaf in leaves}
    _require(
        len(lengths) == 1 and 0 not in lengths,
        f"{name} inputs and targets need one length above 0, not {sorted(lengths)}",
    )
    return lengths.pop()


def _check_labels(setup: Setup) -> None:
    """Checks that the labels are those of the outputs: a label beyond them would train as another class, or on NaN."""
    classes = _outputs(setup.task, setup.train[0], setup.axis_name).shape[-1]
    for name, labels in (("train", setup.train[1]), ("test", setup.test[1])):
        labels = np.asarray(labels)
        _require(
            labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer),
            f"{name} labels must be integers [N] for cross-entropy, not {labels.dtype} {list(labels.shape)}; give the "
            "task a loss and a score of its own for other targets",
        )
        low, high = int(labels.min()), int(labels.max())
        _require(
            low >= 0 and high < classes,
            f"{name} labels go from {low} to {high}; the model has {classes} outputs, for labels 0 to {classes - 1}",
        )


def _outputs(task: Task, inputs: Any, axis_name: str | None) -> Any:
    """The shape of the task's outputs for one sample."""

    def outputs(inputs: Any) -> Any:
        params, batch_stats = task.init(jax.random.key(0))
        return task.apply(params, batch_stats, inputs, jnp.ones(1), False, None)[0]

    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, 1, *x.shape[1:]), x.dtype), inputs)
    return jax.eval_shape(jax.vmap(outputs, axis_name=axis_name), one)


def _number(here: Round, rounds: Sequence[Round]) -> str:
    return str(rounds.index(here) + 1) if here in rounds else "of a method"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise TaskError(message)

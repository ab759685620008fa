"""A model that is retrained whenever data come in: what a scheduled job calls.

A model folder holds every model in a folder of its own, and says which of them is current:

    MODEL/current.json          {"current": 3, "decided": 4}
    MODEL/models/0003/          lineage.json, records.jsonl (a row an epoch), samples.npy, parameters/ (Orbax)
    MODEL/models/0004.part/     one that is being trained

A call reads all data files, known ones and new ones, trains from the shrink-perturbed parameters of the current model,
and makes the new model current unless it got worse. Nothing is ever trained on a held-out image: whether an image is
held out is decided by a hash of its content, so that it stays so as data grow.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from wsjax import parallel
from wsjax.data.datasets import channel_statistics
from wsjax.data.sources import MAX_GIGABYTES
from wsjax.errors import NonFiniteLoss, RunError
from wsjax.methods.reinit import shrink_perturb
from wsjax.retraining.incoming import Pool, read_pool
from wsjax.rounds.journal import Observer
from wsjax.rounds.legs import Round
from wsjax.rounds.loop import Settings, run_rounds
from wsjax.storage import checkpoint
from wsjax.storage.records import CONFIG, LOCK, Records, about_run, hold, open_run, read_json, write_json
from wsjax.storage.rows import FIRST, Row, round_ends
from wsjax.training.stopping import StopRule
from wsjax.training.task import Task
from wsjax.training.train import Data, Setup, TrainState, all_samples, init_state, reestimated, score_each

CURRENT, LINEAGE, SAMPLES, PARAMETERS = "current.json", "lineage.json", "samples.npy", "parameters"

MakeTask = Callable[[int, tuple[int, ...], Sequence[float], Sequence[float], str | None], Task]
"""`(num_classes, image_shape, mean, std, axis_name) -> Task`, whose batch statistics are taken over that axis too."""


class Recipe(NamedTuple):
    """How a model is retrained.

    Attributes:
      make_task: see `MakeTask`; for classes it has not seen, a network's leaves must grow at the end of an axis.
      optimizer: of optax.
      stop: when training ends.
      batch_size: samples a step.
      settings: of the loop; `evaluate` is not looked at.
      describe: what a lineage tells of the above, JSON values. A model whose "architecture" differs is refused.
      shrink: factor of the current model's parameters.
      perturb: factor of newly drawn ones.
      holdout: fraction of the images that are held out.
      tolerance: how much lower than its parent's a new model's held-out accuracy may be, in [0, 1].
      seed: model n draws all it draws from the key of seed + n, so that every model is perturbed by a new network.
      compare_scratch: whether to train from scratch too, on the same data, for comparison.
      mesh: `wsjax.parallel.data_mesh()` splits every batch over devices.
      max_gigabytes: the most that one data file may take, packed or unpacked, and all images together, in 10^9 bytes.
    """

    make_task: MakeTask
    optimizer: optax.GradientTransformation
    stop: StopRule
    batch_size: int
    settings: Settings
    describe: Mapping[str, Any]
    shrink: float = 0.4
    perturb: float = 0.1
    holdout: float = 0.1
    tolerance: float = 0.02
    seed: int = 0
    compare_scratch: bool = False
    mesh: Mesh | None = None
    max_gigabytes: float = MAX_GIGABYTES


class Model(NamedTuple):
    """A trained model: its task, its state (the optimiser's is empty), and where it comes from."""

    task: Task
    state: TrainState
    lineage: dict[str, Any]

    def __call__(self, images: Any) -> jax.Array:
        """The outputs for images as they were trained on: uint8 [N, height, width, channels]."""
        weights = jnp.ones(len(images))
        return self.task.apply(self.state.params, self.state.batch_stats, jnp.asarray(images), weights, False, None)[0]


def retrain(
    folder: Path | str,
    patterns: Sequence[str],
    recipe: Recipe,
    *,
    say: Callable[[str], None] = print,
    observe: Observer | None = None,
) -> dict[str, Any] | None:
    """Trains the next model of a folder, where there are images or labels that its newest one does not know.

    Args:
      folder: the model folder; made where it is missing.
      patterns: data files or globs, .npz with images, labels and perhaps class_names (`wsjax.data.read_images`).
        Files of earlier calls are read again, whether or not a pattern names them.
      recipe: how to train.
      say: takes a line for every decision that the user should know of.
      observe: called with every epoch's rows.

    Returns:
      The new model's lineage, also where a killed call had trained it; None where nothing is new.

    Raises:
      RunError: another process works in the folder, its model is of another architecture or cannot be read.
      DataError: there is no image to train on, or none is held out.
    """
    folder = Path(folder)
    with hold(folder):
        settled = _settle(folder)
        newest, parent = _newest(folder), _current(folder)
        known = lineage_of(folder, newest) if newest else None
        base = None if parent is None else lineage_of(folder, parent)
        if base is not None:
            _check_same(folder, base["settings"], recipe)
        files = known["files"] if known else ()
        pool = read_pool(patterns, files, base, recipe.holdout, say, recipe.max_gigabytes)
        if pool is None or (newest and not np.setdiff1d(pool.samples, _samples(folder, newest)).size):
            return settled
        number = max(newest, _place(folder)["decided"]) + 1
        part = _model_folder(folder, number).with_suffix(".part")
        old = None if parent is None else load_model(folder, recipe.make_task, parent)
        lineage = _train(part, number, old, pool, recipe, known, say, observe)
        for used in ("checkpoints", "scratch"):
            shutil.rmtree(part / used, ignore_errors=True)
        (part / LOCK).unlink(missing_ok=True)
        part.rename(_model_folder(folder, number))
        _settle(folder)
        return lineage


def roll_back(folder: Path | str) -> tuple[int, int]:
    """Makes the current model's parent current; returns both numbers, from and to. Raises RunError without a parent."""
    folder = Path(folder)
    if not (folder / CURRENT).exists():
        raise RunError(f"{folder} has no model to roll back")
    with hold(folder):
        _settle(folder)
        current = _current(folder)
        parent = None if current is None else lineage_of(folder, current)["parent"]
        if current is None or parent is None:
            raise RunError(f"{folder}: model {current} has no parent to roll back to")
        write_json(folder / CURRENT, {"current": parent, "decided": _place(folder)["decided"]})
        return current, parent


def load_model(folder: Path | str, make_task: MakeTask, number: int | None = None) -> Model:
    """Loads a model of a folder, by default the current one. Raises RunError where there is none, or it is damaged."""
    lineage = lineage_of(folder, number)
    task = make_task(len(lineage["class_names"]), tuple(lineage["image_shape"]), lineage["mean"], lineage["std"], None)
    template = jax.jit(lambda key: init_state(task, optax.identity(), key))(jax.random.key(0))
    template = template._replace(opt_state=())
    place = _model_folder(Path(folder), lineage["model"]) / PARAMETERS
    found = None
    if place.is_dir():
        with contextlib.suppress(checkpoint.UnreadableError), checkpoint.open_folder(place) as saved:
            found = checkpoint.restore(saved, lambda step: template)
    if found is None:
        raise RunError(
            f"model {lineage['model']} in {place} cannot be read; restore it from a copy, or go back one: --rollback"
        )
    return Model(task, found[1], lineage)


def lineage_of(folder: Path | str, number: int | None = None) -> dict[str, Any]:
    """What a model's folder tells of it, by default the current one's: parent, data files, settings, metrics."""
    number = number or _current(Path(folder))
    if number is None:
        raise RunError(f"{folder} has no model yet")
    path = _model_folder(Path(folder), number) / LINEAGE
    lineage = read_json(path)
    if not {"settings", "files", "class_names", "promoted"} <= set(lineage):
        raise RunError(f"{path} is damaged; restore it, or remove models/{number:04d}")
    return lineage


def start_from(old: Any, fresh: Any, shrink: float, perturb: float) -> Any:
    """Shrink-perturb of old parameters within fresh ones that may be larger: new classes' units stay newly drawn."""
    corner = jax.tree.map(lambda fresh, old: fresh[tuple(map(slice, old.shape))], fresh, old)
    mixed = shrink_perturb(old, corner, shrink, perturb)
    return jax.tree.map(lambda fresh, new: fresh.at[tuple(map(slice, new.shape))].set(new), fresh, mixed)


def _train(
    part: Path,
    number: int,
    parent: Model | None,
    pool: Pool,
    recipe: Recipe,
    known: Mapping[str, Any] | None,
    say: Callable[[str], None],
    observe: Observer | None,
) -> dict[str, Any]:
    """Trains model `number` in its unfinished folder, as far as it has not been, and returns its lineage."""
    shape = pool.train[0].shape[1:]
    mean, std = (known["mean"], known["std"]) if known else channel_statistics(pool.train[0])
    make_task = partial(recipe.make_task, len(pool.class_names), shape, mean, std)
    task, split_task = make_task(None), make_task(parallel.axis_of(recipe.mesh))
    settings = recipe.settings._replace(evaluate="round")
    setup = Setup(task, recipe.optimizer, pool.train, pool.held_out, recipe.batch_size)
    start = None
    if parent is not None:
        fresh, _ = jax.jit(task.init)(jax.random.key(recipe.seed + number))
        params = start_from(parent.state.params, fresh, recipe.shrink, recipe.perturb)
        start = params, parent.state.batch_stats

    def run(folder: Path, start: Any, **key: Any) -> tuple[TrainState, Row]:
        with _open_part(folder, key, say) as records:
            result = run_rounds(
                setup._replace(task=split_task), [Round(len(pool.train[1]), recipe.stop)], {},
                [recipe.seed + number], settings=settings, start=start, mesh=recipe.mesh,
                records=records, checkpoints=folder / "checkpoints", observe=observe,
            )  # fmt: skip
            (end,) = round_ends(result.rows)
            state = result.states[FIRST, recipe.seed + number]._replace(opt_state=())
            return _with_own_statistics(setup, state), end

    what = {"samples": _hash(pool.samples), **recipe.describe, "seed": recipe.seed, "holdout": recipe.holdout}
    how = {"parent": parent and parent.lineage["model"], "shrink": recipe.shrink, "perturb": recipe.perturb}
    state, end = run(part, start, **what, **how)
    score = partial(_scores, data=pool.held_out, batch_size=recipe.batch_size)
    scores = score(task, state)
    before = None if parent is None else score(parent.task, parent.state)
    cost = _cost(number, pool, scores, end)
    scratch = known["scratch"] if known else cost
    if recipe.compare_scratch and parent is not None:
        try:
            other, other_end = run(part / "scratch", None, **what)
            scratch = _cost(number, pool, score(task, other), other_end)
        except NonFiniteLoss as error:  # that is no fault of the new model
            say(f"from scratch: {error}")

    lineage = {
        "model": number,
        "parent": how["parent"],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "promoted": before is None or bool(scores.mean() >= before.mean() - recipe.tolerance),
        "before": None if before is None else float(before.mean()),
        "metrics": cost,
        "change": None if before is None else _change(before, scores),
        "scratch": scratch,
        "settings": {**recipe.describe, **how, "seed": recipe.seed, "holdout": recipe.holdout},
        "class_names": pool.class_names,
        "image_shape": shape,
        "mean": mean,
        "std": std,
        "files": pool.files,
    }
    with contextlib.closing(checkpoint.open_folder(part / PARAMETERS)) as saved:
        checkpoint.save(saved, number, state)
    np.save(part / SAMPLES, pool.samples)
    write_json(part / LINEAGE, lineage)
    return lineage


def _model_folder(folder: Path, number: int) -> Path:
    return folder / "models" / f"{number:04d}"


def _newest(folder: Path) -> int:
    """The number of the newest finished model, 0 where there is none."""
    names = (path.name for path in (folder / "models").glob("*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _place(folder: Path) -> dict[str, Any]:
    """Which model is current (None where there is none), and up to which number that is decided."""
    path = folder / CURRENT
    if not path.exists():
        return {"current": None, "decided": 0}
    place = read_json(path)
    if not {"current", "decided"} <= set(place):
        raise RunError(f"{path} is damaged; remove it, and the newest model that was promoted is current")
    return place


def _current(folder: Path) -> int | None:
    """The number of the current model, None where there is none."""
    return _place(folder)["current"]


def _settle(folder: Path) -> dict[str, Any] | None:
    """Carries out the decisions that a killed call left open; returns the newest such model's lineage, if any."""
    place, settled = _place(folder), None
    for number in range(place["decided"] + 1, _newest(folder) + 1):
        if (_model_folder(folder, number) / LINEAGE).exists():
            settled = lineage_of(folder, number)
            current = number if settled["promoted"] else place["current"]
            place = {"current": current, "decided": number}
    if settled is not None:
        write_json(folder / CURRENT, place)
    return settled


def _samples(folder: Path, number: int) -> np.ndarray:
    """The hashes of the images and labels that a model has seen."""
    path = _model_folder(folder, number) / SAMPLES
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path} cannot be read ({error}); restore it, or remove models/{number:04d}") from error


def _check_same(folder: Path, settings: Mapping[str, Any], recipe: Recipe) -> None:
    """Checks what must not change: parameters would not fit, or images that a model knows would be held out."""
    here = json.loads(json.dumps(recipe.describe.get("architecture")))
    if settings.get("architecture") != here:
        there = settings.get("architecture")
        raise RunError(
            f"{folder} holds a model of another architecture ({there} there, {here} here); name a new folder"
        )
    if settings["holdout"] != recipe.holdout:
        held = settings["holdout"]
        raise RunError(f"{folder} was begun with --holdout={held:g}, which must stay, not {recipe.holdout:g}")


@contextlib.contextmanager
def _open_part(folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]) -> Iterator[Records]:
    """Opens an unfinished model's folder, or clears it first if it was for other data or settings."""
    settings = json.loads(json.dumps(settings))
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    if folder.exists() and config.get("config") != settings:
        if config:
            say(f"what {folder} holds was for other data or settings: it starts anew")
        shutil.rmtree(folder)
    with open_run(folder, settings, about_run("retrain", parallel.device_names())) as records:
        yield records


def _with_own_statistics(setup: Setup, state: TrainState) -> TrainState:
    """The state with BatchNorm statistics under its own parameters: after a short round the running ones lag behind."""
    if not jax.tree.leaves(state.batch_stats):
        return state
    measure = jax.jit(lambda state, train: reestimated(setup._replace(train=train), state, all_samples(train)))
    return measure(state, jax.tree.map(jnp.asarray, setup.train))


def _scores(task: Task, state: TrainState, data: Data, batch_size: int) -> np.ndarray:
    """Each sample's score [N]. A class that the task does not know is never right."""
    setup = Setup(task, optax.identity(), data, data, batch_size)
    score = jax.jit(lambda state, test: score_each(setup._replace(test=test), state))
    return np.asarray(score(state, jax.tree.map(jnp.asarray, data)))


def _change(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """The change in accuracy on the same samples, with its standard error: paired, so that common luck cancels."""
    difference = after - before
    error = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return {"mean": float(difference.mean()), "standard_error": float(error)}


def _cost(number: int, pool: Pool, scores: np.ndarray, end: Row) -> dict[str, Any]:
    """What a training reached and took."""
    took = {name: end[name] for name in ("epochs", "steps", "samples_seen", "train_seconds", "train_accuracy", "stop")}
    sizes = {"train_images": len(pool.train[1]), "held_out_images": len(pool.held_out[1])}
    return {"model": number, **sizes, "accuracy": float(scores.mean()), **took}


def _hash(samples: np.ndarray) -> str:
    return hashlib.sha256(samples.tobytes()).hexdigest()

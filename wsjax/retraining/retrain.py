"""A model that is retrained whenever data come in: what a scheduled job calls.

A call reads all data files, known ones and new ones, trains from the current model's parameters, by default shrunk and
perturbed, and makes the new model current unless it got worse. Nothing is ever trained on a held-out image: whether an
image is held out is decided by a hash of its content, so that it stays so as data grow. `shelf` keeps the models,
`methods` makes their parameters ready.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsjax import parallel
from wsjax.data.datasets import channel_statistics
from wsjax.data.sources import listed
from wsjax.errors import DataError, NonFiniteLoss, RunError, printable
from wsjax.retraining import leftovers, methods, places, shelf
from wsjax.retraining.incoming import Pool, left_out, read_pool, samples_as
from wsjax.retraining.lineage import SCRATCH
from wsjax.retraining.recipe import Recipe
from wsjax.retraining.shelf import Model
from wsjax.rounds.journal import Observer
from wsjax.rounds.legs import Round, Settings
from wsjax.rounds.loop import run_rounds
from wsjax.storage import checkpoint
from wsjax.storage.about import about_run
from wsjax.storage.files import read_json
from wsjax.storage.lock import hold
from wsjax.storage.records import CONFIG, Records, differing, open_run
from wsjax.storage.rows import CAP, FIRST, Row, round_ends
from wsjax.training.statistics import reestimated
from wsjax.training.train import Setup, TrainState, all_samples, options_to_draw, score_each


class Job(NamedTuple):
    """The training of one model: its number, what it starts from, what it trains on, and how."""

    part: Path
    number: int
    parent: Model | None
    known: Mapping[str, Any] | None
    pool: Pool
    recipe: Recipe
    say: Callable[[str], None]
    observe: Observer | None


def retrain(
    folder: Path | str,
    patterns: Sequence[str | os.PathLike[str]],
    recipe: Recipe,
    *,
    say: Callable[[str], None] = print,
    observe: Observer | None = None,
) -> dict[str, Any] | None:
    """Trains the next model of a folder, where there are images or labels that its newest one does not know.

    With `recipe.again` it trains one also where there are none, but for a call that only settles what a stopped one
    had trained.

    Args:
      folder: the model folder; made where it is missing.
      patterns: data files or globs, .npz with images, labels and perhaps class_names (`datasets.read_images`), or
        folders of images (`folders.read_labelled`). Files of earlier calls are read again, whether or not a pattern
        names them.
      recipe: how to train.
      say: takes a line for every decision that the user should know of.
      observe: called with every epoch's rows.

    Returns:
      The new model's lineage, also where a killed call had trained it; None where nothing is new.

    Raises:
      LeftOut: nothing is new, but something was given that could not be used.
      RunError: another process works in the folder, it cannot be written, its model is of another architecture or
        cannot be read.
      DataError: there is no image to train on, or none is held out; with `recipe.again` also where all known are gone.
    """
    folder = shelf.expanded(folder)
    patterns = [os.fspath(pattern) for pattern in ([patterns] if isinstance(patterns, str | os.PathLike) else patterns)]
    # Read before the folder is made: a call that cannot work leaves none.
    limits = recipe.max_gigabytes, recipe.image_size
    first = None if folder.exists() else read_pool(patterns, (), None, recipe.holdout, say, *limits)
    with hold(folder):
        leftovers.remove(folder)
        settled = shelf.settle(folder)
        if settled is not None:
            outcome = "is current" if settled["promoted"] else "is kept aside: it is worse than its parent"
            say(f"model {settled['model']}, which a stopped call had trained, {outcome}")
        current, decided = shelf.read_standing(folder)
        base = None if current is None else shelf.lineage_of(folder, current)
        if base is not None:
            _check_same(folder, base["settings"], recipe)
        known, samples = shelf.newest(folder, current, say) or (None, np.empty(0, np.uint64))
        pool = None if known else first
        files = places.known_files(folder, known, say) if known else ()
        pool = pool or read_pool(patterns, files, base, recipe.holdout, say, *limits)
        if pool is None and recipe.again and settled is None:
            way_out = "bring them back, or give others with --data"
            raise DataError(f"there is no image to train on again: every file that models know is gone; {way_out}")
        if pool and known:  # a file that moved is known at its new place, also where nothing is trained
            places.keep(folder, known["model"], files, pool.files)
        is_new = not known or (pool is not None and _has_more(pool, known, samples))
        if pool is None or not (is_new or (recipe.again and settled is None)):
            if settled is None and pool is not None and pool.unused:
                raise left_out(pool.unused)
            return settled
        if base is not None and (new_classes := pool.class_names[len(base["class_names"]) :]):
            say(printable(f"new classes: {listed(new_classes)}"))
        number = max([decided, *shelf.numbers(folder)]) + 1
        part = shelf.part_folder(folder, number)
        parent = None if current is None else shelf.load_model(folder, recipe.make_task, current)
        state, lineage = _train(Job(part, number, parent, known, pool, recipe, say, observe))
        lineage = shelf.store(part, lineage, state, pool.samples)
        shelf.finish(folder, number)
        return lineage


def _train(job: Job) -> tuple[TrainState, dict[str, Any]]:
    """Trains a model in its unfinished folder, as far as it has not been; returns its state and its lineage."""
    number, parent, known, pool, recipe = job.number, job.parent, job.known, job.pool, job.recipe
    shape = pool.train[0].shape[1:]
    mean, std = (known["mean"], known["std"]) if known else channel_statistics(pool.train[0])
    make_task = partial(recipe.make_task, len(pool.class_names), shape, mean, std)
    setup = Setup(make_task(None), recipe.optimizer, pool.train, pool.held_out, recipe.batch_size, fit=recipe.fit)
    split = setup._replace(task=make_task(parallel.axis_of(recipe.mesh)))
    start, own, how = None, split, {"parent": parent and parent.lineage["model"], **methods.factors(recipe)}
    if parent is not None:
        fresh, _ = jax.jit(setup.task.init, compiler_options=options_to_draw())(jax.random.key(recipe.seed + number))
        start = methods.begun(recipe, setup, parent.state, fresh)
        if recipe.later is not None:
            how["learning_rate"], optimizer = recipe.later
            own = split._replace(optimizer=optimizer)
    settings = {**recipe.describe, "seed": recipe.seed, "holdout": recipe.holdout}
    # All that decides the result: what a killed call left is gone on with only where all of it is the same.
    key = {"samples": _hash(pool.samples), **settings, "classes": len(pool.class_names), "mean": mean, "std": std}
    origin = {**how, "parent_state": parent and checkpoint.digest(parent.state)}

    state, end = _run(job, job.part, own, start, {**key, **origin})
    state = _with_own_statistics(setup, state)
    scores = _scores(setup, state)
    before = None if parent is None else _scores(setup._replace(task=parent.task), parent.state)
    change, cost = None if before is None else _change(before, scores), _cost(job, scores, end)
    from_scratch = parent is None or (recipe.method == SCRATCH and recipe.later is None)
    scratch = cost if from_scratch or known is None else known["scratch"]
    if recipe.compare_scratch and not from_scratch:
        try:
            other, other_end = _run(job, job.part / shelf.SCRATCH, split, None, key)
            scratch = _cost(job, _scores(setup, _with_own_statistics(setup, other)), other_end)
        except NonFiniteLoss as error:  # that is no fault of the new model
            job.say(f"from scratch: {error}")

    return state, {
        "model": number,
        "parent": how["parent"],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "promoted": change is None or change["mean"] >= -recipe.tolerance,
        "before": None if before is None else float(before.mean()),
        "metrics": cost,
        "change": change,
        "scratch": scratch,
        "settings": {**settings, **how, "tolerance": recipe.tolerance},
        "class_names": pool.class_names,
        "image_shape": shape,
        "mean": mean,
        "std": std,
        "files": pool.files,
    }


def _run(job: Job, folder: Path, setup: Setup, start: Any, key: Mapping[str, Any]) -> tuple[TrainState, Row]:
    """Trains in a folder from a start, None for a new network, until it stops; returns the state and the last row."""
    seed, recipe = job.recipe.seed + job.number, job.recipe
    with _open_part(folder, key, job.say) as records:
        result = run_rounds(
            setup, [Round(len(setup.train[1]), recipe.stop)], {}, [seed],
            settings=Settings("round", recipe.checkpoint_every), initial=start, mesh=recipe.mesh,
            records=records, checkpoints=folder / shelf.CHECKPOINTS, observe=job.observe,
        )  # fmt: skip
        (end,) = round_ends(result.rows)
        return result.states[FIRST, seed]._replace(opt_state=()), end


def _check_same(folder: Path, settings: Mapping[str, Any], recipe: Recipe) -> None:
    """Checks what must not change: parameters would not fit, or images that a model knows would be held out."""
    there, here = settings.get("architecture"), json.loads(json.dumps(recipe.describe.get("architecture")))
    pairs: Any = {"architecture": (there, here)} if there != here else {}
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = differing(there, here)
    if pairs:
        words = "; ".join(f"{name} {one} there, {other} here" for name, (one, other) in pairs.items())
        way_out = "give the same, or leave its flags out, or name a new folder"
        raise RunError(f"{folder} holds a model of another architecture ({words}); {way_out}")
    if settings["holdout"] != recipe.holdout:
        held = settings["holdout"]
        raise RunError(f"{folder} was begun with --holdout={held:g}, which must stay, not {recipe.holdout:g}")


def _has_more(pool: Pool, known: Mapping[str, Any], samples: np.ndarray) -> bool:
    """Whether there are images or labels that the newest model, `known`, does not know."""
    # The pool goes on from the current model's classes, which another call may have numbered otherwise since.
    return np.setdiff1d(samples_as(pool, known["class_names"]), samples).size > 0


def _is_part_of(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether settings are those stored, by an older version perhaps, which had fewer of them.

    How often a checkpoint is written decides nothing.
    """
    stored, settings = ({name: own[name] for name in own if name != "checkpoint_every"} for own in (stored, settings))
    there, here = (own.get("architecture") for own in (stored, settings))
    if isinstance(there, dict) and isinstance(here, dict) and not differing(there, here):
        stored = {**stored, "architecture": here}
    return stored.items() <= settings.items()


@contextlib.contextmanager
def _open_part(folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]) -> Iterator[Records]:
    """Opens an unfinished model's folder, or clears it first if it was for other data or settings."""
    settings, stored = json.loads(json.dumps(settings)), None
    if (folder / CONFIG).exists():
        try:
            stored = read_json(folder / CONFIG).get("config")
        except RunError as error:
            say(str(error))
    if stored and isinstance(stored, dict) and _is_part_of(stored, settings):
        settings = stored  # of what an older version did not write down nothing is known
    elif os.path.lexists(folder):
        if (folder / CONFIG).exists():
            say(f"what {folder} holds was for other data or settings: it starts anew")
        shelf.clear(folder)
    with open_run(folder, settings, about_run("retrain", parallel.device_names())) as records:
        yield records


def _with_own_statistics(setup: Setup, state: TrainState) -> TrainState:
    """The state with BatchNorm statistics of its own parameters, of all that it trained on."""
    measure = jax.jit(lambda state, train: reestimated(setup._replace(train=train), state, all_samples(train)))
    return measure(state, jax.tree.map(jnp.asarray, setup.train))


def _scores(setup: Setup, state: TrainState) -> np.ndarray:
    """Each held-out sample's score [N]. A class that the task does not know is never right.

    In float64, where a change of k in n samples is the same number as a tolerance that is written so.
    """
    score = jax.jit(lambda state, test: score_each(setup._replace(test=test), state))
    return np.asarray(score(state, jax.tree.map(jnp.asarray, setup.test)), np.float64)


def _change(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """The change in accuracy on the same samples, with its standard error: paired, so that common luck cancels."""
    difference = after - before
    error = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return {"mean": float(difference.mean()), "standard_error": float(error)}


def _cost(job: Job, scores: np.ndarray, end: Row) -> dict[str, Any]:
    """What a training reached and took, and whether the cap on its epochs ended it, which a length asked for is not."""
    took = {name: end[name] for name in ("epochs", "steps", "samples_seen", "train_seconds", "train_accuracy", "stop")}
    sizes = {"train_images": len(job.pool.train[1]), "held_out_images": len(job.pool.held_out[1])}
    capped = end["stop"] == CAP and set(job.recipe.describe.get("stop", ())) != {CAP}
    return {"model": job.number, **sizes, "accuracy": float(scores.mean()), **took, "capped": capped}


def _hash(samples: np.ndarray) -> str:
    return hashlib.sha256(samples.tobytes()).hexdigest()

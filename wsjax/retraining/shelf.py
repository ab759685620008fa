"""The folder of a retrained model: every model there was, and which of them is current.

    MODEL/current.json          {"current": 3, "decided": 4}
    MODEL/places.json           where data files are that moved (`places`)
    MODEL/models/0003/          lineage.json, config.json and records.jsonl (a row an epoch) of its training,
                                samples.npy, parameters/ (Orbax)
    MODEL/models/0004.part/     one that is being trained

A model is never changed once it has its number, and never removed. `decided` is the newest model of which it is decided
whether it becomes current; what a killed call left open is settled by the next one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wsjax import parallel
from wsjax.checks import is_whole
from wsjax.errors import DataError, RunError, UsageError
from wsjax.retraining import leftovers
from wsjax.retraining.lineage import CURRENT, LINEAGE, SAMPLES, fault, model_folder
from wsjax.storage import checkpoint
from wsjax.storage.files import read_json, replacing, user_path, write_json
from wsjax.storage.lock import LOCK, hold
from wsjax.storage.records import CONFIG, DROPPED, RECORDS
from wsjax.training.task import Task
from wsjax.training.train import TrainState, init_state

PARAMETERS = "parameters"
CHECKPOINTS, SCRATCH = "checkpoints", "scratch"
IMAGES_AT_ONCE = 512
"""How many images a model looks at in one piece: a bound on memory."""

RESTORE = "restore it from a copy"

_NAME = re.compile("[0-9]{4,9}")
_MOST = 10**9 - 1

MakeTask = Callable[[int, tuple[int, ...], Sequence[float], Sequence[float], str | None], Task]
"""`(num_classes, image_shape, mean, std, axis_name) -> Task`, whose batch statistics are taken over that axis too."""


class Standing(NamedTuple):
    """What current.json says: the current model, None where there is none, and up to which one that is decided."""

    current: int | None
    decided: int


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A trained model: a function of images, which may be jitted.

    Attributes:
      task: its task.
      state: its parameters and batch statistics; the optimiser's state is empty.
      lineage: what its lineage.json tells: where it comes from, its settings and metrics.
    """

    task: Task
    state: TrainState
    lineage: dict[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in the order of the logits; a number where none was given."""
        return tuple(self.lineage["class_names"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images that it takes."""
        height, width, channels = self.lineage["image_shape"]
        return height, width, channels

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.image_shape))
        return f"<wsjax model {self.lineage['model']}: uint8 [N, {shape}] to {len(self.class_names)} classes>"

    def __call__(self, images: Any) -> jax.Array:
        """The outputs [N, ...] for images as the model was trained on: uint8 [N, height, width, channels].

        Raises DataError for others.
        """
        images = _as_trained_on(images, self.lineage)
        if not len(images):  # of which not every model makes something: what one image gives, less that
            one = np.zeros((1, *images.shape[1:]), np.uint8)
            return jax.tree.map(lambda output: output[:0], self._outputs(one))
        starts = range(0, len(images), IMAGES_AT_ONCE)
        outputs = [self._outputs(images[start : start + IMAGES_AT_ONCE]) for start in starts]
        return outputs[0] if len(outputs) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)

    def _outputs(self, images: Any) -> jax.Array:
        weights = jnp.ones(len(images))
        return self.task.apply(self.state.params, self.state.batch_stats, jnp.asarray(images), weights, False, None)[0]


def load_model(folder: Path | str, make_task: MakeTask, number: int | None = None) -> Model:
    """Loads a model of a folder, by default the current one. Raises RunError where there is none, or it is damaged."""
    folder = expanded(folder)
    lineage = lineage_of(folder, number)
    number = int(lineage["model"])
    task = make_task(len(lineage["class_names"]), tuple(lineage["image_shape"]), lineage["mean"], lineage["std"], None)
    shapes = jax.eval_shape(lambda key: init_state(task, optax.identity(), key), jax.random.key(0))
    template = parallel.placed(shapes._replace(opt_state=()), None)
    place = model_folder(folder, number) / PARAMETERS
    found = None
    with contextlib.suppress(RunError), checkpoint.Folder(place) as saved:
        found = checkpoint.restore(saved, lambda step: template, lambda step: step == number)
    if found is None:
        raise RunError(f"model {number} cannot be loaded from {place}; {_way_out(folder, number)}")
    return Model(task, found[1], lineage)


def lineage_of(folder: Path | str, number: int | None = None) -> dict[str, Any]:
    """What a model's folder tells of it, by default the current one's: parent, data files, settings, metrics.

    Raises RunError where there is no such model, or a field of its lineage is not what it must be, UsageError where
    `number` is none.
    """
    folder = _present(folder)
    if number is None:
        number = read_standing(folder).current
        if number is None:
            raise RunError(f"{folder} has no model yet")
    taken = numbers(folder)
    if not is_whole(number):
        raise UsageError(f"a model is named by its number, such as {taken[-1] if taken else 1}, not by {number!r:.40}")
    if number not in taken:
        there = ", ".join(map(str, taken[-8:])) or "none"
        if taken and not 1 <= number <= taken[-1]:  # no copy has it
            raise RunError(f"{folder} has no model {number}; name one that there is: {there}")
        raise RunError(f"{folder} has no model {number}, only {there}; {_way_out(folder, number)}")
    path = model_folder(folder, number) / LINEAGE
    lineage = _read(path, folder, number)
    if wrong := fault(lineage, number):
        raise RunError(f"{path} is damaged: {wrong}; {_way_out(folder, number)}")
    return lineage


def roll_back(
    folder: Path | str, load: Callable[[Path, int], Any], number: int | None = None
) -> tuple[int | None, int]:
    """Makes another model current.

    Args:
      folder: the model folder.
      load: loads a model by its folder and number, or raises RunError: only such a model becomes current.
      number: that model; by default the current one's parent.

    Returns:
      The numbers of the model that was current, None where current.json did not tell, and of the one that is.

    Raises:
      RunError: there is no such model, it cannot be loaded, or it is current already.
    """
    folder = _present(folder)
    if not numbers(folder):
        raise RunError(f"{folder} has no model to roll back")
    with hold(folder):
        leftovers.remove(folder)
        try:
            settle(folder)
            current, decided = read_standing(folder)
        except RunError:
            if number is None:
                raise
            current, decided = None, numbers(folder)[-1]
        if number is None:
            number = lineage_of(folder, current)["parent"]
            if number is None:
                raise RunError(f"{folder}: model {current} has no parent to roll back to")
        if number == current:
            raise RunError(f"{folder}: model {current} is current already")
        try:
            load(folder, number)
        except RunError as error:
            raise RunError(f"{error} (model {current} stays current)") from error
        _write_standing(folder, Standing(number, decided))
        return current, number


def expanded(folder: Path | str) -> Path:
    """The folder, in the user's home where it begins with ~. Raises UsageError where it can be no folder."""
    if not isinstance(folder, str | os.PathLike):
        raise UsageError(f"a folder of models is named by its path, not by {folder!r:.40}")
    folder = user_path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the models")
    return folder


def _present(folder: Path | str) -> Path:
    """The folder, as `expanded`. Raises RunError where there is none."""
    folder = expanded(folder)
    if not folder.exists():
        raise RunError(f"there is no folder {folder}; name one that wsjax retrain has made")
    return folder


def numbers(folder: Path) -> list[int]:
    """The numbers that are taken, in order: of models that are finished, whether or not they can be read."""
    names = (path.name for path in (folder / "models").glob("*"))
    return sorted(int(name) for name in names if _NAME.fullmatch(name) and f"{int(name):04d}" == name)


def part_folder(folder: Path, number: int) -> Path:
    """Where model `number` is while it is being trained."""
    return model_folder(folder, number).with_suffix(".part")


def read_standing(folder: Path) -> Standing:
    """Reads current.json. Raises RunError where it does not fit the models that there are."""
    path, taken = folder / CURRENT, numbers(folder)
    if not path.exists():
        return Standing(None, 0)
    values = _read(path, folder)
    current, decided = values.get("current"), values.get("decided")
    if current is not None and (type(current) is not int or current not in taken):
        raise RunError(f"{path}: current is {current!r:.60}, which is no model; {_way_out(folder)}")
    if type(decided) is not int or not (current or 0) <= decided < _MOST:
        least = f"a whole number from {current or 0} on"
        raise RunError(f"{path}: decided is {decided!r:.60}, not {least}; {_way_out(folder)}")
    return Standing(current, decided)


def _read(path: Path, folder: Path, number: int | None = None) -> dict[str, Any]:
    """Reads a JSON file of a model folder. Raises RunError, which says the way out."""
    try:
        return read_json(path)
    except RunError as error:
        raise RunError(f"{str(error).removesuffix(f'; {RESTORE}')}; {_way_out(folder, number)}") from error


def settle(folder: Path) -> dict[str, Any] | None:
    """Carries out the decisions that a killed call left open; returns the newest such model's lineage, if any.

    A model that cannot be read waits: nothing depends on it yet.
    """
    standing, settled = read_standing(folder), None
    for number in numbers(folder):
        if number > standing.decided:
            with contextlib.suppress(RunError):
                settled = lineage_of(folder, number)
                _clear_up(model_folder(folder, number))
                standing = Standing(number if settled["promoted"] else standing.current, number)
    if settled is not None:
        _write_standing(folder, standing)
    return settled


def newest(folder: Path, current: int | None, say: Callable[[str], None]) -> tuple[dict[str, Any], np.ndarray] | None:
    """The lineage of the newest model, and the hashes [N] of the images and labels that it knows; None without a model.

    A newer one than the current that cannot be read is told and passed over: nothing depends on it.
    """
    for number in reversed(numbers(folder)):
        try:
            lineage = lineage_of(folder, number)
            return lineage, _samples(folder, lineage)
        except RunError as error:
            if number == current:
                raise
            say(f"model {number} is passed over: {error}")
    return None


def store(part: Path, lineage: Mapping[str, Any], state: TrainState, samples: np.ndarray) -> dict[str, Any]:
    """Writes a trained model into its unfinished folder, what tells of it last; returns its lineage.

    Args:
      part: the unfinished folder.
      lineage: what is to be told of the model, but for a digest of its samples.
      state: its state; the optimiser's is empty.
      samples: uint64 [N], sorted: a hash of each image with its label.
    """
    file = io.BytesIO()
    np.save(file, samples)
    content = file.getvalue()
    lineage = {**lineage, "samples": hashlib.sha256(content).hexdigest()}
    with _written(part):
        with checkpoint.Folder(part / PARAMETERS) as saved:
            checkpoint.save(saved, lineage["model"], state)
        with replacing(part / SAMPLES) as (place,):
            place.write_bytes(content)
        write_json(part / LINEAGE, lineage)
    return lineage


def finish(folder: Path, number: int) -> None:
    """Gives a stored model its number, and makes it current if it is promoted."""
    with _written(folder):
        part_folder(folder, number).rename(model_folder(folder, number))
    settle(folder)


def clear(part: Path) -> None:
    """Removes what a training that is not gone on with left. Raises RunError where anything else is there."""
    if part.is_symlink() or not part.is_dir():
        raise RunError(f"{part} is no folder that a training left; move it away")
    own = "|".join(
        map(re.escape, (CONFIG, RECORDS, RECORDS + DROPPED, LINEAGE, SAMPLES, PARAMETERS, CHECKPOINTS, SCRATCH, LOCK))
    )
    half_written = rf"\.({own})\..*\.part"
    strange = [path.name for path in part.iterdir() if not re.fullmatch(f"{own}|{half_written}", path.name)]
    if strange:
        raise RunError(f"{part} holds {min(strange)}, which no training left; move it away")
    with _written(part):
        shutil.rmtree(part)


def _clear_up(model: Path) -> None:
    """Removes what a finished model does not need; a symbolic link is let be."""
    for name in (CHECKPOINTS, SCRATCH):
        shutil.rmtree(model / name, ignore_errors=True)
    (model / LOCK).unlink(missing_ok=True)


def _write_standing(folder: Path, standing: Standing) -> None:
    with _written(folder):
        write_json(folder / CURRENT, standing._asdict())


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Says in one line what the system refused; what was finished before stays."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"cannot write in {folder}: {reason}; once that is mended, the same command goes on") from error


def _samples(folder: Path, lineage: Mapping[str, Any]) -> np.ndarray:
    """The hashes of the images and labels that a model knows, uint64 [N]."""
    path = model_folder(folder, lineage["model"]) / SAMPLES
    try:
        content = path.read_bytes()
        if lineage.get("samples") not in (None, hashlib.sha256(content).hexdigest()):
            raise ValueError("it is not what was written")
        samples = np.load(io.BytesIO(content), allow_pickle=False)
        if not isinstance(samples, np.ndarray) or samples.dtype != np.uint64 or samples.ndim != 1:
            raise ValueError("it holds no list of hashes")
    except MemoryError:
        raise
    except Exception as error:  # NumPy reports a damaged file in many types
        raise RunError(f"{path} cannot be read ({error}); {_way_out(folder, lineage['model'])}") from error
    return samples


def _way_out(folder: Path, number: int | None = None) -> str:
    """What to do where a model, or current.json, cannot be used: nothing that leads to no model at all."""
    current = None
    with contextlib.suppress(RunError):
        current = read_json(folder / CURRENT).get("current")
    others = [str(other) for other in numbers(folder) if other not in (number, current)]
    if others:
        return f"{RESTORE}; else make another model current: --rollback_to=N, of {', '.join(others[-8:])}"
    return f"{RESTORE}; else begin in a new folder" if current in (None, number) else RESTORE


def _as_trained_on(images: Any, lineage: Mapping[str, Any]) -> Any:
    """The images as an array, which must be as the model was trained on."""
    shape = ", ".join(map(str, lineage["image_shape"]))
    wanted = f"model {lineage['model']} takes images as it was trained on, uint8 [N, {shape}]"
    if not isinstance(images, jax.Array):
        try:
            images = np.asarray(images)
        except ValueError as error:
            raise DataError(f"{wanted}, not a list of several sizes") from error
    if images.dtype != np.uint8 or images.shape[1:] != tuple(lineage["image_shape"]):
        hint = ""
        if images.shape == tuple(lineage["image_shape"]):
            hint = "; give one image as images[None]"
        elif images.dtype != np.uint8:
            hint = "; its pixels are from 0 to 255"
        raise DataError(f"{wanted}, not {images.dtype} {list(images.shape)}{hint}")
    return images

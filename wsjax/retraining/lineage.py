"""What a lineage.json tells of a model, and must tell for others to go on from it. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wsjax.storage.files import read_json

CURRENT, LINEAGE, SAMPLES = "current.json", "lineage.json", "samples.npy"
SHRINK_PERTURB, SCRATCH = "shrink-perturb", "scratch"
METHODS = (SHRINK_PERTURB, "continue", SCRATCH, "dash", "fire")
"""What a model that has a parent may begin with; lineages that name none have the first."""
FACTORS = {SHRINK_PERTURB: ("shrink", "perturb"), "dash": ("dash_shrink",), "fire": ("fire_steps",)}
"""The settings that one method alone looks at, by the method."""

Check = Callable[[str, Any], str | None]
"""`(name, value) -> what is wrong`, None where nothing is."""


def model_folder(folder: Path, number: int) -> Path:
    """Where model `number` is."""
    return folder / "models" / f"{number:04d}"


def current_settings(folder: Path) -> dict[str, Any]:
    """The settings that a folder's current model was trained with; none where there is no such model.

    They are unchecked. Raises RunError where a file cannot be read.
    """
    current = read_json(folder / CURRENT, missing={}).get("current")
    if type(current) is not int:
        return {}
    settings = read_json(model_folder(folder, current) / LINEAGE).get("settings")
    return settings if isinstance(settings, dict) else {}


def fault(lineage: Mapping[str, Any], number: int) -> str | None:
    """Says of the lineage of model `number` which field is not what it must be; None where all are."""
    cost = _record(
        model=_count(1, number),
        train_images=_count(1),
        held_out_images=_count(1),
        accuracy=_NUMBER,
        epochs=_count(1),
        steps=_count(1),
        train_seconds=_NUMBER,
        train_accuracy=_NUMBER,
        stop=_TEXT,
    )
    whole = _record(
        model=_count(number, number),
        parent=_or_null(_count(1, number - 1)),
        promoted=_value(lambda x: isinstance(x, bool), "true or false"),
        before=_or_null(_NUMBER),
        metrics=cost,
        change=_or_null(_record(mean=_NUMBER, standard_error=_NUMBER)),
        scratch=cost,
        settings=_record(holdout=_value(lambda x: _is_number(x) and 0 < x < 1, "a number between 0 and 1")),
        class_names=_list(_TEXT),
        image_shape=_list(_count(1), 3),
        files=_FILES,
    )
    if wrong := whole("", lineage):
        return wrong
    channels = lineage["image_shape"][-1]
    rest = _record(mean=_list(_NUMBER, channels), std=_list(_POSITIVE, channels))
    return rest("", lineage) or _SHA256("samples", lineage.get("samples", 64 * "0"))  # older ones have no such digest


def files_fault(values: Mapping[str, Any]) -> str | None:
    """Says what is wrong with the data files that a record tells of in "files"; None where nothing is."""
    return _record(files=_FILES)("", values)


def _value(holds: Callable[[Any], bool], words: str) -> Check:
    """A value of which a predicate holds; `words` says what that is."""
    return lambda name, value: None if holds(value) else f"{name} is {_shown(value)}, not {words}"


def _count(least: int, most: float = math.inf) -> Check:
    """A whole number from `least` to `most`."""
    words = f"{least}" if least == most else f"a whole number from {least} {'on' if most == math.inf else f'to {most}'}"
    return _value(lambda x: type(x) is int and least <= x <= most, words)


def _record(**fields: Check) -> Check:
    """An object that has these fields; others are let be."""

    def check(name: str, value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return f"{name} is {_shown(value)}, not an object"
        for key, field in fields.items():
            path = f"{name}.{key}".lstrip(".")
            if key not in value:
                return f"{path} is missing"
            if wrong := field(path, value[key]):
                return wrong
        return None

    return check


def _list(item: Check, length: int | None = None) -> Check:
    """A list of items, not empty."""

    def check(name: str, value: Any) -> str | None:
        if not isinstance(value, list | tuple) or not value or length not in (None, len(value)):
            return f"{name} is {_shown(value)}, not a list{'' if length is None else f' of {length}'}"
        wrong = (item(f"{name}[{i}]", x) for i, x in enumerate(value))
        return next(filter(None, wrong), None)

    return check


def _or_null(check: Check) -> Check:
    """What the check wants, or nothing."""

    def check_or_null(name: str, value: Any) -> str | None:
        wrong = None if value is None else check(name, value)
        return wrong and f"{wrong}, or null"

    return check_or_null


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def _is_sha256(x: Any) -> bool:
    return isinstance(x, str) and len(x) == 64 and set(x) <= set("0123456789abcdef")


_NUMBER = _value(_is_number, "a finite number")
_POSITIVE = _value(lambda x: _is_number(x) and x > 0, "a number above 0")
_TEXT = _value(lambda x: isinstance(x, str), "a text")
_SHA256 = _value(_is_sha256, "a SHA-256 in hexadecimal")
_FILES = _list(_record(path=_TEXT, sha256=_SHA256, images=_count(0)))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

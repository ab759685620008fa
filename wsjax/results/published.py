"""What was published: files of settings, curves and final numbers, and which of a run's methods each belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from wsjax.results.names import RANDOM, RATE, SHRINK, WARM, Methods, is_scaled
from wsjax.storage.files import read_json

T = TypeVar("T")

Kind = tuple[str, float | None]
"""A method as published: what it does, and its shrink."""

Curves = Mapping[tuple[str, str], ArrayLike]
"""Published curves: (field, method) to points [P, 2]. Offline (epoch, percent), the epochs counted from 1 within the
method's round; online (samples, percent or seconds)."""

RI: Kind = (RANDOM, None)
WS: Kind = (WARM, None)


PERTURB = 0.01
"""Of every shrink-perturb that was published."""


def sp(shrink: float) -> Kind:
    """Shrink-perturb as published, with `PERTURB`."""
    return SHRINK, shrink


def read(script: str, *names: str) -> list[dict[str, Any]]:
    """The files of those names in the folder `published` beside a script."""
    return [read_json(Path(script).resolve().parent / "published" / f"{name}.json") for name in names]


def by_method(values: Mapping[Kind, T], methods: Methods) -> dict[str, T]:
    """What was published of each of a run's methods, by the run's names: of shrink-perturb by its shrink.

    Nothing was published of a method at another learning rate than its run's, nor of what keeps nothing but for one
    that is times `PERTURB`: of others the perturb makes little difference.
    """
    plain = {name: spec for name, spec in methods.items() if RATE not in spec}
    plain = {name: spec for name, spec in plain.items() if not is_scaled(spec) or spec["perturb"] == PERTURB}
    kinds = {name: (spec.get("reinit", ""), spec.get("shrink")) for name, spec in plain.items()}
    return {name: values[kind] for name, kind in kinds.items() if kind in values}


def online(curves: Mapping[str, Any], pool: int, methods: Methods) -> dict[tuple[str, str], ArrayLike]:
    """A panel of the report's Figure 2; its last round has what is left of the pool."""
    samples = np.minimum(1000 * np.array(curves["n_thousand"]), pool)
    published: dict[tuple[str, str], ArrayLike] = {}
    for method, name in by_method({RI: "RI", WS: "WS"}, methods).items():
        published["test_accuracy", method] = np.stack([samples, 100 * np.array(curves[f"acc_{name}"])], axis=1)
        published["train_seconds", method] = np.stack([samples, curves[f"time_s_{name}"]], axis=1)
    return published


def accuracies_at(curves: Curves, samples: int | None) -> dict[str, float]:
    """The published test accuracy of each method at exactly that number of samples, where its curve has one."""
    accuracies = {}
    for (field, method), points in curves.items():
        there = [y for x, y in np.asarray(points) if x == samples]
        if field == "test_accuracy" and there:
            accuracies[method] = float(there[0])
    return accuracies

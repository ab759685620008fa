"""The handwritten digits that come with scikit-learn, made harder by noise: sets that need no download."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

DIGITS_NOISE = 0.5  # standard deviation of the added noise; ink is 1, paper 0
DIGITS_SEED = 0
DIGITS_NUM_TRAIN = 600  # of 1,797: few to train on is hard enough, many to test on tell small differences
DIGITS_MARGIN = 1.5  # room below paper and above ink, so that noise is not clipped away
SHIFTED_DIGITS = 300  # of the digits, each at nine places


def noisy_digits(classes: Collection[int] = range(10), noise: float = DIGITS_NOISE) -> dict[str, np.ndarray]:
    """The images and labels of some of the 1,797 digits of 8x8 pixels, made harder by fixed Gaussian noise.

    Without noise every method reaches about 98 % and nothing can be told apart. A pixel x in [0, 16] is kept as
    `clip(round((x / 16 + noise * eps + 1.5) / 4 * 255), 0, 255)`: the range [-1.5, 2.5] fills the 256 values, so at
    noise 0.5 three standard deviations fit on either side of [0, 1] and the noise stays Gaussian instead of being
    clipped. Noise and split, 600 to train and 1,197 to test of all, are the same at every call.

    An image of a part of the digits is the one that the whole has, in the same split; labels count from the part's
    first class.

    Args:
        classes: the digits that it has, consecutive numbers.
        noise: standard deviation of the noise, where paper is 0 and ink 1.

    Returns:
        "train_images" and "test_images" (uint8 [N, 8, 8, 1]), "train_labels" and "test_labels" (integers [N]).
    """
    clean, labels = _clean_digits()
    random = np.random.RandomState(DIGITS_SEED)  # NumPy froze its streams, which it doesn't promise of default_rng
    order = random.permutation(len(labels))
    images = _noisy(clean / 16, noise, random)
    arrays = {}
    for split, rows in zip(("train", "test"), np.split(order, [DIGITS_NUM_TRAIN]), strict=True):
        own = rows[np.isin(labels[rows], list(classes))]
        arrays |= {f"{split}_images": images[own], f"{split}_labels": labels[own] - min(classes)}
    return arrays


def shifted_digits() -> dict[str, np.ndarray]:
    """More images: 300 of the digits at nine places each, a pixel apart, and every image with noise of its own.

    Returns:
        As `noisy_digits`: 2,700 images to train, in random order, and the 1,497 other digits, unshifted, to test.
    """
    clean, labels = _clean_digits()
    random = np.random.RandomState(DIGITS_SEED)
    train, test = np.split(random.permutation(len(labels)), [SHIFTED_DIGITS])
    framed = np.pad(clean[train].reshape(-1, 8, 8) / 16, ((0, 0), (1, 1), (1, 1)))
    places = [framed[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    order = random.permutation(len(places) * len(train))
    return {
        "train_images": _noisy(np.concatenate(places)[order], DIGITS_NOISE, random),
        "train_labels": np.tile(labels[train], len(places))[order],
        "test_images": _noisy(clean[test] / 16, DIGITS_NOISE, random),
        "test_labels": labels[test],
    }


EMBEDDED = {
    "digits": noisy_digits,
    "digits_low": partial(noisy_digits, range(5)),
    "digits_high": partial(noisy_digits, range(5, 10)),
    "digits_shifted": shifted_digits,
}
"""The embedded sets by name, and what makes each. Two have half of the classes each, to transfer between."""


def _noisy(clean: np.ndarray, noise: float, random: np.random.RandomState) -> np.ndarray:
    """Images uint8 [N, 8, 8, 1] of pixels from 0 (paper) to 1 (ink), with noise."""
    noisy = clean + noise * random.standard_normal(clean.shape)
    scaled = (noisy + DIGITS_MARGIN) / (1 + 2 * DIGITS_MARGIN) * 255
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8).reshape(-1, 8, 8, 1)


def _clean_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, 64] from 0 (paper) to 16 (ink) and labels [N], read past scikit-learn, whose import takes seconds."""
    package = importlib.util.find_spec("sklearn")
    file = Path(package.origin if package and package.origin else "").parent / "datasets" / "data" / "digits.csv.gz"
    if not file.exists():
        from sklearn.datasets import load_digits

        both: Any = load_digits(return_X_y=True)
        return both
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1].astype(int)

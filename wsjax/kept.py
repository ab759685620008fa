"""What is made once: the same functions for the same settings, so that what was compiled for them is found again."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
MOST = 32
"""Results that are remembered of each maker, the last ones asked for."""


def kept(make: Callable[P, R]) -> Callable[P, R]:
    """A pure function that remembers what it made; of arguments that cannot be hashed it makes anew each time."""
    known = lru_cache(MOST)(make)

    @wraps(make)
    def once(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            hash((args, tuple(kwargs.items())))
        except TypeError:
            return make(*args, **kwargs)
        return known(*args, **kwargs)

    return once

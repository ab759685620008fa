"""Settings that nothing reads beside certain others: whoever gives one of these had something else in mind.

Each function gives names of settings, and why they have no use. Imports no jax.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from wsjax.results import words
from wsjax.scripts import methods as known

FACTORS = {"SP": ("shrink", "perturb"), **{kind: tuple(own.factors.values()) for kind, own in known.METHODS.items()}}
"""Fields that one method alone looks at."""

Unused = Iterator[tuple[str, str]]


def by_rules(stop: Collection[str]) -> Unused:
    """Those of stop rules that are not among these."""
    for name, rule in words.OF_STOP.items():
        if rule not in stop:
            yield name, f"without --stop {rule}: leave it out, or add {rule} to --stop"


def by_models(models: Collection[str]) -> Unused:
    """Those that none of the models has."""
    for name, own in words.OF_MODEL.items():
        if not set(own) & set(models):
            yield name, f"for {' and '.join(models)}; leave it out: it is for {' and '.join(own)}"


def by_methods(kinds: Collection[str]) -> Unused:
    """Those of methods that are not among these."""
    for kind, factors in FACTORS.items():
        for name in factors if kind not in kinds else ():
            yield name, f"without {kind} in --methods; leave it out, or add that"
    if not set(known.IN_OPTIMIZER) & set(kinds):
        yield "own_first", f"without one of {', '.join(known.IN_OPTIMIZER)} in --methods; leave it out"

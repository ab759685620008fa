"""Settings that nothing reads beside certain others: whoever gives one of these had something else in mind.

Each function gives names of settings, and why they have no use. Imports no jax.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from wsjax.results import names, words
from wsjax.scripts import methods as known

OF_METHOD = {
    **dict.fromkeys(("shrink", "perturb"), tuple(names.BY_PAIR)),
    **{setting: (kind,) for kind, own in known.METHODS.items() for setting in own.factors.values()},
    "own_first": known.IN_OPTIMIZER,
}
"""Settings that some methods alone look at."""

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
    """Those that none of these methods looks at."""
    for name, own in OF_METHOD.items():
        if not set(own) & set(kinds):
            yield name, f"without {' or '.join(own)} in --methods; leave it out, or add that"

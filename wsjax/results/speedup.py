"""How soon a method has the accuracy that training from scratch ends with: in steps, and in training seconds.

The measure of Verwimp et al. ("Same accuracy, twice as fast", https://arxiv.org/abs/2502.21147). What is looked at is
the last round. Its target is the test accuracy that random initialisation ends it with, of the same seed; the first
test that shows it counts, random initialisation's own too, which may show it before its end. A method that ends without
it is censored: it would have taken longer than it ran. One that shows it at its very first test may have had it any
time before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from wsjax.results import names
from wsjax.results.names import Methods
from wsjax.results.stats import CONFIDENCE, mean_interval, unit_of
from wsjax.storage.rows import FIRST, Row, grouped

COSTS = ("steps", "seconds")
"""What is counted: training steps, and training seconds."""


class Passage(NamedTuple):
    """What one method and seed took until the target in the last round; where it was not `reached`, all that it ran.

    `at_first` says that its first test showed the target already.
    """

    steps: float
    seconds: float
    reached: bool
    at_first: bool = False


def passages(rows: Sequence[Row], methods: Methods) -> dict[str, dict[int, Passage]]:
    """Each method's passages, by seed, of those that ended the last round that any method has ended.

    Only of those that were tested before their end too, or had one epoch, and of seeds whose random initialisation was:
    without, nothing tells when the accuracy was there. Empty where scores are no accuracies: whether more is better is
    not known.
    """
    random = names.find(methods, names.RANDOM)
    last = max((row["round"] for row in rows if row["stop"] and row["method"] != FIRST), default=0)
    own = [row for row in rows if row["round"] == last and row["method"] != FIRST]
    ended = {key: found for key, found in grouped(own, itemgetter("method", "seed")).items() if found[-1]["stop"]}
    targets = {
        seed: found[-1]["test_accuracy"]
        for (name, seed), found in ended.items()
        if name == random and _tests(found) > 1 and found[-1]["test_accuracy"] is not None
    }
    if not unit_of(rows).percent:
        return {}
    passed: dict[str, dict[int, Passage]] = {}
    for (name, seed), found in ended.items():
        if seed in targets and (_tests(found) > 1 or len(found) == 1):
            passed.setdefault(name, {})[seed] = _passage(found, targets[seed])
    return passed


def speedups(rows: Sequence[Row], methods: Methods) -> dict[str, dict[str, Any]]:
    """How many times as fast as random initialisation each other method has its accuracy.

    Returns:
      By method: "of", random initialisation's name; "seeds", and how many of them "reached" the target; "steps" and
      "seconds": random initialisation's over the method's, the geometric mean over seeds, with the interval of the
      paired logarithms. Where a seed is censored, it counts as if it had reached the target when it ended: the mean is
      then the most that it can be, "at_most" is true, and there is no interval. Nor is there one where half of the
      seeds or more show the target at their first test: the mean is then the least, and "at_least" is true.
    """
    passed, random = passages(rows, methods), names.find(methods, names.RANDOM)
    found = {}
    for name, own in passed.items():
        if name == random:
            continue
        pairs = [(passed[str(random)][seed], passage) for seed, passage in own.items()]
        reached = sum(passage.reached for passage in own.values())
        at_first = sum(passage.at_first for passage in own.values())
        bounds = {"at_most": reached < len(own), "at_least": reached == len(own) and 2 * at_first >= len(own)}
        found[name] = {"of": random, "seeds": len(own), "reached": reached, **bounds}
        for cost in COSTS:
            ratios = [(getattr(one, cost), getattr(other, cost)) for one, other in pairs]
            found[name][cost] = _ratio(ratios, not any(bounds.values()))
    return found


def sentence(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The speed-ups in steps, in one sentence; nothing where there are none."""
    often = [name for name, own in found.items() if 2 * own["reached"] >= own["seeds"]]
    parts = [_told(name, found[name]) for name in often]
    if seldom := [name for name in found if name not in often]:
        counts = [f"{names.label(name)} ({found[name]['reached']} of {found[name]['seeds']})" for name in seldom]
        parts.append(f"few or no seeds reached it of {', '.join(counts)}")
    of = names.label(next((own["of"] for own in found.values()), ""))
    return f"To {of}'s final test accuracy, in steps: {'; '.join(parts)}." if parts else ""


def _told(name: str, own: Mapping[str, Any]) -> str:
    """A method's speed-up in words."""
    ratio, many = own["steps"], _seeds(own["seeds"])
    if ratio is None:  # nothing was counted
        return f"{names.label(name)} reached it ({many})"
    if own["at_most"]:
        many = f"{own['reached']} of {many} reached it"
    bounds = "" if ratio["low"] is None else f"95 % interval {_times(ratio['low'])} to {_times(ratio['high'])}, "
    bound = "at most " * own["at_most"] + "at least " * own.get("at_least", False)  # which older summaries lack
    return f"{names.label(name)} {bound}{_times(ratio['mean'])} times as fast ({bounds}{many})"


def _tests(rows: Sequence[Row]) -> int:
    return sum(row["test_accuracy"] is not None for row in rows)


def _passage(rows: Sequence[Row], target: float) -> Passage:
    """A round's rows up to the first that was tested at the target or above."""
    seconds, tests = 0.0, 0
    for row in rows:
        seconds += row["train_seconds"]
        tests += row["test_accuracy"] is not None
        if row["test_accuracy"] is not None and row["test_accuracy"] >= target:
            return Passage(row["steps"], seconds, True, tests == 1)
    return Passage(rows[-1]["steps"], seconds, False)


def _ratio(pairs: Sequence[tuple[float, float]], with_interval: bool) -> dict[str, Any] | None:
    """The geometric mean of quotients, and the interval of their logarithms; None where nothing was counted."""
    if any(not (a > 0 and b > 0) for a, b in pairs):
        return None
    mean, low, high = map(math.exp, mean_interval([math.log(a / b) for a, b in pairs]))
    bounds = {"low": low, "high": high} if with_interval and len(pairs) > 1 else {"low": None, "high": None}
    return {"mean": mean, **bounds, "confidence": CONFIDENCE, "seeds": len(pairs)}


def _times(value: float) -> str:
    return f"{value:.3g}"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"

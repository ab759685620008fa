"""What runs in one piece, and in which order: rounds, methods, settings, and the legs that they come to.

A *replica* is a method (or the rounds that all methods share) with a seed. A *leg* is a stack of replicas that train
together as one program, over consecutive rounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from jax.sharding import Mesh

from wsjax import parallel
from wsjax.errors import TaskError
from wsjax.methods.reinit import random_init
from wsjax.methods.starts import Reinit, Start, mixed, scratch
from wsjax.storage.rows import CAP, DIVERGED, FIRST, Row
from wsjax.training.stopping import StopRule
from wsjax.training.train import Setup


class Round(NamedTuple):
    """A round trains on the first `num_samples` of the data, in the run's order, until a rule or a cap ends it.

    Attributes:
      num_samples: how many samples it has; pools are nested.
      stop: gives the reason to stop, or None; None for a round that only `max_epochs` ends.
      max_epochs: the most epochs; None for no cap.
      setup: its own task, data, optimiser or batch size; None takes that of the run.
    """

    num_samples: int
    stop: StopRule | None = None
    max_epochs: int | None = None
    setup: Setup | None = None

    def reason(self, accuracies: Sequence[float]) -> str | None:
        """Why the round ends after epochs of these train accuracies; None where it goes on.

        Raises a TaskError where the rule gives anything but a text or None, or says that the loss diverged.
        """
        reason = self.stop(accuracies) if self.stop is not None else None
        if reason is not None and not (isinstance(reason, str) and reason):
            raise TaskError(f"a stop rule gives the reason to stop, a text, or None to go on, not {reason!r:.60}")
        if reason == DIVERGED:
            raise TaskError(f"a stop rule cannot give '{DIVERGED}', which tells of a loss that is not finite")
        capped = self.max_epochs is not None and len(accuracies) >= self.max_epochs
        return CAP if reason is None and capped else reason


class Method(NamedTuple):
    """A way to go from round to round.

    Attributes:
      start: gives the state that each of its rounds starts from; compiled once, so that later changes of what it
        looks up outside of itself are not seen.
      after: how many of the run's rounds it shares with all other methods; its own begin after these. With 0 it shares
        none, as where methods train round 1 differently; all begin with the same network of a seed all the same.
      rounds: its own rounds, which come behind the `after` shared ones: of the run's own R rounds it would train
        R + 1. None takes the run's, from `after` on.
      at_once: whether, with `after` 0, `start` comes before round 1 too, with that network as the old one and one more
        as the fresh one.
      seeds: those of the run that it is for; None for all.
    """

    start: Start
    after: int = 1
    rounds: Sequence[Round] | None = None
    at_once: bool = False
    seeds: Collection[int] | None = None

    def runs(self, seed: int) -> bool:
        """Whether it is for a seed."""
        return self.seeds is None or seed in self.seeds


def as_method(method: Method | Reinit) -> Method:
    """A method as it is; a re-initialiser with batch statistics kept and the optimiser's state rebuilt.

    `random_init` inherits nothing, not even batch statistics.
    """
    if isinstance(method, Method):
        return method
    return Method(scratch if method is random_init else mixed(method))


class Settings(NamedTuple):
    """What a run measures and keeps.

    Attributes:
      evaluate: test after every "epoch", or only when a seed's "round" ends (its other rows have None).
      checkpoint_every: epochs between checkpoints; a round's end always has one.
      fresh: which network a round's start gets as the fresh one: "new" for each round, or the seed's "first" again;
        before round 1 (`at_once`) always a new one.
      diverged: what a loss or score that is not finite does: "raise", or "end" that replica's round there. The next
        round begins as ever, and ends likewise where its start goes on from what diverged.
      order: which samples a round's are: the first ones in a "random" order, each seed's own, or of the data as they
        lie there, by "arrival". A run that goes on when the data have grown needs the latter: a random order is
        another one then.
    """

    evaluate: Literal["epoch", "round"] = "epoch"
    checkpoint_every: int = 10
    fresh: Literal["new", "first"] = "new"
    diverged: Literal["raise", "end"] = "raise"
    order: Literal["random", "arrival"] = "random"


class Leg(NamedTuple):
    """Replicas (method, seed), those of a method side by side, over `rounds`, of which the first has number `begin`.

    `previous` is the round that it goes on from, None where there is none.
    """

    replicas: tuple[tuple[str, int], ...]
    begin: int
    rounds: tuple[Round, ...]
    previous: Round | None = None

    @property
    def end(self) -> int:
        """The number after the last round's."""
        return self.begin + len(self.rounds)

    @property
    def shared(self) -> bool:
        """Whether its rounds are those that all methods share."""
        return self.replicas[0][0] == FIRST

    @property
    def seeds(self) -> tuple[int, ...]:
        """The replicas' seeds."""
        return tuple(seed for _, seed in self.replicas)

    @property
    def parts(self) -> list[tuple[str, slice]]:
        """Each method, and where its replicas are."""
        methods = [method for method, _ in self.replicas]
        return [
            (name, slice(methods.index(name), methods.index(name) + methods.count(name)))
            for name in dict.fromkeys(methods)
        ]

    @property
    def name(self) -> str:
        """The leg's folder of checkpoints."""
        parts = [(quote(method, safe=""), "-".join(map(str, self.seeds[where]))) for method, where in self.parts]
        later = f"@{self.begin}" if self.shared and self.begin > 1 else ""  # which no quoted name has
        name = "+".join(f"{method}{later}-seeds-{seeds}" for method, seeds in parts)
        if len(name) > 200:  # a file's name has its limit
            name = f"{len(self.replicas)}-replicas-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        return name

    def round(self, number: int) -> Round:
        """The round of a number."""
        return self.rounds[number - self.begin]

    def before(self, number: int) -> Round | None:
        """The round before that of a number."""
        return self.previous if number == self.begin else self.round(number - 1)

    def has(self, row: Row) -> bool:
        """Whether a row belongs to this leg."""
        return (row["method"], row["seed"]) in self.replicas and self.begin <= row["round"] < self.end


def planned(rounds: Sequence[Round], methods: Mapping[str, Method]) -> dict[str, dict[int, Round]]:
    """The rounds of each method by their numbers; those that all methods share stand under "first"."""
    shared = max((method.after for method in methods.values()), default=1)
    plan = {FIRST: dict(enumerate(rounds[:shared], 1))}
    for name, method in methods.items():
        own = rounds[method.after :] if method.rounds is None else method.rounds
        plan[name] = dict(enumerate(own, method.after + 1))
    return plan


def make_legs(
    rounds: Sequence[Round], methods: Mapping[str, Method], seeds: Sequence[int], stack: bool, mesh: Mesh | None
) -> list[Leg]:
    """What runs in one piece, in order: the shared rounds of some seeds, then their later ones, method by method.

    Each shared round is a leg of its own: its checkpoint at the end is what methods grow from. Where a method's seeds
    would leave devices of a replica mesh idle, methods whose rounds are the same run side by side; else each is a leg.
    """
    plan = planned(rounds, methods)
    alike: dict[Any, list[str]] = {}
    for name, method in methods.items():
        if plan[name]:
            # Setups hold arrays, and a rule may be any object: they are known by their identity.
            own = plan[name].values()
            kind = method.after, tuple(here._replace(setup=id(here.setup), stop=id(here.stop)) for here in own)
            alike.setdefault(kind, []).append(name)
    previous = (None, *rounds)  # the round before each, by its number less 1
    devices = parallel.replica_devices(mesh)
    together = list(alike.values()) if devices > 1 else [[name] for names in alike.values() for name in names]

    legs = []
    for group in parallel.groups(seeds, stack, mesh):
        first = tuple((FIRST, seed) for seed in group)
        legs += [Leg(first, number, (here,), previous[number - 1]) for number, here in plan[FIRST].items()]
        for names in together:
            after, later = methods[names[0]].after, tuple(plan[names[0]].values())
            replicas = [(name, seed) for name in names for seed in group if methods[name].runs(seed)]
            size = max(len(group), devices)
            chunks = (tuple(replicas[i : i + size]) for i in range(0, len(replicas), size))
            legs += [Leg(chunk, after + 1, later, previous[after]) for chunk in chunks]
    return legs

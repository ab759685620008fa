"""The settings' optimiser and its schedule, and the setups of methods whose rounds have others.

Those are methods at a learning rate of their own, and warm starts that add something to the optimiser: L2 (L2-Init),
HT (Hare and Tortoise) and SWR (soft weight rescaling). Imports jax where it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from wsjax.kept import kept
from wsjax.results import names
from wsjax.scripts import methods as known
from wsjax.scripts.config import Common, Training

if TYPE_CHECKING:
    from wsjax.rounds.legs import Round
    from wsjax.training.train import Setup


def build_optimizer(config: Training, spec: names.Spec | None = None) -> Any:
    """The settings' optimiser, with what a method adds to it."""
    from wsjax.training.train import make_optimizer

    spec = spec or {}
    added = _added(tuple(spec.items()))
    own = make_optimizer(
        config.optimizer,
        spec.get("learning_rate", config.learning_rate),
        config.weight_decay,
        config.warmup,
        schedule=_schedule(config) if is_scheduled(config) else None,
        clip_norm=config.clip_norm,
        decoupled=added.get("decoupled"),
    )
    return _chained(added.get("before"), own, added.get("after"))


@kept
def _added(spec: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """What a method adds to an optimiser, by the place where it goes."""
    method = known.of(dict(spec))
    return {} if method is None or method.added is None else dict(method.added(dict(spec)))


@kept
def _chained(*parts: Any) -> Any:
    import optax

    given = [part for part in parts if part is not None]
    return given[0] if len(given) == 1 else optax.chain(*given)


def learning_rate(config: Training, spec: names.Spec | None = None) -> Callable[[Any, Any], Any]:
    """The learning rate of `build_optimizer`'s, as a setup tells it: `(count, epoch_steps) -> []`."""
    return _rate((spec or {}).get("learning_rate", config.learning_rate), _schedule(config), config.warmup)


@kept
def _rate(rate: float, schedule: Any, warmup: int) -> Callable[[Any, Any], Any]:
    import jax.numpy as jnp

    from wsjax.training.schedules import factor

    return lambda count, epoch_steps: rate * factor(schedule, jnp.asarray(count), epoch_steps, warmup)


def _schedule(config: Training) -> Any:
    from wsjax.training.schedules import Schedule

    return Schedule(config.schedule, config.epochs, config.warmup_share, config.milestones, config.rate_decay)


def is_scheduled(config: Training) -> bool:
    """Whether the learning rate depends on how many epochs a round has."""
    return config.schedule != "constant" or config.warmup_share > 0


def paced(config: Training, setup: Setup, epochs: int) -> Setup | None:
    """The setup with a schedule that runs over so many epochs; None where the run's own does."""
    if not is_scheduled(config) or epochs == config.epochs:
        return None
    return optimised(config, setup, epochs, {})


def own_rounds(
    config: Common, setup: Setup, rounds: Sequence[Round], table: names.Methods
) -> dict[str, tuple[int, list[Round]]]:
    """The methods whose rounds have setups of their own: how many rounds each shares with all others, and its rounds.

    Methods of one optimiser share their setups.
    """
    made = _Setups(config)
    found = {}
    for name, spec in table.items():
        method = known.of(spec)
        adds = method is not None and method.added is not None
        if not adds and "learning_rate" not in spec:
            continue
        after = 0 if config.own_first and adds else 1
        what = spec if adds else {"learning_rate": spec["learning_rate"]}
        at_first = {key: value for key, value in what.items() if key != "learning_rate"}
        found[name] = (
            after,
            [
                here._replace(setup=made.of(at_first if number == 1 else what, here, setup))
                for number, here in enumerate(rounds[after:], after + 1)
            ],
        )
    return found


class _Setups:
    """Setups by what they differ in; rounds of one setup share their compiled programs."""

    def __init__(self, config: Training):
        self._config = config
        self._made: dict[Any, Setup] = {}

    def of(self, spec: names.Spec, here: Round, setup: Setup) -> Setup:
        """The setup of a round, by default the run's, with the optimiser and the test of a method."""
        base = here.setup or setup
        cap = here.max_epochs if is_scheduled(self._config) and here.max_epochs else self._config.epochs
        key = tuple(sorted(spec.items())), cap, id(base)
        if key not in self._made:
            method = known.of(spec)
            judged = method.judged() if method is not None and method.judged is not None else base.judged
            self._made[key] = optimised(self._config, base, cap, spec)._replace(judged=judged)
        return self._made[key]


def optimised(config: Training, setup: Setup, epochs: int, spec: names.Spec) -> Setup:
    """The setup with a method's optimiser, whose schedule runs over so many epochs."""
    own = dataclasses.replace(config, epochs=epochs)
    return setup._replace(optimizer=build_optimizer(own, spec), learning_rate=learning_rate(own, spec))

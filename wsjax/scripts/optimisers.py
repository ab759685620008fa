"""Methods that live in the optimiser: L2 (L2-Init), HT (Hare and Tortoise), SWR (soft weight rescaling).

Each is a warm start whose rounds have a setup of their own. Imports jax where it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from wsjax.kept import kept
from wsjax.results import names
from wsjax.scripts.config import Common, Training
from wsjax.scripts.methods import IN_OPTIMIZER, METHODS

if TYPE_CHECKING:
    from wsjax.methods.starts import Start
    from wsjax.rounds.legs import Round
    from wsjax.training.train import Setup


def is_own(spec: names.Spec) -> bool:
    """Whether a method is one of these."""
    return spec.get("reinit") in {METHODS[kind].reinit for kind in IN_OPTIMIZER}


def build_optimizer(config: Training, spec: names.Spec | None = None) -> Any:
    """The settings' optimiser, with what a method adds to it."""
    import optax

    from wsjax.methods import hare_tortoise, l2_init, soft_weight_rescaling
    from wsjax.training.train import make_optimizer

    spec = spec or {}
    before: list[Any] = []
    after: list[Any] = []
    decoupled = None
    if spec.get("reinit") == "l2_init":
        pull = l2_init.l2_init(spec["strength"])
        before, decoupled = ([], pull) if spec["decoupled"] else ([pull], None)
    if spec.get("reinit") == "hare_tortoise":
        after = [hare_tortoise.hare_tortoise(spec["momentum"], spec["every"], first=1, in_epochs=True)]
    if spec.get("reinit") == "soft_weight_rescaling":
        after = [soft_weight_rescaling.soft_weight_rescaling(spec["rate"], head_rate=spec["head_rate"])]
    own = make_optimizer(
        config.optimizer,
        spec.get("learning_rate", config.learning_rate),
        config.weight_decay,
        config.warmup,
        schedule=_schedule(config) if is_scheduled(config) else None,
        clip_norm=config.clip_norm,
        decoupled=decoupled,
    )
    return optax.chain(*before, own, *after) if before or after else own


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


def build_start(config: Common, spec: names.Spec) -> Start:
    """A warm start that keeps what the method's optimiser remembers of earlier parameters."""
    from wsjax.methods.hare_tortoise import tortoise_kept
    from wsjax.methods.reinit import warm_start
    from wsjax.methods.starts import anchored, mixed

    start = mixed(warm_start, config.batch_stats, config.opt_state)  # type: ignore[arg-type]
    if config.opt_state == "keep":
        return start
    return tortoise_kept(start) if spec["reinit"] == "hare_tortoise" else anchored(start)


def paced(config: Training, setup: Setup, rounds: Sequence[Round]) -> list[Round]:
    """The rounds, where one has another cap than --epochs with a schedule that runs to its own."""
    made = _Setups(config)
    return [
        here._replace(setup=made.of({}, here, setup))
        if is_scheduled(config) and here.max_epochs != config.epochs
        else here
        for here in rounds
    ]


def own_rounds(
    config: Common, setup: Setup, rounds: Sequence[Round], table: names.Methods
) -> dict[str, tuple[int, list[Round]]]:
    """The methods whose rounds have setups of their own: how many rounds each shares with all others, and its rounds.

    Methods of one optimiser share their setups.
    """
    made = _Setups(config)
    found = {}
    for name, spec in table.items():
        if not is_own(spec) and "learning_rate" not in spec:
            continue
        after = 0 if config.own_first and is_own(spec) else 1
        what = spec if is_own(spec) else {key: spec[key] for key in ("learning_rate",)}
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
        from wsjax.methods.hare_tortoise import tortoise

        base = here.setup or setup
        cap = here.max_epochs if is_scheduled(self._config) and here.max_epochs else self._config.epochs
        key = tuple(sorted(spec.items())), cap, id(base)
        if key not in self._made:
            config = dataclasses.replace(self._config, epochs=cap)
            judged = tortoise if spec.get("reinit") == "hare_tortoise" else base.judged
            self._made[key] = base._replace(
                optimizer=build_optimizer(config, spec), learning_rate=learning_rate(config, spec), judged=judged
            )
        return self._made[key]

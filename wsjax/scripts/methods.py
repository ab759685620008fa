"""The methods beside RI, WS and SP that scripts know by name: an entry each. Imports no jax but where it starts one.

A method joins by an entry of `METHODS`, a field of `config.Common` for each of its factors, with its check, and those
fields' names in `words.NEUTRAL` and `records.BEFORE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from wsjax.results import names

if TYPE_CHECKING:
    from wsjax.methods.starts import Start


class Known(NamedTuple):
    """A method that settings name.

    Attributes:
      reinit: what the table of methods calls it.
      factors: what else the table says of it, and the settings that hold that.
      start: `(config, spec) -> Start`.
      added: `spec -> parts`, what it adds to the optimiser of its rounds, by the place: "before" all else, "decoupled",
        before the learning rate alone, or "after" all else. None for a method that acts between rounds only.
      judged: gives what its rounds test in place of their own state, as a setup has it; None for nothing else.
    """

    reinit: str
    factors: Mapping[str, str]
    start: Callable[[Any, names.Spec], Start]
    added: Callable[[names.Spec], Mapping[str, Any]] | None = None
    judged: Callable[[], Any] | None = None


def _dash(config: Any, spec: names.Spec) -> Start:
    from wsjax.methods.dash import dash_start
    from wsjax.methods.layouts import wsjax_layout

    factors = {name: spec[name] for name in ("shrink", "decay", "chunk")}
    return dash_start(**factors, layout=wsjax_layout, batch_stats=config.batch_stats, opt_state=config.opt_state)


def _fire(config: Any, spec: names.Spec) -> Start:
    from wsjax.methods.fire import fire
    from wsjax.methods.layouts import wsjax_layout
    from wsjax.methods.starts import mixed

    reinit = partial(fire, steps=spec["steps"], layout=wsjax_layout)
    return mixed(reinit, config.batch_stats, config.opt_state)


def _anchored(config: Any, spec: names.Spec) -> Start:
    """A warm start that keeps the first network, which the method's optimiser remembers."""
    from wsjax.methods.starts import anchored

    start = _warm(config)
    return start if config.opt_state == "keep" else anchored(start)


def _with_tortoise(config: Any, spec: names.Spec) -> Start:
    """A warm start whose slow copy goes on, and counts its steps from the round's start."""
    from wsjax.methods.hare_tortoise import tortoise_kept

    return tortoise_kept(_warm(config))


def _warm(config: Any) -> Start:
    from wsjax.methods.reinit import warm_start
    from wsjax.methods.starts import mixed

    return mixed(warm_start, config.batch_stats, config.opt_state)


def _gaussian(config: Any, spec: names.Spec) -> Start:
    from wsjax.methods.reinit import not_normalization
    from wsjax.methods.variants import gaussian_start

    choices = {"batch_stats": config.batch_stats, "opt_state": config.opt_state}
    return gaussian_start(spec["shrink"], spec["std"], where=not_normalization, **choices)


def _l2_init(spec: names.Spec) -> Mapping[str, Any]:
    from wsjax.methods.l2_init import l2_init

    return {"decoupled" if spec["decoupled"] else "before": l2_init(spec["strength"])}


def _hare_tortoise(spec: names.Spec) -> Mapping[str, Any]:
    from wsjax.methods.hare_tortoise import hare_tortoise

    return {"after": hare_tortoise(spec["momentum"], spec["every"], first=1, in_epochs=True)}


def _tortoise() -> Any:
    from wsjax.methods.hare_tortoise import tortoise

    return tortoise


def _rescaling(spec: names.Spec) -> Mapping[str, Any]:
    from wsjax.methods.soft_weight_rescaling import soft_weight_rescaling

    return {"after": soft_weight_rescaling(spec["rate"], head_rate=spec["head_rate"])}


METHODS: dict[str, Known] = {
    "SPG": Known(names.AT_ONCE["SPG"], {"shrink": "gaussian_shrink", "std": "gaussian_std"}, _gaussian),
    "DASH": Known("dash", {"shrink": "dash_shrink", "decay": "dash_decay", "chunk": "dash_chunk"}, _dash),
    "FIRE": Known("fire", {"steps": "fire_steps"}, _fire),
    "L2": Known("l2_init", {"strength": "l2_init", "decoupled": "l2_decoupled"}, _anchored, _l2_init),
    "HT": Known(
        "hare_tortoise", {"momentum": "tortoise", "every": "tortoise_every"}, _with_tortoise, _hare_tortoise, _tortoise
    ),
    "SWR": Known("soft_weight_rescaling", {"rate": "rescaling", "head_rate": "head_rescaling"}, _anchored, _rescaling),
}
IN_OPTIMIZER = tuple(kind for kind, own in METHODS.items() if own.added)
"""Those that are warm starts with an optimiser of their own."""


def specs(config: Any, methods: Iterable[str]) -> dict[str, names.Spec]:
    """What those of the methods that are in `METHODS` are, under a script's settings."""
    kinds = dict.fromkeys(names.split(method)[0] for method in methods)
    known = {kind: METHODS[kind] for kind in kinds if kind in METHODS}
    return {
        kind: {"reinit": own.reinit, **{factor: getattr(config, setting) for factor, setting in own.factors.items()}}
        for kind, own in known.items()
    }


def of(spec: names.Spec) -> Known | None:
    """The method of `METHODS` that does what is said; None for another one."""
    return next((own for own in METHODS.values() if own.reinit == spec.get("reinit")), None)

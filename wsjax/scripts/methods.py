"""The methods beside RI, WS and SP that scripts know by name: a line each. Imports no jax but where it starts one.

A method joins by a line of `METHODS`, a field of `config.Common` for each of its factors, with its check, and the same
names in `words.NEUTRAL` and `records.BEFORE`.
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
    """

    reinit: str
    factors: Mapping[str, str]
    start: Callable[[Any, names.Spec], Start]


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


def _in_optimizer(config: Any, spec: names.Spec) -> Start:
    """A warm start that keeps what the method's optimiser remembers of earlier parameters."""
    from wsjax.methods.hare_tortoise import tortoise_kept
    from wsjax.methods.reinit import warm_start
    from wsjax.methods.starts import anchored, mixed

    start = mixed(warm_start, config.batch_stats, config.opt_state)
    if config.opt_state == "keep":
        return start
    return tortoise_kept(start) if spec["reinit"] == "hare_tortoise" else anchored(start)


def _gaussian(config: Any, spec: names.Spec) -> Start:
    from wsjax.methods.reinit import not_normalization
    from wsjax.methods.variants import gaussian_start

    choices = {"batch_stats": config.batch_stats, "opt_state": config.opt_state}
    return gaussian_start(spec["shrink"], spec["std"], where=not_normalization, **choices)


METHODS: dict[str, Known] = {
    "SPG": Known("gaussian_perturb", {"shrink": "gaussian_shrink", "std": "gaussian_std"}, _gaussian),
    "DASH": Known("dash", {"shrink": "dash_shrink", "decay": "dash_decay", "chunk": "dash_chunk"}, _dash),
    "FIRE": Known("fire", {"steps": "fire_steps"}, _fire),
    "L2": Known("l2_init", {"strength": "l2_init", "decoupled": "l2_decoupled"}, _in_optimizer),
    "HT": Known("hare_tortoise", {"momentum": "tortoise", "every": "tortoise_every"}, _in_optimizer),
    "SWR": Known("soft_weight_rescaling", {"rate": "rescaling", "head_rate": "head_rescaling"}, _in_optimizer),
}
IN_OPTIMIZER = ("L2", "HT", "SWR")
"""Those that are warm starts with an optimiser of their own; `wsjax.scripts.optimisers` builds it."""


def specs(config: Any, methods: Iterable[str]) -> dict[str, names.Spec]:
    """What those of the methods that are in `METHODS` are, under a script's settings."""
    kinds = dict.fromkeys(names.split(method)[0] for method in methods)
    known = {kind: METHODS[kind] for kind in kinds if kind in METHODS}
    return {
        kind: {"reinit": own.reinit, **{factor: getattr(config, setting) for factor, setting in own.factors.items()}}
        for kind, own in known.items()
    }


def build_start(config: Any, spec: names.Spec) -> Start | None:
    """How a method of `METHODS` starts a round; None for another one."""
    known = (own for own in METHODS.values() if own.reinit == spec["reinit"])
    return next((own.start(config, spec) for own in known), None)

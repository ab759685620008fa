"""What --probes names: measurements at each epoch's start. Imports jax where it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsjax.errors import UsageError
from wsjax.scripts.config import Common

if TYPE_CHECKING:
    from wsjax.training.train import Setup


def with_probes(setup: Setup, config: Common) -> Setup:
    """The setup, with the probes that the settings name; as it is where they name none.

    Raises:
      UsageError: the network has not what one of them looks at.
    """
    if not config.probes:
        return setup
    _check(config)
    from wsjax.training import probes

    power = 1 if config.optimizer in ("adam", "adamw") else 2
    known = {
        # Every convolution of the ResNet has a BatchNorm behind it.
        "weights": probes.weights(power, None if config.model != "resnet18" else lambda name: name != "head"),
        "dead": probes.dead_units,
        "rank": probes.ranks,
        "distance": probes.distances,
        "gradients": probes.gradient_norms(),
    }
    probe = probes.together(*(known[name] for name in config.probes))
    return setup._replace(probe=probe, anchors="distance" in config.probes)


def _check(config: Common) -> None:
    hidden = config.model == "resnet18" or (config.model == "mlp" and bool(config.hidden))
    if "rank" in config.probes and not hidden:
        raise UsageError("--probes rank looks at the last hidden layer, and this network has none")
    if "dead" in config.probes and not (hidden and (config.model == "resnet18" or config.activation == "relu")):
        raise UsageError("--probes dead looks at ReLUs, and this network has none: --activation=relu")

"""Published protocols, as defaults of the experiments' settings: --protocol. Plain data; imports no jax.

What a protocol does not name is as the script has it. Every part of one can be given another value by its own flag.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from wsjax.errors import UsageError

_RESNET: Mapping[str, Any] = {"dataset": "cifar10", "model": "resnet18", "width": 64}

# Shin et al., "DASH: Warm-Starting Neural Network Training in Stationary Settings without Loss of Plasticity" (NeurIPS
# 2024, https://arxiv.org/abs/2410.23495): 50 chunks of 1,000 images, each until the accuracy over an epoch is 99.9 %.
_DASH: Mapping[str, Any] = _RESNET | {
    "conv_init": "report",
    "stem_pool": True,
    "optimizer": "msgd",
    "learning_rate": 0.001,
    "batch_size": 128,
    "epochs": 10_000,
    "stop": ("accuracy",),
    "threshold": 0.999,
    "train_accuracy": "running",
    "increment": 1000,
    "pool": 1.0,
    "at_once": False,
    "opt_state": "keep",
    "methods": ("RI", "WS", "SP", "SPG", "DASH"),  # their shrink-perturb is the one with Gaussian noise
    "shrink": (0.3,),
    "perturb": (0.01,),
    "gaussian_shrink": 0.3,
    "gaussian_std": 0.01,
    "dash_shrink": 0.3,
    "dash_decay": 0.3,
    "dash_chunk": 1000,
    "evaluate": "round",
    "seeds": (2021, 2022, 2023, 2024, 2025),
}

# Han et al., "FIRE" (ICLR 2026), its warm-start experiment: a tenth of the data for 1,000 epochs, then all for 100. A
# full reset goes back to the seed's first network, which shrink-perturb mixes in too.
_FIRE: Mapping[str, Any] = _RESNET | {
    "conv_init": "paper",
    "stem_pool": False,
    "optimizer": "adam",
    "learning_rate": 0.001,
    "batch_size": 256,
    "warmup_share": 0.1,
    "clip_norm": 0.5,
    "stop": ("epochs",),
    "fraction": 0.1,
    "first_epochs": 1000,
    "epochs": 100,
    "fresh": "first",
    "methods": ("RI", "WS", "SP", "DASH", "FIRE", "L2"),
    "dash_shrink": 0.05,
    "dash_decay": 0.3,
    "dash_chunk": 256,
    "fire_steps": 10,
    "shrink": (0.2,),
    "perturb": (0.8,),
    "l2_init": 0.001,
    "seeds": (1, 2, 3),
}

PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    "dash": _DASH,
    # The same with what is usual for the data set: augmentation, weight decay, a rate that falls (their appendix).
    "dash-tuned": _DASH
    | {
        "augment": True,
        "stem_pool": False,
        "learning_rate": 0.1,
        "weight_decay": 5e-4,
        "schedule": "steps",
        "milestones": (60, 120, 160, 200),
        "rate_decay": 0.2,
        "warmup_share": 1 / 260,
        "epochs": 260,
    },
    "fire": _FIRE,
    # Lee et al., "Slow and Steady Wins the Race" (ICML 2024, https://arxiv.org/abs/2406.02596): half of the first
    # tenth's labels are noise, which the second round corrects.
    "hare-tortoise": _FIRE
    | {
        "optimizer": "adamw",
        "weight_decay": 0.001,
        "epochs": 111,
        "label_noise": 0.5,
        "methods": ("RI", "WS", "SP", "HT"),
        "own_first": True,
        "tortoise": 0.999,
        "tortoise_every": 10,
        "seeds": (1, 2, 3, 4, 5),
    },
    # Oh et al., "Recovering Plasticity of Neural Networks via Soft Weight Rescaling"
    # (https://arxiv.org/abs/2507.04683): half of the data, then all.
    "offline-50": _RESNET
    | {
        "optimizer": "adam",
        "learning_rate": 0.001,
        "batch_size": 256,
        "stop": ("epochs",),
        "fraction": 0.5,
        "first_epochs": 100,
        "epochs": 100,
        "methods": ("RI", "WS", "SP", "L2", "SWR"),
        "own_first": True,
        "l2_init": 0.001,
        "rescaling": 1e-4,
        "head_rescaling": 1.0,
        "seeds": (0, 1, 2, 3, 4),
    },
}


def dataset_of(protocol: str | None) -> str | None:
    """The data set of a protocol; None where there is none."""
    return PROTOCOLS.get(protocol or "", {}).get("dataset")


def applied(default: Any, protocol: str | None) -> Any:
    """A script's default settings with a protocol's in their place.

    Raises:
      UsageError: the script has another one's settings, or there is no such protocol.
    """
    fields = {field.name for field in dataclasses.fields(default)}
    if protocol is None or "protocol" not in fields:  # the parser says that there is no such flag
        return default
    possible = [name for name, own in PROTOCOLS.items() if own.keys() <= fields]
    if protocol not in possible:
        raise UsageError(f"unknown protocol '{protocol}'; available here: {', '.join(possible)}")
    return dataclasses.replace(default, **PROTOCOLS[protocol], protocol=protocol)

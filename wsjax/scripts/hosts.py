"""Several processes that are one run, on one host or several: whether there are, and the flags about them. No jax."""

from __future__ import annotations

import os
import re
from typing import Any

from wsjax.scripts.cli import check

FLAGS = ("coordinator", "num_processes", "process_id")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(\d{1,5})")


def has_several_processes(config: Any) -> bool:
    """Whether this process is one of several of the run: the settings say so, or srun, which started them all."""
    told = config.coordinator is not None or config.num_processes is not None
    return told or _tasks() > 1


def check_hosts(config: Any) -> None:
    """Checks the flags about several processes; raises UsageError."""
    count, number, address = config.num_processes, config.process_id, config.coordinator
    missing = [f"--{name}" for name in FLAGS if getattr(config, name) is None]
    check(
        len(missing) in (0, len(FLAGS)) or _tasks() > 1,
        f"several processes need --coordinator=HOST:PORT, --num_processes and --process_id, all three, unless srun "
        f"started them: {' and '.join(missing)} missing",
    )
    if address is not None:
        found = _ADDRESS.fullmatch(address)
        check(
            found is not None and 0 < int(found[2]) < 2**16,
            f"--coordinator is HOST:PORT of process 0, such as node1:12345, not '{address}'",
        )
    if number is not None:
        most = "" if count is None else f", below --num_processes={count}"
        check(number >= 0 and (count is None or number < count), f"--process_id counts from 0{most}, not {number}")


def explained(config: Any) -> str:
    """What to say where the processes did not find each other."""
    if config.coordinator is None:
        return "the processes that srun started did not find each other; are all of them running?"
    if config.process_id == 0:
        return (
            f"not all of {config.num_processes} processes have come to {config.coordinator}: is each of the others "
            "running, and is that an address of this host's that they reach?"
        )
    return f"no connection to {config.coordinator}: is process 0 running, and is the address right?"


def _tasks() -> int:
    """How many processes srun started together with this one; 1 where it did not, or does not tell."""
    told = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    return int(told) if told.isdecimal() else 1

"""Timing runs in turn."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PAUSE = 0.05  # seconds before each run: PyTorch's threads spin on for a while after they are done


class Case(NamedTuple):
    """One comparison.

    Attributes:
      subject: what is timed.
      ours: runs it once in wsjax.
      theirs: runs the same once in what it is compared with; None where there is no such thing.
      against: what that is.
      flops: floating-point operations of a run, by hand; 0 where they do not count.
      bytes: memory traffic of a run that cannot be avoided, by hand.
      compile_seconds: what `ours` took to compile.
      precision: what both sides compute in: "float32" (products in TF32 on a GPU) or "bfloat16".
      other_compile_seconds: what `theirs` took to compile.
      notes: more measurements, filled in by the runs.
    """

    subject: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any] | None
    against: str = "PyTorch"
    flops: float = 0.0
    bytes: float = 0.0
    compile_seconds: float = 0.0
    precision: str = "float32"
    other_compile_seconds: float = 0.0
    notes: dict[str, Any] | None = None


def in_turn(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Wall-clock seconds of every repeat of every run, in turn (A B A B), after one of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            time.sleep(PAUSE)
            begin = time.perf_counter()
            jax.block_until_ready(run())
            if repeat > 0:
                seconds[name].append(time.perf_counter() - begin)
    return seconds

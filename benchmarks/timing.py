"""Timing runs in turn."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PAUSE = 0.05  # seconds before each block: PyTorch's threads spin on for a while after they are done
BLOCK, MOST = 0.3, 50  # seconds of a block of runs, about, and its runs at most


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
    """Wall-clock seconds of every repeat of every run, in turn (A B A B), after one of each to warm up.

    What is short runs several times in a row, as steps do in training, and the mean counts: the first of them, which
    finds the other's data in the caches and its own threads asleep or on one core, does not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        _mean_seconds(run, 1)
    sizes = {name: min(int(BLOCK / _mean_seconds(run, 1)) + 1, MOST) for name, run in runs.items()}
    for _ in range(repeats):
        for name, run in runs.items():
            time.sleep(PAUSE)
            if sizes[name] > 1:
                _mean_seconds(run, 1)
            seconds[name].append(_mean_seconds(run, sizes[name]))
    return seconds


def _mean_seconds(run: Callable[[], Any], times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(run())
    return (time.perf_counter() - begin) / times

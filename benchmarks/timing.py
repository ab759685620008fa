"""Timing runs in turn."""

import statistics
import time
from collections.abc import Callable

import jax


def median_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall-clock seconds of every run; the runs take turns, so that a busy moment hits them all."""
    return {name: statistics.median(values) for name, values in all_seconds(runs, repeats).items()}


def all_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Wall-clock seconds of every repeat of every run, in turn (A B A B), after one of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if repeat > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds

"""What a script sets up for its whole process, and a library leaves alone: compiled programs and memory are kept."""

from __future__ import annotations

import ctypes
import os

from wsjax.storage.cache import cache_folder

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def set_up() -> None:
    """Keeps compiled programs in the user's cache folder and freed memory in the process; call it first of all."""
    keep_memory()
    use_compilation_cache()


def keep_memory() -> None:
    """Has the C library give freed memory to the next that asks, not to the system, where that is glibc.

    XLA takes a step's buffers anew every time. On a CPU the faults of so many fresh pages cost up to a tenth of a step.
    It only counts for threads to come.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)  # one heap for all threads: others can't hold large buffers
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX was told of one: a second start is quicker."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))

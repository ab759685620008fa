"""What a script sets up for its whole process, and a library leaves alone: what is kept, and how many devices."""

from __future__ import annotations

import ctypes
import glob
import os
import re
import warnings
from typing import Any

from wsjax.storage import cache

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
# JAX's warnings of its compilation cache. An entry's name starts with the program's.
_TROUBLE = re.compile(r"Error (reading|writing) persistent compilation cache entry for '([^']+)': (.*)")


def set_up() -> None:
    """Keeps compiled programs in the user's cache folder and freed memory in the process; call it first of all."""
    keep_memory()
    use_compilation_cache()


def use_devices(count: int | None) -> None:
    """Has a CPU pass for so many devices, unless JAX was told of a number; call it before anything touches a device."""
    import jax

    if count and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", count)


def keep_memory() -> None:
    """Has the C library give freed memory to the next that asks, not to the system, where that is glibc.

    XLA takes a step's buffers anew every time. On a CPU the faults of so many fresh pages cost up to a tenth of a step.
    It only counts for threads to come.
    """
    try:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    except (OSError, TypeError):  # a Python that can't load libraries; Windows
        return
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)  # one heap for all threads: others can't hold large buffers
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX was told of one: a second start is quicker.

    A short run compiles dozens of small programs, which JAX by itself would not keep: it keeps what took a second.

    JAX warns of every entry that it can't write, and at every start of each that it can't read and never mends. So an
    entry that is damaged, or cut by a full disk, is removed, which has JAX write it anew, and one warning is enough.
    """
    import jax

    place = None
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        place = cache.folder("xla")
        if place is not None:
            jax.config.update("jax_compilation_cache_dir", str(place))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    show = warnings.showwarning

    def mend(message: Warning | str, *details: Any, **options: Any) -> None:
        found = _TROUBLE.match(str(message))
        if found is None:
            return show(message, *details, **options)
        action, program, reason = found.groups()
        if place is None:
            return cache.tell(reason, "JAX_COMPILATION_CACHE_DIR")
        try:
            for entry in place.glob(f"{glob.escape(program)}-*"):
                entry.unlink(missing_ok=True)
        except OSError:
            action = "writing"  # nothing can be mended here
        if action == "writing":
            cache.tell(reason)

    warnings.filterwarnings("always", message=_TROUBLE.pattern)
    warnings.showwarning = mend

"""Compiled kernels for a CPU, which XLA's programs call: convolutions and the sums of batch normalisation.

XLA's CPU code for both is slow (benchmarks/README.md tells how slow). The C++ sources beside this file are compiled for
this machine's processor the first time that a network needs them, which takes some ten seconds, once, and are kept in
the user's cache folder. Without a C++ compiler XLA's own operations do the same, slower.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from wsjax.storage.cache import cache_folder

FOLDER = Path(__file__).parent
SOURCE, HEADERS = FOLDER / "calls.cc", sorted(FOLDER.glob("*.h"))
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w", "-pthread")
_CALLS = ("convolve", "images_gradient", "kernel_gradient", "moments", "normalise", "normalise_gradient")


def support(*arrays: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether the kernels take such arrays: float32 or float64 on a CPU, where a compiler was found."""
    return (
        all(array.dtype in ("float32", "float64") and array.dtype == arrays[0].dtype for array in arrays)
        and jax.default_backend() == "cpu"
        and available()
    )


def call(name: str, results: Any, *arrays: jax.Array, **attributes: int) -> Any:
    """Calls a kernel on a CPU; one of shapes only, by `results`, may be in a program for other devices too.

    Args:
        name: one of the source's exported names, less their "wsjax_".
        results: a `jax.ShapeDtypeStruct`, or a tuple of them.
        *arrays: the arguments.
        **attributes: integers.
    """
    return jax.ffi.ffi_call(f"wsjax_{name}", results, vmap_method="sequential")(*arrays, **attributes)


@functools.cache
def available() -> bool:
    """Compiles the kernels, where that was not done yet, and makes them known to XLA; False where that fails."""
    try:
        library = ctypes.CDLL(str(build()))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"convolutions will be slow: their kernels could not be compiled ({reason.strip().splitlines()[0]}); "
            "a C++ compiler, in $CXX or on the PATH as c++, g++ or clang++, is all that it needs",
            stacklevel=2,
        )
        return False
    for name in _CALLS:
        jax.ffi.register_ffi_target(
            f"wsjax_{name}", jax.ffi.pycapsule(getattr(library, f"wsjax_{name}")), platform="cpu"
        )
    return True


def build() -> Path:
    """The shared library of these sources, jaxlib and compiler, compiled where it is not there yet."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    compiler = next((path for path in map(shutil.which, candidates) if path), None)
    if compiler is None:
        raise OSError(f"no compiler found: {', '.join(candidates)}")
    sources = [source.read_bytes() for source in (SOURCE, *HEADERS)]
    recipe = [*sources, version("jaxlib").encode(), compiler.encode(), *map(str.encode, FLAGS)]
    library = cache_folder() / f"kernels-{hashlib.sha256(b'|'.join(recipe)).hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as place:  # other processes see all of it or nothing
            made = Path(place) / library.name
            command = [compiler, *FLAGS, "-I", jax.ffi.include_dir(), str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(library)
    return library

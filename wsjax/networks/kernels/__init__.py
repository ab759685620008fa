"""Compiled kernels for a CPU, which XLA's programs call: convolutions, batch normalisation and pooling.

XLA's CPU code for them is slow (benchmarks/README.md tells how slow). The C++ sources beside this file are compiled for
this machine's processor the first time that a network needs them, which takes some ten seconds, once, and are kept in
the user's cache folder. Without a C++ compiler XLA's own operations do the same, slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from wsjax.errors import printable
from wsjax.storage import cache

FOLDER = Path(__file__).parent
SOURCE, HEADERS = FOLDER / "calls.cc", sorted(FOLDER.glob("*.h"))
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w", "-pthread")
TIMEOUT = 600  # seconds for a compiler that needs some ten, or a few minutes where many work
_CALLS = (
    "convolve", "images_gradient", "kernel_gradient", "moments", "normalise", "normalise_gradient", "max_pool",
    "max_pool_gradient",
)  # fmt: skip


def support(*arrays: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether the kernels take such arrays: float32 or float64 on a CPU, where a compiler was found."""
    return (
        all(array.dtype in ("float32", "float64") and array.dtype == arrays[0].dtype for array in arrays)
        and jax.default_backend() == "cpu"
        and available()
    )


def on_cpu(
    name: str,
    results: Any,
    arrays: tuple[jax.Array, ...],
    plain: Callable[..., Any],
    default: Callable[..., Any],
    **attributes: int,
) -> Any:
    """Calls a kernel on a CPU; where it can't be had, and where there is nothing to compute, `plain` takes its place.

    Args:
        name: one of the source's exported names, less their "wsjax_".
        results: a `jax.ShapeDtypeStruct`, or a tuple of them.
        arrays: the arguments. One that is left out has the shape (0,), and so has a result.
        plain: takes the same arrays, for a CPU.
        default: takes them too, for all other devices.
        **attributes: integers, which the kernel alone takes.
    """
    parts = *arrays, *jax.tree.leaves(results)
    if all(part.size or part.shape == (0,) for part in parts) and support(*arrays):
        call = jax.ffi.ffi_call(f"wsjax_{name}", results, vmap_method="sequential")
        plain = functools.partial(call, **attributes)
    if plain is default:
        return plain(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=plain, default=default)


@functools.cache
def available() -> bool:
    """Compiles the kernels, where that was not done yet, and makes them known to XLA; False where that fails."""
    try:
        library = load()
    except OSError as error:
        warnings.warn(
            f"convolutions will be slow: their kernels could not be compiled ({printable(error)}); "
            "a C++ compiler, in $CXX or on the PATH as c++, g++ or clang++, is all that it needs",
            stacklevel=2,
        )
        return False
    for name in _CALLS:
        jax.ffi.register_ffi_target(
            f"wsjax_{name}", jax.ffi.pycapsule(getattr(library, f"wsjax_{name}")), platform="cpu"
        )
    return True


def load() -> ctypes.CDLL:
    """Loads the library of these sources, jaxlib and compiler, compiled where the user's cache has none that works.

    Raises:
        OSError: if it can't be compiled or loaded; the message is one line.
    """
    compiler = _compiler()
    sources = [source.read_bytes() for source in (SOURCE, *HEADERS)]
    recipe = [*sources, version("jaxlib").encode(), *map(os.fsencode, compiler), *map(str.encode, FLAGS)]
    recipe.append(_run([*compiler, "--version"])[1])  # an upgraded compiler compiles anew
    stem = f"kernels-{hashlib.sha256(b'|'.join(recipe)).hexdigest()[:16]}"
    for kept in cache.find(stem):
        with contextlib.suppress(OSError):  # made where the C library was another
            return _open(kept)
    with tempfile.TemporaryDirectory(prefix="wsjax-", ignore_cleanup_errors=True) as place:
        made = Path(place) / f"{stem}.so"
        code, output = _run([*compiler, *FLAGS, "-I", jax.ffi.include_dir(), str(SOURCE), "-o", str(made)])
        if code != 0 or not made.exists():
            raise OSError(_reason(output) or f"{compiler[0]} ended with code {code} and without a library")
        return _open(cache.keep(stem, made.suffix, made.read_bytes()) or made)  # what is loaded may be removed


def _compiler() -> list[str]:
    """The compiler and its first arguments: $CXX may be "ccache g++"."""
    wanted = os.environ.get("CXX", "").strip()
    try:
        commands = [[wanted], shlex.split(wanted)] if wanted else [[name] for name in COMPILERS]
    except ValueError as error:
        raise OSError(f"$CXX is {wanted!r}: {error}") from error
    for program, *arguments in commands:
        path = shutil.which(program)
        if path:
            return [path, *arguments]
    raise OSError(f"no compiler found: {wanted or ', '.join(COMPILERS)}")


def _run(command: list[str]) -> tuple[int, bytes]:
    """Runs a compiler: its exit code and all that it printed.

    It prints to a file, not to a pipe, which the programs that it runs in turn would keep open after its end.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(TIMEOUT)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise OSError(f"{command[0]} did not end within {TIMEOUT} s") from error
            raise
        log.seek(0)
        return code, log.read()


def _reason(output: bytes) -> str:
    """The line of a compiler's output that tells most: the first error, else the first."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")


def _open(path: Path) -> ctypes.CDLL:
    """Loads a library; one that can't be loaded is removed."""
    try:
        library = ctypes.CDLL(str(path))
        missing = [name for name in _CALLS if not hasattr(library, f"wsjax_{name}")]
        if missing:
            raise OSError(f"{path} lacks {', '.join(missing)}")
        return library
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise

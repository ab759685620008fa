"""Compiled kernels for a CPU, which XLA's programs call: convolutions, batch normalisation and pooling.

XLA's CPU code for them is slow (benchmarks/README.md tells how slow). The C++ sources beside this file are compiled for
this machine's processor the first time that a network needs them, which takes some five seconds, once, and are kept in
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
import threading
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from wsjax.errors import printable
from wsjax.storage import cache

FOLDER = Path(__file__).parent
LIBRARIES = {
    "convolution": ("convolve", "images_gradient", "kernel_gradient"),
    "layers": ("moments", "normalise", "normalise_gradient", "max_pool", "max_pool_gradient"),
}
"""The sources and what each exports, less its "wsjax_"; for each type of values a library of its own."""
HEADERS = sorted(FOLDER.glob("*.h"))
TYPES = {"float32": "float", "float64": "double"}
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w", "-pthread")
TIMEOUT = 600  # seconds for a compiler that needs some ten, or a few minutes where many work
_compiling = threading.Lock()


def support(*arrays: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether the kernels take such arrays: float32 or float64 on a CPU, where a compiler was found."""
    dtype = str(arrays[0].dtype)
    alike = dtype in TYPES and all(array.dtype == dtype for array in arrays)
    return alike and jax.default_backend() == "cpu" and available(dtype)


def on_cpu(
    name: str,
    results: Any,
    arrays: tuple[jax.Array, ...],
    plain: Callable[..., Any],
    default: Callable[..., Any] | None = None,
    **attributes: int,
) -> Any:
    """Calls a kernel on a CPU; where it can't be had, and where there is nothing to compute, `plain` takes its place.

    Args:
        name: one of those in `LIBRARIES`.
        results: a `jax.ShapeDtypeStruct`, or a tuple of them.
        arrays: the arguments. One that is left out has the shape (0,), and so has a result.
        plain: takes the same arrays, for a CPU.
        default: takes them too, for all other devices; None for `plain`.
        **attributes: integers, which the kernel alone takes.
    """
    default = default or plain
    parts = *arrays, *jax.tree.leaves(results)
    if all(part.size or part.shape == (0,) for part in parts) and support(*arrays):
        call = jax.ffi.ffi_call(_target(name, arrays[0].dtype), results, vmap_method="sequential")
        plain = functools.partial(call, **attributes)
    if plain is default:
        return plain(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=plain, default=default)


def available(dtype: str = "float32") -> bool:
    """Compiles a type's kernels, where that was not done yet, and makes them known to XLA; False where that fails."""
    failure = _failure(dtype)
    if failure:
        _tell(failure)
    return not failure


def prepare(dtype: str) -> None:
    """Has a thread compile the kernels that will be asked for, while this one reads data. Does nothing elsewhere."""
    if dtype in TYPES and jax.default_backend() == "cpu":
        # A failure is told by who asks later: what reads data meanwhile may have silenced all warnings.
        threading.Thread(target=_failure, args=(dtype,), daemon=True).start()


def _failure(dtype: str) -> str:
    """Why a type's kernels are not to be had; empty where they are."""
    with _compiling:  # once, whoever asks at the same time
        return _compiled(dtype)


@functools.cache
def _compiled(dtype: str) -> str:
    try:
        libraries = load(dtype)
    except OSError as error:
        return printable(error)
    for library, names in zip(libraries, LIBRARIES.values(), strict=True):
        for name in names:
            handler = jax.ffi.pycapsule(getattr(library, f"wsjax_{name}"))
            jax.ffi.register_ffi_target(_target(name, dtype), handler, platform="cpu")
    return ""


@functools.cache
def _tell(failure: str) -> None:
    warnings.warn(
        f"convolutions will be slow: their kernels could not be compiled ({failure}); "
        "a C++ compiler, in $CXX or on the PATH as c++, g++ or clang++, is all that it needs",
        stacklevel=3,
    )


def _target(name: str, dtype: Any) -> str:
    """What XLA knows a kernel by."""
    return f"wsjax_{name}_{dtype}"


def load(dtype: str) -> list[ctypes.CDLL]:
    """Loads a type's libraries, in the order of `LIBRARIES`; what the user's cache lacks is compiled, side by side.

    Raises:
        OSError: if one can't be compiled or loaded; the message is one line.
    """
    compiler, flags = _compiler(), [*FLAGS, f"-DVALUE={TYPES[dtype]}"]
    ((_, compilers_version),) = _run([[*compiler, "--version"]])
    stems: dict[str, str] = {}
    for source in LIBRARIES:  # an upgraded compiler compiles anew
        texts = [path.read_bytes() for path in (FOLDER / f"{source}.cc", *HEADERS)]
        words = [version("jaxlib").encode(), *map(os.fsencode, compiler), *map(str.encode, flags), compilers_version]
        stems[source] = f"{source}-{dtype}-{hashlib.sha256(b'|'.join([*texts, *words])).hexdigest()[:16]}"
    libraries = {source: _kept(stem, source) for source, stem in stems.items()}
    missing = [source for source, library in libraries.items() if library is None]
    with tempfile.TemporaryDirectory(prefix="wsjax-", ignore_cleanup_errors=True) as place:
        files = {source: Path(place) / f"{stems[source]}.so" for source in missing}
        command = [*compiler, *flags, "-I", jax.ffi.include_dir()]
        ended = _run([[*command, str(FOLDER / f"{source}.cc"), "-o", str(made)] for source, made in files.items()])
        for (source, made), (code, output) in zip(files.items(), ended, strict=True):
            if code != 0 or not made.exists():
                raise OSError(_reason(output) or f"{compiler[0]} ended with code {code} and without a library")
            kept = cache.keep(stems[source], made.suffix, made.read_bytes())
            libraries[source] = _open(kept or made, source)  # what is loaded may be removed
    return [library for library in libraries.values() if library]


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


def _run(commands: Sequence[Sequence[str]]) -> list[tuple[int, bytes]]:
    """Runs compilers side by side: the exit code of each and all that it printed.

    They print to files, not to pipes, which the programs that they run in turn would keep open after their end.
    """
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in commands]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for command, log in zip(commands, logs, strict=True):
                processes.append(
                    subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                    )
                )
            codes = [process.wait(TIMEOUT) for process in processes]
        except BaseException as error:
            for process in processes:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
                process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise OSError(f"{commands[0][0]} did not end within {TIMEOUT} s") from error
            raise
        for log in logs:
            log.seek(0)
        return [(code, log.read()) for code, log in zip(codes, logs, strict=True)]


def _reason(output: bytes) -> str:
    """The line of a compiler's output that tells most: the first error, else the first."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")


def _kept(stem: str, source: str) -> ctypes.CDLL | None:
    """The library of a source that was compiled before, where there is one that works."""
    for path in cache.find(stem):
        with contextlib.suppress(OSError):  # made where the C library was another
            return _open(path, source)
    return None


def _open(path: Path, source: str) -> ctypes.CDLL:
    """Loads a source's library; one that can't be loaded is removed."""
    try:
        library = ctypes.CDLL(str(path))
        missing = [name for name in LIBRARIES[source] if not hasattr(library, f"wsjax_{name}")]
        if missing:
            raise OSError(f"{path} lacks {', '.join(missing)}")
        return library
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise

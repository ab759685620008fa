"""A jit-compiled function whose compilation is counted and timed apart from its runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


class Program:
    """Compiles a pure function once for each set of argument shapes.

    Attributes:
      executables: the compiled programs, by the arguments' shapes and dtypes.
      compile_seconds: what tracing and compiling took so far.
    """

    def __init__(self, function: Callable[..., Any], donate_argnums: tuple[int, ...] = ()):
        self.executables: dict[Any, Any] = {}
        self.compile_seconds = 0.0
        self._jit = jax.jit(function, donate_argnums=donate_argnums)

    def prepare(self, *arguments: Any) -> Callable[..., Any]:
        """Returns the program for such arguments, compiled now where it is the first time."""
        leaves, structure = jax.tree.flatten(arguments)
        shapes = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if shapes not in self.executables:
            begin = time.perf_counter()
            self.executables[shapes] = self._jit.lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - begin
        return self.executables[shapes]

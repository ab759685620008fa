"""The compiled programs of runs: each function once for each setup and number of replicas, the data placed once.

They outlive a run: one that is given again, or the next with the same task and optimiser, compiles nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from wsjax import parallel
from wsjax.errors import TaskError
from wsjax.kept import kept
from wsjax.methods.starts import Boundary, Mixed, Start
from wsjax.storage.rows import CRC, FIELDS
from wsjax.training import anchors
from wsjax.training.train import Data, Samples, Setup, TrainState, evaluate, init_state, options_to_draw, train_epoch

MOST = 16
"""Sets of shapes whose programs are kept of a function, the last ones compiled: data that grow have ever new ones."""


class Program:
    """Compiles a pure function once for each set of argument shapes.

    Attributes:
      executables: the compiled programs, by the arguments' shapes, dtypes and places on the devices.
      compile_seconds: what tracing and compiling took so far.
    """

    def __init__(self, function: Callable[..., Any], **options: Any):
        self.executables: dict[Any, Any] = {}
        self.compile_seconds = 0.0
        self._shapes: dict[Any, Any] = {}
        self._jit = jax.jit(function, **options)

    def prepare(self, *arguments: Any) -> Callable[..., Any]:
        """Returns the program for such arguments, compiled now where it is the first time."""
        return self._once(self.executables, self.compile, arguments)

    def compile(self, *arguments: Any) -> Callable[..., Any]:
        """Compiles it for such arguments, whether it was or not."""
        return self.trace(*arguments).lower().compile()

    def trace(self, *arguments: Any) -> jax.stages.Traced:
        """Its trace for such arguments, for who looks at the program and does not run it."""
        return self._jit.trace(*arguments)

    def shapes(self, *arguments: Any) -> Any:
        """The shapes and dtypes of its results; it is traced, where it was not, and nothing is compiled or runs."""
        return self._once(self._shapes, partial(jax.eval_shape, self._jit), arguments)

    def _once(self, made: dict[Any, Any], make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What is made for such arguments, now where it is the first time; the last `MOST` are kept."""
        leaves, structure = jax.tree.flatten(arguments)
        known = structure, tuple((leaf.shape, leaf.dtype, _placement(leaf)) for leaf in leaves)
        if known not in made:
            begin = time.perf_counter()
            made[known] = make(*arguments)
            self.compile_seconds += time.perf_counter() - begin
            if len(made) > MOST:
                del made[next(iter(made))]
        return made[known]

    def __call__(self, *arguments: Any) -> Any:
        """Runs the program for such arguments."""
        return self.prepare(*arguments)(*arguments)


def _placement(leaf: Any) -> Any:
    """On which devices an array lies that JAX has put there and, where they hold parts of it, which."""
    if not isinstance(leaf, jax.Array):
        return None
    return frozenset(leaf.sharding.device_set), None if leaf.sharding.is_fully_replicated else leaf.sharding


class Programs(NamedTuple):
    """What one setup compiles to for a number of replicas, which have a leading axis in all arguments but some.

    Attributes:
      setup: with its data on the mesh's devices.
      mesh: the devices; None for one.
      draw: `keys -> TrainState`, a network for each key, whatever the number of replicas.
      epoch: `(state, active, train, test, order, counts, key) -> (state, metrics)`; it donates the state. The data and
        `counts`, the two of `Samples`, are the same for all replicas. A replica that is not active stays as it is.
      evaluate: `(state, train, test, order, counts) -> metrics`.
      fit: likewise, of the train samples; None where the epoch's own metrics do.
      start: `(start, key, old, fresh, first, order, counts) -> state`, for any number of replicas.
    """

    setup: Setup
    mesh: Mesh | None
    draw: Program
    epoch: Program
    evaluate: Program
    fit: Program | None
    start: Callable[..., TrainState]


class Compiler:
    """Makes the programs of a run's setups, each once, and puts each array of data on the devices once."""

    def __init__(self, mesh: Mesh | None):
        self._mesh = mesh
        self._made: dict[Program, float] = {}  # with what each had taken to compile before this run
        self._programs: dict[tuple[int, int], tuple[Setup, Programs]] = {}
        self._placed: dict[tuple[int, Mesh | None], jax.Array] = {}

    @property
    def compile_seconds(self) -> float:
        """What tracing and compiling took so far."""
        return sum(program.compile_seconds - before for program, before in self._made.items())

    def programs(self, setup: Setup, replicas: int) -> Programs:
        """The programs of a setup, which is known by its identity, for so many replicas."""
        key = (id(setup), replicas)
        if key not in self._programs:  # the setup is kept, so that no other one takes its identity
            self._programs[key] = setup, self._make(setup, parallel.fit(self._mesh, replicas))
        return self._programs[key][1]

    def check(self, setup: Setup, replicas: int, lengths: Mapping[tuple[int, ...], int]) -> None:
        """Traces what a round of a setup runs, by shapes alone, before it is; raises what cannot run.

        What one device runs is not traced again.
        """
        if (id(setup), replicas) in self._programs:  # another round has asked
            return
        own = self.programs(setup, replicas)
        keys = jax.eval_shape(jax.vmap(jax.random.key), jax.ShapeDtypeStruct((replicas,), jnp.uint32))
        state, data = own.draw.shapes(keys), (own.setup.train, own.setup.test)
        order = jax.ShapeDtypeStruct((replicas, lengths[identity(setup.train)]), jnp.int32)
        counts = (jax.ShapeDtypeStruct((), jnp.int32),) * 2
        own.epoch.shapes(state, jax.ShapeDtypeStruct((replicas,), bool), *data, order, counts, keys)
        for measure in filter(None, (own.evaluate, own.fit)):
            measure.shapes(state, *data, order, counts)

    def _make(self, given: Setup, mesh: Mesh | None) -> Programs:
        data = {"train": self._place(given.train, mesh), "test": self._place(given.test, mesh)}
        setup = _on_mesh(given, mesh)._replace(**data)
        about = given._replace(train=((), ()), test=((), ()))
        starts: dict[tuple[int, Any], tuple[Start, Program]] = {}

        def start(start: Start, key: Any, old: Any, fresh: Any, first: Any, order: Any, counts: Any) -> TrainState:
            if isinstance(start, Mixed) and start.batch_stats != "reestimate":  # which looks at the data
                # Leaf by leaf, for what is fused differs in the last bit: seeds side by side would not be as alone.
                started = over_replicas(starting(about, mesh, start), _START_AXES)
                return started(key, old, fresh, first, setup.train, setup.test, order, counts)
            own = parallel.fit(mesh, order.shape[0])  # a part of a leg's replicas
            replicas = parallel.place((key, old, fresh, first, order), own)
            data = self._place(given.train, own), self._place(given.test, own)
            counts = parallel.place(counts, own, replicated=True)
            if (id(start), own) not in starts:  # the start is kept, so that no other one takes its identity
                starts[id(start), own] = start, self._keep(_start_program(about, own, _modes(), start))
            return starts[id(start), own][1](*replicas[:-1], *data, replicas[-1], counts)

        known = about, mesh, _modes()
        # A network is drawn alike whatever its batches, its test or its devices: setups that differ there share this.
        plain = Setup(given.task, given.optimizer, ((), ()), ((), ()), anchors=given.anchors)
        draw, epoch = self._keep(_draw_program(plain, _modes())), self._keep(_epoch_program(*known))
        test = self._keep(_measure_program(*known, evaluate))
        fit = self._keep(_measure_program(*known, setup.fit)) if setup.fit else None
        return Programs(setup, mesh, draw, epoch, test, fit, start)

    def _keep(self, program: Program) -> Program:
        self._made.setdefault(program, program.compile_seconds)
        return program

    def _place(self, data: Data, mesh: Mesh | None) -> Data:
        """An array that several data sets share, as those with other labels do, lies there once."""

        def placed(leaf: Any) -> jax.Array:
            key = id(leaf), mesh  # the setups are kept, so that no other array takes its identity
            if key not in self._placed:
                self._placed[key] = parallel.place(jnp.asarray(leaf), mesh, replicated=True)
            return self._placed[key]

        return jax.tree.map(placed, data)


def _modes() -> tuple[Any, ...]:
    """What of JAX's settings decides what a function compiles to."""
    names = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_debug_nans",
             "jax_threefry_partitionable")  # fmt: skip
    return tuple(getattr(jax.config, name) for name in names)


# The makers of programs. None of them holds any data; setups, meshes and modes that are equal share a program.


@kept
def _draw_program(setup: Setup, modes: Any) -> Program:
    draw = partial(init_state, setup.task, anchors.optimizer_of(setup))
    # One after the other: a network is the same, and so are its bits, whoever is drawn beside it.
    return Program(partial(jax.lax.map, draw), compiler_options=options_to_draw())


@kept
def _epoch_program(setup: Setup, mesh: Mesh | None, modes: Any) -> Program:
    own = _on_mesh(setup, mesh)

    # Inlined where it is called: traced once, for its results' shapes and for the branch that runs.
    @partial(jax.jit, inline=True)
    def trained(state: TrainState, train: Data, test: Data, order: Any, counts: Any, key: Any) -> Any:
        return train_epoch(own._replace(train=train, test=test), state, Samples(order, *counts), key)

    def epoch(state: TrainState, active: Any, *others: Any) -> Any:
        metrics = jax.eval_shape(trained, state, *others)[1]
        _check_probes(metrics["probes"])
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
        # A replica that has stopped costs nothing where it has a device of its own.
        return jax.lax.cond(active, lambda: trained(state, *others), lambda: (state, nothing))

    return _over(epoch, (0, 0, None, None, 0, None, 0), mesh, donate_argnums=(0,))


_START_AXES = (0, 0, 0, 0, None, None, 0, None)


@kept
def _start_program(setup: Setup, mesh: Mesh | None, modes: Any, start: Start) -> Program:
    return _over(starting(setup, mesh, start), _START_AXES, mesh)


def starting(setup: Setup, mesh: Mesh | None, start: Start) -> Callable[..., TrainState]:
    """What a start does for one replica: `(key, old, fresh, first, train, test, order, counts) -> state`."""
    own = _on_mesh(setup, mesh)

    def started(
        key: Any, old: Any, fresh: Any, first: Any, train: Data, test: Data, order: Any, counts: Any
    ) -> TrainState:
        here = own._replace(train=train, test=test)
        state = start(Boundary(key, old, fresh, Samples(order, *counts), here, first))
        return anchors.put(state, first.params) if setup.anchors else state

    return started


@kept
def _measure_program(
    setup: Setup, mesh: Mesh | None, modes: Any, measure: Callable[[Setup, TrainState, Samples], Any]
) -> Program:
    own = _on_mesh(setup, mesh)

    def measured(state: TrainState, train: Data, test: Data, order: Any, counts: Any) -> Any:
        metrics = measure(own._replace(train=train, test=test), state, Samples(order, *counts))
        if not isinstance(metrics, Mapping) or {"loss", "accuracy"} - set(metrics):
            raise TaskError(f"the setup's fit must give a dict of loss and accuracy, not {metrics!r:.60}")
        return metrics

    return _over(measured, (0, None, None, 0, None), mesh)


def _on_mesh(setup: Setup, mesh: Mesh | None) -> Setup:
    return setup._replace(axis_name=parallel.axis_of(mesh), optimizer=anchors.optimizer_of(setup))


def _over(function: Callable[..., Any], in_axes: tuple[int | None, ...], mesh: Mesh | None, **options: Any) -> Program:
    mapped = [axis is not None for axis in in_axes]
    return Program(parallel.over_mesh(over_replicas(function, in_axes), mesh, mapped), **options)


def identity(data: Data) -> tuple[int, ...]:
    """What a data set is known by: which arrays it is made of."""
    return tuple(map(id, jax.tree.leaves(data)))


def _check_probes(probes: Any) -> None:
    """Raises a TaskError where what a probe measures cannot be fields of a row."""
    if not isinstance(probes, Mapping):
        raise TaskError(f"a probe must give {{name: scalar}}, not a {type(probes).__name__}")
    for name, value in probes.items():
        if name in FIELDS or name == CRC:
            raise TaskError(f"a probe cannot be named '{name}': every row has a field of that name")
        if value.shape != ():
            raise TaskError(f"the probe '{name}' must be one number, not an array of shape {list(value.shape)}")


def over_replicas(function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """Maps a function over a leading axis of replicas.

    A single replica runs without vmap, which would turn its convolutions into grouped ones.
    """

    def mapped(*arguments: Any) -> Any:
        replicas = jax.tree.leaves(arguments[0])[0].shape[0]
        if replicas > 1:
            return jax.vmap(function, in_axes)(*arguments)
        pairs = zip(arguments, in_axes, strict=True)
        one = [x if axis is None else jax.tree.map(lambda leaf: leaf[0], x) for x, axis in pairs]
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], function(*one))

    return mapped

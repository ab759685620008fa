"""What is looked at before a run begins, so that it does not fail hours later, or train on nonsense."""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wsjax import parallel
from wsjax.checks import called, check_choice, check_count, is_whole, parameters, takes
from wsjax.errors import RunError, TaskError
from wsjax.methods.dash import dash, dash_start
from wsjax.methods.hare_tortoise import tortoise_kept
from wsjax.methods.reinit import shrink_perturb
from wsjax.methods.starts import anchored, forgotten, mixed
from wsjax.methods.variants import gaussian_perturb, gaussian_start, toward_initial
from wsjax.rounds.legs import Method, Round, Settings
from wsjax.rounds.metrics import train_accuracies
from wsjax.rounds.programs import starting
from wsjax.storage.records import Records
from wsjax.storage.rows import DIVERGED, FIRST, OTHER_RUN, Row, name_of
from wsjax.training import anchors
from wsjax.training.task import Task, applied, correct, cross_entropy
from wsjax.training.train import Data, Setup, TrainState, init_state
from wsjax.trees import difference, named_leaves, path_name


def check(
    setup: Setup,
    rounds: Sequence[Round],
    methods: Mapping[str, Method],
    seeds: Sequence[int],
    settings: Settings,
    axis_name: str | None = None,
) -> None:
    """Checks what `run_rounds` was given, to be run over `axis_name`; raises a TaskError that names it."""
    _check_methods(rounds, methods)
    _check_is_setup("", setup)
    named = {f"round {number}": here for number, here in enumerate(rounds, 1)}
    for name, method in methods.items():
        own = enumerate(method.rounds or (), method.after + 1)
        named |= {f"method '{name}', round {number}": here for number, here in own}
    sizes: dict[int, int] = {}
    for name, here in named.items():
        own = here.setup or setup
        _check_is_setup(f"{name}: ", own)
        if id(own) not in sizes:
            sizes[id(own)] = _check_setup(own._replace(axis_name=axis_name))
        _check_round(name, here, sizes[id(own)])
    for name, method in methods.items():
        own = seeds if method.seeds is None else method.seeds
        _require(set(own) <= set(seeds), f"method '{name}' is for seeds {sorted(own)}; the run's are {sorted(seeds)}")
    _require(len(seeds) > 0 and len(set(seeds)) == len(seeds), f"seeds must be given, each once, not {tuple(seeds)}")
    # JAX takes a key from 32 bits: seeds that differ above them would be one.
    _require(all(0 <= seed < 2**32 for seed in seeds), f"seeds must lie in [0, 2^32), not {tuple(seeds)}")
    for name, options in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if options is int:
            check_count(name, value)
        else:
            check_choice(name, value, get_args(options))


def check_given(methods: Any, initial: Any, records: Any, settings: Any, mesh: Any, observe: Any) -> None:
    """Checks the kinds of what `run_rounds` was given, before anything is made of it; raises a TaskError."""
    _require(
        isinstance(methods, Mapping),
        f"methods must be a dict of methods by their names, {{'WS': wsjax.warm_start}}, not {methods!r:.60}",
    )
    for name, method in methods.items():
        _check_method(name, method)
    pair = initial is None or (isinstance(initial, tuple | list) and len(initial) == 2)
    _require(pair, f"initial must be a pair (params, batch_stats), not of type {type(initial).__name__}")
    path = f"; give records=Records({str(records)!r:.60})" * isinstance(records, str | PathLike)
    known = records is None or isinstance(records, Records)
    _require(known, f"records must be wsjax.Records, not of type {type(records).__name__}{path}")
    without = jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
    _require(not without, "run_rounds runs what it has compiled: unset jax_disable_jit")
    for name in ("jax_debug_nans", "jax_debug_infs"):
        _require(not getattr(jax.config, name), f"run_rounds says itself where a loss is not finite: unset {name}")
    known = settings is None or isinstance(settings, Settings)
    _require(known, f"settings must be wsjax.Settings, not of type {type(settings).__name__}")
    known = mesh is None or (isinstance(mesh, Mesh) and mesh.axis_names in ((parallel.DATA,), (parallel.REPLICAS,)))
    _require(known, f"mesh must be made by wsjax.data_mesh() or wsjax.replica_mesh(), not {mesh!r:.60}")
    _require(observe is None or takes(observe, 1), f"observe must be a function (rows) -> None, not {observe!r:.60}")


def _check_method(name: Any, method: Any) -> None:
    """Checks that a method can be called; raises a TaskError that says what to give in its place."""
    _require(isinstance(name, str), f"methods are known by their names, not {name!r:.60}")
    one = "a start (boundary) -> state"
    two = "a re-initialiser (params, fresh) -> params"
    if isinstance(method, Method):
        made = any(method.start is maker for maker in _MAKERS)
        _require(not made, f"method '{name}': {called(method.start)} is no start; call it: it makes one")
        hint = f"; {two} becomes one by wsjax.mixed(...)" * takes(method.start, 2)
        _require(takes(method.start, 1), f"the start of method '{name}' is not {one}{hint}")
        return
    function = method.func if isinstance(method, partial) else method
    known = next((words for own, words in _INSTEAD.items() if own is function), None)
    hint = f"; {one} becomes a method by wsjax.Method(...)" * takes(method, 1)
    hint = f"; give {known}" if known else hint
    makes_start = function is dash_start or function is gaussian_start  # of two numbers, for which trees would pass
    _require(takes(method, 2) and not makes_start, f"method '{name}' is neither a Method nor {two}{hint}")
    if isinstance(method, partial):
        taken = parameters(function)[: len(method.args)]
        given = f"functools.partial has {method.args!r:.60} in the place of params"
        _require("params" not in taken, f"method '{name}': {given}; give factors by name" + f", {known}" * bool(known))


_MAKERS = (anchored, dash_start, forgotten, gaussian_start, mixed, tortoise_kept)
"""Functions that make a start of something, and can be called with one thing as a start can."""
_INSTEAD: dict[Any, str] = {
    dash: "Method(dash_start())",
    dash_start: "Method(dash_start())",
    gaussian_perturb: "Method(gaussian_start(shrink=0.3, std=0.01))",
    gaussian_start: "Method(gaussian_start(shrink=0.3, std=0.01))",
    shrink_perturb: "partial(shrink_perturb, shrink=0.4, perturb=0.1)",
    toward_initial: "partial(toward_initial, rate=0.8)",
}
"""What to give in the place of functions that are no methods by themselves."""


def _check_kinds(of: str, rounds: Any) -> None:
    """Checks that rounds are some; raises a TaskError."""
    some = isinstance(rounds, Sequence) and not isinstance(rounds, Round)
    _require(some, f"{of}rounds must be a list of wsjax.Round, not of type {type(rounds).__name__}")
    for number, here in enumerate(rounds, 1):
        _require(
            isinstance(here, Round),
            f"{of}round {number} must be a wsjax.Round, such as Round({here!r:.20}, max_epochs=10), not {here!r:.60}",
        )


def whole_seeds(seeds: Any, of: str = "") -> tuple[int, ...]:
    """Seeds as Python's own whole numbers; raises a TaskError where they are none."""
    own = list(seeds) if isinstance(seeds, Iterable) else None
    good = own is not None and all(map(is_whole, own))
    _require(good, f"{of}seeds must be whole numbers, such as range(3), not {seeds!r:.60}")
    return tuple(map(operator.index, own or ()))


def whole_rounds(rounds: Sequence[Round], of: str) -> list[Round]:
    """Rounds whose sizes are Python's own whole numbers; raises a TaskError where one is none."""
    _check_kinds(of, rounds)
    for number, here in enumerate(rounds, 1):
        size = here.num_samples
        _require(is_whole(size), f"{of}round {number}: num_samples must be a whole number, not {size!r:.60}")

    def whole(here: Round) -> Round:
        cap: Any = here.max_epochs
        most = operator.index(cap) if is_whole(cap) else cap
        return here._replace(num_samples=operator.index(here.num_samples), max_epochs=most)

    return list(map(whole, rounds))


def check_start(method: str, state: TrainState, fresh: TrainState) -> None:
    """Checks that a round can start from a state: that it is like a newly drawn one; raises a TaskError."""
    unlike = difference(state, fresh)
    _require(unlike is None, f"{method} starts with a state of another structure than a new network's: {unlike}")
    old, new = (jax.tree_util.tree_leaves_with_path(tree) for tree in (state, fresh))
    for (path, leaf), (_, like) in zip(old, new, strict=True):
        given, due = (f"{x.dtype} {list(x.shape)}" for x in (leaf, like))
        _require(given == due, f"{method} starts with {given} at '{path_name(path)}', where the network has {due}")


def check_starts(setup: Setup, rounds: Sequence[Round], methods: Mapping[str, Method]) -> None:
    """Checks what each method starts with, by its shapes alone; raises a TaskError, or what the start itself raises.

    A start that looks at numbers tells nothing before there are any.
    """
    seen: set[tuple[int, ...]] = set()
    shapes: dict[int, TrainState] = {}  # of a newly drawn network's state, by the setup: tracing one takes a while

    def drawn(own: Setup) -> TrainState:
        if id(own) not in shapes:
            init = partial(init_state, own.task, anchors.optimizer_of(own))
            shapes[id(own)] = jax.eval_shape(init, jax.random.key(0))
        return shapes[id(own)]

    for name, method in methods.items():
        own = rounds[method.after :] if method.rounds is None else method.rounds
        setups = [here.setup or setup for here in [*rounds[: method.after], *own]]
        first = max(method.after, 1 - method.at_once)
        for before, here in itertools.pairwise([setups[0], *setups][first:]):
            known = id(method.start), id(before), id(here)
            if known not in seen:
                seen.add(known)
                _check_one_start(name, method, here, drawn(before), drawn(here))


def _check_one_start(name: str, method: Method, here: Setup, old: TrainState, fresh: TrainState) -> None:
    order = jax.ShapeDtypeStruct((jax.tree.leaves(here.train)[0].shape[0],), jnp.int32)
    counts = (jax.ShapeDtypeStruct((), jnp.int32),) * 2
    given = jax.random.key(0), old, fresh, fresh, here.train, here.test, order, counts
    with contextlib.suppress(*_OF_NUMBERS):
        check_start(f"method '{name}'", jax.eval_shape(starting(here, None, method.start), *given), fresh)


_OF_NUMBERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What JAX raises where a function of shapes alone asks for numbers."""


def check_rows_of(rows: Sequence[Row], plan: Mapping[str, Mapping[int, Round]], setup: Setup, source: object) -> None:
    """Checks that rows, which `check_rows` found in their places, tell of the rounds as they are given now.

    What a row tells is compared: its samples, its steps, and whether the round's rule and cap end it there.

    Raises:
      RunError: names the first line that tells of something else, and both.
    """
    histories: dict[tuple[str, int, int], list[float]] = {}
    for line, row in enumerate(rows, 1):
        here = plan[row["method"]][row["round"]]
        history = histories.setdefault((row["method"], row["seed"], row["round"]), [])
        history += train_accuracies([row])
        reason = _other(row, here, (here.setup or setup).batch_size, history)
        if reason is not None:
            raise RunError(f"{source}, line {line}, is of another run ({name_of(row)}): {reason}; {OTHER_RUN}")


def _other(row: Row, here: Round, batch_size: int, accuracies: Sequence[float]) -> str | None:
    """In what a row, behind epochs of these train accuracies, differs from its round; None where it does not."""
    steps = row["epoch"] * -(-here.num_samples // batch_size)
    if row["samples"] != here.num_samples:
        return f"it has {row['samples']} samples, and the round {here.num_samples}"
    if row["steps"] != steps:
        return f"it has {row['steps']} steps, and by batches of {batch_size} they are {steps}"
    if len(accuracies) != row["epoch"] or row["stop"] == DIVERGED:  # some are missing: they are trained again
        return None
    reason = here.reason(accuracies)
    if row["stop"] != reason:
        ends = "goes on" if reason is None else f"ends by '{reason}'"
        return f"its round {'went on' if row['stop'] is None else 'ended'}, and by the rules given now {ends} there"
    return None


def _check_methods(rounds: Sequence[Round], methods: Mapping[str, Method]) -> None:
    _require(len(rounds) > 0, "there is no round to run: rounds is empty")
    _require(FIRST not in methods, f"a method cannot be named '{FIRST}': that names the rounds that all methods share")
    _require("" not in methods, "a method cannot have an empty name")
    for name, method in methods.items():
        check_count(f"method '{name}': after", method.after, least=0)
        _require(
            method.after <= len(rounds),
            f"method '{name}' begins after round {method.after}; there are {len(rounds)} rounds to share",
        )
        early = not method.at_once or method.after == 0
        _require(early, f"method '{name}': at_once begins before round 1; give after=0 too, not {method.after}")
        own = rounds[method.after :] if method.rounds is None else method.rounds
        _require(method.after > 0 or len(own) > 0, f"method '{name}' has no round to run")


def _check_is_setup(of: str, setup: Any) -> None:
    known = isinstance(setup, Setup)
    _require(known, f"{of}setup must be wsjax.Setup(task, optimizer, train, test), not of type {type(setup).__name__}")


def _check_round(name: str, here: Round, count: int) -> None:
    _require(
        1 <= here.num_samples <= count,
        f"{name} asks for {here.num_samples} samples; there are {count}, and it needs at least 1",
    )
    _require(
        here.stop is not None or here.max_epochs is not None,
        f"{name} would never end: give it a stop rule or max_epochs",
    )
    hint = "; epochs go into max_epochs=" * is_whole(here.stop)
    rule = here.stop is None or takes(here.stop, 1)
    _require(rule, f"{name}: stop must be a rule (accuracies) -> reason, not {here.stop!r:.60}{hint}")
    if here.max_epochs is not None:
        check_count(f"{name}: max_epochs", here.max_epochs)


def _check_setup(setup: Setup) -> int:
    """Checks a setup; returns the number of its train samples."""
    check_count("batch_size", setup.batch_size)
    _check_fields(setup)
    counts = [_count(name, data) for name, data in (("train", setup.train), ("test", setup.test))]
    drawn = jax.eval_shape(setup.task.init, jax.random.key(0))
    _require(
        isinstance(drawn, tuple | list) and len(drawn) == 2,
        f"the task's init must give a pair (params, batch_stats), not a {type(drawn).__name__}; {{}} for no statistics",
    )
    for name, leaf in named_leaves(drawn[0]):
        _require(
            jnp.issubdtype(leaf.dtype, jnp.inexact),
            f"the params' leaf '{name}' is {leaf.dtype}; only floating-point leaves can be trained: keep "
            "others out of params",
        )
    if setup.task.loss is cross_entropy or setup.task.score is correct:
        _check_labels(setup, drawn)
    return counts[0]


def _check_fields(setup: Setup) -> None:
    """Checks that a setup's fields are of their kinds."""
    task = isinstance(setup.task, Task)
    _require(task, f"the setup's task must be a wsjax.Task, as wsjax.stateless_task makes one, not {setup.task!r:.60}")
    hint = "; call it: optax.adam(1e-3)" * callable(setup.optimizer)
    optimizer = callable(getattr(setup.optimizer, "init", None)) and callable(getattr(setup.optimizer, "update", None))
    _require(optimizer, f"the setup's optimizer must be one of optax, not {setup.optimizer!r:.60}{hint}")
    for name, data in (("train", setup.train), ("test", setup.test)):
        pair = isinstance(data, tuple | list) and len(data) == 2
        _require(pair, f"{name} must be a pair (inputs, targets), not of type {type(data).__name__}")
    for name, (count, form) in _FUNCTIONS.items():
        holder = setup if name in setup._fields else setup.task
        function = getattr(holder, name)
        left_out = function is None and name in holder._field_defaults
        _require(left_out or takes(function, count), f"{name} must be a function {form}, not {function!r:.60}")


_FUNCTIONS = {
    "init": (1, "(key) -> (params, batch_stats)"),
    "apply": (6, "(params, batch_stats, inputs, weights, train, keys) -> (outputs, batch_stats)"),
    "loss": (2, "(outputs, targets) -> [B]"),
    "score": (2, "(outputs, targets) -> [B]"),
    "activations": (3, "(params, batch_stats, inputs) -> Activations"),
    "judged": (3, "(setup, state, samples) -> state"),
    "fit": (3, "(setup, state, samples) -> metrics"),
    "probe": (4, "(setup, state, samples, key) -> {name: scalar}"),
    "learning_rate": (2, "(count, epoch_steps) -> []"),
}
"""The functions of a task and of a setup, with how many arguments they take."""


def _count(name: str, data: Data) -> int:
    """The number of samples of inputs and targets."""
    leaves = jax.tree.leaves(data)
    _require(
        all(isinstance(leaf, np.ndarray | np.generic | jax.Array) for leaf in leaves),
        f"{name} inputs and targets must be arrays of NumPy or JAX, not of type "
        f"{', '.join(sorted({type(leaf).__name__ for leaf in leaves}))}: give numpy.asarray(...) of them",
    )
    for leaf in leaves:
        of_numbers = not isinstance(leaf, np.ndarray | np.generic) or leaf.dtype.kind in "?biufcV"
        _require(of_numbers, f"{name} inputs and targets must be arrays of numbers, not of {leaf.dtype}")
    lengths = {leaf.shape[0] if leaf.shape else 0 for leaf in leaves}
    _require(
        len(lengths) == 1 and 0 not in lengths,
        f"{name} inputs and targets need one length above 0, not {sorted(lengths)}",
    )
    return lengths.pop()


def _check_labels(setup: Setup, drawn: Any) -> None:
    """Checks that the labels are those of the outputs: a label beyond them would train as another class, or on NaN."""
    outputs = _outputs(setup, drawn)
    _require(
        hasattr(outputs, "shape") and len(outputs.shape) > 0,
        f"the model's outputs must be one array of logits for cross-entropy, not a {type(outputs).__name__}; give the "
        "task a loss and a score of its own for others",
    )
    classes = outputs.shape[-1]
    for name, labels in (("train", setup.train[1]), ("test", setup.test[1])):
        labels = np.asarray(labels)
        _require(
            labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer),
            f"{name} labels must be integers [N] for cross-entropy, not {labels.dtype} {list(labels.shape)}; give the "
            "task a loss and a score of its own for other targets",
        )
        low, high = int(labels.min()), int(labels.max())
        _require(
            low >= 0 and high < classes,
            f"{name} labels go from {low} to {high}; the model has {classes} outputs, for labels 0 to {classes - 1}",
        )


def _outputs(setup: Setup, drawn: Any) -> Any:
    """The shape of the task's outputs for one sample, of a newly drawn network's (params, batch_stats)."""

    def outputs(params: Any, batch_stats: Any, inputs: Any) -> Any:
        return applied(setup.task, params, batch_stats, inputs, jnp.ones(1), False, None)[0]

    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, 1, *x.shape[1:]), x.dtype), setup.train[0])
    return jax.eval_shape(jax.vmap(outputs, (None, None, 0), axis_name=setup.axis_name), *drawn, one)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise TaskError(message)

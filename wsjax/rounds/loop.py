"""The loop of rounds: train on the data there is until a stop rule holds, re-initialise, go on with more data.

A *way* is a name and a re-initialiser; every way starts from the same first round. A *replica* is a way (or the first
round that all share) with a seed. A *leg* is what runs in one piece: a stack of replicas that train together as one
program. A leg's checkpoints and its rows are all that a resume needs, because every random key is a function of (seed,
round, epoch).
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_type_hints
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from wsjax import parallel
from wsjax.data.datasets import pool_order
from wsjax.errors import NonFiniteLoss
from wsjax.methods.reinit import random_init
from wsjax.rounds.programs import Program
from wsjax.storage import checkpoint
from wsjax.storage.records import Records
from wsjax.storage.rows import FIRST, Row
from wsjax.training.stopping import StopRule
from wsjax.training.train import Data, Evaluation, Task, TrainState, init_state, make_epoch, make_evaluate

Reinit = Callable[[Any, Any], Any]
Observer = Callable[[list[Row]], None]

_STEPS_A_ROUND = 1_000_000  # a checkpoint's number is round * this + epoch


class Round(NamedTuple):
    """A round trains on the first `num_samples` of a seed's order of the data until `stop` gives a reason."""

    num_samples: int
    stop: StopRule


class Settings(NamedTuple):
    """How every round trains, and what passes between rounds beside the parameters.

    Attributes:
      batch_size: samples a step.
      batch_stats: at a round's start, "keep" BatchNorm's running statistics or "reset" them.
      opt_state: at a round's start, "rebuild" the optimiser's state or "keep" it.
      evaluation: see `wsjax.train.make_evaluate`.
      evaluate: test after every "epoch", or only when a seed's "round" ends (its other rows have None).
      checkpoint_every: epochs between checkpoints; a round's end always has one.
    """

    batch_size: int = 128
    batch_stats: Literal["keep", "reset"] = "keep"
    opt_state: Literal["rebuild", "keep"] = "rebuild"
    evaluation: Evaluation = "running"
    evaluate: Literal["epoch", "round"] = "epoch"
    checkpoint_every: int = 10


class Result(NamedTuple):
    """What a study returns.

    Attributes:
      rows: a row an epoch.
      states: each (method, seed)'s state at its end, "first" among the methods.
      compile_seconds: what tracing and compiling took in this call.
    """

    rows: list[Row]
    states: dict[tuple[str, int], TrainState]
    compile_seconds: float


class Study(NamedTuple):
    """What all legs share: the task, the data, the rounds, and the compiled programs."""

    task: Task
    optimizer: optax.GradientTransformation
    train: Data
    test: Data
    rounds: Sequence[Round]
    settings: Settings
    mesh: Mesh | None
    draw: Program
    epoch: Program
    evaluate: Program


class Leg(NamedTuple):
    """Replicas (method, seed), those of a method side by side, over rounds [begin, end), numbered from 1."""

    replicas: tuple[tuple[str, int], ...]
    begin: int
    end: int

    @property
    def seeds(self) -> tuple[int, ...]:
        """The replicas' seeds."""
        return tuple(seed for _, seed in self.replicas)

    @property
    def parts(self) -> list[tuple[str, slice]]:
        """Each method, and where its replicas are."""
        methods = [method for method, _ in self.replicas]
        return [
            (name, slice(methods.index(name), methods.index(name) + methods.count(name)))
            for name in dict.fromkeys(methods)
        ]

    @property
    def name(self) -> str:
        """The leg's folder of checkpoints."""
        parts = [(quote(method, safe=""), "-".join(map(str, self.seeds[where]))) for method, where in self.parts]
        name = "+".join(f"{method}-seeds-{seeds}" for method, seeds in parts)
        if len(name) > 200:  # a file's name has its limit
            name = f"{len(self.replicas)}-replicas-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        return name

    def has(self, row: Row) -> bool:
        """Whether a row belongs to this leg."""
        return (row["method"], row["seed"]) in self.replicas


def run_rounds(
    task: Task,
    optimizer: optax.GradientTransformation,
    train: Data,
    test: Data,
    rounds: Sequence[Round],
    ways: Mapping[str, Reinit],
    seeds: Sequence[int] = (0,),
    *,
    settings: Settings | None = None,
    stack: bool = True,
    start: tuple[Any, Any] | None = None,
    mesh: Mesh | None = None,
    records: Records | None = None,
    checkpoints: Path | str | None = None,
    observe: Observer | None = None,
) -> Result:
    """Trains through all rounds, for every way and seed.

    Round 1 is trained once a seed, from a fresh network, and is common to all ways (its rows name the method "first").
    At the start of every later round, a way's parameters are `reinit(params, fresh)`, where `fresh` is a network drawn
    anew for (seed, round), the same for all ways. `random_init` inherits nothing: its statistics and optimiser state
    are new too.

    Args:
      task: what is trained.
      optimizer: of optax.
      train: (inputs, targets), N samples.
      test: (inputs, targets), evaluated after every epoch.
      rounds: sizes and stop rules. Pools are nested: round r has the first `num_samples` of the seed's order.
      ways: a re-initialiser by name.
      seeds: root keys; seed s decides the order of the data, the networks and the order of batches.
      settings: see `Settings`.
      stack: whether seeds train together as one vmapped program, or one after the other: right for convolutions,
        whose kernels do not vmap well.
      start: (params, batch_stats) that round 1 starts from, for every seed; by default a newly drawn network.
      mesh: `wsjax.parallel.data_mesh()` splits every batch over devices, and then a model with batch statistics takes
        them over the axis "data"; `replica_mesh()` trains seeds side by side, on a device each, and
        ways too where devices are left.
      records: takes the rows. Where it holds rows already, the run continues as far as `checkpoints` reach.
      checkpoints: folder for checkpoints; None keeps none. Records and checkpoints belong to one run: give others for
        other settings, which are not compared here (`wsjax.records.open_run` does that).
      observe: called with every epoch's rows, for display.

    Returns:
      A Result. A run that was killed and is given again returns the same bits, but for the seconds.

    Raises:
      NonFiniteLoss: a loss was not finite. Rows and checkpoints written so far stay.
      ValueError: a round has no sample or more than there are, inputs and targets differ in length, a way has the
        name "first", or a setting is not one of those possible.
    """
    records, settings, seeds = records or Records(), settings or Settings(), tuple(int(seed) for seed in seeds)
    _check(train, test, rounds, ways, seeds, settings)
    states: dict[tuple[str, int], TrainState] = {}
    studies: dict[int, Study] = {}

    for leg in make_legs(len(rounds), tuple(ways), seeds, stack, mesh):
        count = len(leg.replicas)
        if count not in studies:
            fitting = parallel.fit(mesh, count)
            studies[count] = make_study(task, optimizer, train, test, rounds, settings, fitting)
        if leg.begin > 1:
            begin = _stack([states[FIRST, seed] for seed in leg.seeds])
        else:
            begin = None if start is None else _given(optimizer, start, count)
        end = _run_leg(studies[count], leg, begin, ways, records, checkpoints, observe)
        states |= zip(leg.replicas, _unstack(end), strict=True)
    compiled = [program for study in studies.values() for program in (study.draw, study.epoch, study.evaluate)]
    return Result(records.rows, states, sum(program.compile_seconds for program in compiled))


def make_legs(rounds: int, ways: Sequence[str], seeds: Sequence[int], stack: bool, mesh: Mesh | None) -> list[Leg]:
    """What runs in one piece, in order: the first round of some seeds, then the later ones, way by way.

    Where a way's seeds would leave devices of a replica mesh idle, ways run side by side.
    """
    legs = []
    for group in parallel.groups(seeds, stack, mesh):
        legs.append(Leg(tuple((FIRST, seed) for seed in group), 1, 2))
        replicas = [(way, seed) for way in ways for seed in group]
        size = max(len(group), parallel.replica_devices(mesh))
        legs += [Leg(tuple(replicas[i : i + size]), 2, rounds + 1) for i in range(0, len(replicas), size)]
    return legs


def make_study(
    task: Task,
    optimizer: optax.GradientTransformation,
    train: Data,
    test: Data,
    rounds: Sequence[Round],
    settings: Settings,
    mesh: Mesh | None = None,
) -> Study:
    """Puts the data on the devices and makes the programs that all rounds use."""
    train, test = parallel.place(jax.tree.map(jnp.asarray, (train, test)), mesh, replicated=True)
    axis_name = parallel.axis_of(mesh)
    epoch = make_epoch(task, optimizer, settings.batch_size, axis_name)

    def active_epoch(state: TrainState, active: jax.Array, *arguments: Any) -> Any:
        """An epoch of a replica that is active; another stays as it is, at no cost where it has a device of its own."""
        metrics = jax.eval_shape(epoch, state, *arguments)[1]
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
        return jax.lax.cond(active, lambda: epoch(state, *arguments), lambda: (state, nothing))

    def program(function: Callable[..., Any], in_axes: tuple[int | None, ...], **options: Any) -> Program:
        mapped = [axis is not None for axis in in_axes]
        return Program(parallel.over_mesh(over_replicas(function, in_axes), mesh, mapped), **options)

    evaluate = make_evaluate(task, settings.batch_size, settings.evaluation, axis_name)
    programs = (
        Program(partial(init_state, task, optimizer)),
        program(active_epoch, (0, 0, None, 0, None, 0), donate_argnums=(0,)),
        program(evaluate, (0, None, None, 0, None)),
    )
    return Study(task, optimizer, train, test, rounds, settings, mesh, *programs)


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


def _run_leg(
    study: Study,
    leg: Leg,
    start: TrainState | None,
    ways: Mapping[str, Reinit],
    records: Records,
    checkpoints: Path | str | None,
    observe: Observer | None,
) -> TrainState:
    """Runs a leg, or what is left of it, and returns its stacked state."""
    if checkpoints is None:
        return _run_leg_in(None, study, leg, start, ways, records, observe)
    with contextlib.closing(checkpoint.open_folder(Path(checkpoints) / leg.name)) as folder:
        return _run_leg_in(folder, study, leg, start, ways, records, observe)


def _run_leg_in(
    folder: Any,
    study: Study,
    leg: Leg,
    start: TrainState | None,
    ways: Mapping[str, Reinit],
    records: Records,
    observe: Observer | None,
) -> TrainState:
    """Runs a leg with its folder of checkpoints, which may be None."""
    keys = _keys(leg.seeds)
    pools = parallel.place(_pools(study, keys), study.mesh)
    state = parallel.place(_fresh(study, keys, leg.begin) if start is None else start, study.mesh)
    number, epoch = leg.begin, 0
    found = None
    if folder is not None:
        found = checkpoint.restore(folder, state, lambda step: _covered(records, leg, *divmod(step, _STEPS_A_ROUND)))
    if found is not None:
        (number, epoch), state = divmod(found[0], _STEPS_A_ROUND), found[1]
    records.keep(lambda row: not leg.has(row) or (row["round"], row["epoch"]) <= (number, epoch))

    while number < leg.end:
        if epoch == 0 and number > 1:
            fresh = parallel.place(_fresh(study, keys, number), study.mesh)
            state = parallel.place(_boundary(study, leg, state, fresh, ways), study.mesh)
        state = _run_round(study, leg, number, epoch, state, keys, pools, records, folder, observe)
        number, epoch = number + 1, 0
    return state


def _run_round(
    study: Study,
    leg: Leg,
    number: int,
    epoch: int,
    state: TrainState,
    keys: Mapping[str, jax.Array],
    pools: jax.Array,
    records: Records,
    folder: Any,
    observe: Observer | None,
) -> TrainState:
    """Trains round `number` on from `epoch` until every replica has stopped."""
    size, stop = study.rounds[number - 1]
    num_samples = parallel.place(jnp.asarray(size, jnp.int32), study.mesh, replicated=True)
    round_keys = _fold(keys["epoch"], number)
    done = [row for row in records.rows if leg.has(row) and row["round"] == number]
    own = [[row for row in done if (row["method"], row["seed"]) == replica] for replica in leg.replicas]
    history = [[row["train_accuracy"] for row in rows] for rows in own]
    active = np.array([not any(row["stop"] for row in rows) for rows in own])

    while active.any():
        epoch += 1
        now = parallel.place((jnp.asarray(active), _fold(round_keys, epoch)), study.mesh)
        arguments = (state, now[0], study.train, pools, num_samples, now[1])
        train_epoch = study.epoch.prepare(*arguments)
        begin = time.perf_counter()
        state, fitted = jax.block_until_ready(train_epoch(*arguments))
        train_seconds = time.perf_counter() - begin

        ran = np.flatnonzero(active)
        fitted = jax.tree.map(np.asarray, fitted)
        for i in ran:
            if step := int(fitted["bad_step"][i]):
                raise NonFiniteLoss(f"the loss is not finite: {_place(leg, i, number, epoch)}, step {step}")
            history[i].append(float(fitted["accuracy"][i]))
        reasons = [stop(accuracies) for accuracies in history]
        active &= [reason is None for reason in reasons]

        tested, eval_seconds = None, 0.0
        if study.settings.evaluate == "epoch" or not active[ran].all():
            arguments = (state, study.test, study.train, pools, num_samples)
            evaluate = study.evaluate.prepare(*arguments)
            begin = time.perf_counter()
            tested = jax.tree.map(np.asarray, evaluate(*arguments))
            eval_seconds = time.perf_counter() - begin
            for i in ran:
                if not np.isfinite(tested["loss"][i]):
                    raise NonFiniteLoss(f"the test loss is not finite: {_place(leg, i, number, epoch)}")

        rows = [
            {
                "method": leg.replicas[i][0],
                "seed": leg.replicas[i][1],
                "round": number,
                "epoch": epoch,
                "samples": size,
                "steps": epoch * int(fitted["steps"][i]),
                "samples_seen": epoch * size,
                "train_accuracy": history[i][-1],
                "train_loss": float(fitted["loss"][i]),
                **_tested(tested, i, study.settings.evaluate == "epoch" or reasons[i] is not None),
                "stop": reasons[i],
                # What a stack takes is shared by those that train in it.
                "train_seconds": round(train_seconds / len(ran), 6),
                "eval_seconds": round(eval_seconds / len(ran), 6),
            }
            for i in ran
        ]
        records.append(rows)
        if folder is not None and (epoch % study.settings.checkpoint_every == 0 or not active.any()):
            checkpoint.save(folder, number * _STEPS_A_ROUND + epoch, state)
        if observe is not None:
            observe(rows)
    return state


@jax.jit
def _stack(states: Sequence[TrainState]) -> TrainState:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@jax.jit
def _unstack(state: TrainState) -> list[TrainState]:
    replicas = jax.tree.leaves(state)[0].shape[0]
    return [jax.tree.map(lambda x, i=i: x[i], state) for i in range(replicas)]


def _tested(metrics: Any, i: Any, wanted: bool) -> dict[str, float | None]:
    """One replica's test metrics; None where its evaluation is not due."""
    if not wanted:
        return {"test_accuracy": None, "test_loss": None}
    return {"test_accuracy": float(metrics["accuracy"][i]), "test_loss": float(metrics["loss"][i])}


def _boundary(study: Study, leg: Leg, old: TrainState, fresh: TrainState, ways: Mapping[str, Reinit]) -> TrainState:
    """The states that a round starts from, each way's by its own re-initialiser."""
    starts = []
    for method, where in leg.parts:
        old_part, fresh_part = jax.tree.map(lambda x, where=where: x[where], (old, fresh))
        starts.append(_reinitialised(study.settings, old_part, fresh_part, ways[method]))
    # The next epoch donates its state: without a copy it would take the old one's arrays with it, and other ways start
    # from these too.
    return jax.tree.map(lambda *parts: jnp.copy(jnp.concatenate(parts)), *starts)


def _reinitialised(settings: Settings, old: TrainState, fresh: TrainState, reinit: Reinit) -> TrainState:
    if reinit is random_init:
        return fresh
    params = jax.vmap(reinit)(old.params, fresh.params)
    batch_stats = old.batch_stats if settings.batch_stats == "keep" else fresh.batch_stats
    opt_state = old.opt_state if settings.opt_state == "keep" else fresh.opt_state
    return TrainState(params, batch_stats, opt_state, fresh.step)


def _keys(seeds: Sequence[int]) -> dict[str, jax.Array]:
    """The stacked keys of networks, of the order of the data, and of epochs."""
    roots = jnp.stack([jax.random.key(seed) for seed in seeds])
    network, order, epoch = (_fold(roots, use) for use in range(3))
    return {"network": network, "order": order, "epoch": epoch}


def _fold(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _pools(study: Study, keys: Mapping[str, jax.Array]) -> jax.Array:
    """The order of each seed's data [S, P], as far as the largest round reaches."""
    count = jax.tree.leaves(study.train)[0].shape[0]
    largest = max(round.num_samples for round in study.rounds)
    return jax.vmap(lambda key: pool_order(key, count)[:largest])(keys["order"])


def _fresh(study: Study, keys: Mapping[str, jax.Array], number: int) -> TrainState:
    """Newly drawn networks for a round, one a seed, stacked."""
    states = [study.draw.prepare(key)(key) for key in _fold(keys["network"], number)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _given(optimizer: optax.GradientTransformation, start: tuple[Any, Any], seeds: int) -> TrainState:
    """A given start of the first round, once for each seed."""
    params, batch_stats = start
    state = TrainState(params, batch_stats, optimizer.init(params), jnp.zeros((), jnp.int32))
    return jax.tree.map(lambda x: jnp.stack([x] * seeds), state)


def _covered(records: Records, leg: Leg, number: int, epoch: int) -> bool:
    """Whether the rows tell, without a hole, how every seed came as far as a checkpoint."""
    own: dict[tuple[str, int, int], list[Row]] = {}
    for row in records.rows:
        if leg.has(row) and (row["round"], row["epoch"]) <= (number, epoch):
            own.setdefault((row["method"], row["seed"], row["round"]), []).append(row)
    for replica in leg.replicas:
        for round_number in range(leg.begin, number + 1):
            rows = own.get((*replica, round_number), [])
            if not rows or [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
                return False
            if not rows[-1]["stop"] and (round_number, len(rows)) != (number, epoch):
                return False
    return True


def _place(leg: Leg, i: Any, number: int, epoch: int) -> str:
    method, seed = leg.replicas[i]
    return f"{method}, seed {seed}, round {number}, epoch {epoch}"


def _check(
    train: Data,
    test: Data,
    rounds: Sequence[Round],
    ways: Mapping[str, Reinit],
    seeds: Sequence[int],
    settings: Settings,
) -> None:
    counts = []
    for name, data in (("train", train), ("test", test)):
        lengths = {leaf.shape[0] for leaf in jax.tree.leaves(data)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"{name} inputs and targets need one length above 0, not {sorted(lengths)}")
        counts.append(lengths.pop())
    if not rounds:
        raise ValueError("there is no round to run: rounds is empty")
    for number, (size, _) in enumerate(rounds, 1):
        if not 1 <= size <= counts[0]:
            raise ValueError(f"round {number} asks for {size} samples; there are {counts[0]}, and it needs at least 1")
    if FIRST in ways:
        raise ValueError(f"a way cannot be named '{FIRST}': that is the first round, which all ways share")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be given, each once, not {tuple(seeds)}")
    for name, options in get_type_hints(Settings).items():
        value = getattr(settings, name)
        if options is int:
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        elif value not in get_args(options):
            raise ValueError(f"unknown {name} '{value}'; available: {', '.join(get_args(options))}")

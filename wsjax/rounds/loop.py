"""The loop of rounds: train on the data there is until a stop rule holds, pass the boundary, go on with more data.

A leg's checkpoints and its rows are all that a resume needs, because every random key is a function of (seed, round,
epoch).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wsjax import parallel
from wsjax.data.datasets import pool_order
from wsjax.errors import NonFiniteLoss
from wsjax.methods.starts import Reinit
from wsjax.rounds.check import check
from wsjax.rounds.journal import Journal, Observer, Place, open_journal
from wsjax.rounds.legs import Leg, Method, Round, as_method, make_legs, planned
from wsjax.rounds.programs import Compiler, Programs
from wsjax.storage.records import Records
from wsjax.storage.rows import FIRST, Row, check_rows
from wsjax.training.train import Setup, TrainState

# What a seed's key is folded with, by use.
_NETWORK, _ORDER, _EPOCH, _BOUNDARY = range(4)


class Settings(NamedTuple):
    """What a run measures and keeps.

    Attributes:
      evaluate: test after every "epoch", or only when a seed's "round" ends (its other rows have None).
      checkpoint_every: epochs between checkpoints; a round's end always has one.
    """

    evaluate: Literal["epoch", "round"] = "epoch"
    checkpoint_every: int = 10


class Result(NamedTuple):
    """What a run returns.

    Attributes:
      rows: a row an epoch.
      states: each (method, seed)'s state at its end, "first" among the methods. One that had ended before, whose
        checkpoint was removed, is missing: its rows suffice.
      compile_seconds: what tracing and compiling took in this call.
    """

    rows: list[Row]
    states: dict[tuple[str, int], TrainState]
    compile_seconds: float


class _Run(NamedTuple):
    """What all legs share."""

    setup: Setup
    methods: Mapping[str, Method]
    settings: Settings
    compiler: Compiler
    lengths: Mapping[int, int]
    start: tuple[Any, Any] | None
    records: Records
    checkpoints: Path | None
    observe: Observer | None

    def programs(self, leg: Leg, number: int) -> Programs:
        """Those of a round of a leg."""
        return self.compiler.programs(leg.round(number).setup or self.setup, len(leg.replicas))


def run_rounds(
    setup: Setup,
    rounds: Sequence[Round],
    methods: Mapping[str, Method | Reinit],
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
    """Trains through all rounds, for every method and seed.

    The rounds that methods share, by default the first, are trained once a seed, from a newly drawn network; their rows
    name the method "first". At the start of every later round a method makes of its own state, and of a network drawn
    anew for (seed, round), which is the same for all methods, what it starts from.

    Args:
      setup: what is trained, how, and on what data.
      rounds: sizes and stop rules. Pools are nested: a round has the first `num_samples` of the seed's order.
      methods: by name, a `Method`, or a re-initialiser `(params, fresh) -> params` (`as_method` says how it is lifted).
      seeds: root keys, in [0, 2^32); seed s decides the order of the data, the networks and the order of batches.
      settings: see `Settings`.
      stack: whether seeds train together as one vmapped program, or one after the other: right for convolutions,
        whose kernels do not vmap well.
      start: (params, batch_stats) that round 1 starts from, for every seed; by default a newly drawn network.
      mesh: `wsjax.parallel.data_mesh()` splits every batch over devices, and then a model with batch statistics takes
        them over the axis "data"; `replica_mesh()` trains seeds side by side, on a device each, and
        methods too where devices are left.
      records: takes the rows. Where it holds rows already, the run continues as far as `checkpoints` reach.
      checkpoints: folder for checkpoints; None keeps none. Records and checkpoints belong to one run: give others for
        other settings, which are not compared here (`wsjax.storage.records.open_run` does that).
      observe: called with every epoch's rows, for display. Where it raises, the epoch's checkpoint is written first.

    Returns:
      A Result. A run that was killed and is given again returns the same bits, but for the seconds.

    Raises:
      NonFiniteLoss: a loss was not finite. Rows and checkpoints written so far stay.
      TaskError: what was given cannot be trained; the message names the argument.
      RunError: the records are not this run's, or its checkpoints cannot be read.
      OSError: a row or a checkpoint cannot be written.
    """
    settings, seeds = settings or Settings(), tuple(int(seed) for seed in seeds)
    made = {name: as_method(method) for name, method in methods.items()}
    check(setup, rounds, made, seeds, settings)
    records = Records() if records is None else records
    numbers = {name: range(min(own, default=1), max(own, default=0) + 1) for name, own in planned(rounds, made).items()}
    check_rows(records.rows, numbers, seeds, records.path or "the records")
    legs = make_legs(rounds, made, seeds, stack, mesh)
    run = _Run(
        setup, made, settings, Compiler(mesh), _lengths(setup, legs), start,
        records, None if checkpoints is None else Path(checkpoints), observe,
    )  # fmt: skip

    ended: dict[tuple[str, int, int], TrainState | None] = {}  # by method, seed and the number of the next round
    trunk: dict[tuple[int, int], Leg] = {}  # the shared legs, by seed and the number of the next round

    def begin(leg: Leg) -> TrainState | None:
        """The state that a leg goes on from; None for a newly drawn one. A shared leg that lost its is run again."""
        if leg.begin == 1:
            return None
        for seed in leg.seeds:
            if ended[FIRST, seed, leg.begin] is None:
                note(trunk[seed, leg.begin], again=True)
        return _stack([ended[FIRST, seed, leg.begin] for seed in leg.seeds])

    def note(leg: Leg, again: bool = False) -> None:
        """Runs a leg, or what is left of it, and keeps what it ended with."""
        state = _run_leg(run, leg, begin, again)
        states = [None] * len(leg.replicas) if state is None else _unstack(state)
        ended.update({(*replica, leg.end): own for replica, own in zip(leg.replicas, states, strict=True)})

    for leg in legs:
        if leg.shared:
            trunk |= {(seed, leg.end): leg for seed in leg.seeds}
        note(leg)
    states = {(method, seed): state for (method, seed, _), state in ended.items() if state is not None}
    return Result(run.records.rows, states, run.compiler.compile_seconds)


def _run_leg(run: _Run, leg: Leg, begin: Any, again: bool) -> TrainState | None:
    """Runs a leg, or what is left of it, and returns its stacked state; None where rows suffice and nothing is left."""
    if not leg.rounds:
        return begin(leg)
    keys = _keys(leg.seeds)
    with open_journal(leg, run.records, run.checkpoints, run.settings.checkpoint_every, run.observe) as journal:
        place = journal.begin_again() if again else journal.resume(lambda number: _template(run, leg, number, keys))
        number, epoch, state = place
        while number < leg.end:
            if epoch == 0:
                state = _begun(run, leg, number, begin(leg) if number == leg.begin else state, keys)
            state = _run_round(run, leg, Place(number, epoch, state), keys, journal)
            number, epoch = number + 1, 0
    return state


def _run_round(run: _Run, leg: Leg, place: Place, keys: Mapping[int, jax.Array], journal: Journal) -> TrainState:
    """Trains a round on from a place in it until every replica has stopped."""
    number, epoch = place.number, place.epoch
    state: Any = place.state
    here, programs = leg.round(number), run.programs(leg, number)
    setup, (order, counts) = programs.setup, _samples(run, leg, number, keys)
    round_keys = _fold(keys[_EPOCH], number)
    done = journal.rows(number)
    history = [[row["train_accuracy"] for row in rows] for rows in done]
    active = np.array([not any(row["stop"] for row in rows) for rows in done])

    while active.any():
        epoch += 1
        on, key = parallel.place((jnp.asarray(active), _fold(round_keys, epoch)), programs.mesh)
        train = programs.epoch.prepare(state, on, setup.train, order, counts, key)
        begin = time.perf_counter()
        state, fitted = jax.block_until_ready(train(state, on, setup.train, order, counts, key))
        train_seconds = time.perf_counter() - begin

        ran = np.flatnonzero(active)
        fitted = jax.tree.map(np.asarray, fitted)
        for i in ran:
            if step := int(fitted["bad_step"][i]):
                raise NonFiniteLoss(f"the loss is not finite: {_where(leg, i, number, epoch)}, step {step}")
            history[i].append(float(fitted["accuracy"][i]))
        reasons = [here.reason(accuracies) for accuracies in history]
        active &= [reason is None for reason in reasons]

        every_epoch = run.settings.evaluate == "epoch"
        tested, eval_seconds = None, 0.0
        if every_epoch or not active[ran].all():
            evaluate = programs.evaluate.prepare(state, setup.test, setup.train, order, counts)
            begin = time.perf_counter()
            tested = jax.tree.map(np.asarray, evaluate(state, setup.test, setup.train, order, counts))
            eval_seconds = time.perf_counter() - begin
            for i in ran:
                if not np.isfinite(tested["loss"][i]):
                    raise NonFiniteLoss(f"the test loss is not finite: {_where(leg, i, number, epoch)}")

        rows = [
            {
                "method": leg.replicas[i][0],
                "seed": leg.replicas[i][1],
                "round": number,
                "epoch": epoch,
                "samples": here.num_samples,
                "steps": epoch * int(fitted["steps"][i]),
                "samples_seen": epoch * here.num_samples,
                "train_accuracy": history[i][-1],
                "train_loss": float(fitted["loss"][i]),
                **_tested(tested, i, every_epoch or reasons[i] is not None),
                "stop": reasons[i],
                # What a stack takes is shared by those that train in it.
                "train_seconds": round(train_seconds / len(ran), 6),
                "eval_seconds": round(eval_seconds / len(ran), 6),
                **{name: float(values[i]) for name, values in fitted["probes"].items()},
            }
            for i in ran
        ]
        journal.write(rows, state, last=not active.any())
    return state


def _begun(run: _Run, leg: Leg, number: int, old: Any, keys: Mapping[int, jax.Array]) -> TrainState:
    """The stacked state that a round starts from; a shared round goes on from the one before as it is."""
    programs = run.programs(leg, number)
    if old is None:
        old = _fresh(programs, keys, number) if run.start is None else _given(programs, run.start, len(leg.replicas))
    old = parallel.place(old, programs.mesh)
    if leg.shared:
        return old
    # A method's own round 1: that round's network is the old one, and one more is drawn.
    fresh = _fresh(programs, keys, 0 if number == 1 else number)
    fresh, key = parallel.place((fresh, _fold(keys[_BOUNDARY], number)), programs.mesh)
    setup, (order, counts) = programs.setup, _samples(run, leg, number, keys)
    starts = []
    for method, where in leg.parts:
        own = jax.tree.map(lambda x, where=where: x[where], (key, old, fresh, order))
        start = run.methods[method].start
        starts.append(programs.start(start, *own[:3], setup.train, setup.test, own[3], counts))
    # The next epoch donates its state: without a copy it would take the old one's arrays with it, and other methods
    # start from these too.
    state = jax.tree.map(lambda *parts: jnp.copy(jnp.concatenate(parts)), *starts)
    return parallel.place(state, programs.mesh)


def _samples(run: _Run, leg: Leg, number: int, keys: Mapping[int, jax.Array]) -> tuple[jax.Array, Any]:
    """Each replica's order of the data [S, P], as far as the largest round of these data reaches; and both counts."""
    here, before, mesh = leg.round(number), leg.before(number), run.programs(leg, number).mesh
    data = (here.setup or run.setup).train
    total = jax.tree.leaves(data)[0].shape[0]
    order = jax.vmap(lambda key: pool_order(key, total)[: run.lengths[id(data)]])(keys[_ORDER])
    same = before is not None and (before.setup or run.setup).train is data
    counts = here.num_samples, min(before.num_samples, here.num_samples) if before is not None and same else 0
    counts = tuple(jnp.asarray(count, jnp.int32) for count in counts)
    return parallel.place(order, mesh), parallel.place(counts, mesh, replicated=True)


def _template(run: _Run, leg: Leg, number: int, keys: Mapping[int, jax.Array]) -> TrainState:
    """A stacked state of a round's shapes, where its checkpoints lie on the devices."""
    programs = run.programs(leg, number)
    return parallel.place(_fresh(programs, keys, number), programs.mesh)


def _lengths(setup: Setup, legs: Sequence[Leg]) -> dict[int, int]:
    """The largest round of each data set, which is known by its identity."""
    lengths: dict[int, int] = {}
    for here in (here for leg in legs for here in leg.rounds):
        data = id((here.setup or setup).train)
        lengths[data] = max(lengths.get(data, 0), here.num_samples)
    return lengths


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


def _keys(seeds: Sequence[int]) -> dict[int, jax.Array]:
    """The stacked keys of each use: networks, the order of the data, epochs, boundaries."""
    roots = jnp.stack([jax.random.key(seed) for seed in seeds])
    return {use: _fold(roots, use) for use in (_NETWORK, _ORDER, _EPOCH, _BOUNDARY)}


def _fold(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _fresh(programs: Programs, keys: Mapping[int, jax.Array], number: int) -> TrainState:
    """Newly drawn networks for a round, one a seed, stacked."""
    states = [programs.draw(key) for key in _fold(keys[_NETWORK], number)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _given(programs: Programs, start: tuple[Any, Any], replicas: int) -> TrainState:
    """A given start of the first round, once for each replica."""
    params, batch_stats = start
    state = TrainState(params, batch_stats, programs.setup.optimizer.init(params), jnp.zeros((), jnp.int32))
    return jax.tree.map(lambda x: jnp.stack([x] * replicas), state)


def _where(leg: Leg, i: Any, number: int, epoch: int) -> str:
    method, seed = leg.replicas[i]
    return f"{method}, seed {seed}, round {number}, epoch {epoch}"

"""The loop of rounds: train on the data there is until a stop rule holds, pass the boundary, go on with more data.

A leg's checkpoints and its rows are all that a resume needs, because every random key is a function of (seed, round,
epoch).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wsjax import parallel
from wsjax.data.datasets import pool_order
from wsjax.errors import NonFiniteLoss, TaskError
from wsjax.methods.starts import Reinit
from wsjax.rounds.check import check, check_given, check_rows_of, check_start, check_starts, whole_rounds, whole_seeds
from wsjax.rounds.journal import Journal, Observer, Reached, hold_run, open_journal
from wsjax.rounds.legs import Leg, Method, Round, Settings, as_method, make_legs, planned
from wsjax.rounds.metrics import epoch_row, not_finite, train_accuracies
from wsjax.rounds.programs import Compiler, Program, Programs, identity
from wsjax.rounds.stacks import joined, taken, unstacked
from wsjax.storage.records import Records
from wsjax.storage.rows import DIVERGED, Row, check_rows
from wsjax.training.train import Setup, TrainState

# What a seed's key is folded with, by use.
_NETWORK, _ORDER, _EPOCH, _BOUNDARY = range(4)


class Result(NamedTuple):
    """What a run returns.

    Attributes:
      rows: a row an epoch.
      states: each (method, seed)'s state at its end, "first" among the methods; empty where none were wanted.
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
    lengths: Mapping[tuple[int, ...], int]
    initial: tuple[Any, Any] | None
    records: Records
    checkpoints: Path | None
    observe: Observer | None
    first: dict[Any, TrainState]  # the one that was drawn last, by its setup and seeds

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
    initial: tuple[Any, Any] | None = None,
    mesh: Mesh | None = None,
    records: Records | None = None,
    checkpoints: Path | str | None = None,
    observe: Observer | None = None,
    states: bool = True,
) -> Result:
    """Trains through all rounds, for every method and seed.

    The rounds that methods share, by default the first, are trained once a seed, from a newly drawn network; their rows
    name the method "first". A second shared round goes on with all of the first one's state, the optimiser's too. At
    the start of every later round a method makes of its own state, and of a network drawn anew for (seed, round), which
    is the same for all methods, what it starts from.

    What is compiled is kept for later calls in this process that are given the same functions: make task and optimiser
    once, and hand them to each call.

    Args:
      setup: what is trained, how, and on what data.
      rounds: sizes and stop rules. Pools are nested: a round has the first `num_samples` in a random order of the
        seed's, or of the data as they lie there (`Settings(order="arrival")`).
      methods: by name, a `Method`, or a re-initialiser `(params, fresh) -> params` (`as_method` says how it is lifted).
      seeds: root keys, in [0, 2^32); seed s decides the order of the data, the networks and the order of batches.
      settings: see `Settings`.
      stack: whether seeds train together as one vmapped program, or one after the other: right for convolutions,
        whose kernels do not vmap well.
      initial: (params, batch_stats) that round 1 starts from, for every seed; by default a newly drawn network.
      mesh: `wsjax.data_mesh()` splits every batch over devices, and then a model with batch statistics takes
        them over the axis "data"; `wsjax.replica_mesh()` trains seeds side by side, on a device each, and
        methods too where devices are left.
      records: takes the rows. Where it holds rows already, the run continues as far as `checkpoints` reach.
      checkpoints: folder for checkpoints; None keeps none. Records and checkpoints belong to one run: give others for
        other settings: of these only what rows tell is compared here, their samples, steps, and whether the rules end
        rounds where they ended (`wsjax.storage.records.open_run` compares all).
      observe: called with every epoch's rows, for display. Where it raises, the epoch's checkpoint is written first.
      states: whether the states at the end are wanted. If not, the rows of a run that has ended suffice; if they are,
        and a checkpoint that holds one is gone, that part is trained again, on a CPU to the same bits.

    Returns:
      A Result. A run that was killed and is given again returns, on a CPU, the same bits, but for the seconds.

    Raises:
      NonFiniteLoss: a loss was not finite, and the settings do not end a round with it. Rows and checkpoints written so
        far stay.
      TaskError: what was given cannot be trained; the message names the argument.
      RunError: the records are not this run's, its checkpoints cannot be read, or another process works with either.
      OSError: a row or a checkpoint cannot be written.
    """
    check_given(methods, initial, records, settings, mesh, observe)
    if checkpoints is not None and records is None:
        raise TaskError("checkpoints are continued by the rows that led to them: give records=Records(path) too")
    settings, records = settings or Settings(), Records() if records is None else records
    seeds, rounds = whole_seeds(seeds), whole_rounds(rounds, "")
    made = {name: as_method(method) for name, method in methods.items()}
    for name, own in made.items():
        of = f"method '{name}', "
        own_seeds = None if own.seeds is None else whole_seeds(own.seeds, of)
        made[name] = own._replace(rounds=own.rounds and whole_rounds(own.rounds, of), seeds=own_seeds)
    check(setup, rounds, made, seeds, settings, parallel.axis_of(mesh))
    if not records.rows and parallel.axis_of(mesh) is None:
        check_starts(setup, rounds, made)
    plan = planned(rounds, made)
    numbers = {name: range(min(own, default=1), max(own, default=0) + 1) for name, own in plan.items()}
    source = records.path or "the records"
    check_rows(records.rows, numbers, seeds, source)
    check_rows_of(records.rows, plan, setup, source)
    legs = make_legs(rounds, made, seeds, stack, mesh)
    run = _Run(
        setup, made, settings, Compiler(mesh), _lengths(setup, legs), initial,
        records, None if checkpoints is None else Path(checkpoints), observe, {},
    )  # fmt: skip
    if not records.rows:  # what cannot run is found before anything has
        for leg in legs:
            for number in range(leg.begin, leg.end):
                run.compiler.check(leg.round(number).setup or setup, len(leg.replicas), run.lengths)

    last: dict[tuple[str, int], TrainState] = {}
    shared: dict[int, tuple[Leg, TrainState | None]] = {}  # by the number of the next round

    def keep(leg: Leg, state: TrainState | None) -> None:
        """Keeps what a leg ended with, as far as anybody will ask for it."""
        names: list[str] = []
        if leg.shared:
            shared[leg.end] = leg, state
            names = [name for name in made if not plan[name] and made[name].after == leg.end - 1]
        if states and state is not None:
            for (method, seed), own in zip(leg.replicas, unstacked(state), strict=True):
                last.update({(name, seed): own for name in (method, *names) if name == method or made[name].runs(seed)})

    def before(leg: Leg) -> TrainState | None:
        """The state that a leg goes on from, None for a new network; a shared leg whose rows sufficed gives it now."""
        if leg.begin == 1:
            return None
        trunk, state = shared[leg.begin]
        if state is None:
            keep(trunk, _run_leg(run, trunk, before, need_state=True))
        return taken(shared[leg.begin][1], np.array([trunk.seeds.index(seed) for seed in leg.seeds]))

    with hold_run(records, run.checkpoints):
        for leg in legs:
            if leg.begin == 1 and leg.shared:
                shared.clear()  # those were other seeds'
            keep(leg, _run_leg(run, leg, before, states))
    return Result(list(run.records.rows), last, run.compiler.compile_seconds)


def _run_leg(run: _Run, leg: Leg, before: Callable[[Leg], Any], need_state: bool) -> TrainState | None:
    """Runs a leg, or what is left of it; returns its stacked state, None where its rows suffice and it is not needed.

    `before` gives the state that it goes on from, and is only asked where the leg has not begun.
    """
    keys = _keys(leg.seeds)
    with open_journal(leg, run.records, run.checkpoints, run.settings.checkpoint_every, run.observe) as journal:
        number, epoch, state = journal.resume(lambda number: _template(run, leg, number, keys), need_state)
        while number < leg.end:
            samples = _samples(run, leg, number, keys)
            if epoch == 0:
                old = before(leg) if number == leg.begin else state
                state = _begun(run, leg, number, old, samples, keys)
            state = _run_round(run, leg, Reached(number, epoch, state), samples, keys, journal)
            number, epoch = number + 1, 0
    return state


def _run_round(
    run: _Run, leg: Leg, reached: Reached, samples: Any, keys: Mapping[int, jax.Array], journal: Journal
) -> TrainState:
    """Trains a round on from where it is until every replica has stopped."""
    number, epoch = reached.number, reached.epoch
    state: Any = reached.state
    here, programs, round_keys = leg.round(number), run.programs(leg, number), _fold(keys[_EPOCH], number)
    data = programs.setup.train, programs.setup.test
    done = journal.rows(number)
    history = [train_accuracies(rows) for rows in done]
    active = np.array([not any(row["stop"] for row in rows) for rows in done])

    while active.any():
        epoch += 1
        ran = np.flatnonzero(active)
        on, key = parallel.place((active, _fold(round_keys, epoch)), programs.mesh)
        (state, fitted), train_seconds = _timed(programs.epoch, state, on, *data, *samples, key)
        eval_seconds = 0.0
        if programs.fit is not None:
            after, eval_seconds = _timed(programs.fit, state, *data, *samples)
            fitted |= after
        fitted = jax.tree.map(np.asarray, fitted)
        if epoch == reached.epoch + 1 and (path := parallel.unlike(state.batch_stats)):
            raise TaskError(
                f"devices disagree on the batch statistics '{path}': the model must take them over the axis 'data'"
            )
        for i in ran:
            history[i].append(float(fitted["accuracy"][i]))
        reasons = [here.reason(accuracies) for accuracies in history]
        for i in ran:
            step = int(fitted["bad_step"][i])
            if what := "loss" if step else not_finite(fitted, i):
                where = f"round {number}, epoch {epoch}" + f", step {step}" * (step > 0)
                reasons[i] = _diverged(run, f"the {what}", leg, i, where)

        wanted = [i for i in ran if run.settings.evaluate == "epoch" or reasons[i] is not None]
        tested: Any = None
        if wanted:
            tested, seconds = _timed(programs.evaluate, state, *data, *samples)
            tested, eval_seconds = jax.tree.map(np.asarray, tested), eval_seconds + seconds
        for i in wanted:
            if reasons[i] != DIVERGED and (what := not_finite(tested, i)):
                reasons[i] = _diverged(run, f"the test {what}", leg, i, f"round {number}, epoch {epoch}")
        active &= [reason is None for reason in reasons]

        # What a stack takes is shared by those that train in it.
        shares = train_seconds / len(ran), eval_seconds / len(ran)
        rows = [
            epoch_row(
                (*leg.replicas[i], number, epoch), here.num_samples, i, fitted, tested if i in wanted else None,
                reasons[i], shares,
            )
            for i in ran
        ]  # fmt: skip
        journal.write(rows, state, last=not active.any())
    return state


def _timed(program: Program, *arguments: Any) -> tuple[Any, float]:
    """What a program gives, and the seconds that it ran, without those that it took to compile."""
    run = program.prepare(*arguments)
    begin = time.perf_counter()
    result = jax.block_until_ready(run(*arguments))
    return result, time.perf_counter() - begin


def _begun(run: _Run, leg: Leg, number: int, old: Any, samples: Any, keys: Mapping[int, jax.Array]) -> TrainState:
    """The stacked state that a round starts from; a shared round goes on from the one before as it is."""
    programs = run.programs(leg, number)
    if old is None:
        old = _first(run, leg, programs, keys)
        if run.initial is not None:
            check_start("the run", old, _template(run, leg, number, keys))
    old = parallel.place(old, programs.mesh)
    if leg.shared:
        if number > 1:
            check_start(f"round {number}", old, _template(run, leg, number, keys))
        return old
    begins = number == 1
    if begins and not any(run.methods[name].at_once for name, _ in leg.parts):
        return old  # drawn for this leg alone, whose first epoch donates it
    first = fresh = _first_kept(run, leg, programs, keys)
    if begins or run.settings.fresh == "new":
        fresh = _fresh(programs, keys, 0 if begins else number)
    given = fresh, first, _fold(keys[_BOUNDARY], number)
    fresh, first, key = parallel.place(given, programs.mesh)
    order, counts = samples
    starts = []
    for name, where in leg.parts:
        method, own = run.methods[name], (key, old, fresh, first, order)
        if len(leg.parts) > 1:
            own = taken(own, np.arange(len(leg.replicas))[where])
        _, before, drawn, *_ = own
        if begins and not method.at_once:
            starts.append(before)
            continue
        starts.append(programs.start(method.start, *own, counts))
        check_start(f"method '{name}'", starts[-1], drawn)
    if len(starts) > 1:  # parts may lie on devices of their own
        starts = jax.device_get(starts)
    return parallel.place(joined(starts), programs.mesh)


def _first_kept(run: _Run, leg: Leg, programs: Programs, keys: Mapping[int, jax.Array]) -> TrainState:
    """The networks that round 1 starts from, made once for all the boundaries that may look at them."""
    key = id(programs.setup), leg.seeds
    if key not in run.first:
        run.first.clear()
        run.first[key] = _first(run, leg, programs, keys)
    return run.first[key]


def _first(run: _Run, leg: Leg, programs: Programs, keys: Mapping[int, jax.Array]) -> TrainState:
    """The state that round 1 starts from: the one given, or a newly drawn network's."""
    if run.initial is None:
        return _fresh(programs, keys, 1)
    params, batch_stats = run.initial
    state = TrainState(params, batch_stats, programs.setup.optimizer.init(params), jnp.zeros((), jnp.int32))
    return jax.tree.map(lambda x: jnp.stack([x] * len(leg.replicas)), state)


def _samples(run: _Run, leg: Leg, number: int, keys: Mapping[int, jax.Array]) -> tuple[jax.Array, Any]:
    """Each replica's order of the data [S, P], as far as the largest round of these data reaches; and both counts."""
    here, previous, mesh = leg.round(number), leg.before(number), run.programs(leg, number).mesh
    data = (here.setup or run.setup).train
    total = jax.tree.leaves(data)[0].shape[0]
    length = run.lengths[identity(data)]
    order = _orders(keys[_ORDER], total, length, run.settings.order == "arrival")
    before = 0
    # By the inputs: what was trained on with other targets, as with noisy labels, is known all the same.
    if previous is not None and identity((previous.setup or run.setup).train[0]) == identity(data[0]):
        before = min(previous.num_samples, here.num_samples)
    counts = tuple(np.asarray(count, np.int32) for count in (here.num_samples, before))
    return parallel.place(order, mesh), parallel.place(counts, mesh, replicated=True)


def _template(run: _Run, leg: Leg, number: int, keys: Mapping[int, jax.Array]) -> TrainState:
    """The shapes of a round's stacked state, and where its checkpoints lie on the devices."""
    programs = run.programs(leg, number)
    return parallel.placed(programs.draw.shapes(keys[_NETWORK]), programs.mesh)


def _lengths(setup: Setup, legs: Sequence[Leg]) -> dict[tuple[int, ...], int]:
    """The largest round of each data set."""
    lengths: dict[tuple[int, ...], int] = {}
    for here in (here for leg in legs for here in leg.rounds):
        data = identity((here.setup or setup).train)
        lengths[data] = max(lengths.get(data, 0), here.num_samples)
    return lengths


def _keys(seeds: Sequence[int]) -> dict[int, jax.Array]:
    """The stacked keys of each use: networks, the order of the data, epochs, boundaries."""
    roots = _roots(np.array(seeds, np.uint32))
    return {use: _fold(roots, use) for use in (_NETWORK, _ORDER, _EPOCH, _BOUNDARY)}


_roots = jax.jit(jax.vmap(jax.random.key))
_fold = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))


@partial(jax.jit, static_argnums=(1, 2, 3))
def _orders(keys: jax.Array, total: int, length: int, by_arrival: bool) -> jax.Array:
    """The orders of the data of each key, as far as `length`."""

    def order(key: jax.Array) -> jax.Array:
        return jnp.arange(length, dtype=jnp.int32) if by_arrival else pool_order(key, total)[:length]

    return jax.vmap(order, axis_size=keys.shape[0])(keys)


def _fresh(programs: Programs, keys: Mapping[int, jax.Array], number: int) -> TrainState:
    """Newly drawn networks for a round, one a seed, stacked."""
    return programs.draw(_fold(keys[_NETWORK], number))


def _diverged(run: _Run, what: str, leg: Leg, i: Any, moment: str) -> str:
    """The reason to stop where a loss is not finite; raises NonFiniteLoss where the settings do not end a round so."""
    method, seed = leg.replicas[i]
    if run.settings.diverged == "raise":
        raise NonFiniteLoss(f"{what} is not finite: {method}, seed {seed}, {moment}", method)
    return DIVERGED

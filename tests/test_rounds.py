"""The loop of rounds: what passes between rounds, what a resume restores, what it costs to compile."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache, partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from wsjax.errors import NonFiniteLoss, RunError, TaskError
from wsjax.methods.dash import dash, dash_start
from wsjax.methods.fire import fire
from wsjax.methods.hare_tortoise import tortoise
from wsjax.methods.reinit import random_init, shrink_perturb, warm_start
from wsjax.methods.starts import forgotten, mixed, new_heads, scratch
from wsjax.methods.variants import gaussian_perturb
from wsjax.networks import models
from wsjax.parallel import data_mesh, replica_mesh
from wsjax.rounds import loop
from wsjax.rounds.legs import Method, Round, Settings, make_legs
from wsjax.rounds.loop import run_rounds
from wsjax.rounds.programs import MOST, Compiler, Program
from wsjax.storage import checkpoint
from wsjax.storage.records import Records, open_run
from wsjax.training.stopping import after_epochs, any_of, at_accuracy
from wsjax.training.task import image_task, stateless_task
from wsjax.training.train import Setup, fit_after, make_optimizer, over_batches

SECONDS = ("train_seconds", "eval_seconds")


def data(count=30, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 4, 4, 1)).astype(np.uint8)
    return images, random.integers(0, 3, count).astype(np.int32)


def mlp_task(hidden=(5,)):
    return image_task(models.mlp(3, hidden), (4, 4, 1), (0.5,), (0.25,))


def resnet_task():
    return image_task(models.ResNet(3, stage_sizes=(1,), width=2, stem_pool=False), (4, 4, 1), (0.5,), (0.25,))


def setup(task=None, optimizer=None, batch_size=8, train=None, **options):
    task, optimizer = task or mlp_task(), optimizer or make_optimizer("msgd", 0.05)
    return Setup(task, optimizer, train or data(), data(10, seed=1), batch_size, **options)


def run(rounds, methods, seeds=(0,), task=None, optimizer=None, batch_size=8, **options):
    return run_rounds(setup(task, optimizer, batch_size), rounds, methods, seeds, **options)


def lifted(**choices):
    """The methods with other choices at the boundary."""
    return {name: Method(scratch if name == "RI" else mixed(m, **choices)) for name, m in METHODS.items()}


def timeless(rows):
    return [{name: value for name, value in row.items() if name not in SECONDS} for row in rows]


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)))


TWO_ROUNDS = [Round(10, after_epochs(2)), Round(30, after_epochs(3))]
METHODS = {"RI": random_init, "WS": warm_start, "SP": partial(shrink_perturb, shrink=0.4, perturb=0.1)}


@cache
def undisturbed():
    """What the two rounds come to for all methods; it is only looked at."""
    return run(TWO_ROUNDS, METHODS)


def test_rows_tell_every_epoch_once():
    rows = run(TWO_ROUNDS, METHODS, seeds=(3, 5)).rows
    keys = [(row["method"], row["seed"], row["round"], row["epoch"]) for row in rows]
    expected = [("first", seed, 1, epoch) for seed in (3, 5) for epoch in (1, 2)]
    expected += [(way, seed, 2, epoch) for way in METHODS for seed in (3, 5) for epoch in (1, 2, 3)]
    assert sorted(keys) == sorted(expected)
    last = rows[-1]
    assert (last["samples"], last["steps"], last["samples_seen"], last["stop"]) == (30, 12, 90, "epochs")
    assert [row["stop"] for row in rows if row["method"] == "RI" and row["seed"] == 3] == [None, None, "epochs"]


def test_random_init_does_not_depend_on_the_first_round():
    long = [Round(20, after_epochs(4)), Round(30, after_epochs(3))]
    for random in (random_init, Method(scratch)):
        a, b = (run(rounds, {"RI": random}) for rounds in (TWO_ROUNDS, long))
        assert same(a.states["RI", 0], b.states["RI", 0])
        assert not same(a.states["first", 0], b.states["first", 0])


FROZEN = make_optimizer("msgd", 1e-30)  # the parameters stand still, so every epoch of one batch sees the same


def test_a_way_starts_from_the_reinitialised_parameters():
    rounds = [Round(10, after_epochs(1)), Round(30, after_epochs(1))]
    states = run(rounds, METHODS, optimizer=FROZEN).states
    old, fresh, mixed = (states[way, 0].params for way in ("WS", "RI", "SP"))
    expected = shrink_perturb(old, fresh, 0.4, 0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), mixed, expected)
    assert not same(old, fresh)


def gradient(task, params, inputs, targets):
    """The mean gradient over all samples, by autodiff alone."""

    def loss(params):
        outputs, _ = task.apply(params, {}, inputs, jnp.ones(len(targets)), True, None)
        return task.loss(outputs, targets).mean()

    return jax.grad(loss)(params)


@pytest.mark.parametrize("choice", ["keep", "rebuild"])
def test_the_optimizer_state_at_the_boundary(choice):
    rounds = [Round(30, max_epochs=5), Round(30, max_epochs=1)]
    states = run(rounds, lifted(opt_state=choice), batch_size=30, optimizer=FROZEN).states
    momentum = jax.tree.leaves(states["WS", 0].opt_state)
    once = jax.tree.leaves(gradient(mlp_task(), states["WS", 0].params, *data()))
    # Six times the same gradient, each time 0.9 of what was there: a sum of 0.9^k.
    share = (1 - 0.9**6) / (1 - 0.9) if choice == "keep" else 1.0
    for found, expected in zip(momentum, once, strict=True):
        np.testing.assert_allclose(found, share * expected, rtol=1e-4, atol=1e-7)


def anchored():
    """Descends, and keeps the parameters that its state was built for, as schedule-free and L2-Init do."""
    return optax.GradientTransformation(
        init=lambda params: jax.tree.map(jnp.copy, params),
        update=lambda updates, state, params=None: (jax.tree.map(lambda g: -1e-30 * g, updates), state),
    )


def test_a_rebuilt_optimizer_state_is_that_of_the_parameters_it_is_for():
    states = run([Round(10, max_epochs=1), Round(30, max_epochs=1)], METHODS, optimizer=anchored()).states
    for method in METHODS:
        assert same(states[method, 0].opt_state, states[method, 0].params)
    assert not same(states["SP", 0].params, states["RI", 0].params)
    kept = run([Round(10, max_epochs=1), Round(30, max_epochs=1)], lifted(opt_state="keep"), optimizer=anchored())
    assert same(kept.states["SP", 0].opt_state, kept.states["first", 0].params)


@pytest.mark.parametrize("choice", ["keep", "reset"])
def test_batch_statistics_at_the_boundary(choice):
    rounds = [Round(30, max_epochs=5), Round(30, max_epochs=1)]
    methods = {"WS": Method(mixed(warm_start, batch_stats=choice))}
    states = run(rounds, methods, batch_size=30, task=resnet_task(), optimizer=FROZEN, stack=False).states
    found = np.asarray(states["WS", 0].batch_stats["stem_norm"]["mean"])
    # One update of statistics of zero by the same batch leaves 0.1 of the batch's mean.
    nothing = jax.tree.map(jnp.zeros_like, states["WS", 0].batch_stats)
    _, once = resnet_task().apply(states["WS", 0].params, nothing, data()[0], jnp.ones(30), True, None)
    # From 0, n updates by 0.1 leave 1 - 0.9^n of the batch's mean.
    share = 1 - 0.9 ** (6 if choice == "keep" else 1)
    np.testing.assert_allclose(found, share * once["stem_norm"]["mean"] / 0.1, rtol=1e-4)


def test_a_stop_rule_ends_each_seed_by_itself():
    rule = any_of(at_accuracy(0.7), after_epochs(60))
    together = run([Round(10, rule), Round(12, rule)], {"WS": warm_start}, seeds=(0, 1, 2))
    lengths = {}
    for row in together.rows:
        lengths.setdefault((row["method"], row["seed"]), []).append(row["train_accuracy"])
    least = np.float32(0.7)  # in which 7 of 10 are counted
    for accuracies in lengths.values():
        assert all(accuracy < least for accuracy in accuracies[:-1])
        assert accuracies[-1] >= least or len(accuracies) == 60
    assert len({len(accuracies) for accuracies in lengths.values()}) > 1, "seeds should stop at different epochs"
    for seed in (0, 1, 2):  # a replica that has stopped stays as it was
        alone = run([Round(10, rule), Round(12, rule)], {"WS": warm_start}, seeds=(seed,))
        own = [row for row in together.rows if row["seed"] == seed]
        assert [row["epoch"] for row in own] == [row["epoch"] for row in alone.rows]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            together.states["WS", seed].params,
            alone.states["WS", seed].params,
        )


def test_stacked_seeds_are_seeds_in_turn():
    together, apart = (run(TWO_ROUNDS, METHODS, seeds=(0, 1), stack=stack) for stack in (True, False))
    for key, state in together.states.items():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state.params, apart.states[key].params
        )


def test_ten_rounds_compile_every_program_once(monkeypatch):
    made = []

    def make(self, setup, mesh):
        made.append(make_programs(self, setup, mesh))
        return made[-1]

    make_programs = Compiler._make
    monkeypatch.setattr(Compiler, "_make", make)
    rounds = [Round(3 * n, max_epochs=1) for n in range(1, 11)]
    task = mlp_task((7,))  # which no other test has
    assert run(rounds, METHODS, seeds=(0, 1), task=task).compile_seconds > 0
    (programs,) = made
    assert [len(getattr(programs, name).executables) for name in ("draw", "epoch", "evaluate")] == [1, 1, 1]


def test_a_second_run_of_the_same_task_compiles_nothing_and_sees_its_own_data():
    task = mlp_task((6,))
    first = run(TWO_ROUNDS, METHODS, task=task)
    again = run(TWO_ROUNDS, METHODS, task=mlp_task((6,)))
    assert again.compile_seconds == 0 < first.compile_seconds
    assert timeless(again.rows) == timeless(first.rows)
    assert same(again.states["SP", 0], first.states["SP", 0])
    other = run_rounds(setup(task, train=data(seed=7)), TWO_ROUNDS, METHODS)
    assert other.compile_seconds == 0
    assert timeless(other.rows) != timeless(first.rows)
    for change in ({"batch_size": 4}, {"fit": fit_after}, {"optimizer": make_optimizer("sgd", 0.05)}):
        assert run_rounds(setup(task)._replace(**change), TWO_ROUNDS, METHODS).compile_seconds > 0
    with jax.default_matmul_precision("float32"):
        assert run(TWO_ROUNDS, METHODS, task=task).compile_seconds > 0


def test_a_task_that_cannot_be_hashed_is_compiled_for_its_run_alone():
    class Score:
        __hash__ = None

        def __call__(self, logits, labels):
            return (jnp.argmax(logits, -1) == labels).astype(jnp.float32)

    task = mlp_task()._replace(score=Score())
    runs = [run(TWO_ROUNDS, METHODS, task=task) for _ in range(2)]
    assert min(result.compile_seconds for result in runs) > 0
    assert timeless(runs[0].rows) == timeless(runs[1].rows) == timeless(undisturbed().rows)


def test_a_padded_round_gives_the_bits_of_an_unpadded_one():
    rounds = [Round(5, after_epochs(3)), Round(11, after_epochs(3))]
    padded = run([*rounds, Round(30, after_epochs(1))], {"WS": warm_start})
    unpadded = run(rounds, {"WS": warm_start})
    assert timeless([row for row in padded.rows if row["round"] < 3]) == timeless(unpadded.rows)


def test_a_results_rows_are_its_own(tmp_path):
    records = Records(tmp_path / "records.jsonl")
    first = run(TWO_ROUNDS[:1], {"WS": warm_start}, records=records, checkpoints=tmp_path / "c")
    told = list(first.rows)
    both = run(TWO_ROUNDS, {"WS": warm_start}, records=records, checkpoints=tmp_path / "c")
    assert first.rows == told
    assert len(both.rows) > len(told)
    both.rows.clear()
    assert len(records.rows) > len(told)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_rows(tmp_path):
    records = Records(tmp_path / "records.jsonl")
    with pytest.raises(NonFiniteLoss, match=r"first, seed 0, round 1, epoch \d+, step \d+"):
        run([Round(30, after_epochs(2))], {}, optimizer=make_optimizer("sgd", 1e38), task=mlp_task(()), records=records)

    def poison(params, fresh):
        return jax.tree.map(lambda x: x * jnp.inf, params)

    with pytest.raises(NonFiniteLoss, match="WS, seed 0, round 2, epoch 1"):
        run(TWO_ROUNDS, {"WS": poison}, records=records)
    last_step = [Round(8, after_epochs(1))]
    with pytest.raises(NonFiniteLoss, match="the test loss is not finite: first, seed 0, round 1, epoch 1"):
        run(last_step, {}, optimizer=make_optimizer("sgd", 1e38), task=mlp_task(()))

    kept = Records(tmp_path / "records.jsonl").rows
    assert [(row["method"], row["epoch"]) for row in kept] == [("first", 1), ("first", 2)]


def test_a_loss_that_is_not_finite_may_end_its_round_alone(tmp_path):
    """The other seeds and methods have the rows that they have where nothing diverges."""

    def poison(params, fresh):
        return jax.tree.map(lambda x: x * jnp.where(jax.tree.leaves(params)[0].sum() > least, jnp.inf, 1), params)

    states = run(TWO_ROUNDS[:1], {}, seeds=(0, 1)).states
    sums = {seed: float(jax.tree.leaves(states["first", seed].params)[0].sum()) for seed in (0, 1)}
    least, poisoned = sum(sums.values()) / 2, max(sums, key=sums.get)
    rounds, settings = [*TWO_ROUNDS, Round(30, after_epochs(2))], Settings(diverged="end")
    records = Records(tmp_path / "records.jsonl")
    mixed = run(rounds, {"WS": poison, "RI": random_init}, seeds=(0, 1), settings=settings, records=records).rows
    whole = run(rounds, {"WS": warm_start, "RI": random_init}, seeds=(0, 1)).rows
    ended = [row for row in mixed if row["stop"] == "diverged"]
    assert [(row["method"], row["seed"], row["round"], row["epoch"]) for row in ended] == [
        ("WS", poisoned, 2, 1), ("WS", poisoned, 3, 1),
    ]  # fmt: skip
    assert [(row["train_loss"], row["test_loss"]) for row in ended] == [(None, None)] * 2
    assert timeless([row for row in mixed if row not in ended]) == timeless(
        [row for row in whole if (row["method"], row["seed"]) != ("WS", poisoned) or row["round"] == 1]
    )
    assert Records(tmp_path / "records.jsonl").rows == mixed

    high = {"optimizer": make_optimizer("sgd", 1e38), "task": mlp_task(()), "settings": settings}
    (row,) = run([Round(8, after_epochs(1))], {}, **high).rows  # its only step is too long: found when it is tested
    assert (row["stop"], row["test_loss"]) == ("diverged", None)


def narrow(boundary):
    return boundary.fresh._replace(params=jax.tree.map(lambda x: x.astype(jnp.float16), boundary.fresh.params))


def test_a_start_that_gives_another_network_is_refused():
    with pytest.raises(TaskError, match=r"method 'half' starts with float16 .* at 'params/head/bias', .* float32"):
        run(TWO_ROUNDS, {"half": Method(narrow)})
    other = Setup(mlp_task(), make_optimizer("adam", 0.05), data(), data(10, seed=1), 8)
    rounds = [Round(10, max_epochs=1), Round(30, max_epochs=1, setup=other)]
    with pytest.raises(TaskError, match="method 'WS' starts with a state of another structure"):
        run(rounds, {"WS": Method(mixed(warm_start, opt_state="keep"))})
    with pytest.raises(TaskError, match=r"the run starts with .* at 'params/head/kernel'"):
        run(TWO_ROUNDS, {}, initial=mlp_task((7,)).init(jax.random.key(0)))


def test_a_probe_may_have_nothing_to_say_but_no_name_of_a_rows_field():
    def old_share(setup, state, samples, key):
        return {"old": jnp.float32(0) / samples.before}

    rows = run_rounds(setup(probe=old_share), TWO_ROUNDS, {"WS": warm_start}).rows
    assert [row["old"] for row in rows] == [None, None, 0.0, 0.0, 0.0]
    for name in ("steps", "crc"):
        with pytest.raises(TaskError, match=f"a probe cannot be named '{name}'"):
            run_rounds(setup(probe=lambda *_, name=name: {name: jnp.zeros(())}), TWO_ROUNDS, {})


def test_rounds_of_equal_size_and_other_setups_are_told_apart():
    slow = setup(optimizer=make_optimizer("sgd", 1e-30))
    rounds = [Round(10, max_epochs=1), Round(30, max_epochs=1)]
    still = Method(mixed(warm_start), rounds=[Round(30, max_epochs=1, setup=slow)])
    states = run(rounds, {"WS": warm_start, "still": still}).states
    assert same(states["still", 0].params, states["first", 0].params)
    assert not same(states["WS", 0].params, states["first", 0].params)


def test_a_trunk_that_is_trained_again_leaves_rows_that_can_be_gone_on_with(tmp_path):
    trunk = [Round(10, max_epochs=2), Round(10, max_epochs=2)]
    methods = {
        name: Method(mixed(warm_start), after, [Round(30, max_epochs=2)]) for name, after in (("A", 1), ("B", 2))
    }

    def start():
        records = Records(tmp_path / "r.jsonl")
        return run(trunk, methods, records=records, checkpoints=tmp_path / "c")

    whole = start()
    for name in ("first-seeds-0", "A-seeds-0"):
        shutil.rmtree(tmp_path / "c" / name)
    with pytest.warns(UserWarning, match="no checkpoint reaches"):
        start()
    again = start()
    assert sorted(map(str, timeless(again.rows))) == sorted(map(str, timeless(whole.rows)))
    assert all(same(again.states[key], whole.states[key]) for key in whole.states)


def test_a_trunk_that_is_trained_again_may_be_stopped_again(tmp_path):
    trunk = [Round(10, max_epochs=2), Round(10, max_epochs=2)]
    methods = {
        name: Method(mixed(warm_start), after, [Round(30, max_epochs=2)]) for name, after in (("A", 1), ("B", 2))
    }

    def start(observe=None):
        records = Records(tmp_path / "r.jsonl")
        return run(trunk, methods, records=records, checkpoints=tmp_path / "c", states=False, observe=observe)

    def stop(rows):
        raise KeyboardInterrupt

    whole = start()
    Records(tmp_path / "r.jsonl").keep(lambda row: row["method"] != "A")
    for name in ("first-seeds-0", "A-seeds-0"):
        shutil.rmtree(tmp_path / "c" / name)
    with pytest.warns(UserWarning, match="no checkpoint reaches"), pytest.raises(KeyboardInterrupt):
        start(stop)
    with pytest.warns(UserWarning, match="; 1 epochs are trained again for its last state"):
        again = start()
    assert sorted(map(str, timeless(again.rows))) == sorted(map(str, timeless(whole.rows)))
    assert not (tmp_path / "r.jsonl.dropped").read_text().count('"method": "first"')  # rows that are right stay


def gradient_start(boundary):
    """A start that looks at the data: a step down the gradient over all of the round's samples, as DASH has one."""
    here = boundary.setup

    def body(_, total, batch):
        def loss(params):
            outputs, _ = here.task.apply(params, boundary.old.batch_stats, batch.inputs, batch.weights, False, None)
            return jnp.sum(here.task.loss(outputs, batch.targets) * batch.weights)

        return jax.tree.map(jnp.add, total, jax.grad(loss)(boundary.old.params))

    nothing = jax.tree.map(jnp.zeros_like, boundary.old.params)
    total = over_batches(body, nothing, here.train, boundary.samples, here.batch_size, here.axis_name)
    if here.axis_name is not None:
        total = jax.lax.psum(total, here.axis_name)
    params = jax.tree.map(lambda x, g: x - 0.1 * g / boundary.samples.size, boundary.old.params, total)
    return boundary.fresh._replace(params=params)


@pytest.mark.parametrize("mesh", [None, lambda: replica_mesh(2), lambda: data_mesh(2)], ids=["one", "replicas", "data"])
def test_a_start_may_look_at_the_data(mesh):
    rounds = [Round(10, max_epochs=1), Round(30, max_epochs=1)]
    methods = {"down": Method(gradient_start), "WS": warm_start, "up": Method(gradient_start)}
    result = run(rounds, methods, seeds=(0, 1, 2), optimizer=FROZEN, mesh=mesh and mesh(), stack=mesh is None)
    inputs, labels = data()
    for seed in (0, 1, 2):
        old = result.states["WS", seed].params
        expected = jax.tree.map(lambda x, g: x - 0.1 * g, old, gradient(mlp_task(), old, inputs, labels))
        for name in ("down", "up"):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                result.states[name, seed].params,
                expected,
            )


class Killed(Exception):
    pass


def die():
    raise Killed


@pytest.mark.parametrize("at", range(1, 14))
def test_a_run_that_ended_anywhere_continues_to_the_same_bits(tmp_path, at):
    settings, whole = Settings(checkpoint_every=2), undisturbed()
    count = 0

    def kill(rows):
        nonlocal count
        count += 1
        if count == at:
            raise Killed

    def start(observe):
        records = Records(tmp_path / "records.jsonl")
        return run(TWO_ROUNDS, METHODS, settings=settings, records=records, checkpoints=tmp_path, observe=observe)

    if at <= 11:
        with pytest.raises(Killed):
            start(kill)
    else:
        start(lambda rows: None)
    resumed = start(lambda rows: None)
    assert timeless(resumed.rows) == timeless(whole.rows)
    assert timeless(Records(tmp_path / "records.jsonl").rows) == timeless(whole.rows)
    assert all(same(resumed.states[key], whole.states[key]) for key in whole.states)


def lose(path, lost):
    """Takes a row's line out of a file."""
    lines = path.read_text().splitlines(keepends=True)
    kept = [(row["method"], row["seed"], row["epoch"]) != lost for row in map(json.loads, lines)]
    path.write_text("".join(line for line, keep in zip(lines, kept, strict=True) if keep))
    assert sum(kept) == len(lines) - 1


@pytest.mark.parametrize("lost", [("WS", 0, 3), ("WS", 1, 3), ("WS", 1, 1), ("first", 0, 1)])
def test_rows_that_were_lost_are_trained_again_or_missed(tmp_path, lost):
    """A checkpoint that is ahead of any seed's rows is not used; rows with a hole are no run's."""

    def start():
        records = Records(tmp_path / "r.jsonl")
        return run(TWO_ROUNDS, {"WS": warm_start}, seeds=(0, 1), records=records, checkpoints=tmp_path / "c")

    whole = start()
    lose(tmp_path / "r.jsonl", lost)
    if lost[2] < 3:
        with pytest.raises(RunError, match=r"r.jsonl, line \d+, does not belong to this run .*should come here"):
            start()
        return
    with pytest.warns(UserWarning, match="WS-seeds-0-1: no checkpoint reaches as far as its rows do; 3 epochs"):
        again = start()
    assert sorted(map(str, timeless(again.rows))) == sorted(map(str, timeless(whole.rows)))
    assert all(same(again.states[key], whole.states[key]) for key in whole.states)


def test_a_kill_behind_the_first_stop_of_a_stack_is_no_loss(tmp_path):
    """Only where the last replica of a stack stops is a checkpoint due."""
    rows = run([Round(30, max_epochs=3)], {}, (0, 1)).rows
    first = [row["train_accuracy"] for row in rows if row["seed"] == 0]

    def start(observe=None):
        rounds = [Round(30, lambda accuracies: "mine" if accuracies == first else None, max_epochs=6)]
        records = Records(tmp_path / "r.jsonl")
        return run(rounds, {}, (0, 1), records=records, checkpoints=tmp_path / "c", observe=observe)

    with pytest.raises(Killed):
        start(lambda rows: die() if rows[0]["epoch"] == 4 else None)
    shutil.rmtree(tmp_path / "c")  # that of epoch 4, which a kill does not leave
    assert {row["seed"]: row["epoch"] for row in start().rows if row["stop"]} == {0: 3, 1: 6}


def test_ways_and_seeds_of_any_name_keep_their_own_checkpoints(tmp_path):
    methods = {"a b": METHODS["SP"], "a_b": random_init, "a/b": warm_start}
    seeds = tuple(range(10**9, 10**9 + 30))

    def start():
        return run(TWO_ROUNDS, methods, seeds, records=Records(tmp_path / "r"), checkpoints=str(tmp_path / "c"))

    first, again = start(), start()
    assert all(same(first.states[key], again.states[key]) for key in first.states)


def test_what_cannot_be_run_is_refused():
    def refused(match, rounds=TWO_ROUNDS, methods=METHODS, seeds=(0,), settings=None, **options):
        with pytest.raises(TaskError, match=match) as caught:
            run_rounds(setup(**options), rounds, methods, seeds, settings=settings)
        assert "\n" not in str(caught.value)

    refused("round 2 asks for 31 samples; there are 30", [Round(10, max_epochs=1), Round(31, max_epochs=1)])
    refused("a method cannot be named 'first'", methods={"first": warm_start})
    refused(r"seeds must be given, each once, not \(1, 1\)", seeds=(1, 1))
    refused(r"seeds must be given, each once, not \(\)", seeds=())
    refused(r"seeds must lie in \[0, 2\^32\), not \(0, 4294967296\)", seeds=(0, 2**32))
    refused(r"seeds must lie in \[0, 2\^32\), not \(-1,\)", seeds=(-1,))
    refused("rounds is empty", [])
    refused("round 2 would never end", [Round(10, max_epochs=1), Round(20)])
    refused("round 1: max_epochs must be a whole number, 1 or more, not 0", [Round(10, max_epochs=0)])
    refused("a method cannot have an empty name", methods={"": warm_start})
    endless = {"late": Method(scratch, rounds=[Round(20)])}
    refused("method 'late', round 2 would never end", methods=endless)
    refused("method 'late' begins after round 3; there are 2", methods={"late": Method(scratch, after=3)})
    refused("checkpoint_every must be a whole number, 1 or more, not 0", settings=Settings(checkpoint_every=0))
    refused("unknown evaluate 'often'; available: epoch, round", settings=Settings(evaluate="often"))
    refused("batch_size must be a whole number, 1 or more, not 0", batch_size=0)
    inputs, labels = data()
    refused(r"train inputs and targets need one length above 0, not \[29, 30\]", train=(inputs, labels[:29]))
    refused(r"train inputs and targets need one length above 0, not \[0\]", train=(inputs[:0], labels[:0]))
    refused(
        "train inputs and targets must be arrays of NumPy or JAX, not of type int, ndarray",
        train=(inputs, labels.tolist()),
    )
    refused(
        r"train labels go from -1 to 2; the model has 3 outputs, for labels 0 to 2",
        train=(inputs, labels - 1 + (labels > 0)),
    )
    refused(r"train labels go from 1 to 3; the model has 3 outputs", train=(inputs, labels + 1))
    refused(r"train labels must be integers \[N\] for cross-entropy, not float64 \[30\]", train=(inputs, labels * 1.0))
    refused(r"train labels must be integers \[N\] .*int32 \[30, 1\]", train=(inputs, labels[:, None]))
    with_count = mlp_task()._replace(init=lambda key: ({"calls": jnp.zeros((), int), **mlp_task().init(key)[0]}, {}))
    refused("the params' leaf 'calls' is int32; only floating-point leaves", task=with_count)
    with pytest.raises(TaskError, match="unknown opt_state 'kept'; available: rebuild, keep"):
        mixed(warm_start, opt_state="kept")


def test_a_loss_of_another_shape_is_refused_before_anything_is_trained():
    """The README's regression with targets [N, 1] would train on a broadcast of outputs against targets."""
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    model = Regressor()
    task = stateless_task(
        lambda key: model.init(key, x[:1]), model.apply, lambda a, b: (a - b) ** 2, lambda a, b: jnp.abs(a - b) < 0.3
    )
    train = (x, x[:, :1])
    with pytest.raises(TaskError, match=r"loss must give one value a sample, \[8\], not \[8, 8\]"):
        run_rounds(Setup(task, optax.sgd(0.1), train, train, 8), [Round(40, max_epochs=1)], {})


def test_methods_branch_from_shared_rounds_and_have_rounds_of_their_own(tmp_path):
    """One trunk; each branch is what a run of its own through the same rounds gives."""
    trunk = [Round(10, max_epochs=2), Round(10, max_epochs=2), Round(10, max_epochs=2)]
    whole = [Round(30, max_epochs=2)]
    methods = {
        "early": Method(mixed(warm_start), after=1, rounds=whole),
        "late": Method(mixed(warm_start), after=3, rounds=whole),
        "none": Method(scratch, after=0, rounds=whole),
    }

    def start(folder, observe=None):
        records = Records(folder / "r.jsonl")
        return run(trunk, methods, (0, 1), records=records, checkpoints=folder / "c", observe=observe)

    (tmp_path / "a").mkdir()
    result = start(tmp_path / "a")
    assert [(row["round"], row["epoch"]) for row in result.rows if row["method"] == "first" and row["seed"] == 0] == [
        (number, epoch) for number in (1, 2, 3) for epoch in (1, 2)
    ]
    assert [row["round"] for row in result.rows if row["method"] == "late" and row["seed"] == 1] == [4, 4]
    assert [row["round"] for row in result.rows if row["method"] == "none" and row["seed"] == 1] == [1, 1]
    alone = run([Round(10, max_epochs=2), Round(30, max_epochs=2)], {"early": warm_start}, (0, 1))
    assert same(alone.states["early", 1], result.states["early", 1])
    # A shared round goes on from the one before as it is, the optimiser's state too.
    assert int(result.states["first", 0].step) == 3 * 2 * 2

    def kill(rows):
        if rows[0]["method"] == "late":
            raise Killed

    (tmp_path / "b").mkdir()
    with pytest.raises(Killed):
        start(tmp_path / "b", kill)
    again = start(tmp_path / "b")
    assert timeless(again.rows) == timeless(result.rows)
    assert all(same(again.states[key], result.states[key]) for key in result.states)


def test_a_method_without_shared_rounds_starts_from_what_it_makes_of_a_new_network():
    rounds = [Round(10, max_epochs=1), Round(30, max_epochs=1)]
    shrunk = Method(mixed(partial(shrink_perturb, shrink=0.5, perturb=0.0)), after=0, at_once=True)
    methods = {"SP": shrunk, "WS": Method(mixed(warm_start), after=0), "RI": Method(scratch, after=0)}
    states = run(rounds[:1], methods, optimizer=FROZEN).states
    plain = run(rounds[:1], {}, optimizer=FROZEN).states
    assert set(states) == {("SP", 0), ("WS", 0), ("RI", 0)}
    for name in ("WS", "RI"):  # all begin with the same network
        assert same(states[name, 0].params, plain["first", 0].params)
    expected = jax.tree.map(lambda x: 0.5 * x, plain["first", 0].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), states["SP", 0].params, expected)


def test_what_begins_with_the_first_network_draws_no_other(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        loop,
        "_fresh",
        lambda programs, keys, number, draw=loop._fresh: drawn.append(number) or draw(programs, keys, number),
    )
    methods = {name: Method(start, 0) for name, start in (("A", scratch), ("B", mixed(warm_start)))}
    run([Round(30, max_epochs=1)], methods)
    assert drawn == [1, 1]


def test_the_fresh_network_may_be_the_first_one_again():
    """With `fresh="first"` every start gets the network that round 1 began with; by default a new one."""
    rounds = [Round(10, max_epochs=1), Round(30, max_epochs=1)]
    begun = run(rounds[:1], {}, optimizer=FROZEN).states["first", 0].params
    again = run(rounds, METHODS, optimizer=FROZEN, settings=Settings(fresh="first")).states
    assert same(again["RI", 0].params, begun)
    expected = shrink_perturb(again["WS", 0].params, begun, 0.4, 0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again["SP", 0].params, expected)
    assert not same(run(rounds, METHODS, optimizer=FROZEN).states["RI", 0].params, begun)


def test_what_is_forgotten_is_all_but_the_sizes():
    """A new network at the norms of a warm start, leaf by leaf; of a scaled random initialisation that very one."""
    ways = {"WS": mixed(warm_start), "scaled": mixed(partial(shrink_perturb, shrink=0, perturb=0.3)), "RI": scratch}
    controls = {f"{name}, forgotten": Method(forgotten(start)) for name, start in ways.items()}
    rounds = [Round(30, max_epochs=3), Round(30, max_epochs=1)]
    still = make_optimizer("sgd", 0.0)  # after the first round nothing moves
    rounds[1] = rounds[1]._replace(setup=setup(optimizer=still))
    methods = controls | {name: Method(start) for name, start in ways.items()}
    states = {name: state.params for (name, _), state in run(rounds, methods).states.items()}
    flat = {name: jax.tree.leaves(tree) for name, tree in states.items()}
    for name in ("RI", "scaled"):
        for own, other in zip(flat[f"{name}, forgotten"], flat[name], strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-6)
    for own, old, new in zip(flat["WS, forgotten"], flat["WS"], flat["RI"], strict=True):
        if np.any(new):
            norms = [np.linalg.norm(leaf) for leaf in (own, old, new)]
            np.testing.assert_allclose(norms[0], norms[1], rtol=1e-6)
            np.testing.assert_allclose(own / norms[0], new / norms[2], rtol=1e-5, atol=1e-7)
        else:
            assert not np.any(own)
    with pytest.raises(TaskError, match=r"^forgotten takes a start .* make forgotten\(mixed\(\.\.\.\)\)$"):
        forgotten(warm_start)


def test_a_method_may_be_for_some_seeds_only():
    rounds = [Round(10, max_epochs=1), Round(30, max_epochs=2)]
    methods = {"RI": random_init, "WS": Method(mixed(warm_start), seeds=(5,))}
    both, alone = run(rounds, methods, (3, 5, 7)), run(rounds, {"WS": warm_start}, (5,))
    assert [(row["method"], row["seed"]) for row in both.rows if row["stop"] and row["round"] == 2] == [
        ("RI", 3), ("RI", 5), ("RI", 7), ("WS", 5),
    ]  # fmt: skip
    own = [row for row in timeless(both.rows) if row["method"] == "WS"]
    assert own == [row for row in timeless(alone.rows) if row["method"] == "WS"]
    with pytest.raises(TaskError, match=r"method 'WS' is for seeds \[5\]; the run's are \[3\]"):
        run(rounds, methods, (3,))


def test_the_accuracy_of_a_stop_rule_may_be_that_after_the_epoch():
    """The rows and the stop rule have the network's accuracy at the epoch's end; the training stays as it is."""
    rounds = [Round(30, any_of(at_accuracy(0.5), after_epochs(30)))]
    after, running = (run_rounds(setup(fit=fit), rounds, {}) for fit in (fit_after, None))
    last = after.rows[-1]
    images, labels = data()
    state = after.states["first", 0]
    logits = mlp_task().apply(state.params, {}, images, np.ones(30), False, None)[0]
    assert last["train_accuracy"] == pytest.approx(float(np.mean(np.argmax(logits, 1) == labels)))
    assert [row["train_accuracy"] >= 0.5 for row in after.rows] == [False] * (len(after.rows) - 1) + [True]
    assert [row["test_loss"] for row in after.rows] == [row["test_loss"] for row in running.rows][: len(after.rows)]
    assert [row["train_loss"] for row in after.rows] != [row["train_loss"] for row in running.rows][: len(after.rows)]
    assert len(after.rows) <= len(running.rows)


def test_a_round_may_have_a_setup_of_its_own():
    """Other data with more classes, and a learning rate of its own: a transfer."""
    images, labels = data(20, seed=5)
    target = Setup(
        image_task(models.mlp(5, (5,)), (4, 4, 1), (0.5,), (0.25,)), FROZEN, (images, labels + 2), (images, labels), 8
    )
    rounds = [Round(30, max_epochs=2), Round(20, max_epochs=1, setup=target)]
    keep = partial(shrink_perturb, shrink=0.5, perturb=0.0)
    states = run(rounds, {"RI": random_init, "SP": new_heads(keep)}).states
    hidden, head = (states["SP", 0].params[name]["kernel"] for name in ("hidden1", "head"))
    np.testing.assert_allclose(hidden, 0.5 * states["first", 0].params["hidden1"]["kernel"], rtol=1e-6)
    assert head.shape[0] == 5
    assert same(head, states["RI", 0].params["head"]["kernel"])  # newly drawn, not shrunk


def test_new_heads_by_a_path_that_there_is_not_are_refused():
    named = {"SP": new_heads(warm_start, where=lambda path: path.startswith("classifier"))}
    with pytest.raises(TaskError, match="where chooses none of the leaves; it is asked for their paths, 'head/bias', "):
        run(TWO_ROUNDS, named)


def test_probes_become_fields_of_the_rows(tmp_path):
    def probe(setup, state, samples, key):
        return {"old_samples": samples.before, "weight": jnp.abs(state.params["head"]["bias"]).max()}

    records = Records(tmp_path / "r.jsonl")
    plain = undisturbed()
    probed = run_rounds(setup(probe=probe), TWO_ROUNDS, METHODS, records=records)
    assert [row["old_samples"] for row in probed.rows if row["method"] == "SP"] == [10.0] * 3
    assert [row["old_samples"] for row in probed.rows if row["round"] == 1] == [0.0] * 2
    first = next(row for row in probed.rows if row["method"] == "WS")
    assert first["weight"] == pytest.approx(float(jnp.abs(plain.states["first", 0].params["head"]["bias"]).max()))
    without = [
        {name: value for name, value in row.items() if name not in ("old_samples", "weight")} for row in probed.rows
    ]
    assert timeless(without) == timeless(plain.rows)  # it changes no state
    assert Records(tmp_path / "r.jsonl").rows == probed.rows


def test_an_observer_that_raises_leaves_its_epochs_checkpoint(tmp_path):
    settings = Settings(checkpoint_every=100)
    rounds = [Round(10, max_epochs=8)]
    seen = []

    def start(at, epochs):
        def observe(rows):
            seen.append(rows[0]["epoch"])
            if rows[0]["epoch"] == at:
                raise Killed

        records = Records(tmp_path / "r")
        return run(rounds, {}, settings=settings, records=records, checkpoints=tmp_path / "c", observe=observe)

    with pytest.raises(Killed):
        start(5, seen)
    start(None, seen)
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_rows_of_a_finished_run_suffice_without_its_checkpoints(tmp_path):
    def start(rounds=TWO_ROUNDS, states=False):
        records = Records(tmp_path / "r")
        return run(rounds, METHODS, records=records, checkpoints=tmp_path / "c", observe=epochs.append, states=states)

    epochs = []
    whole = start()
    shutil.rmtree(tmp_path / "c")
    epochs.clear()
    again = start()
    assert (epochs, again.rows, again.states) == ([], whole.rows, {})
    # States that are wanted, and one more round, need what is gone: it is trained again, to the same bits.
    with pytest.warns(UserWarning, match="no checkpoint reaches as far as its rows do; . epochs are trained"):
        wanted = start(states=True).states
    direct = undisturbed().states
    assert all(same(wanted[name, 0], direct[name, 0]) for name in METHODS)
    shutil.rmtree(tmp_path / "c")
    with pytest.warns(UserWarning, match="no checkpoint reaches as far as its rows do"):
        more = start([*TWO_ROUNDS, Round(30, max_epochs=1)], states=True)
    direct = run([*TWO_ROUNDS, Round(30, max_epochs=1)], METHODS)
    assert sorted(map(str, timeless(more.rows))) == sorted(map(str, timeless(direct.rows)))
    assert all(same(more.states[name, 0], direct.states[name, 0]) for name in METHODS)


def test_a_checkpoint_is_read_where_a_state_is_needed_and_nowhere_else(tmp_path, monkeypatch):
    def start():
        return run(TWO_ROUNDS, METHODS, records=Records(tmp_path / "r"), checkpoints=tmp_path / "c", states=False).rows

    read = []
    restore = checkpoint.restore
    monkeypatch.setattr(checkpoint, "restore", lambda folder, *rest: read.append(folder) or restore(folder, *rest))
    whole = start()
    read.clear()
    assert (start(), read) == (whole, [])
    Records(tmp_path / "r").keep(lambda row: row["method"] != "WS")
    shutil.rmtree(tmp_path / "c" / "WS-seeds-0")
    read.clear()
    assert sorted(map(str, timeless(start()))) == sorted(map(str, timeless(whole)))
    assert len(read) == 2  # that of WS, which has none, and the first round's end


FLOAT64 = """
import jax, jax.numpy as jnp, numpy as np, optax
from wsjax import Method, Round, Setup, mixed, run_rounds, stateless_task, warm_start
x = np.random.default_rng(0).normal(size=(40, 3))
task = stateless_task(
    lambda key: {"w": jnp.zeros(3)}, lambda p, x: x @ p["w"], optax.squared_error, lambda a, b: jnp.abs(a - b) < 0.1
)
data = (x, x.sum(1))
setup = Setup(task, optax.sgd(0.1), data, data, 8)
result = run_rounds(setup, [Round(20, max_epochs=9), Round(40, max_epochs=9)], {"WS": warm_start})
w = result.states["WS", 0].params["w"]
assert w.dtype == jnp.float64, w.dtype
np.testing.assert_allclose(w, 1, rtol=1e-3)
"""


def test_a_task_in_float64():
    environment = os.environ | {"JAX_ENABLE_X64": "1"}
    result = subprocess.run([sys.executable, "-c", FLOAT64], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


class Regressor(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(8)(x)))[:, 0]


def test_a_users_own_flax_and_equinox_models_run():
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 3)).astype(np.float32)
    train = test = (x, np.sin(x.sum(1)))
    flax_model = Regressor()
    _, static = eqx.partition(eqx.nn.MLP(3, "scalar", 8, 1, key=jax.random.key(0)), eqx.is_array)
    losses = {"loss": optax.squared_error, "score": lambda a, b: (jnp.abs(a - b) < 0.3).astype(jnp.float32)}
    own = {
        "flax": stateless_task(lambda key: flax_model.init(key, x[:1]), flax_model.apply, **losses),
        "equinox": stateless_task(
            lambda key: eqx.partition(eqx.nn.MLP(3, "scalar", 8, 1, key=key), eqx.is_array)[0],
            lambda params, inputs: jax.vmap(eqx.combine(params, static))(inputs),
            **losses,
        ),
    }
    for one in own.values():
        rounds = [Round(20, after_epochs(30)), Round(40, after_epochs(30))]
        result = run_rounds(Setup(one, optax.adam(0.01), train, test, 8), rounds, METHODS)
        warm = [row["test_loss"] for row in result.rows if row["method"] == "WS"]
        assert warm[-1] < 0.1


def test_rounds_by_arrival_have_the_first_rows():
    """Whatever comes behind them: the second call continues the first one's records, as data come in."""
    images, labels = data(30)
    first = Round(10, after_epochs(2))
    arrival = Settings(order="arrival")
    rows = [
        run_rounds(setup(train=(images[:n], labels[:n])), [first], METHODS, settings=arrival).rows for n in (10, 30)
    ]
    assert timeless(rows[0]) == timeless(rows[1])
    other = run_rounds(setup(train=(images[::-1], labels[::-1])), [first], METHODS, settings=arrival).rows
    assert timeless(other) != timeless(rows[0])


def test_the_first_network_of_a_run_that_was_given_one_is_that():
    start = mlp_task().init(jax.random.key(7))
    own = Method(lambda boundary: boundary.first)
    frozen = run(
        [Round(10, after_epochs(1)), Round(30, after_epochs(1))], {"own": own}, optimizer=FROZEN, initial=start
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), frozen.states["own", 0].params, start[0])


def test_a_score_that_is_no_number_ends_a_round_like_such_a_loss():
    task = mlp_task()._replace(score=lambda outputs, targets: jnp.full(targets.shape, jnp.nan))
    with pytest.raises(NonFiniteLoss, match=r"the score is not finite: first, seed 0, round 1, epoch 1"):
        run(TWO_ROUNDS, METHODS, task=task)
    records = Records()
    for _ in range(2):  # such rows are read again too
        rows = run(TWO_ROUNDS, METHODS, task=task, settings=Settings(diverged="end"), records=records).rows
    assert {(row["stop"], row["train_accuracy"], row["test_accuracy"]) for row in rows} == {("diverged", None, None)}


class Rule:
    """A stop rule that cannot be hashed."""

    __hash__ = None

    def __call__(self, accuracies):
        return "two" if len(accuracies) == 2 else None


def test_any_callable_is_a_stop_rule():
    rows = run([Round(10, Rule()), Round(30, Rule())], METHODS).rows
    assert {row["epoch"] for row in rows if row["stop"]} == {2}


def test_sizes_may_be_numbers_of_numpy():
    rounds = [Round(size, max_epochs=1) for size in np.array([10, 30])]
    assert [row["samples"] for row in run(rounds, {"WS": warm_start}).rows] == [10, 30]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rounds": [Round(15.0, max_epochs=1)]}, r"^round 1: num_samples must be a whole number, not 15\.0$"),
        ({"methods": {1: warm_start}}, "^methods are known by their names, not 1$"),
        ({"methods": {"a": scratch}}, r"^method 'a' is neither a Method nor a re-init.*by wsjax\.Method\(\.\.\.\)$"),
        ({"methods": {"a": "SP"}}, "^method 'a' is neither a Method nor a re-initialiser"),
        ({"methods": {"a": Method(warm_start)}}, r"^the start of method 'a' is not .*by wsjax\.mixed\(\.\.\.\)$"),
        ({"methods": {"a": shrink_perturb}}, "^method 'a' is neither"),
        ({"seeds": 5}, r"^seeds must be whole numbers, such as range\(3\), not 5$"),
        ({"seeds": (0.7, 1.9)}, "^seeds must be whole numbers"),
        (
            {"initial": {"params": {}, "batch_stats": {}}},
            "^initial must be a pair .*, not of type dict$",
        ),
        ({"checkpoints": "c"}, r"give records=Records\(path\) too$"),
        (
            {"records": "a.jsonl"},
            r"^records must be wsjax\.Records, not of type str; give records=Records\('a\.jsonl'\)$",
        ),
        ({"methods": ["RI"]}, r"^methods must be a dict of methods by their names, .*, not \['RI'\]$"),
        ({"rounds": [10, 20]}, r"^round 1 must be a wsjax\.Round, such as Round\(10, max_epochs=10\), not 10$"),
        ({"rounds": Round(10, max_epochs=1)}, r"^rounds must be a list of wsjax\.Round, not of type Round$"),
        ({"methods": {"a": Method(scratch, rounds=[10])}}, r"^method 'a', round 1 must be a wsjax\.Round"),
        ({"methods": {"a": dash}}, r"^method 'a' is neither .*; give Method\(dash_start\(\)\)$"),
        ({"methods": {"a": dash_start}}, r"^method 'a' is neither .*; give Method\(dash_start\(\)\)$"),
        ({"methods": {"a": gaussian_perturb}}, r"^method 'a' is neither .*; give Method\(gaussian_start\("),
        (
            {"methods": {"a": partial(shrink_perturb, 0.4, 0.1)}},
            r"^method 'a': functools\.partial has \(0\.4, 0\.1\) in the place of params; give .* by name, partial\(",
        ),
        ({"rounds": [Round(10, max_epochs=1.5)]}, r"^round 1: max_epochs must be a whole number, 1 or more, not 1\.5$"),
        ({"rounds": [Round(0, max_epochs=1)]}, "^round 1 asks for 0 samples; there are 30"),
        ({"rounds": [Round(10, 20)]}, "^round 1: stop must be a rule .*, not 20; epochs go into max_epochs=$"),
        ({"settings": {"evaluate": "round"}}, r"^settings must be wsjax\.Settings, not of type dict$"),
        ({"mesh": 2}, r"^mesh must be made by wsjax\.data_mesh\(\) or wsjax\.replica_mesh\(\), not 2$"),
        ({"mesh": jax.make_mesh((2,), ("batch",))}, r"^mesh must be made by wsjax\.data_mesh\(\)"),
        ({"observe": 3}, r"^observe must be a function \(rows\) -> None, not 3$"),
        ({"methods": {"a": Method(scratch, after=1.0)}}, "^method 'a': after must be a whole number, 0 or more"),
        ({"methods": {"a": Method(scratch, at_once=True)}}, "^method 'a': at_once begins before round 1; give after=0"),
        (
            {"rounds": [Round(10, max_epochs=1, setup=mlp_task())]},
            r"^round 1: setup must be wsjax\.Setup\(.* type Task$",
        ),
        ({"methods": {"a": Method(scratch, seeds=0)}}, "^method 'a', seeds must be whole numbers"),
        ({"methods": {"a": Method(scratch, after=0, rounds=[])}}, "^method 'a' has no round to run$"),
        ({"methods": {"a": Method(mixed)}}, "^method 'a': mixed is no start; call it: it makes one$"),
        ({"methods": {"a": Method(dash_start)}}, "^method 'a': dash_start is no start; call it"),
    ],
)
def test_mistakes_are_named_before_anything_runs(given, said):
    arguments = {"rounds": TWO_ROUNDS, "methods": {}} | given
    with pytest.raises(TaskError, match=said):
        run_rounds(setup(), **arguments)


def test_what_is_no_setup_or_no_reason_to_stop_is_named():
    for given in (mlp_task(), {}):
        with pytest.raises(
            TaskError, match=r"^setup must be wsjax\.Setup\(task, optimizer, train, test\), not of type"
        ):
            run_rounds(given, TWO_ROUNDS, {})
    for rule in (lambda accuracies: False, lambda accuracies: "", lambda accuracies: accuracies[-1] > 2):
        with pytest.raises(TaskError, match="a stop rule gives the reason to stop, a text, or None to go on, not"):
            run([Round(10, rule, max_epochs=2)], {})
    with pytest.raises(TaskError, match="a stop rule cannot give 'diverged', which tells of a loss that is not finite"):
        run([Round(10, lambda accuracies: "diverged", max_epochs=2)], {})


def test_a_method_has_the_states_of_its_own_seeds():
    methods = {"WS": Method(mixed(warm_start), seeds=[0])}
    states = run([Round(10, max_epochs=1)], methods, seeds=(0, 1)).states
    assert set(states) == {("first", 0), ("first", 1), ("WS", 0)}


def test_a_factor_may_come_first_where_a_functions_own_params_come_behind():
    def mine(rate, params, fresh):
        return shrink_perturb(params, fresh, rate, 0.1)

    with pytest.raises(TaskError, match="rounds is empty"):  # that far it comes
        run([], {"a": partial(mine, 0.4)})


def test_rows_of_other_rounds_are_refused():
    """As after an edit: what was trained before would come back for what is asked for now."""
    records = Records()
    run(TWO_ROUNDS, {"WS": warm_start}, records=records)
    capped = [Round(10, max_epochs=2), Round(30, max_epochs=3)]
    for rounds, batch_size, said in (
        ([TWO_ROUNDS[0], Round(20, after_epochs(3))], 8, "line 3, .*: it has 30 samples, and the round 20"),
        (TWO_ROUNDS, 4, "line 1, .*: it has 2 steps, and by batches of 4 they are 3"),
        ([capped[0], Round(30, max_epochs=2)], 8, "line 4, .*: its round went on, and .* now ends by 'epochs' there"),
        ([capped[0], Round(30, max_epochs=4)], 8, "line 5, .*: its round ended, and by the rules given now goes on.*"),
        ([capped[0], Round(30, at_accuracy(1.0), 4)], 8, "line 5, .*: its round ended, and .* now goes on there"),
    ):
        with pytest.raises(RunError, match=rf"^the records, {said}; give another file for another run$"):
            run(rounds, {"WS": warm_start}, batch_size=batch_size, records=Records(rows=records.rows))
    assert len(run(capped, {"WS": warm_start}, records=records).rows) == 5


def giving(change, batch_stats=None):
    """A task whose apply gives what `change` makes of the outputs and the batch statistics."""
    task = mlp_task()

    def apply(*arguments):
        return change(*task.apply(*arguments))

    return task._replace(init=lambda key: (task.init(key)[0], batch_stats or {}), apply=apply)


def test_without_jit_the_loop_says_that_it_cannot_run():
    with jax.disable_jit(), pytest.raises(TaskError, match="runs what it has compiled: unset jax_disable_jit"):
        run(TWO_ROUNDS, {})


@pytest.mark.parametrize("name", ["jax_debug_nans", "jax_debug_infs"])
def test_numbers_that_are_not_finite_are_for_the_loop_to_find(name):
    with getattr(jax, name.removeprefix("jax_"))(True), pytest.raises(TaskError, match=f"is not finite: unset {name}$"):
        run(TWO_ROUNDS, {})


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (mlp_task()._replace(init=lambda key: {"w": jnp.ones(3)}), r"init must give a pair \(params, batch_stats\)"),
        (stateless_task(lambda key: jnp.ones(3), lambda w, x: (x, w)), "outputs must be one array of logits"),
        (mlp_task()._replace(init=lambda: {}), r"^init must be a function \(key\) -> \(params, batch_stats\), not "),
        (mlp_task()._replace(apply=lambda params, x: x), r"^apply must be a function \(params, batch_stats, inputs, w"),
        (mlp_task()._replace(score=None), r"^score must be a function \(outputs, targets\) -> \[B\], not None$"),
        (mlp_task()._replace(activations=3), r"^activations must be a function \(params, batch_stats, inputs\) -> Act"),
        (
            giving(lambda logits, stats: logits),
            r"^the task's apply must give a pair .*, not an array; wsjax\.stateless_",
        ),
        (
            giving(lambda logits, stats: {"logits": logits}),
            r"^the task's apply must give a pair .*, not a dict; wsjax\.",
        ),
        (
            giving(lambda logits, stats: (logits, {"mean": jnp.ones(2)})),
            r"^the task's apply gives float32 \[2\] at 'mean' of batch_stats, where it was given no leaf",
        ),
        (
            giving(lambda logits, stats: (logits, {"mean": jnp.ones(2)}), {"mean": jnp.ones(3)}),
            r"^the task's apply gives float32 \[2\] at 'mean' of batch_stats, where it was given float32 \[3\]",
        ),
        (
            giving(lambda logits, stats: (logits, {}), {"mean": jnp.ones(3)}),
            r" gives no leaf at 'mean' of batch_stats,",
        ),
        (
            giving(lambda logits, stats: (logits, None)),
            r" gives batch_stats of another structure .* it has a NoneType where there is a dict",
        ),
    ],
)
def test_tasks_that_are_none_are_named_before_anything_trains(task, said):
    seen = []
    with pytest.raises(TaskError, match=said):
        run(TWO_ROUNDS, {}, task=task, observe=seen.append)
    assert not seen


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"task": nn.Dense(3)},
            r"^the setup's task must be a wsjax\.Task, as wsjax\.stateless_task makes one, not Dense",
        ),
        ({"optimizer": optax.adam}, r"^the setup's optimizer must be one of optax, .*; call it: optax\.adam\(1e-3\)$"),
        ({"optimizer": 0.01}, r"^the setup's optimizer must be one of optax, not 0\.01$"),
        ({"train": data()[0]}, r"^train must be a pair \(inputs, targets\), not of type ndarray$"),
        ({"test": (*data(), 1)}, r"^test must be a pair \(inputs, targets\), not of type tuple$"),
        ({"judged": 3}, r"^judged must be a function \(setup, state, samples\) -> state, not 3$"),
        ({"probe": lambda setup: {}}, r"^probe must be a function \(setup, state, samples, key\) -> "),
        ({"probe": lambda *_: [1.0]}, r"^a probe must give {name: scalar}, not a list"),
        (
            {"judged": lambda setup, state, samples: state.params},
            r"^the setup's judged must give a wsjax\.TrainState, n",
        ),
        (
            {"fit": lambda setup, state, samples: {"loss": 0.0}},
            "^the setup's fit must give a dict of loss and accuracy",
        ),
    ],
)
def test_fields_of_a_setup_that_are_none_are_named(given, said):
    with pytest.raises(TaskError, match=said):
        run_rounds(setup()._replace(**given), TWO_ROUNDS, {})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: mixed(3), r"^mixed takes a re-initialiser \(params, fresh\) -> params, not a int$"),
        (lambda: mixed(dash_start()), r"^mixed takes .*; a start becomes a method by Method\(\.\.\.\)$"),
        (lambda: mixed(shrink_perturb), "^mixed takes a re-initialiser .*, not shrink_perturb$"),
        (
            lambda: image_task(None, (4, 4, 1), 0.5, [1]),
            r"^image_task: mean must be 1 numbers for images of \(4, 4, 1\)",
        ),
        (lambda: image_task(None, (4, 4, 1), [0.5], [0]), r"^image_task: std must be 1 numbers above 0 for images of"),
        (lambda: models.mlp(10, hidden=100), r"^hidden must be sizes, such as \(100, 100\), not 100$"),
        (any_of, "^any_of: no rule is given"),
        (
            lambda: stateless_task(dict, lambda params: 1),
            r"^stateless_task calls apply\(params, inputs\), which <lambda> ",
        ),
        (lambda: make_optimizer("sgd", 0.1, schedule="cosine"), "^a schedule is a wsjax.*, not 'cosine'$"),
        (lambda: fire({"kernel": jnp.ones((2, 2))}, 5), "^trees differ: params has leaf "),
    ],
)
def test_what_makes_a_part_of_a_run_names_what_it_cannot_take(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Method(lambda boundary: boundary.old.params), "^method 'a' starts with a state of another structure"),
        (
            partial(shrink_perturb, shrink=0.5, perturb=0.1, where=lambda path: False),
            "where chooses none of the leaves",
        ),
        (
            Method(
                mixed(warm_start, opt_state="keep"),
                rounds=[Round(20, max_epochs=1, setup=Setup(mlp_task(), optax.sgd(0.1), data(), data()))],
            ),
            "^method 'a' starts with a state of another structure",
        ),
    ],
)
def test_mistakes_of_starts_are_found_before_anything_trains(method, said):
    seen = []
    with pytest.raises(TaskError, match=said):
        run_rounds(setup(), TWO_ROUNDS, {"a": method}, observe=seen.append)
    assert not seen


def test_a_start_may_look_at_numbers():
    def halved(params, fresh):
        return jax.tree.map(lambda w: np.asarray(w) / 2 if float(np.abs(w).sum()) >= 0 else w, params)

    rows = run_rounds(setup(), TWO_ROUNDS, {"a": halved}).rows
    assert {row["round"] for row in rows if row["method"] == "a"} == {2}


def test_data_of_another_library_are_named():
    class Tensor:
        shape, dtype = (30,), "torch.float32"

    with pytest.raises(TaskError, match="arrays of NumPy or JAX, not of type Tensor"):
        run_rounds(setup(train=(Tensor(), data()[1])), TWO_ROUNDS, {})


def test_samples_of_later_rounds_do_no_harm_before():
    """What fills up a batch is the round's own: data that are to come may be no numbers yet."""
    inputs = np.arange(12, dtype=np.float32).reshape(12, 1) / 12
    inputs[5:] = np.nan
    labels = np.arange(12) % 2
    task = stateless_task(lambda key: jnp.ones((1, 2)), lambda w, x: x @ w)
    own = Setup(task, optax.sgd(0.1), (inputs, labels), (inputs[:5], labels[:5]), batch_size=8)
    rows = run_rounds(own, [Round(5, max_epochs=2)], {}, settings=Settings(order="arrival")).rows
    alone = own._replace(train=(inputs[:5], labels[:5]))
    assert timeless(rows) == timeless(run_rounds(alone, [Round(5, max_epochs=2)], {}).rows)


def test_an_optimiser_may_look_at_the_loss():
    optimizer = optax.chain(optax.sgd(0.05), optax.contrib.reduce_on_plateau(patience=1, rtol=1.0))
    state = run([Round(30, max_epochs=3)], {}, optimizer=optimizer).states["first", 0]
    assert float(optax.tree.get(state.opt_state, "scale")) < 1


def test_data_on_another_device_train_and_continue(tmp_path):
    device = jax.devices()[1]
    images, labels = data()
    there = tuple(jax.device_put(x, device) for x in (images, labels))
    here = run(TWO_ROUNDS, {"WS": warm_start})
    own = setup(train=there)._replace(test=tuple(jax.device_put(x, device) for x in data(10, seed=1)))

    def start(observe=None):
        records = Records(tmp_path / "r")
        return run_rounds(
            own, TWO_ROUNDS, {"WS": warm_start}, records=records, checkpoints=tmp_path / "c", observe=observe
        )

    def kill(rows):
        if (rows[0]["round"], rows[0]["epoch"]) == (2, 2):
            raise Killed

    with pytest.raises(Killed):
        start(kill)
    assert timeless(start().rows) == timeless(here.rows)


def test_seeds_may_come_one_by_one():
    assert {row["seed"] for row in run([Round(10, max_epochs=1)], {}, seeds=(seed for seed in (3, 5))).rows} == {3, 5}
    methods = {"WS": Method(mixed(warm_start), seeds=(seed for seed in (5,)))}
    rows = run([Round(10, max_epochs=1)] * 2, methods, seeds=(3, 5)).rows
    assert [row["seed"] for row in rows if row["method"] == "WS"] == [5]


def test_a_leg_without_a_mesh_is_one_method():
    methods = {"a": Method(scratch, seeds=(0,)), "b": Method(mixed(warm_start))}
    legs = make_legs(TWO_ROUNDS, methods, (0, 1, 2), True, None)
    assert [leg.name for leg in legs] == ["first-seeds-0-1-2", "a-seeds-0", "b-seeds-0-1-2"]


def test_checkpoints_of_another_run_are_refused(tmp_path):
    rounds, methods = [Round(8, max_epochs=2), Round(16, max_epochs=2)], {"WS": warm_start}
    run(rounds, methods, records=Records(tmp_path / "one.jsonl"), checkpoints=tmp_path / "saved")
    with pytest.raises(RunError, match=r"holds checkpoints, and .*two\.jsonl no row of theirs: they are another run's"):
        run(rounds, methods, records=Records(tmp_path / "two.jsonl"), checkpoints=tmp_path / "saved")


@pytest.mark.parametrize("which", ["records", "checkpoints"])
def test_a_second_start_on_records_or_checkpoints_is_refused(tmp_path, which):
    records, saved = tmp_path / "r.jsonl", tmp_path / "c"
    others = {"records": (records, tmp_path / "d"), "checkpoints": (tmp_path / "other.jsonl", saved)}[which]
    refusals = []

    def second(rows):
        with pytest.raises(RunError, match=r"is in use by pid .*; wait for it, or choose another name") as refusal:
            run(TWO_ROUNDS, METHODS, records=Records(others[0]), checkpoints=others[1])
        refusals.append(str(refusal.value))
        run([Round(8, max_epochs=1)], {}, records=Records(tmp_path / "free.jsonl"), checkpoints=tmp_path / "free")

    first = run(TWO_ROUNDS, METHODS, records=Records(records), checkpoints=saved, observe=second)
    assert len(refusals) > 1
    assert timeless(first.rows) == timeless(undisturbed().rows)
    assert timeless(run(TWO_ROUNDS, METHODS, records=Records(records), checkpoints=saved).rows) == timeless(first.rows)


@pytest.mark.parametrize("seeds", [(0, 1, 2), (1, 0)])
def test_other_seeds_than_those_that_trained_together_are_refused(tmp_path, seeds):
    def start(seeds, **options):
        records = Records(tmp_path / "r.jsonl")
        return run(TWO_ROUNDS, METHODS, seeds, records=records, checkpoints=tmp_path / "c", **options)

    whole = start((0, 1))
    written = (tmp_path / "r.jsonl").read_bytes()
    said = f"seeds 0, 1 were trained together, and those given are {', '.join(map(str, seeds))}: give the same"
    with pytest.raises(RunError, match=re.escape(said)) as refusal:
        start(seeds)
    assert "\n" not in str(refusal.value)
    assert (tmp_path / "r.jsonl").read_bytes() == written
    assert start((0, 1)).rows == whole.rows


def test_seeds_that_train_one_after_the_other_may_become_more(tmp_path):
    def start(seeds):
        records = Records(tmp_path / "r.jsonl")
        return run(TWO_ROUNDS, METHODS, seeds, stack=False, records=records, checkpoints=tmp_path / "c")

    first, more = start((0, 1)), start((2, 1, 0))
    assert more.rows[: len(first.rows)] == first.rows
    assert {row["seed"] for row in more.rows} == {0, 1, 2}


def test_a_run_in_a_folder_that_its_caller_holds_needs_no_lock_of_its_own(tmp_path):
    with open_run(tmp_path, {}, {}) as records:
        run(TWO_ROUNDS, {}, records=records, checkpoints=tmp_path / "checkpoints")
    assert [path.name for path in tmp_path.rglob("*lock")] == ["lock"]


def test_records_that_another_run_went_on_with_are_refused_before_anything_trains(tmp_path):
    stale, epochs = Records(tmp_path / "r.jsonl"), []
    run(TWO_ROUNDS, {}, records=Records(tmp_path / "r.jsonl"))
    with pytest.raises(RunError, match="was removed or changed while this process was working with it; start again"):
        run(TWO_ROUNDS, {}, records=stale, observe=epochs.append)
    assert epochs == []


def test_where_nothing_can_be_written_it_is_said_before_anything_trains(tmp_path, monkeypatch):
    file, epochs = tmp_path / "file", []
    file.write_text("mine")

    def refused(match, records, checkpoints=None):
        with pytest.raises(RunError, match=match):
            run(TWO_ROUNDS, {}, records=Records(records), checkpoints=checkpoints, observe=epochs.append)

    said = re.escape(f"{file} is a file, not a folder; choose another place")
    refused(f"^cannot write {re.escape(str(file / 'x'))}: {said}$", file / "x")
    refused(said, tmp_path / "r.jsonl", file)
    refused(said, tmp_path / "r.jsonl", file / "c")
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: path != tmp_path)
        said = re.escape(f"{tmp_path} is read-only for this user; choose another place")
        refused(said, tmp_path / "r.jsonl")
    assert (epochs, file.read_text()) == ([], "mine")
    whole = run(TWO_ROUNDS, {}, records=Records(tmp_path / "r.jsonl"))
    monkeypatch.setattr("os.access", lambda path, mode: False)  # what has ended is only read
    assert run(TWO_ROUNDS, {}, records=Records(tmp_path / "r.jsonl"), states=False).rows == whole.rows


def test_data_may_lie_on_the_devices_in_any_way_at_each_call():
    mesh = jax.make_mesh((2,), ("x",), (AxisType.Auto,), devices=jax.devices()[:2])
    given, losses = setup(), []
    for spec in (P(), P("x"), P()):
        train = tuple(jax.device_put(leaf, NamedSharding(mesh, spec)) for leaf in data())
        own = given._replace(train=train, test=data(10, seed=1))
        losses.append([row["train_loss"] for row in run_rounds(own, [Round(30, max_epochs=2)], {}).rows])
    assert losses[0] == losses[2]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_programs_of_many_shapes_are_not_all_kept():
    program = Program(lambda x: x + 1)
    for length in range(1, 2 * MOST):
        assert program(jnp.zeros(length)).shape == (length,)
    assert len(program.executables) == MOST
    seconds = program.compile_seconds
    program(jnp.zeros(2 * MOST - 1))
    assert program.compile_seconds == seconds


def test_an_optimiser_that_takes_no_further_arguments_trains():
    """As `optax.contrib.sam`, which is one of those that may take some."""
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    rows = run(
        [Round(30, max_epochs=3)], {}, optimizer=optax.contrib.sam(optax.sgd(0.1), adversary, sync_period=2)
    ).rows
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_numbers_of_jax_are_numbers_of_epochs():
    assert [row["epoch"] for row in run([Round(8, max_epochs=jnp.int32(2))], {}).rows] == [1, 2]


def test_data_of_texts_are_refused():
    own = setup()._replace(train=(np.array(["a", "b"]), np.zeros(2, np.int32)))
    with pytest.raises(TaskError, match="train inputs and targets must be arrays of numbers, not of <U1"):
        run_rounds(own, [Round(2, max_epochs=1)], {})


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"task": mlp_task()._replace(score=lambda outputs, targets: jnp.zeros(3))},
            "score must give one value a sample",
        ),
        ({"probe": lambda setup, state, samples, key: {"seed": jnp.zeros(())}}, "a probe cannot be named 'seed'"),
        ({"judged": tortoise}, "the optimiser keeps no slow copy"),
    ],
)
def test_what_a_later_round_cannot_run_is_found_before_the_first(second, message):
    seen = []
    rounds = [Round(8, max_epochs=2), Round(16, max_epochs=2, setup=setup(**second))]
    with pytest.raises(TaskError, match=message):
        run(rounds, {"WS": warm_start}, observe=seen.append, settings=Settings(evaluate="round"))
    assert seen == []


def test_looking_first_traces_nothing_twice():
    traced, task = [], mlp_task()

    def apply(*arguments):
        traced.append(1)
        return task.apply(*arguments)

    run([Round(8, max_epochs=1), Round(16, max_epochs=1)], {"WS": warm_start}, (0, 1), task._replace(apply=apply))
    assert len(traced) == 3  # the check of labels, the epoch, the test

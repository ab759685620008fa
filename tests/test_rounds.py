"""The loop of rounds: what passes between rounds, what a resume restores, what it costs to compile."""

from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsjax.errors import NonFiniteLoss
from wsjax.methods.reinit import random_init, shrink_perturb, warm_start
from wsjax.networks import models
from wsjax.rounds.loop import Round, Settings, make_study, run_rounds
from wsjax.storage.records import Records
from wsjax.training.stopping import after_epochs, any_of, at_accuracy
from wsjax.training.train import image_task, make_optimizer, stateless_task

SECONDS = ("train_seconds", "eval_seconds")


def data(count=30, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 4, 4, 1)).astype(np.uint8)
    return images, random.integers(0, 3, count).astype(np.int32)


def mlp_task(hidden=(5,)):
    return image_task(models.mlp(3, hidden), (4, 4, 1), (0.5,), (0.25,))


def resnet_task():
    return image_task(models.ResNet(3, stage_sizes=(1,), width=2, stem_pool=False), (4, 4, 1), (0.5,), (0.25,))


def run(rounds, ways, seeds=(0,), task=None, optimizer=None, **options):
    options = {"settings": Settings(batch_size=8), **options}
    task, optimizer = task or mlp_task(), optimizer or make_optimizer("msgd", 0.05)
    return run_rounds(task, optimizer, data(), data(10, seed=1), rounds, ways, seeds, **options)


def timeless(rows):
    return [{name: value for name, value in row.items() if name not in SECONDS} for row in rows]


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)))


TWO_ROUNDS = [Round(10, after_epochs(2)), Round(30, after_epochs(3))]
WAYS = {"RI": random_init, "WS": warm_start, "SP": partial(shrink_perturb, shrink=0.4, perturb=0.1)}


def test_rows_tell_every_epoch_once():
    rows = run(TWO_ROUNDS, WAYS, seeds=(3, 5)).rows
    keys = [(row["method"], row["seed"], row["round"], row["epoch"]) for row in rows]
    expected = [("first", seed, 1, epoch) for seed in (3, 5) for epoch in (1, 2)]
    expected += [(way, seed, 2, epoch) for way in WAYS for seed in (3, 5) for epoch in (1, 2, 3)]
    assert sorted(keys) == sorted(expected)
    last = rows[-1]
    assert (last["samples"], last["steps"], last["samples_seen"], last["stop"]) == (30, 12, 90, "epochs")
    assert [row["stop"] for row in rows if row["method"] == "RI" and row["seed"] == 3] == [None, None, "epochs"]


def test_random_init_does_not_depend_on_the_first_round():
    long = [Round(20, after_epochs(4)), Round(30, after_epochs(3))]
    for settings in (Settings(batch_size=8, opt_state="keep"), Settings(batch_size=8)):
        a, b = (run(rounds, {"RI": random_init}, settings=settings) for rounds in (TWO_ROUNDS, long))
        assert same(a.states["RI", 0].params, b.states["RI", 0].params)


FROZEN = make_optimizer("msgd", 1e-30)  # the parameters stand still, so every epoch of one batch sees the same


def test_a_way_starts_from_the_reinitialised_parameters():
    rounds = [Round(10, after_epochs(1)), Round(30, after_epochs(1))]
    states = run(rounds, WAYS, optimizer=FROZEN).states
    old, fresh, mixed = (states[way, 0].params for way in ("WS", "RI", "SP"))
    expected = shrink_perturb(old, fresh, 0.4, 0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), mixed, expected)
    assert not same(old, fresh)


@pytest.mark.parametrize("choice", ["keep", "rebuild"])
def test_the_optimizer_state_at_the_boundary(choice):
    settings = Settings(batch_size=30, opt_state=choice)
    rounds = [Round(30, after_epochs(5)), Round(30, after_epochs(1))]
    states = run(rounds, WAYS, settings=settings, optimizer=FROZEN).states
    momentum = jax.tree.leaves(states["WS", 0].opt_state)[0]
    once = run(rounds, WAYS, settings=Settings(batch_size=30), optimizer=FROZEN).states["WS", 0].opt_state
    # Six times the same gradient, each time 0.9 of what was there: a sum of 0.9^k.
    share = (1 - 0.9**6) / (1 - 0.9) if choice == "keep" else 1.0
    np.testing.assert_allclose(momentum, share * jax.tree.leaves(once)[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("choice", ["keep", "reset"])
def test_batch_statistics_at_the_boundary(choice):
    rounds = [Round(30, after_epochs(5)), Round(30, after_epochs(1))]

    def running_mean(batch_stats):
        settings = Settings(batch_size=30, batch_stats=batch_stats)
        warm = {"WS": warm_start}
        states = run(rounds, warm, settings=settings, task=resnet_task(), optimizer=FROZEN, stack=False).states
        return np.asarray(states["WS", 0].batch_stats["stem_norm"]["mean"])

    # From 0, n updates by 0.1 leave 1 - 0.9^n of the batch's mean.
    share = (1 - 0.9**6) / (1 - 0.9) if choice == "keep" else 1.0
    np.testing.assert_allclose(running_mean(choice), share * running_mean("reset"), rtol=1e-4)


def test_a_stop_rule_ends_each_seed_by_itself():
    rule = any_of(at_accuracy(0.7), after_epochs(60))
    together = run([Round(10, rule), Round(12, rule)], {"WS": warm_start}, seeds=(0, 1, 2))
    lengths = {}
    for row in together.rows:
        lengths.setdefault((row["method"], row["seed"]), []).append(row["train_accuracy"])
    for accuracies in lengths.values():
        assert all(accuracy < 0.7 for accuracy in accuracies[:-1])
        assert accuracies[-1] >= 0.7 or len(accuracies) == 60
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
    together, apart = (run(TWO_ROUNDS, WAYS, seeds=(0, 1), stack=stack) for stack in (True, False))
    for key, state in together.states.items():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state.params, apart.states[key].params
        )


def test_ten_rounds_compile_every_program_once(monkeypatch):
    studies = []
    monkeypatch.setattr("wsjax.rounds.loop.make_study", lambda *a: studies.append(make_study(*a)) or studies[-1])
    rounds = [Round(3 * n, after_epochs(1)) for n in range(1, 11)]
    run(rounds, WAYS, seeds=(0, 1))
    assert len(studies[0].epoch.executables) == 1
    assert len(studies[0].evaluate.executables) == 1
    assert len(studies[0].draw.executables) == 1


def test_a_padded_round_gives_the_bits_of_an_unpadded_one():
    rounds = [Round(5, after_epochs(3)), Round(11, after_epochs(3))]
    padded = run([*rounds, Round(30, after_epochs(1))], {"WS": warm_start})
    unpadded = run(rounds, {"WS": warm_start})
    assert timeless([row for row in padded.rows if row["round"] < 3]) == timeless(unpadded.rows)


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


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", range(1, 14))
def test_a_run_that_ended_anywhere_continues_to_the_same_bits(tmp_path, at):
    settings = Settings(batch_size=8, checkpoint_every=2)
    whole = run(TWO_ROUNDS, WAYS, settings=settings)
    count = 0

    def kill(rows):
        nonlocal count
        count += 1
        if count == at:
            raise Killed

    def start(observe):
        records = Records(tmp_path / "records.jsonl")
        return run(TWO_ROUNDS, WAYS, settings=settings, records=records, checkpoints=tmp_path, observe=observe)

    if at <= 11:
        with pytest.raises(Killed):
            start(kill)
    else:
        start(lambda rows: None)
    resumed = start(lambda rows: None)
    assert timeless(resumed.rows) == timeless(whole.rows)
    assert timeless(Records(tmp_path / "records.jsonl").rows) == timeless(whole.rows)
    assert all(same(resumed.states[key], whole.states[key]) for key in whole.states)


@pytest.mark.parametrize("lost", [("WS", 0, 3), ("WS", 1, 3), ("WS", 1, 1), ("first", 0, 1)])
def test_rows_that_were_lost_are_trained_again(tmp_path, lost):
    """A checkpoint that is ahead of any seed's rows is not used."""

    def start():
        records = Records(tmp_path / "r.jsonl")
        return run(TWO_ROUNDS, {"WS": warm_start}, seeds=(0, 1), records=records, checkpoints=tmp_path / "c")

    whole = start()
    Records(tmp_path / "r.jsonl").keep(lambda row: (row["method"], row["seed"], row["epoch"]) != lost)
    again = start()
    assert sorted(map(str, timeless(again.rows))) == sorted(map(str, timeless(whole.rows)))
    assert all(same(again.states[key], whole.states[key]) for key in whole.states)


def test_ways_and_seeds_of_any_name_keep_their_own_checkpoints(tmp_path):
    ways = {"a b": WAYS["SP"], "a_b": random_init, "a/b": warm_start}
    seeds = tuple(range(10**9, 10**9 + 30))

    def start():
        return run(TWO_ROUNDS, ways, seeds, records=Records(tmp_path / "r"), checkpoints=str(tmp_path / "c"))

    first, again = start(), start()
    assert all(same(first.states[key], again.states[key]) for key in first.states)


def test_what_cannot_be_run_is_refused():
    with pytest.raises(ValueError, match="round 2 asks for 31 samples; there are 30"):
        run([Round(10, after_epochs(1)), Round(31, after_epochs(1))], WAYS)
    with pytest.raises(ValueError, match="a way cannot be named 'first'"):
        run(TWO_ROUNDS, {"first": warm_start})
    with pytest.raises(ValueError, match="seeds must be given, each once"):
        run(TWO_ROUNDS, WAYS, seeds=(1, 1))
    with pytest.raises(ValueError, match="rounds is empty"):
        run([], WAYS)
    with pytest.raises(ValueError, match="unknown opt_state 'kept'; available: rebuild, keep"):
        run(TWO_ROUNDS, WAYS, settings=Settings(opt_state="kept"))
    with pytest.raises(ValueError, match="checkpoint_every must be positive, not 0"):
        run(TWO_ROUNDS, WAYS, settings=Settings(checkpoint_every=0))
    (inputs, labels), optimizer = data(), make_optimizer("sgd", 0.1)
    with pytest.raises(ValueError, match=r"train inputs and targets need one length above 0, not \[29, 30\]"):
        run_rounds(mlp_task(), optimizer, (inputs, labels[:29]), data(10), TWO_ROUNDS, WAYS)
    with pytest.raises(ValueError, match=r"test inputs and targets need one length above 0, not \[0\]"):
        run_rounds(mlp_task(), optimizer, data(), (inputs[:0], labels[:0]), TWO_ROUNDS, WAYS)


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
        result = run_rounds(one, optax.adam(0.01), train, test, rounds, WAYS, settings=Settings(batch_size=8))
        warm = [row["test_loss"] for row in result.rows if row["method"] == "WS"]
        assert warm[-1] < 0.1

"""Probes: each number by hand or beside numpy, over devices, in a stack, and in a run that was stopped."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from test_offline import timeless
from test_train import KEY, images, leaves_equal, line_task, small_resnet_task, some

from wsjax import parallel
from wsjax.errors import TaskError, UsageError
from wsjax.methods.reinit import random_init, shrink_perturb, warm_start
from wsjax.methods.starts import mixed
from wsjax.networks import models
from wsjax.rounds import loop
from wsjax.rounds.legs import Method, Round
from wsjax.rounds.loop import run_rounds
from wsjax.scripts import build, config, optimisers
from wsjax.scripts import probes as named
from wsjax.storage.records import Records, read_run
from wsjax.training import anchors, probes
from wsjax.training.augment import augmented
from wsjax.training.probes import NEW, OLD, gradient_norms, mean_gradient_norm
from wsjax.training.task import Activations, image_task
from wsjax.training.train import Batch, Setup, TrainState, init_state, make_optimizer, make_train_step

SGD = make_optimizer("sgd", 1.0)
LINE = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]), jnp.array([1.0, 1.0, 1.0, 1.0, 1.0])


def test_norms_of_both_parts_by_hand():
    setup = Setup(line_task(), SGD, LINE, LINE, batch_size=2)
    state = init_state(setup.task, SGD, KEY)
    # At w = 0 the gradient of (w x - 1)^2 is -2 x: batches of x = 2, 1 and 3 make 3 and 6; 5, 4 make 9.
    measured = jax.jit(lambda state: gradient_norms(3, 5)(setup, state, some([1, 0, 2, 4, 3], 3), KEY))(state)
    assert {name: float(value) for name, value in measured.items()} == {OLD: 4.5, NEW: 9.0}


def resnet_setup(**options):
    data = images(13)
    return Setup(small_resnet_task(options.get("axis_name")), SGD, data, data, batch_size=8, **options)


def test_it_is_the_gradient_that_a_step_takes_and_the_state_stays():
    setup = resnet_setup()
    state = init_state(setup.task, SGD, KEY)
    before = jax.tree.map(jnp.copy, state)
    order = np.random.default_rng(0).permutation(13)
    measured = float(jax.jit(lambda state: mean_gradient_norm(setup, state, some(order, 11)))(state))
    assert leaves_equal(state, before)
    norms = []
    for rows in (order[:8], order[8:11]):
        batch = Batch(*(x[rows] for x in setup.train), jnp.ones(len(rows)))
        new, _ = jax.jit(make_train_step(setup.task, SGD))(state, batch)
        norms.append(float(optax.tree.norm(jax.tree.map(jnp.subtract, state.params, new.params))))
    assert measured == pytest.approx(np.mean(norms), rel=1e-4)


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_that_split_batches_sum_gradients_before_the_norm(devices):
    alone, split = resnet_setup(), resnet_setup(axis_name=parallel.DATA)
    state, samples = init_state(alone.task, SGD, KEY), some(np.arange(13)[::-1].copy(), 9)
    mesh = parallel.data_mesh(devices)
    probe = gradient_norms(9, 13)
    spread = jax.shard_map(
        lambda state: probe(split, state, samples, KEY),
        mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False,
    )  # fmt: skip
    one = jax.jit(lambda state: probe(alone, state, samples, KEY))(state)
    many = jax.jit(spread)(parallel.place(state, mesh))
    for name in (OLD, NEW):
        assert float(many[name]) == pytest.approx(float(one[name]), rel=1e-5)


def mlp_setup(**options):
    data = images(20)
    task = image_task(models.mlp(3, (4,), "relu"), (8, 8, 1), (0.5,), (0.25,))
    return Setup(
        task, make_optimizer("sgd", 0.1), data, data, batch_size=8, probe=EVERY, anchors=True,
        learning_rate=lambda count, epoch_steps: 0.1, **options,
    )  # fmt: skip


EVERY = probes.together(
    probes.weights(2, lambda name: name == "hidden1"), probes.dead_units, probes.ranks, probes.distances,
    gradient_norms(10, 20),
)  # fmt: skip
FIELDS = (
    "weight_norm/hidden1", "weight_norm/head", "effective_rate/hidden1", "dead_units", "effective_rank", "srank",
    "stable_rank", "distance_from_start", "distance_from_first", OLD, NEW,
)  # fmt: skip


ROUNDS = [Round(10, None, 2), Round(20, None, 2)]


@cache
def one_after_the_other():
    return run_rounds(mlp_setup(), ROUNDS, {"WS": warm_start}, (0, 1), stack=False).rows


@pytest.mark.parametrize("mesh", [None, parallel.data_mesh, parallel.replica_mesh], ids=["stack", "data", "replicas"])
def test_a_run_of_seeds_side_by_side_measures_what_each_measures_alone(mesh):
    alone = one_after_the_other()
    stacked = run_rounds(mlp_setup(), ROUNDS, {"WS": warm_start}, (0, 1), mesh=mesh and mesh(2)).rows
    key = ("method", "seed", "epoch")
    for a, b in zip(
        *(sorted(rows, key=lambda row: [row[name] for name in key]) for rows in (alone, stacked)), strict=True
    ):
        assert [a[name] for name in key] == [b[name] for name in key]
        assert [b[name] for name in FIELDS] == pytest.approx([a[name] for name in FIELDS], rel=1e-4, abs=1e-6)
        assert a[OLD] != a[NEW]


def test_gradients_are_those_of_augmented_inputs_where_the_task_augments():
    setup = Setup(augmented(line_task(), lambda key, x: 2 * x), SGD, LINE, LINE, batch_size=5)
    state = init_state(setup.task, SGD, KEY)
    measured = gradient_norms(3, 5)(setup, state, some(range(5)), KEY)
    # The mean of 2 (2 x) over x = 1, 2, 3 and over 4, 5.
    assert {name: float(value) for name, value in measured.items()} == {OLD: 8.0, NEW: 18.0}
    assert float(mean_gradient_norm(setup, state, some(range(5), 3))) == 4.0  # without a key nothing is drawn


def test_the_two_parts_draw_apart():
    task = augmented(line_task(), lambda key, x: jax.random.uniform(key))
    setup = Setup(task, SGD, LINE, LINE, batch_size=2)
    measured = gradient_norms(2, 4)(setup, init_state(task, SGD, KEY), some(range(4)), KEY)
    assert measured[OLD] != measured[NEW]


def measured(probe, setup, state, samples=None):
    samples = some(range(5)) if samples is None else samples
    found = jax.jit(lambda: probe(setup, state, samples, KEY))()
    return {name: float(value) for name, value in found.items()}


def test_weights_by_hand():
    params = {
        "one": {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.ones(2)},
        "two": {"kernel": jnp.ones((2, 2, 1, 1))},
    }
    setup = Setup(line_task(), SGD, LINE, LINE, batch_size=2, learning_rate=lambda count, steps: 0.1 + count + steps)
    state = init_state(setup.task, SGD, KEY)._replace(params=params)
    norms = {"weight_norm/one": 5.0, "weight_norm/two": 2.0}
    assert measured(probes.weights(), setup, state) == norms
    rates = measured(probes.weights(2, lambda name: name == "one"), setup, state)
    assert rates == norms | {"effective_rate/one": pytest.approx(3.1 / 25)}  # 5 samples are 3 steps
    scheduled = state._replace(opt_state=(optax.ScaleByScheduleState(jnp.asarray(7)),))
    assert measured(probes.weights(1, lambda name: name == "two"), setup, scheduled)["effective_rate/two"] == (
        pytest.approx(10.1 / 2)
    )
    assert measured(probes.weights(2, lambda name: True), setup._replace(learning_rate=None), state) == norms


@pytest.mark.parametrize(
    "settings",
    [{}, {"warmup": 3}, {"warmup_share": 0.4}, {"schedule": "cosine"},
     {"schedule": "steps", "milestones": (1, 2), "warmup": 2}],
)  # fmt: skip
def test_a_setup_tells_the_rate_that_its_optimiser_takes(settings):
    own = config.Common(learning_rate=0.5, epochs=3, **settings)
    for spec in ({}, {"learning_rate": 0.25}):
        optimizer, told = optimisers.build_optimizer(own, spec), optimisers.learning_rate(own, spec)
        optimizer = optax.with_extra_args_support(optimizer)
        state = optimizer.init(jnp.zeros(()))
        for count in range(12):
            update, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()), epoch_steps=4)
            assert float(told(count, 4)) == pytest.approx(-float(update), rel=1e-6, abs=1e-9)


def test_ranks_by_hand_and_beside_numpy():
    by_hand = measured(lambda *_: probes.ranks_of(jnp.diag(jnp.array([3.0, 1.0]))), None, None)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert by_hand == {
        "effective_rank": pytest.approx(np.exp(entropy)), "srank": 2.0, "stable_rank": pytest.approx(10 / 9),
    }  # fmt: skip
    features = np.random.default_rng(0).normal(size=(30, 8)) * 3.0 ** -np.arange(8)
    s = np.linalg.svd(features, compute_uv=False)
    p = s / s.sum()
    found = measured(lambda *_: probes.ranks_of(jnp.concatenate([features, np.zeros((3, 8))])), None, None)
    assert found == {
        "effective_rank": pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-5),
        "srank": 1 + int(np.argmax(np.cumsum(p) >= 0.99)),
        "stable_rank": pytest.approx(np.linalg.norm(features, "fro") ** 2 / np.linalg.norm(features, 2) ** 2, rel=1e-5),
    }
    assert all(
        np.isnan(value) for value in measured(lambda *_: probes.ranks_of(jnp.zeros((3, 2))), None, None).values()
    )


def test_dead_units_and_features_are_those_of_the_network():
    inputs, _ = data = images(20)
    setup = Setup(image_task(models.mlp(3, (6, 5), "relu"), (8, 8, 1), (0.5,), (0.25,)), SGD, data, data, batch_size=8)
    state = init_state(setup.task, SGD, KEY)
    params = jax.tree.map(np.array, state.params)
    params["hidden1"]["bias"][:2] = -100  # two units that no image moves
    state = state._replace(params=params)
    x = (np.asarray(inputs, np.float64).reshape(20, -1) / 255 - 0.5) / 0.25
    hidden = []
    for name in ("hidden1", "hidden2"):
        x = np.maximum(x @ params[name]["kernel"].T + params[name]["bias"], 0)
        hidden.append(x)
    order = np.random.default_rng(1).permutation(20)
    dead = [np.all(units[order[:13]] == 0, axis=0) for units in hidden]
    assert dead[0][:2].all()
    share = measured(probes.dead_units, setup, state, some(order, 13))["dead_units"]
    assert share == pytest.approx(np.concatenate(dead).mean(), abs=1e-6)
    found = measured(probes.ranks, setup, state, some(order, 13))
    s = np.linalg.svd(hidden[1][order[:13]], compute_uv=False)
    assert found["stable_rank"] == pytest.approx(np.sum(s**2) / s[0] ** 2, rel=1e-4)


def test_a_resnets_activations_are_those_behind_its_logits():
    setup = resnet_setup()
    state = init_state(setup.task, SGD, KEY)
    found = setup.task.activations(state.params, state.batch_stats, setup.train[0])
    assert set(found.relus) == {"stem_norm/relu", "stage1_block1/norm1/relu", "stage1_block1/norm2/relu"}
    head = state.params["head"]
    logits, _ = setup.task.apply(state.params, state.batch_stats, setup.train[0], jnp.ones(13), False, None)
    np.testing.assert_allclose(found.features @ head["kernel"].T + head["bias"], logits, rtol=1e-4, atol=1e-5)
    # A channel that its scale and bias keep below 0 is dead everywhere; behind it stands one of the block's own.
    closed = jax.tree.map(jnp.copy, state.params)
    closed["stem_norm"] = {"scale": jnp.zeros(2), "bias": jnp.array([-1.0, 1.0])}
    before, after = (measured(probes.dead_units, setup, state._replace(params=p))["dead_units"]
                     for p in (state.params, closed))  # fmt: skip
    assert (before, after) == (0.0, pytest.approx(1 / 6))


def test_samples_are_spread_over_the_order_and_a_smaller_round_has_all(monkeypatch):
    inputs = jnp.arange(20.0)[:, None]
    task = line_task()._replace(activations=lambda params, stats, x: Activations(x, {}))
    setup = Setup(task, SGD, (inputs, inputs), (inputs, inputs), batch_size=3)
    state = init_state(task, SGD, KEY)
    monkeypatch.setattr(probes, "SAMPLES", 4)
    for size, expected in ((10, [19, 17, 14, 12]), (2, [19, 18, 0, 0]), (20, [19, 14, 9, 4])):
        rows = probes._on_samples(setup, state, some(np.arange(20)[::-1].copy(), size), lambda found: found.features)
        assert rows[:, 0].tolist() == expected


def halved(params, fresh):
    return shrink_perturb(params, fresh, 0.5, 0.1)


# "WS 1" is where WS is after the first epoch of its round.
METHODS = {"RI": random_init, "WS": warm_start, "SP": halved,
           "WS 1": Method(mixed(warm_start), rounds=[Round(20, None, 1)])}  # fmt: skip


@cache
def probed():
    return run_rounds(mlp_setup(), ROUNDS, METHODS)


def test_a_probe_changes_nothing_of_what_is_trained():
    plain = run_rounds(mlp_setup()._replace(probe=None, anchors=False), ROUNDS, METHODS)
    for name in METHODS:
        assert leaves_equal(plain.states[name, 0].params, probed().states[name, 0].params)


def test_distances_beside_the_networks_themselves():
    key = jax.random.fold_in(jax.random.key(0), loop._NETWORK)
    first, fresh = (mlp_setup().task.init(jax.random.fold_in(key, number))[0] for number in (1, 2))
    end, begun = (probed().states[name, 0].params for name in ("first", "WS 1"))

    def far(params, begin):
        return pytest.approx(float(optax.tree.norm(jax.tree.map(jnp.subtract, params, begin)) / optax.tree.norm(begin)))

    def told(method, epoch):
        (own,) = (row for row in probed().rows if (row["method"], row["epoch"]) == (method, epoch))
        return own["distance_from_start"], own["distance_from_first"]

    assert told("first", 1) == (0, 0)
    assert told("WS", 1) == (0, far(end, first))
    assert told("RI", 1) == (0, far(fresh, first))
    assert told("SP", 1) == (0, far(halved(end, fresh), first))
    assert told("WS", 2) == (far(begun, end), far(begun, first))


def test_a_probed_run_that_was_stopped_ends_with_the_same_rows(tmp_path):
    seen = []

    def stop_after_five(rows):
        seen.append(rows)
        if len(seen) == 5:
            raise KeyboardInterrupt

    def run(**options):
        records = Records(tmp_path / "records.jsonl")
        return run_rounds(
            mlp_setup(), ROUNDS, METHODS, records=records, checkpoints=tmp_path / "checkpoints", **options
        )

    with pytest.raises(KeyboardInterrupt):
        run(observe=stop_after_five)
    assert 0 < len(Records(tmp_path / "records.jsonl").rows) < len(probed().rows)
    assert timeless(run().rows) == timeless(probed().rows)


def test_gradients_of_a_rounds_own_old_and_new_samples():
    setup = Setup(line_task(), SGD, LINE, LINE, batch_size=2)
    state = init_state(setup.task, SGD, KEY)
    both = measured(gradient_norms(), setup, state, some([1, 0, 2, 4, 3])._replace(before=jnp.asarray(3)))
    assert both == {OLD: 4.5, NEW: 9.0}  # as with numbers
    alone = measured(gradient_norms(), setup, state, some([1, 0, 2], 3))
    assert np.isnan(alone[OLD])
    assert alone[NEW] == 4.5


def test_images_whose_labels_were_mended_are_old_all_the_same():
    setup = Setup(line_task(), SGD, LINE, LINE, batch_size=2, probe=gradient_norms())
    noisy = setup._replace(train=(LINE[0], LINE[1] + 1.0))
    rounds = [Round(3, max_epochs=1, setup=noisy), Round(5, max_epochs=1)]
    rows = run_rounds(setup, rounds, {"WS": warm_start}).rows
    assert [row[OLD] is None for row in rows] == [True, False]


def test_the_first_of_two_probes_has_a_field_of_one_name():
    both = probes.together(lambda *_: {"a": 1.0, "b": 2.0}, lambda *_: {"b": 3.0, "c": 4.0})
    assert both(None, None, None, None) == {"a": 1.0, "b": 2.0, "c": 4.0}


def test_what_a_probe_lacks_is_said():
    setup = Setup(line_task(), SGD, LINE, LINE)
    state = init_state(setup.task, SGD, KEY)
    with pytest.raises(TaskError, match=r"the state keeps no anchors .* give the setup anchors=True"):
        measured(probes.distances, setup, state)
    with pytest.raises(TaskError, match="the task does not tell its activations"):
        measured(probes.ranks, setup, state)
    setup = setup._replace(task=line_task()._replace(activations=lambda *_: Activations(None, {})))
    with pytest.raises(TaskError, match="the network has no ReLU"):
        measured(probes.dead_units, setup, state)
    with pytest.raises(TaskError, match="the network has no hidden layer"):
        measured(probes.ranks, setup, state)


def test_anchors_survive_a_start_that_keeps_the_optimisers_state():
    optimizer = anchors.optimizer_of(Setup(line_task(), SGD, LINE, LINE, anchors=True))
    state = init_state(line_task(), optimizer, KEY)._replace(params={"w": jnp.asarray(2.0)})
    kept = anchors.of(anchors.put(state, {"w": jnp.asarray(1.0)}))
    assert (float(kept.first["w"]), float(kept.begin["w"])) == (1.0, 2.0)


# --- By the scripts ---

TINY = ("--first_epochs", 2, "--epochs", 2, "--seeds", 0, "--hidden", 4, "--num_train", 25, "--num_test", 20,
        "--batch_size", 8, "--dataset", "digits", "--probes", *config.PROBES)  # fmt: skip


def test_a_run_has_the_fields_in_every_row(script, tmp_path):
    code, _, error = script("offline", *TINY, "--methods", "WS")
    assert code == 0, error
    rows = read_run(tmp_path / "runs" / "offline" / "digits-mlp-adam").rows
    assert {row["method"] for row in rows} == {"first", "WS"}
    fields = {"weight_norm/hidden1", "weight_norm/head", "dead_units", "srank", "distance_from_first", OLD, NEW}
    for row in rows:
        assert fields < row.keys()
        assert not any(name.startswith("effective_rate") for name in row)  # an MLP's kernels are not scale-invariant
        assert (row[OLD] is None) == (row["round"] == 1)  # there all are new
        assert (row["distance_from_start"] == 0) == (row["epoch"] == 1)


def test_settings_name_what_is_measured():
    setup = Setup(line_task(), SGD, LINE, LINE)
    assert named.with_probes(setup, config.Common()) is setup
    assert not named.with_probes(setup, config.Common(probes=("weights",))).anchors
    assert named.with_probes(setup, config.Common(probes=("weights", "distance"))).anchors
    for own, message in (
        (config.Common(model="logistic", probes=("rank",)), "--probes rank looks at the last hidden layer"),
        (config.Common(model="mlp", activation="tanh", probes=("dead",)), "--probes dead looks at ReLUs"),
        (config.Common(model="logistic", activation="relu", probes=("dead",)), "--probes dead looks at ReLUs"),
    ):
        with pytest.raises(UsageError, match=message):
            named.with_probes(setup, own)
    with pytest.raises(UsageError, match=r"unknown probe 'ranks'; available: weights, dead, rank.*did you mean 'rank'"):
        config.check_config(config.Common(probes=("ranks",)), config.Common())
    with pytest.raises(UsageError, match="--probes must not repeat a value: rank rank"):
        config.check_config(config.Common(probes=("rank", "rank")), config.Common())


def test_by_sgd_a_resnets_convolutions_have_a_rate_in_effect_and_by_adam_another():
    own = config.Common(model="resnet18", learning_rate=0.5, probes=("weights",))
    for optimizer, power in (("sgd", 2), ("adam", 1)):
        setup = resnet_setup(learning_rate=optimisers.learning_rate(own))
        setup = named.with_probes(setup, dataclasses.replace(own, optimizer=optimizer))
        found = measured(setup.probe, setup, init_state(setup.task, SGD, KEY), some(range(13)))
        norm = found["weight_norm/stem_conv"]
        assert found["effective_rate/stem_conv"] == pytest.approx(0.5 / norm**power)
        assert "effective_rate/head" not in found
        assert "weight_norm/head" in found


def test_a_method_of_its_own_rate_is_told_with_it():
    data = images(8)
    setup = Setup(line_task(), SGD, data, data, learning_rate=lambda count, steps: 1.0)
    own = config.Common(methods=("RI", "RI@0.25", "L2"), learning_rate=0.5)
    methods = build.build_methods(own, setup, [Round(4, None, 1), Round(8, None, 1)])
    rates = {name: float(m.rounds[0].setup.learning_rate(0, 1)) for name, m in methods.items() if m.rounds}
    assert rates == {"RI@0.25": 0.25, "L2": 0.5}


def test_norms_of_16_bits_are_taken_in_32():
    """The squares of a large kernel's numbers, and the step of a small rate, are beyond 16 bits."""
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(300, 300)), jnp.float16)
    near = kernel.at[0, 0].add(jnp.float16(0.01))
    assert float(probes._norm({"w": kernel})) == pytest.approx(np.linalg.norm(np.asarray(kernel, np.float32)), rel=1e-5)
    far = jax.tree.map(lambda now, then: probes._wide(now) - probes._wide(then), {"w": near}, {"w": kernel})
    assert float(probes._norm(far)) == pytest.approx(0.01, rel=0.1)


def test_the_rate_of_a_schedule_that_is_injected_is_found():
    optimizer = optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.01, 0.0, 8))
    params, state = {"w": jnp.ones((2, 2))}, optimizer.init({"w": jnp.ones((2, 2))})
    for _ in range(3):
        _, state = optimizer.update(params, state, params)
    assert int(probes._count(TrainState(params, {}, state, jnp.int32(3)))) == 3

"""Training: steps, epochs and evaluations on tasks small enough to check by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from wsjax.errors import TaskError
from wsjax.networks import models
from wsjax.training.statistics import reestimated
from wsjax.training.task import Task, image_task, stateless_task, with_batch_statistics
from wsjax.training.train import (
    Batch,
    Samples,
    Setup,
    TrainState,
    all_samples,
    evaluate,
    fit_after,
    init_state,
    make_optimizer,
    make_train_step,
    over_batches,
    score_each,
    shuffled,
    train_epoch,
)

KEY = jax.random.key(0)


def line_task():
    """y = w x with a squared loss; a score of 1 where the output is within 0.5 of the target."""
    return stateless_task(
        init=lambda key: {"w": jnp.zeros(())},
        apply=lambda params, x: params["w"] * x,
        loss=lambda outputs, targets: (outputs - targets) ** 2,
        score=lambda outputs, targets: (jnp.abs(outputs - targets) < 0.5).astype(jnp.float32),
    )


def images(count, size=8, channels=1, seed=0):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, size, size, channels)).astype(np.uint8)
    return jnp.asarray(pixels), jnp.asarray(random.integers(0, 3, count).astype(np.int32))


def small_resnet_task(axis_name=None):
    model = models.ResNet(3, stage_sizes=(1,), width=2, stem_pool=False, axis_name=axis_name)
    return image_task(model, (8, 8, 1), (0.5,), (0.25,))


def some(order, size=None):
    """The first `size` entries of an order."""
    return Samples(jnp.asarray(order), jnp.asarray(len(order) if size is None else size), jnp.asarray(0))


def epoch_of(task, optimizer, batch_size, **options):
    """An epoch as one program of (state, data, samples, key)."""
    return jax.jit(
        lambda state, data, samples, key: train_epoch(
            Setup(task, optimizer, data, data, batch_size, **options), state, samples, key
        )
    )


def leaves_equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b)))


def test_a_step_by_hand():
    task, optimizer = line_task(), make_optimizer("sgd", 0.1)
    step = jax.jit(make_train_step(task, optimizer), donate_argnums=0)
    batch = Batch(jnp.array([1.0, 2.0, 100.0]), jnp.array([1.0, 2.0, 7.0]), jnp.array([1.0, 1.0, 0.0]))
    state, metrics = step(init_state(task, optimizer, KEY), batch)
    # The mean over the two samples that count of d/dw (w x - y)^2 at w = 0 is -(2 + 8) / 2.
    np.testing.assert_allclose(state.params["w"], 0.5)
    assert {name: float(value) for name, value in metrics.items()} == {"loss": 5.0, "correct": 0.0, "samples": 2.0}
    assert int(state.step) == 1


@pytest.mark.parametrize(
    "model",
    [models.ResNet(3, stage_sizes=(1, 1), width=8), models.mlp(3), models.logistic_regression(3)],
    ids=["resnet", "mlp", "logistic"],
)
def test_a_step_in_bfloat16_is_near_that_in_float32_and_leaves_float32(model):
    optimizer, batch = make_optimizer("adam", 0.001), Batch(*images(32), jnp.ones(32))
    found = {}
    for dtype in ("float32", "bfloat16"):
        task = image_task(model, (8, 8, 1), (0.5,), (0.25,), dtype)
        step = jax.jit(make_train_step(task, optimizer))
        before = init_state(task, optimizer, KEY)
        state, metrics = step(before, batch)
        assert {leaf.dtype for leaf in jax.tree.leaves((state, metrics))} == {jnp.dtype("float32"), jnp.dtype("int32")}
        program = str(jax.make_jaxpr(step)(before, batch))
        products = re.findall(r":(\w+)\[[\d,]*\] = (?:conv_general_dilated|dot_general)\b", program)
        assert set(products) == {{"float32": "f32", "bfloat16": "bf16"}[dtype]}
        found[dtype] = float(metrics["loss"]), optax.tree.norm(state.opt_state[-1][0].mu)
    np.testing.assert_allclose(found["bfloat16"], found["float32"], rtol=0.02)
    assert found["bfloat16"] != found["float32"]


def test_weight_decay_is_coupled():
    params = {"w": jnp.asarray(2.0)}
    for name, expected in [("sgd", -0.1 * (3 + 0.5 * 2)), ("msgd", -0.1 * (3 + 0.5 * 2)), ("adam", -0.1)]:
        optimizer = make_optimizer(name, 0.1, weight_decay=0.5)
        updates, _ = optimizer.update({"w": jnp.asarray(3.0)}, optimizer.init(params), params)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match=r"unknown optimizer 'lion'; available: sgd, msgd, adam"):
        make_optimizer("lion", 0.1)


@pytest.mark.parametrize("num_samples", [1, 5, 12])
def test_an_order_is_a_permutation_that_the_padding_does_not_change(num_samples):
    pool = jnp.arange(100, 112)
    order = shuffled(KEY, some(pool, num_samples)).order
    assert sorted(order[:num_samples].tolist()) == pool[:num_samples].tolist()
    alone = shuffled(KEY, some(pool[:num_samples])).order
    assert alone.tolist() == order[:num_samples].tolist()


def test_orders_differ_by_key_and_cover_all_orders():
    orders = {tuple(shuffled(key, some(jnp.arange(3))).order.tolist()) for key in jax.random.split(KEY, 60)}
    assert len(orders) == 6


def recording_task():
    """Its parameters count how often each of 10 inputs was seen, by way of the gradient of a linear loss."""
    return stateless_task(
        init=lambda key: jnp.zeros(10),
        apply=lambda params, x: params[x],
        loss=lambda outputs, targets: -outputs,
        score=lambda outputs, targets: jnp.ones_like(outputs),
    )


@pytest.mark.parametrize(("num_samples", "batch_size", "steps"), [(10, 3, 4), (7, 3, 3), (2, 5, 1), (6, 3, 2)])
def test_an_epoch_sees_every_sample_once_at_its_true_weight(num_samples, batch_size, steps):
    task, optimizer = recording_task(), optax.sgd(1.0)
    epoch = epoch_of(task, optimizer, batch_size)
    data = (jnp.arange(10), jnp.zeros(10))
    pool = jnp.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    state, metrics = epoch(init_state(task, optimizer, KEY), data, some(pool, num_samples), KEY)
    seen = np.asarray(state.params)
    assert set(np.flatnonzero(seen)) == set(pool[:num_samples].tolist())
    # Each batch's weights sum to 1: its samples weigh 1 / its true size.
    last = num_samples - (steps - 1) * batch_size
    weights = sorted([1 / last] * last + [1 / batch_size] * (num_samples - last))
    np.testing.assert_allclose(sorted(seen[seen > 0]), weights, rtol=1e-6)
    assert int(metrics["steps"]) == steps
    assert float(metrics["accuracy"]) == 1.0


def test_an_epoch_is_its_steps():
    task, optimizer = image_task(models.mlp(3, (5,)), (8, 8, 1), (0.5,), (0.25,)), make_optimizer("adam", 0.01)
    data, pool = images(20), jnp.arange(20)
    state = init_state(task, optimizer, KEY)
    whole, metrics = epoch_of(task, optimizer, 8)(state, data, some(pool), KEY)
    step, loss = jax.jit(make_train_step(task, optimizer)), 0.0
    order = shuffled(KEY, some(pool)).order
    for begin in (0, 8, 16):
        rows = order[begin : begin + 8]
        inputs, targets = (x[rows] for x in data)
        state, sums = step(state, Batch(inputs, targets, jnp.ones(len(rows))))
        loss += float(sums["loss"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), whole.params, state.params)
    np.testing.assert_allclose(metrics["loss"], loss / 20, rtol=1e-5)


def test_a_padded_epoch_gives_the_bits_of_an_unpadded_one():
    task, optimizer = image_task(models.mlp(3, (5,)), (8, 8, 1), (0.5,), (0.25,)), make_optimizer("sgd", 0.1)
    data, state = images(40), None
    epoch = epoch_of(task, optimizer, 8)
    results = []
    for length in (13, 40):
        state = init_state(task, optimizer, KEY)
        for i in range(3):
            state, _ = epoch(state, data, some(jnp.arange(length), 13), jax.random.fold_in(KEY, i))
        results.append(state)
    assert leaves_equal(*results)


def test_the_first_bad_step_is_named():
    task, optimizer = line_task(), make_optimizer("sgd", 1e30)
    epoch = epoch_of(task, optimizer, 1)
    data = (jnp.ones(6), jnp.ones(6))
    _, metrics = epoch(init_state(task, optimizer, KEY), data, some(jnp.arange(6)), KEY)
    # Step 1 has loss 1 and moves w to 2e30; the square of that is infinite.
    assert int(metrics["bad_step"]) == 2
    good = epoch_of(task, make_optimizer("sgd", 0.1), 1)
    _, metrics = good(init_state(task, optimizer, KEY), data, some(jnp.arange(6)), KEY)
    assert int(metrics["bad_step"]) == 0


@pytest.mark.parametrize("batch_size", [3, 7, 50])
def test_evaluation_counts_every_sample_once(batch_size):
    task, optimizer = line_task(), make_optimizer("sgd", 0.1)
    state = init_state(task, optimizer, KEY)._replace(params={"w": jnp.asarray(1.0)})
    test = (jnp.arange(7.0), jnp.array([0.0, 1.0, 2.0, 3.0, 4.0, 9.0, 9.0]))
    setup = Setup(task, optimizer, test, test, batch_size)
    metrics = jax.jit(lambda state: evaluate(setup, state, all_samples(test)))(state)
    np.testing.assert_allclose(metrics["accuracy"], 5 / 7)
    np.testing.assert_allclose(metrics["loss"], (16 + 9) / 7, rtol=1e-6)
    assert score_each(setup, state).tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_images_are_normalised():
    task = image_task(models.logistic_regression(2), (1, 1, 1), (0.2,), (0.5,))
    params, stats = task.init(KEY)
    params = jax.tree.map(jnp.ones_like, params)
    logits, _ = task.apply(params, stats, jnp.full((1, 1, 1, 1), 51, jnp.uint8), jnp.ones(1), False, None)
    np.testing.assert_allclose(logits, [[1.0, 1.0]], atol=1e-6)  # (51 / 255 - 0.2) / 0.5 = 0, plus the bias
    logits, _ = task.apply(params, stats, jnp.full((1, 1, 1, 1), 255, jnp.uint8), jnp.ones(1), False, None)
    np.testing.assert_allclose(logits, [[2.6, 2.6]], rtol=1e-6)


def test_reestimated_statistics_are_the_mean_over_batches():
    task, optimizer = small_resnet_task(), make_optimizer("sgd", 0.01)
    data = images(12)
    state = init_state(task, optimizer, KEY)
    setup = Setup(task, optimizer, data, data, 4)
    found = jax.jit(lambda state: reestimated(setup, state, some(jnp.arange(12), 10)))(state).batch_stats
    expected = jax.tree.map(jnp.zeros_like, state.batch_stats)
    for begin, end in ((0, 4), (4, 8), (8, 10)):
        nothing = jax.tree.map(jnp.zeros_like, state.batch_stats)
        _, stats = task.apply(state.params, nothing, data[0][begin:end], jnp.ones(end - begin), True, None)
        expected = jax.tree.map(lambda total, x, n=end - begin: total + n * x / 0.1 / 10, expected, stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_evaluation_modes_use_their_own_statistics():
    task, optimizer = small_resnet_task(), make_optimizer("sgd", 0.01)
    data = images(16)
    state = init_state(task, optimizer, KEY)
    far = jax.tree.map(lambda x: x + 3.0, state.batch_stats)
    setup = Setup(task, optimizer, data, data, 8)

    def losses(setup):
        run = jax.jit(lambda state: evaluate(setup, state, all_samples(data)))
        return [float(run(state._replace(batch_stats=stats))["loss"]) for stats in (far, state.batch_stats)]

    running, own = losses(setup), losses(setup._replace(judged=reestimated))
    batch = losses(setup._replace(task=with_batch_statistics(task)))
    assert running[0] != pytest.approx(running[1])
    assert own[0] == pytest.approx(own[1], rel=1e-5)
    assert batch[0] == pytest.approx(batch[1], rel=1e-5)
    logits, _ = task.apply(state.params, far, data[0][:8], jnp.ones(8), True, None)
    more, _ = task.apply(state.params, far, data[0][8:], jnp.ones(8), True, None)
    by_hand = optax.softmax_cross_entropy_with_integer_labels(jnp.concatenate([logits, more]), data[1]).mean()
    assert batch[0] == pytest.approx(float(by_hand), rel=1e-4)


@pytest.mark.parametrize("task", [line_task(), small_resnet_task()], ids=["line", "resnet"])
def test_pmap_over_a_named_axis_gives_the_whole_batch(task):
    optimizer = make_optimizer("msgd", 0.01)
    if task.stats_momentum and jax.tree.leaves(task.init(KEY)[1]):
        sharded = small_resnet_task(axis_name="data")
        inputs, targets = images(8)
    else:
        sharded, inputs, targets = task, jnp.arange(8.0), jnp.arange(8.0) * 2
    weights = jnp.array([1, 1, 1, 1, 1, 1, 1, 0.0])
    state = init_state(task, optimizer, KEY)
    alone, metrics = jax.jit(make_train_step(task, optimizer))(state, Batch(inputs, targets, weights))
    devices = jax.devices()[:2]
    parts = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), Batch(inputs, targets, weights))
    copies = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    step = jax.pmap(make_train_step(sharded, optimizer, axis_name="data"), axis_name="data", devices=devices)
    both, sums = step(copies, parts)
    for i in range(2):
        one: TrainState = jax.tree.map(lambda x, i=i: x[i], both)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), one, alone)
        np.testing.assert_allclose(sums["loss"][i], metrics["loss"], rtol=1e-5)


@pytest.mark.parametrize("checked", [True, False])
def test_so_does_shard_map_whether_or_not_it_sums_gradients_itself(checked):
    task, optimizer = line_task(), make_optimizer("msgd", 0.01)
    inputs = jnp.arange(8.0)
    state, batch = init_state(task, optimizer, KEY), Batch(inputs, 2 * inputs, jnp.ones(8))
    alone, _ = jax.jit(make_train_step(task, optimizer))(state, batch)
    step = jax.shard_map(
        make_train_step(task, optimizer, axis_name="data"),
        mesh=jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,)),
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
        check_vma=checked,
    )
    both, _ = jax.jit(step)(state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), both, alone)


def test_vmap_over_a_named_axis_does_as_well():
    task, optimizer = line_task(), make_optimizer("sgd", 0.01)
    state, inputs = init_state(task, optimizer, KEY), jnp.arange(8.0)
    alone, _ = make_train_step(task, optimizer)(state, Batch(inputs, 2 * inputs, jnp.ones(8)))
    parts = jax.tree.map(lambda x: x.reshape(2, 4), Batch(inputs, 2 * inputs, jnp.ones(8)))
    both, _ = jax.vmap(make_train_step(task, optimizer, "data"), (None, 0), axis_name="data")(state, parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-5), both.params, alone.params)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.adam(0.1)], ids=["sgd", "adam"])
def test_complex_parameters_go_down(optimizer):
    task = stateless_task(
        lambda key: {"z": jnp.zeros((), jnp.complex64)}, lambda params, x: jnp.broadcast_to(params["z"], x.shape),
        lambda outputs, targets: jnp.abs(outputs - targets) ** 2, lambda outputs, targets: -jnp.abs(outputs - targets),
    )  # fmt: skip
    state, step = init_state(task, optimizer, KEY), jax.jit(make_train_step(task, optimizer))
    for _ in range(100):
        state, _ = step(state, Batch(jnp.zeros(4), jnp.full(4, 1 + 2j), jnp.ones(4)))
    np.testing.assert_allclose(state.params["z"], 1 + 2j, atol=0.1)


@pytest.mark.parametrize(
    ("loss", "score", "message"),
    [
        (lambda outputs, targets: (outputs - targets) ** 2, lambda a, b: jnp.ones(4), r"loss .* \[4\], not \[4, 4\]"),
        (lambda outputs, targets: jnp.mean(outputs), lambda a, b: jnp.ones(4), r"loss .* \[4\], not \[\]"),
        (lambda outputs, targets: outputs, lambda a, b: a - b, r"score .* \[4\], not \[4, 4\]; .* \(4,\) .* \(4, 1\)"),
    ],
)
def test_a_loss_or_score_that_is_not_one_value_a_sample_is_refused(loss, score, message):
    task = stateless_task(lambda key: {"w": jnp.ones(())}, lambda params, x: params["w"] * x, loss, score)
    optimizer = make_optimizer("sgd", 0.1)
    batch = Batch(jnp.arange(4.0), jnp.ones((4, 1)), jnp.ones(4))
    with pytest.raises(TaskError, match=message):
        jax.eval_shape(make_train_step(task, optimizer), init_state(task, optimizer, KEY), batch)
    setup = Setup(task, optimizer, batch[:2], batch[:2], 4)
    with pytest.raises(TaskError, match=message):
        jax.eval_shape(lambda state: evaluate(setup, state, all_samples(batch[:2])), init_state(task, optimizer, KEY))


def test_a_batch_is_never_larger_than_the_data():
    """A batch size far above the data costs no memory and is one step."""
    task, sizes = line_task(), []
    spy = task._replace(apply=lambda p, s, x, w, train, keys: (sizes.append(len(x)), (p["w"] * x, s))[1])
    data = (jnp.arange(6.0), jnp.arange(6.0))
    optimizer = make_optimizer("sgd", 0.01)
    _, metrics = epoch_of(spy, optimizer, 10**9)(init_state(task, optimizer, KEY), data, some(jnp.arange(6)), KEY)
    assert set(sizes) == {6}
    assert int(metrics["steps"]) == 1


def test_every_sample_gets_a_key_of_its_own_and_evaluation_none():
    """What a task draws depends on the epoch's key and the sample's place, not on the batch."""

    def apply(params, batch_stats, inputs, weights, train, keys):
        assert (keys is None) == (not train)
        drawn = jnp.zeros(len(inputs)) if keys is None else jax.vmap(jax.random.uniform)(keys)
        return params["w"] * 0 + drawn, batch_stats

    task = line_task()._replace(apply=apply)
    data, optimizer = (jnp.arange(6.0), jnp.zeros(6)), make_optimizer("sgd", 0.1)
    state = init_state(task, optimizer, KEY)
    losses = [
        float(epoch_of(task, optimizer, size)(state, data, some(jnp.arange(6)), key)[1]["loss"])
        for size, key in ((6, KEY), (2, KEY), (4, KEY), (6, jax.random.key(1)))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) == pytest.approx(losses[2], rel=1e-6)
    assert losses[0] != pytest.approx(losses[3], rel=1e-3)


def test_a_loop_over_batches_visits_each_sample_once_in_order():
    data = (jnp.arange(10), jnp.arange(10))

    def body(i, seen, batch):
        return seen.at[3 * i + jnp.arange(3)].set(jnp.where(batch.weights > 0, batch.inputs, -1))

    samples = some(jnp.array([7, 2, 9, 4, 0, 1]), 5)
    assert over_batches(body, jnp.full(6, -2), data, samples, 3).tolist() == [7, 2, 9, 4, 0, -1]


def test_a_probe_and_what_is_judged():
    task, optimizer = line_task(), make_optimizer("sgd", 0.1)
    data = (jnp.ones(4), jnp.ones(4))

    def probe(setup, state, samples, key):
        return {"weight": state.params["w"], "old": samples.before, "rows": jnp.asarray(len(setup.train[0]))}

    run = epoch_of(task, optimizer, 4, probe=probe)
    state, metrics = run(init_state(task, optimizer, KEY), data, some(jnp.arange(4)), KEY)
    np.testing.assert_allclose(state.params["w"], 0.2)  # 0.1 * 2 * (1 - 0)
    assert {name: float(value) for name, value in metrics["probes"].items()} == {"weight": 0.0, "old": 0.0, "rows": 4.0}
    perfect = Setup(task, optimizer, data, data, 4, judged=lambda _, state, __: state._replace(params={"w": 1.0}))
    assert float(evaluate(perfect, state, all_samples(data))["loss"]) == 0.0


def test_fit_after_is_the_mean_over_batches_of_their_own_statistics():
    """By hand: 0 1 2 | 5, each batch less its mean; running statistics stay as they are."""

    def apply(params, batch_stats, inputs, weights, train, keys):
        assert train
        assert keys is None
        mean = jnp.sum(inputs * weights) / jnp.sum(weights)
        return inputs - mean, {"mean": mean}

    task = Task(lambda key: ({}, {"mean": jnp.zeros(())}), apply, lambda y, _: jnp.abs(y), lambda y, t: y > t)
    data = (jnp.array([0.0, 1.0, 2.0, 5.0]), jnp.zeros(4))
    setup = Setup(task, make_optimizer("sgd", 0.1), data, data, 3)
    metrics = fit_after(setup, init_state(task, setup.optimizer, KEY), all_samples(data))
    assert float(metrics["loss"]) == pytest.approx(2 / 4)
    assert float(metrics["accuracy"]) == pytest.approx(1 / 4)


def test_a_warm_up_rises_by_equal_steps_and_stays():
    optimizer = make_optimizer("sgd", 0.4, warmup=3)
    state, steps = optimizer.init(jnp.zeros(())), []
    for _ in range(6):
        update, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        steps.append(-float(update))
    np.testing.assert_allclose(steps, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)


def test_statistics_of_16_bits_are_summed_in_32_and_counts_are_left():
    def apply(params, stats, inputs, weights, train, key):
        mean = jnp.average(inputs, weights=weights).astype(jnp.bfloat16)
        own = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "batches": stats["batches"] + 1}
        return inputs, (own if train else stats)

    task = line_task()._replace(apply=apply)
    numbers = jnp.ones(4000)
    stats = {"mean": jnp.zeros((), jnp.bfloat16), "batches": jnp.int32(7)}
    state = TrainState({}, stats, (), jnp.int32(0))
    setup = Setup(task, make_optimizer("sgd", 0.1), (numbers, numbers), (numbers, numbers), 1)
    found = jax.jit(lambda state: reestimated(setup, state, all_samples(setup.train)))(state).batch_stats
    assert found["mean"].dtype == jnp.bfloat16
    assert float(found["mean"]) == pytest.approx(1, abs=0.01)
    assert int(found["batches"]) == 7


def test_image_tasks_take_bytes_only():
    """Of floats in [0, 1], divided by 255 once more, a network would see next to nothing."""
    task = image_task(models.mlp(3, (4,)), (4, 4, 1), (0.5,), (0.25,))
    params, stats = task.init(KEY)
    with pytest.raises(TaskError, match=r"^image_task takes uint8 images, .*, not float32$"):
        task.apply(params, stats, jnp.ones((2, 4, 4, 1)), jnp.ones(2), False, None)

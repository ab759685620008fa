"""Gradient norms: by hand, beside a step's own gradient, over devices, in a stack, and with augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from test_train import KEY, images, leaves_equal, line_task, small_resnet_task, some

from wsjax import parallel
from wsjax.methods.reinit import warm_start
from wsjax.networks import models
from wsjax.rounds.legs import Round
from wsjax.rounds.loop import run_rounds
from wsjax.training.augment import augmented
from wsjax.training.probes import NEW, OLD, gradient_norms, mean_gradient_norm
from wsjax.training.task import image_task
from wsjax.training.train import Batch, Setup, init_state, make_optimizer, make_train_step

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
    task = image_task(models.mlp(3, (4,)), (8, 8, 1), (0.5,), (0.25,))
    return Setup(task, make_optimizer("sgd", 0.1), data, data, batch_size=8, probe=gradient_norms(10, 20), **options)


ROUNDS = [Round(10, None, 2), Round(20, None, 2)]


@pytest.mark.parametrize("mesh", [None, parallel.data_mesh, parallel.replica_mesh], ids=["stack", "data", "replicas"])
def test_a_run_of_seeds_side_by_side_measures_what_each_measures_alone(mesh):
    alone = run_rounds(mlp_setup(), ROUNDS, {"WS": warm_start}, (0, 1), stack=False).rows
    stacked = run_rounds(mlp_setup(), ROUNDS, {"WS": warm_start}, (0, 1), mesh=mesh and mesh(2)).rows
    key = ("method", "seed", "epoch")
    for a, b in zip(
        *(sorted(rows, key=lambda row: [row[name] for name in key]) for rows in (alone, stacked)), strict=True
    ):
        assert [a[name] for name in key] == [b[name] for name in key]
        assert (b[OLD], b[NEW]) == pytest.approx((a[OLD], a[NEW]), rel=1e-4)
        assert a[OLD] != a[NEW]


def test_a_probe_changes_nothing_of_what_is_trained():
    plain = run_rounds(mlp_setup()._replace(probe=None), ROUNDS, {"WS": warm_start})
    probed = run_rounds(mlp_setup(), ROUNDS, {"WS": warm_start})
    assert leaves_equal(plain.states["WS", 0].params, probed.states["WS", 0].params)


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

"""DASH: its formula against loops, its exact cases, the gradient over chunks, and runs with it."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rounds import FROZEN, Killed, data, mlp_task, resnet_task, run, same, setup, timeless

from wsjax.errors import TaskError
from wsjax.methods.dash import dash, dash_start, falling
from wsjax.methods.layouts import wsjax_layout
from wsjax.methods.reinit import warm_start
from wsjax.methods.starts import mixed
from wsjax.networks import models
from wsjax.parallel import data_mesh
from wsjax.rounds import loop
from wsjax.rounds.legs import Method, Round, Settings
from wsjax.storage.records import Records
from wsjax.training.stopping import after_epochs
from wsjax.training.task import image_task
from wsjax.training.train import Samples, init_state


def tree(seed=0):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    return {
        "conv": {"kernel": normal(3, 2, 4, 5), "bias": normal(5)},
        "shortcut": {"kernel": normal(1, 1, 4, 3)},
        "norm": {"scale": normal(5), "bias": normal(5)},
        "head": {"kernel": normal(6, 4), "bias": normal(4)},
    }


def factor(weights, directions, shrink):
    """The factor of a list of weights that share a cosine."""
    dot = sum(float(w) * float(d) for w, d in zip(weights, directions, strict=True))
    lengths = [sum(float(x) ** 2 for x in xs) ** 0.5 for xs in (weights, directions)]
    cosine = dot / (max(lengths[0], 1e-8) * max(lengths[1], 1e-8))
    return min(max(cosine, shrink), 1.0)


def by_loops(params, direction, shrink):
    """What DASH's authors do, weight by weight, for Flax's layout."""
    params, direction = (jax.tree.map(lambda x: np.asarray(x, np.float64), t) for t in (params, direction))
    new = jax.tree.map(np.copy, params)
    for layer in ("conv", "shortcut"):
        kernel, other = params[layer]["kernel"], direction[layer]["kernel"]
        height, width, inputs, outputs = kernel.shape
        for i in range(inputs):
            for o in range(outputs):
                places = [(y, x, i, o) for y in range(height) for x in range(width)]
                own = factor([kernel[p] for p in places], [other[p] for p in places], shrink)
                for place in places:
                    new[layer]["kernel"][place] *= own
    kernel, other = params["head"]["kernel"], direction["head"]["kernel"]
    for o in range(kernel.shape[1]):
        new["head"]["kernel"][:, o] *= factor(kernel[:, o], other[:, o], shrink)
    for layer in ("conv", "head"):
        new[layer]["bias"] *= factor(params[layer]["bias"], direction[layer]["bias"], shrink)
    return new


def near(a, b, rtol=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7), a, b)


@pytest.mark.parametrize("shrink", [0.0, 0.3, 0.9])
def test_the_authors_formula(shrink):
    params, direction = tree(0), tree(1)
    near(dash(params, direction=direction, shrink=shrink), by_loops(params, direction, shrink))
    near(jax.jit(dash)(params, direction=direction, shrink=jnp.float32(shrink)), by_loops(params, direction, shrink))


def test_hand_worked_tree():
    # Columns are units: cos((3, 4), (4, 3)) = 24 / 25; (1, 1) against (-1, 0) is below 0.3; the bias is at 45 degrees.
    params = {"head": {"kernel": jnp.array([[3.0, 1.0], [4.0, 1.0]]), "bias": jnp.array([1.0, 0.0])}}
    direction = {"head": {"kernel": jnp.array([[8.0, -1.0], [6.0, 0.0]]), "bias": jnp.array([5.0, 5.0])}}
    new = dash(params, direction=direction)["head"]
    np.testing.assert_allclose(new["kernel"], [[3 * 0.96, 0.3], [4 * 0.96, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(new["bias"], [0.5**0.5, 0], rtol=1e-6)
    # As [out, in], rows are units: (3, 1) against (8, -1), and (4, 1) against (6, 0).
    rows = dash(params, direction=direction, layout=wsjax_layout)["head"]["kernel"]
    cosines = np.array([23 / (10 * 65) ** 0.5, 24 / (17 * 36) ** 0.5])
    np.testing.assert_allclose(rows, np.array([[3, 1], [4, 1]]) * cosines[:, None], rtol=1e-6)


def test_the_exact_cases():
    params = tree()
    near(dash(params, direction=params), params, rtol=1e-6)
    against = dash(params, direction=jax.tree.map(lambda x: -7 * x, params))
    assert same(against["norm"], params["norm"])
    del against["norm"], params["norm"]
    near(against, jax.tree.map(lambda x: 0.3 * x, params), rtol=1e-6)
    one = dash(tree(), direction=tree(1))["shortcut"]["kernel"] / tree()["shortcut"]["kernel"]
    assert {round(float(x), 6) for x in one.ravel()} == {0.3, 1.0}  # the sign alone
    still = dash(tree(), direction=jax.tree.map(jnp.zeros_like, tree()))  # a right angle, as in PyTorch
    near(still["conv"], jax.tree.map(lambda x: 0.3 * x, params["conv"]), rtol=1e-6)
    assert not any(
        jnp.any(jnp.isnan(x)) for x in jax.tree.leaves(dash(jax.tree.map(jnp.zeros_like, tree()), direction=tree()))
    )


def test_other_granularities():
    params, direction = tree(0), tree(1)
    by_unit, by_kernel = (dash(params, direction=direction, shrink=0.1, granularity=g) for g in ("unit", "kernel"))
    kernel, other = (np.asarray(t["conv"]["kernel"]) for t in (params, direction))
    for o in range(5):
        own = factor(kernel[..., o].ravel(), other[..., o].ravel(), 0.1)
        np.testing.assert_allclose(by_unit["conv"]["kernel"][..., o], own * kernel[..., o], rtol=1e-5)
    own = factor(kernel.ravel(), other.ravel(), 0.1)
    np.testing.assert_allclose(by_kernel["conv"]["kernel"], own * kernel, rtol=1e-5)
    assert same(
        by_unit["head"], dash(params, direction=direction, shrink=0.1)["head"]
    )  # of a dense layer a unit is a row


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == "float64"):
        params, direction = (jax.tree.map(lambda x: jnp.asarray(x, dtype), tree(seed)) for seed in (0, 1))
        new = dash(params, direction=direction)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(new)} == {dtype}
        wide = by_loops(params, direction, 0.3)
        rounding = max(float(jnp.finfo(dtype).eps), 1e-12 if dtype == "float64" else 1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=rounding), new, wide)


def test_vmap_is_one_after_the_other():
    pairs = [(tree(seed), tree(seed + 10)) for seed in range(3)]
    params, directions = (jax.tree.map(lambda *x: jnp.stack(x), *trees) for trees in zip(*pairs, strict=True))
    shrinks = jnp.array([0.0, 0.3, 0.6])
    together = jax.vmap(lambda p, d, s: dash(p, direction=d, shrink=s))(params, directions, shrinks)
    for i, (own, other) in enumerate(pairs):
        near(
            jax.tree.map(lambda x, i=i: x[i], together), dash(own, direction=other, shrink=float(shrinks[i])), rtol=1e-6
        )


def test_what_cannot_be_shrunk_is_refused_in_one_line():
    def refused(match, *arguments, kind=ValueError, call=dash, **options):
        with pytest.raises(kind, match=match) as caught:
            call(*arguments, **options)
        assert "\n" not in str(caught.value)

    refused(r"shrink must lie in \[0, 1\], not 1.5", tree(), direction=tree(), shrink=1.5)
    refused("shrink must be a scalar", tree(), direction=tree(), shrink=jnp.ones(2))
    refused("unknown granularity 'row'; available: authors, unit, kernel", tree(), direction=tree(), granularity="row")
    other = tree() | {"head": {"kernel": jnp.ones((6, 5)), "bias": jnp.ones(4)}}
    refused(
        r"leaf 'head/kernel' differs: .* in params, shape \(6, 5\) of float32 in direction", tree(), direction=other
    )
    for match, options in (
        (r"decay must lie in \(0, 1\], not 0", {"decay": 0}),
        ("decay must be a real number, not 'a'", {"decay": "a"}),
        ("chunk must be a whole number, 1 or more, not 0", {"chunk": 0}),
        ("chunk must be a whole number, 1 or more, not 2.5", {"chunk": 2.5}),
        ("unknown batch_stats 'rest'; available: keep, reset, reestimate", {"batch_stats": "rest"}),
    ):
        refused(match, call=dash_start, kind=TaskError, **options)
    refused("shrink must be finite", call=dash_start, shrink=float("nan"))


def test_the_direction_goes_by_its_name_and_arrays_alone_have_one():
    with pytest.raises(TypeError):
        dash(tree(), tree())  # a new network would do for a direction: as a re-initialiser it would go unnoticed
    model = {**tree(), "act": jax.nn.relu}
    with pytest.raises(
        ValueError, match=r"^trees differ: .*; leaf 'act' is a function, no array: give the arrays alone"
    ):
        dash(model, direction={**tree(), "act": None})


def test_the_direction_is_a_moving_average_over_chunks_in_the_order_of_arrival():
    task = resnet_task()
    inputs, targets = map(jnp.asarray, data())
    here = setup(task, batch_size=3, train=(inputs, targets))  # a batch divides neither a chunk nor all
    state = init_state(task, FROZEN, jax.random.key(0))
    _, stats = task.apply(state.params, state.batch_stats, inputs, jnp.ones(30), True, None)
    state = state._replace(batch_stats=stats)  # neither those of a new network nor a batch's own
    order = jax.random.permutation(jax.random.key(1), 30)[:20]
    average = jax.tree.map(jnp.zeros_like, state.params)

    @jax.jit
    @jax.grad
    def slope(params, inputs, targets):
        outputs, _ = task.apply(params, stats, inputs, jnp.ones(len(inputs)), False, None)
        return task.loss(outputs, targets).mean()

    for begin in range(0, 14, 4):  # 14 samples in chunks of 4, 4, 4 and 2
        rows = order[begin : min(begin + 4, 14)]
        falls = slope(state.params, inputs[rows], targets[rows])
        average = jax.tree.map(lambda a, g: 0.7 * a - 0.3 * g, average, falls)
    samples = Samples(order, jnp.asarray(14), jnp.asarray(6))
    found = jax.jit(lambda state: falling(here, state, samples, chunk=4, decay=0.3))(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, average)


ROUNDS = [Round(10, after_epochs(2)), Round(30, after_epochs(2))]
DASH = dash_start(chunk=10, layout=wsjax_layout)


def test_a_run_starts_from_what_dash_gives():
    rounds = [Round(10, after_epochs(2)), Round(30, after_epochs(1))]
    methods = {"DASH": Method(DASH), "WS": warm_start}
    states = run(rounds, methods, seeds=(0, 1), optimizer=FROZEN).states
    inputs, targets = map(jnp.asarray, data())
    for seed in (0, 1):
        order = loop.pool_order(loop._keys((seed,))[loop._ORDER][0], 30)
        old, samples = states["WS", seed], Samples(order, jnp.asarray(30), jnp.asarray(10))
        direction = falling(setup(train=(inputs, targets)), old, samples, 10, 0.3)
        near(states["DASH", seed].params, dash(old.params, direction=direction, layout=wsjax_layout), rtol=1e-4)
        assert not same(states["DASH", seed].params, old.params)


@cache
def undisturbed():
    return run(ROUNDS, {"DASH": Method(DASH)})


@pytest.mark.parametrize("at", [2, 3])
def test_a_run_that_ended_continues_to_the_same_bits(tmp_path, at):
    whole, rows = undisturbed(), []

    def kill(new):
        rows.extend(new)
        if len(rows) == at:
            raise Killed

    def start(observe):
        records = Records(tmp_path / "records.jsonl")
        settings = Settings(checkpoint_every=1)
        return run(
            ROUNDS, {"DASH": Method(DASH)}, settings=settings, records=records, checkpoints=tmp_path, observe=observe
        )

    with pytest.raises(Killed):
        start(kill)
    resumed = start(lambda rows: None)
    assert timeless(resumed.rows) == timeless(whole.rows)
    assert all(same(resumed.states[key], whole.states[key]) for key in whole.states)


def test_two_devices_give_one_devices_result():
    task, methods = mlp_task(), {"DASH": Method(DASH)}
    one, two = (run(ROUNDS, methods, task=task, mesh=mesh).states["DASH", 0] for mesh in (None, data_mesh(2)))
    near(two.params, one.params, rtol=1e-4)


def test_batch_statistics_can_be_reestimated_at_a_boundary():
    methods = {
        "DASH": Method(dash_start(chunk=10, layout=wsjax_layout, batch_stats="reestimate")),
        "WS": Method(mixed(warm_start, batch_stats="reestimate")),
    }
    network = models.ResNet(3, stage_sizes=(1,), width=2, stem_pool=False, axis_name="data")
    task = image_task(network, (4, 4, 1), (0.5,), (0.25,))
    rounds = [Round(10, max_epochs=1), Round(30, max_epochs=1)]
    states = run(rounds, methods, batch_size=30, task=task, optimizer=FROZEN, stack=False, mesh=data_mesh(2)).states
    for name in methods:
        own = states[name, 0]
        nothing = jax.tree.map(jnp.zeros_like, own.batch_stats)
        _, once = resnet_task().apply(own.params, nothing, data()[0], jnp.ones(30), True, None)
        # One batch of all samples is what is re-estimated, and what the round's only step saw too: it changes nothing.
        near(own.batch_stats, jax.tree.map(lambda x: x / 0.1, once), rtol=1e-4)

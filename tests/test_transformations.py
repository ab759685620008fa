"""What all optimiser-side methods share: runs that go on where they ended, seeds side by side, devices, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsjax.errors import TaskError
from wsjax.methods.hare_tortoise import hare_tortoise, tortoise, tortoise_kept
from wsjax.methods.l2_init import l2_init
from wsjax.methods.parseval import add_parseval
from wsjax.methods.reinit import warm_start
from wsjax.methods.shrink_perturb_every import shrink_perturb_every
from wsjax.methods.soft_weight_rescaling import Layer, soft_weight_rescaling
from wsjax.methods.starts import anchored, mixed
from wsjax.networks import models
from wsjax.parallel import data_mesh
from wsjax.rounds.legs import Method, Round, Settings
from wsjax.rounds.loop import run_rounds
from wsjax.storage.records import Records
from wsjax.training.task import image_task
from wsjax.training.train import Setup

TASK = image_task(models.mlp(3, (5,), activation="relu"), (4, 4, 1), (0.5,), (0.25,))
KEY = jax.random.key(7)


def pulled():
    return optax.chain(l2_init(0.1), optax.sgd(0.05, momentum=0.9))


def rescaled():
    return optax.chain(optax.sgd(0.05), soft_weight_rescaling(0.05))


def slow():
    return optax.chain(optax.sgd(0.05), hare_tortoise(0.9, every=2, first=1, in_epochs=True))


def perturbed():
    draw = lambda key: TASK.init(key)[0]  # noqa: E731
    return optax.chain(optax.sgd(0.05), shrink_perturb_every(3, 0.9, 0.1, draw, KEY))


WAYS = {
    "l2_init": (pulled, anchored(mixed(warm_start)), None),
    "soft_weight_rescaling": (rescaled, anchored(mixed(warm_start)), None),
    "hare_tortoise": (slow, tortoise_kept(mixed(warm_start)), tortoise),
    "shrink_perturb_every": (perturbed, mixed(warm_start), None),
}
ROUNDS = [Round(10, max_epochs=3), Round(30, max_epochs=3)]


def data(count, seed):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 4, 4, 1)).astype(np.uint8), random.integers(0, 3, count).astype(np.int32)


def run(way, seeds=(0,), **options):
    make, start, judged = WAYS[way]
    setup = Setup(TASK, make(), data(30, 0), data(10, 1), 8, judged=judged)
    settings = Settings(checkpoint_every=2)
    return run_rounds(setup, ROUNDS, {"own": Method(start, after=0)}, seeds, settings=settings, **options)


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)))


def timeless(rows):
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


class Killed(Exception):
    pass


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_ended_continues_to_the_same_bits(tmp_path, way):
    def start(at):
        def observe(rows):
            if (rows[0]["round"], rows[0]["epoch"]) == at:
                raise Killed

        return run(way, records=Records(tmp_path / "r"), checkpoints=tmp_path / "c", observe=observe)

    whole = run(way)
    for at in ((1, 3), (2, 1)):
        with pytest.raises(Killed):
            start(at)
    again = start(None)
    assert timeless(again.rows) == timeless(whole.rows)
    assert same(again.states["own", 0], whole.states["own", 0])


@pytest.mark.parametrize("way", WAYS)
def test_seeds_side_by_side_and_batches_over_devices_end_where_one_does(way):
    alone, together = run(way), run(way, seeds=(0, 3))
    spread = run(way, mesh=data_mesh(2))
    for other in (together, spread):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            alone.states["own", 0],
            other.states["own", 0],
        )


def tree(dtype):
    return {"a": [jnp.asarray([1.0, -2.0], dtype)], "b": (jnp.asarray([[3.0]], dtype), None)}


def plain_ways():
    """Each for a tree of no network's."""
    layers = [Layer("a/0"), Layer("b/0")]
    return {
        "l2_init": l2_init(0.5),
        "soft_weight_rescaling": soft_weight_rescaling(0.5, layers),
        "hare_tortoise": hare_tortoise(0.5, every=2),
        "shrink_perturb_every": shrink_perturb_every(2, 0.5, 0.5, lambda key: DRAWN[0], KEY),
    }


DRAWN = [None]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("way", WAYS)
def test_any_pytree_keeps_its_dtypes_and_nears_what_float64_gives(way, dtype):
    def steps(dtype):
        params = tree(dtype)
        DRAWN[0] = jax.tree.map(jnp.ones_like, params)
        transformation = plain_ways()[way]
        state = transformation.init(params)
        for _ in range(4):
            updates = jax.tree.map(lambda x: (0.25 * jnp.ones_like(x)).astype(x.dtype), params)
            updates, state = jax.jit(transformation.update)(updates, state, params)
            due = [x.dtype for x in jax.tree.leaves(params)]
            if way == "shrink_perturb_every":  # a leaf of 16 bits and an update of 16 would not make what is to be
                due = [jnp.promote_types(dtype, jnp.float32) for dtype in due]
            assert [x.dtype for x in jax.tree.leaves(updates)] == due
            params = optax.apply_updates(params, updates)
        return params

    with jax.enable_x64(True):
        found, exact = steps(dtype), steps("float64")
        assert jax.tree.structure(found) == jax.tree.structure(exact)
        for a, b in zip(*map(jax.tree.leaves, (found, exact)), strict=True):
            assert a.dtype == dtype
            tolerance = 8 * float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("way", WAYS)
def test_the_state_may_be_donated_beside_the_parameters_that_it_was_built_of(way):
    params = tree("float32")
    DRAWN[0] = tree("float32")
    transformation = plain_ways()[way]
    jax.jit(lambda p, s: transformation.update(p, s, p), donate_argnums=(0, 1))(params, transformation.init(params))


@pytest.mark.parametrize("way", WAYS)
def test_an_update_without_parameters_is_refused_in_one_line(way):
    params = tree("float32")
    transformation = plain_ways()[way]
    with pytest.raises(TaskError, match=rf"^{way} needs the parameters: call update\(updates, state, params\)$"):
        transformation.update(params, transformation.init(params))


@pytest.mark.parametrize("way", ["l2_init", "hare_tortoise"])
def test_parameters_of_another_network_are_refused_by_the_leafs_name(way):
    params, transformation = tree("float32"), plain_ways()[way]
    state = transformation.init(params)
    other = params | {"a": [jnp.ones(3)]}
    with pytest.raises(TaskError, match=rf"^{way}: leaf 'a/0' is \[3\] in the parameters, \[2\] in its state; .*"):
        transformation.update(other, state, other)
    less, more = {"a": params["a"]}, params | {"c": jnp.ones(1)}
    with pytest.raises(TaskError, match=rf"^{way}: its state has a leaf 'b/0', which the parameters lack; .*"):
        transformation.update(less, state, less)
    with pytest.raises(TaskError, match=rf"^{way}: the parameters have a leaf 'c', which its state lacks; .*"):
        transformation.update(more, state, more)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: l2_init(-1.0), "l2_init: strength must be 0 or more, not -1.0"),
        (lambda: l2_init("much"), "l2_init: strength must be a real number, not 'much'"),
        (lambda: l2_init(jnp.float32("nan")), "l2_init: strength must be finite, not nan"),
        (lambda: hare_tortoise(jnp.float32(-3), 2), r"hare_tortoise: momentum must lie in \[0, 1\], not -3.0"),
        (lambda: add_parseval(float("inf")), "strength must be finite, not inf"),
        (lambda: soft_weight_rescaling(1.5), r"soft_weight_rescaling: rate must lie in \[0, 1\], not 1.5"),
        (lambda: hare_tortoise(float("nan"), 3), r"hare_tortoise: momentum must be finite, not nan"),
        (lambda: hare_tortoise(0.5, 0), "hare_tortoise: every must be a whole number, 1 or more, not 0"),
        (
            lambda: shrink_perturb_every(1.5, 1, 0, None, KEY),  # type: ignore[arg-type]
            "shrink_perturb_every: every must be a whole number, 1 or more, not 1.5",
        ),
    ],
)
def test_settings_that_are_none_are_refused(make, message):
    with pytest.raises(TaskError, match=f"^{message}$"):
        make()


@pytest.mark.parametrize("number", [np.asarray(0.5), np.float32(0.5), jnp.bfloat16(0.5), True, 1])
def test_any_real_scalar_is_a_factor(number):
    l2_init(number), soft_weight_rescaling(number), hare_tortoise(number, 1)


@pytest.mark.parametrize(
    ("made", "fixed"),
    [
        (lambda inject, rate: inject(l2_init)(strength=rate), lambda rate: l2_init(rate)),
        (lambda inject, rate: inject(add_parseval)(strength=rate), lambda rate: add_parseval(rate)),
        (lambda inject, rate: inject(soft_weight_rescaling, ("layers",))(rate=rate, layers=LAYERS),
         lambda rate: soft_weight_rescaling(rate, LAYERS)),
        (lambda inject, rate: inject(hare_tortoise, ("every", "first"))(momentum=rate, every=1),
         lambda rate: hare_tortoise(rate, 1)),
    ],
)  # fmt: skip
def test_factors_may_follow_a_schedule(made, fixed):
    params = {"dense": {"kernel": jnp.arange(6.0).reshape(3, 2), "bias": jnp.ones(2)}}
    moved = jax.tree.map(lambda x: 1.5 * x, params)
    own, there = made(optax.inject_hyperparams, optax.linear_schedule(0.5, 0.0, 4)), fixed(0.5)
    found, _ = own.update(params, own.init(params), moved)
    jax.tree.map(np.testing.assert_array_equal, found, there.update(params, there.init(params), moved)[0])


LAYERS = (Layer("dense/kernel", "dense/bias"),)

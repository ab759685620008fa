"""Augmentation: each piece by hand and against PIL, what is drawn, and where it is done and where not."""

from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image, ImageEnhance, ImageOps

from wsjax import parallel
from wsjax.data import datasets
from wsjax.errors import RunError, TaskError
from wsjax.methods.reinit import warm_start
from wsjax.networks import models
from wsjax.results.merge import merge_runs
from wsjax.rounds.legs import Round, Settings
from wsjax.rounds.loop import run_rounds
from wsjax.scripts import build
from wsjax.scripts.config import Common
from wsjax.storage.records import Records, open_run, read_run
from wsjax.training.augment import augmented, crop, draw, flip, jitter, rotate, standard_augmentation
from wsjax.training.statistics import reestimated
from wsjax.training.stopping import after_epochs
from wsjax.training.task import Task, image_task, with_batch_statistics
from wsjax.training.train import Setup, all_samples, evaluate, init_state, make_optimizer

ORDERS = list(permutations(range(3)))
IN_PIL = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
draw_many, jitter_jit, rotate_jit = jax.jit(jax.vmap(draw)), jax.jit(jitter), jax.jit(rotate)


def gray(*rows):
    """An image of one channel."""
    return np.asarray(rows, np.uint8)[..., None]


def grays(image):
    """The rows of an image of one channel."""
    assert image.dtype == np.uint8
    return np.asarray(image)[..., 0].tolist()


def images(count, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


def to_pil(image):
    return Image.fromarray(image if image.shape[2] == 3 else image[..., 0])


def from_pil(image):
    return np.asarray(image).reshape(image.height, image.width, -1)


def jittered_by_pil(image, factors, order):
    for which in order:
        image = IN_PIL[which](image).enhance(float(factors[which]))
    return image


@pytest.mark.parametrize(
    ("offset", "rows"),
    [
        ((1, 1), [[1, 2], [3, 4]]),
        ((0, 0), [[0, 0], [0, 1]]),
        ((2, 1), [[3, 4], [0, 0]]),
        ((1, 2), [[2, 0], [4, 0]]),
    ],
)
def test_a_crop_by_hand(offset, rows):
    assert grays(crop(gray([1, 2], [3, 4]), jnp.asarray(offset), pad=1)) == rows


def test_a_flip_by_hand():
    image = gray([1, 2, 3], [4, 5, 6])
    assert grays(flip(image, jnp.asarray(True))) == [[3, 2, 1], [6, 5, 4]]
    assert grays(flip(image, jnp.asarray(False))) == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("factors", "pixels", "expected"),
    [
        ((1, 1, 1), [(200, 100, 50)], [(200, 100, 50)]),
        ((1.25, 1, 1), [(100, 201, 220)], [(125, 251, 255)]),  # 251.25, and 275 is clipped
        ((0.75, 1, 1), [(1, 2, 255)], [(0, 1, 191)]),  # .75, 1.5 and 191.25 are cut
        ((1, 0.75, 1), [(100,) * 3, (201,) * 3], [(112,) * 3, (188,) * 3]),  # the mean, 150.5, is rounded to 151
        ((1, 1.25, 1), [(0,) * 3, (255,) * 3], [(0,) * 3, (255,) * 3]),  # -32 and 286.75 are clipped
        ((1, 1, 1.25), [(200, 100, 50)], [(219, 94, 31)]),  # the gray is .299 200 + .587 100 + .114 50 = 124
        ((1, 1, 1.25), [(0, 0, 255)], [(0, 0, 255)]),  # the gray is 29: -7.25 and 311.5 are clipped
    ],
)
def test_a_jitter_by_hand(factors, pixels, expected):
    image = np.asarray([pixels], np.uint8)
    for order in ORDERS:  # of one change and two that change nothing
        assert jitter_jit(image, np.float32(factors), np.asarray(order))[0].tolist() == [list(p) for p in expected]


def test_the_order_of_a_jitter_matters_and_a_gray_image_has_no_saturation():
    image, factors = gray([100, 240]), np.float32([1.25, 0.75, 1.25])
    # 125 and 255 have the mean 190; 170 has the mean 170, and 117 and 222 are then made brighter.
    assert grays(jitter_jit(image, factors, np.asarray([0, 1, 2]))) == [[141, 238]]
    assert grays(jitter_jit(image, factors, np.asarray([2, 1, 0]))) == [[146, 255]]


def test_a_rotation_by_hand():
    image = gray([1, 2, 3], [4, 5, 6], [7, 8, 9])
    turned = {
        0: [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        90: [[3, 6, 9], [2, 5, 8], [1, 4, 7]],  # counterclockwise
        180: [[9, 8, 7], [6, 5, 4], [3, 2, 1]],
        45: [[2, 3, 6], [1, 5, 9], [4, 7, 8]],  # edges to corners: sqrt(2) from the centre is still in the pixel at 1
    }
    for degrees, rows in turned.items():
        assert grays(rotate_jit(image, np.float32(degrees))) == rows
    assert grays(rotate_jit(gray([1, 2, 3]), np.float32(90))) == [[0, 2, 0]]  # the rest came from outside


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (7, 5, 3)])
def test_a_jitter_is_pils(shape, order):
    random = np.random.default_rng(0)
    for image in images(5, shape):
        # Sixty-fourths, by which whole numbers are multiplied exactly in whatever way.
        for factors in np.float32(random.integers(48, 81, (4, 3)) / 64):
            expected = from_pil(jittered_by_pil(to_pil(image), factors, order))
            np.testing.assert_array_equal(jitter_jit(image, factors, np.asarray(order)), expected)


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (7, 5, 3)])
def test_a_rotation_is_pils(shape):
    differ = []
    for image in images(3, shape):
        for degrees in np.float32([*np.linspace(-2, 2, 33), -170, -37, 12, 91, 140]):
            expected = from_pil(to_pil(image).rotate(float(degrees)))
            differ.append(np.mean(np.asarray(rotate_jit(image, degrees)) != expected))
    assert np.mean(differ) < 1e-4  # a pixel of the source within float32's rounding of the next one


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1)])
def test_the_standard_augmentation_is_what_pil_makes_of_the_same_draws(shape):
    keys, batch = jax.random.split(jax.random.key(5), 200), images(200, shape)
    found = np.asarray(jax.jit(jax.vmap(standard_augmentation))(keys, batch))
    drawn = jax.tree.map(np.asarray, draw_many(keys))
    height, width, _ = shape
    expected = []
    for i, image in enumerate(batch):
        row, column = drawn.offset[i].tolist()
        padded = ImageOps.expand(to_pil(image), border=4)
        made = padded.crop((column, row, column + width, row + height))
        made = ImageOps.mirror(made) if drawn.flipped[i] else made
        made = jittered_by_pil(made, drawn.factors[i], drawn.order[i])
        expected.append(from_pil(made.rotate(float(drawn.degrees[i]))))
    assert found.dtype == np.uint8
    assert np.mean(found != np.stack(expected)) < 1e-3
    assert np.mean(found != batch) > 0.5


def test_draws_are_uniform_and_independent():
    count = 20_000
    drawn = jax.tree.map(np.asarray, draw_many(jax.random.split(jax.random.key(1), count)))

    def spread(shares):
        """The largest distance from equal shares, in standard errors."""
        p = 1 / len(shares)
        return np.max(np.abs(np.asarray(shares) - p)) / np.sqrt(p * (1 - p) / count)

    offsets = [np.mean((drawn.offset == (row, column)).all(1)) for row in range(9) for column in range(9)]
    orders = [np.mean((drawn.order == order).all(1)) for order in ORDERS]
    assert sum(offsets) == pytest.approx(1)
    assert sum(orders) == pytest.approx(1)
    assert spread(offsets) < 4.5
    assert spread(orders) < 4
    assert spread([drawn.flipped.mean(), 1 - drawn.flipped.mean()]) < 4
    for values, low, high in (*((factor, 0.75, 1.25) for factor in drawn.factors.T), (drawn.degrees, -2, 2)):
        shares, _ = np.histogram(values, bins=20, range=(low, high))
        assert shares.sum() == count
        assert spread(shares / count) < 4
    table = np.column_stack([drawn.offset, drawn.flipped, drawn.factors, drawn.order[:, 0], drawn.degrees])
    correlations = np.corrcoef(table.T) - np.eye(8)
    assert np.abs(correlations).max() < 4.5 / np.sqrt(count)


def test_other_images_are_refused():
    key = jax.random.key(0)
    for image in (jnp.zeros((8, 8, 3)), jnp.zeros((8, 8), jnp.uint8), jnp.zeros((8, 8, 4), jnp.uint8)):
        with pytest.raises(TaskError, match=rf"1 or 3 channels, not {image.dtype} \[8, 8"):
            standard_augmentation(key, image)


def summing_task():
    """A task whose parameters, by SGD with a rate of batch_size, become minus the sum of all images that were seen.

    All its numbers are whole, so that no order of adding them up matters.
    """
    return Task(
        init=lambda key: (jnp.zeros((8, 8, 1)), {}),
        apply=lambda params, stats, inputs, weights, train, keys: (jnp.sum(params * inputs, (1, 2, 3)), stats),
        loss=lambda outputs, targets: outputs,
        score=lambda outputs, targets: jnp.zeros(len(targets)),
    )


DATA = (images(32, (8, 8, 1)), np.zeros(32, np.int32))


ROUND = Round(32, after_epochs(2))


def run(task, seeds=(0,), rounds=(ROUND,), **options):
    setup = Setup(task, optax.sgd(8.0), DATA, DATA, batch_size=8)
    return run_rounds(setup, list(rounds), {"WS": warm_start}, seeds, **options)


def sums(result, seed=0):
    return -np.asarray(result.states["first", seed].params)[..., 0]


def test_an_epoch_sees_augmented_images_whose_draws_do_not_depend_on_how_a_batch_is_split():
    plain, one = sums(run(summing_task())), sums(run(augmented(summing_task(), standard_augmentation)))
    np.testing.assert_array_equal(plain, 2.0 * DATA[0].sum(0, dtype=np.int64)[..., 0])
    assert np.mean(one != plain) == 1
    split = run(augmented(summing_task(), standard_augmentation), mesh=parallel.data_mesh(4))
    np.testing.assert_array_equal(sums(split), one)


def test_stacked_and_spread_seeds_draw_as_seeds_in_turn():
    task = augmented(summing_task(), standard_augmentation)
    turn = run(task, seeds=(0, 1), stack=False)
    assert np.mean(sums(turn, 0) != sums(turn, 1)) > 0.9
    for options in ({"stack": True}, {"stack": True, "mesh": parallel.replica_mesh()}):
        other = run(task, seeds=(0, 1), **options)
        for seed in (0, 1):
            np.testing.assert_array_equal(sums(other, seed), sums(turn, seed))


def test_every_epoch_and_sample_draws_anew():
    flat = (np.full((32, 8, 8, 1), 100, np.uint8), np.zeros(32, np.int32))  # they differ by their draws alone
    seen = []

    def remembered(key, image):
        image = standard_augmentation(key, image)
        jax.debug.callback(lambda value: seen.append(value.tobytes()), image)
        return image

    setup = Setup(augmented(summing_task(), remembered), optax.sgd(8.0), flat, flat, batch_size=8)
    run_rounds(setup, [ROUND], {"WS": warm_start})
    jax.effects_barrier()
    assert len(seen) == 64
    assert len(set(seen)) > 60


def test_the_task_within_gets_keys_of_its_own():
    seen = {}

    def apply(params, batch_stats, inputs, weights, train, keys):
        seen["task"] = keys
        return inputs, batch_stats

    def note(key, sample):
        return sample | {"key": jax.random.key_data(key)}

    keys = jax.random.split(jax.random.key(0), 3)
    task = augmented(summing_task()._replace(apply=apply), note)
    outputs, _ = task.apply(None, {}, {"x": jnp.arange(3)}, jnp.ones(3), True, keys)  # any pytree
    words = [np.asarray(outputs["key"]), *(np.asarray(jax.random.key_data(k)) for k in (seen["task"], keys))]
    assert len({tuple(word) for words in words for word in words.tolist()}) == 9
    for train, given in ((False, None), (True, None), (False, keys)):
        outputs, _ = task.apply(None, {}, {"x": jnp.arange(3)}, jnp.ones(3), train, given)
        assert outputs.keys() == {"x"}
        assert seen["task"] is given


def test_evaluation_and_statistics_see_images_as_they_are():
    plain = image_task(models.ResNet(3, stage_sizes=(1,), width=2, stem_pool=False), (8, 8, 1), (0.5,), (0.25,))
    poisoned = augmented(plain, lambda key, image: 0 * image)
    optimizer, data = make_optimizer("sgd", 0.1), jax.tree.map(jnp.asarray, DATA)
    state = init_state(plain, optimizer, jax.random.key(0))
    for wrap in (lambda task: task, with_batch_statistics):
        for judged in (None, reestimated):
            results = []
            for task in (plain, poisoned):
                setup = Setup(wrap(task), optimizer, data, data, 8, judged=judged)
                results.append(evaluate(setup, state, all_samples(data)))
            assert results[0] == results[1]


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 3, 4, 6])
def test_a_resumed_run_draws_on_as_if_it_had_never_ended(tmp_path, at):
    task = augmented(summing_task(), standard_augmentation)
    rounds = [Round(16, after_epochs(3)), Round(32, after_epochs(4))]
    whole = run(task, rounds=rounds)
    left = [None] * at

    def kill(rows):
        left.pop()
        if not left:
            raise Killed

    def start(observe=None):
        return run(
            task, rounds=rounds, settings=Settings(checkpoint_every=2), observe=observe, checkpoints=tmp_path,
            records=Records(tmp_path / "records.jsonl"),
        )  # fmt: skip

    with pytest.raises(Killed):
        start(kill)
    resumed = start()
    assert [row["train_loss"] for row in resumed.rows] == [row["train_loss"] for row in whole.rows]
    for key, state in whole.states.items():
        np.testing.assert_array_equal(resumed.states[key].params, state.params)
    assert not np.array_equal(whole.states["WS", 0].params, run(summing_task(), rounds=rounds).states["WS", 0].params)


@pytest.mark.parametrize("evaluation", ["running", "batch"])
def test_the_setting_augments_and_nothing_does_where_it_is_off(evaluation):
    dataset = datasets.take(jax.random.key(0), datasets.load("digits"), 20, 10)
    keys, inputs, ones = jax.random.split(jax.random.key(1), 20), dataset.train_images, jnp.ones(20)
    outputs = {}
    for on in (False, True):
        config = Common(model="logistic", augment=on, evaluation=evaluation)
        task = build.build_setup(config, dataset).task
        params, stats = task.init(jax.random.key(0))
        apply = partial(task.apply, params, stats)
        outputs[on, "train"] = np.asarray(apply(inputs, ones, True, keys)[0])
        outputs[on, "test"] = np.asarray(apply(inputs, ones, False, None)[0])
    np.testing.assert_array_equal(outputs[False, "train"], outputs[False, "test"])
    np.testing.assert_array_equal(outputs[True, "test"], outputs[False, "test"])
    own, _ = jax.vmap(jax.random.split, out_axes=1)(keys)
    made = jax.vmap(standard_augmentation)(own, inputs)
    np.testing.assert_array_equal(outputs[True, "train"], apply(made, ones, False, None)[0])
    assert (outputs[True, "train"] != outputs[False, "train"]).any(1).all()


def test_a_run_from_before_the_setting_had_no_augmentation(tmp_path):
    row = {"method": "RI", "seed": 0, "round": 1, "epoch": 1, "samples": 4, "steps": 1, "samples_seen": 4,
           "train_loss": 0.5, "train_accuracy": 0.5, "test_loss": 0.5, "test_accuracy": 0.5, "stop": "epochs",
           "train_seconds": 0.1, "eval_seconds": 0.1}  # fmt: skip
    runs = {}
    for name, settings in {"old": {}, "off": {"augment": False}, "on": {"augment": True}}.items():
        with open_run(tmp_path / name, {"seeds": [0], **settings}, {"experiment": "offline"}) as records:
            records.append([row])
        runs[name] = read_run(tmp_path / name)
    with open_run(tmp_path / "old", {"seeds": [0], "augment": False}, {}) as records:  # goes on
        assert len(records.rows) == 1
    with (
        pytest.raises(RunError, match="augment False there, True here"),
        open_run(tmp_path / "old", {"seeds": [0], "augment": True}, {}),
    ):
        pass
    assert len(merge_runs([runs["old"], runs["off"]], "offline").rows) == 1
    with pytest.raises(RunError, match="cannot share a figure: augment False and True"):
        merge_runs([runs["old"], runs["on"]], "offline")

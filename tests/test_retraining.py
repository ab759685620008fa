"""The retraining job on small images, in process; tests/test_retrain.py runs the script."""

import errno
import hashlib
import os
import shutil
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from wsjax import parallel
from wsjax.errors import DataError, LeftOut, RunError, TaskError, UsageError
from wsjax.methods.dash import dash
from wsjax.methods.fire import fire
from wsjax.methods.layouts import wsjax_layout
from wsjax.methods.reinit import shrink_perturb
from wsjax.methods.starts import grown, new_heads
from wsjax.networks import models
from wsjax.retraining import incoming, shelf
from wsjax.retraining import retrain as retraining
from wsjax.retraining.incoming import is_held_out, read_pool
from wsjax.retraining.recipe import Recipe
from wsjax.retraining.retrain import retrain
from wsjax.retraining.shelf import load_model, roll_back
from wsjax.scripts import build
from wsjax.scripts.config import Training
from wsjax.storage.files import read_json, write_json
from wsjax.training.stopping import after_epochs, any_of, at_accuracy
from wsjax.training.task import Task, correct, cross_entropy, image_task

RNG = np.random.default_rng(0)
CENTRES = RNG.integers(60, 196, (4, 4, 4, 1))


def make_images(count, classes=2, seed=0):
    """Images that a linear model learns at once: a class's centre with a little noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    labels[:classes] = range(classes)
    images = np.clip(CENTRES[labels] + rng.integers(-30, 30, (count, 4, 4, 1)), 0, 255).astype(np.uint8)
    return images, labels


def write(path, images, labels, **more):
    path.parent.mkdir(exist_ok=True)
    np.savez(path, images=images, labels=labels, **more)
    return path


def recipe(epochs=3, **changes):
    config = Training(model="logistic")
    return Recipe(
        make_task=partial(build.build_task, config),
        optimizer=changes.pop("optimizer", optax.adam(0.02)),
        stop=after_epochs(epochs),
        batch_size=16,
        checkpoint_every=1,
        describe=changes.pop("describe", {"architecture": {"model": "logistic"}}),
        holdout=changes.pop("holdout", 0.25),
        **changes,
    )


class Job:
    """A model folder, a folder of data, and the lines that were said."""

    def __init__(self, tmp_path):
        self.folder, self.incoming, self.lines = tmp_path / "model", tmp_path / "incoming", []

    def add(self, name, count=80, seed=0, **more):
        return write(self.incoming / f"{name}.npz", *make_images(count, seed=seed, **more))

    def call(self, recipe_=None, **more):
        self.lines.clear()
        patterns = [str(self.incoming / "*.npz")]
        return retrain(self.folder, patterns, recipe_ or recipe(), say=self.lines.append, **more)

    def load(self, number=None):
        return load_model(self.folder, recipe().make_task, number)

    def roll_back(self, number=None):
        return roll_back(self.folder, lambda folder, n: load_model(folder, recipe().make_task, n), number)

    def files(self):
        return {path: path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_first_call_then_nothing_new_then_new_data(job):
    job.add("a")
    first = job.call()
    assert (first["model"], first["parent"], first["before"], first["promoted"]) == (1, None, None, True)
    assert first["metrics"]["train_images"] + first["metrics"]["held_out_images"] == 80
    assert first["metrics"]["accuracy"] > 0.9
    before = job.files()
    assert job.call() is None
    assert job.files() == before

    job.add("b", seed=1)
    second = job.call()
    assert (second["model"], second["parent"]) == (2, 1)
    assert [(row["images"], len(row["sha256"])) for row in second["files"]] == [(80, 64), (80, 64)]
    assert second["scratch"] == first["scratch"]  # it was measured then
    assert read_json(job.folder / "current.json") == {"current": 2, "decided": 2}
    assert sorted(path.name for path in (job.folder / "models").iterdir()) == ["0001", "0002"]


@pytest.mark.parametrize(("stop", "capped"), [(["epochs"], False), (["accuracy"], True)])
def test_a_lineage_tells_whether_epochs_were_a_cap(job, stop, capped):
    job.add("a")
    metrics = job.call(recipe(describe={"architecture": {"model": "logistic"}, "stop": stop}))["metrics"]
    assert (metrics["stop"], metrics["capped"]) == ("epochs", capped)


def test_it_starts_from_the_shrunk_and_perturbed_parent(job):
    job.add("a")
    job.call()
    parent = job.load().state.params
    job.add("b", seed=1)
    job.call(recipe(epochs=1, optimizer=optax.sgd(0.0), shrink=0.5, perturb=0.25, tolerance=1.0))
    fresh, _ = job.load().task.init(jax.random.key(2))
    expected = jax.tree.map(lambda old, new: 0.5 * old + 0.25 * new, parent, fresh)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), job.load().state.params, expected)


def falling_by_hand(task, params, pool):
    images, labels = pool.train

    def loss(params):
        outputs, _ = task.apply(params, {}, jnp.asarray(images), jnp.ones(len(labels)), False, None)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

    return jax.tree.map(jnp.negative, jax.grad(loss)(params))


@pytest.mark.parametrize("method", ["continue", "scratch", "dash", "fire"])
def test_it_starts_as_its_method_says(job, method):
    job.add("a")
    job.call()
    parent = job.load().state.params
    job.add("b", seed=1)
    still = recipe(epochs=1, optimizer=optax.sgd(0.0), tolerance=1.0, method=method, dash_shrink=0.4, fire_steps=5)
    lineage = job.call(still)
    own = {"continue": {}, "scratch": {}, "dash": {"dash_shrink": 0.4}, "fire": {"fire_steps": 5}}[method]
    assert {"method": method, "parent": 1, **own}.items() <= lineage["settings"].items()
    assert "shrink" not in lineage["settings"]
    started = job.load().state.params
    if method == "scratch":
        assert lineage["scratch"] == lineage["metrics"]
        assert not any(np.allclose(a, b) for a, b in zip(*map(jax.tree.leaves, (started, parent)), strict=True))
        return
    pool = read_pool([str(job.incoming / "*.npz")], (), None, 0.25, print)
    expected = {
        "continue": lambda: parent,
        "fire": lambda: fire(parent, steps=5, layout=wsjax_layout),
        "dash": lambda: dash(
            parent, direction=falling_by_hand(job.load().task, parent, pool), shrink=0.4, layout=wsjax_layout
        ),
    }[method]()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), started, expected)
    assert same(started, parent) == (method == "continue")


def test_a_method_that_looks_into_kernels_takes_new_classes_in(job):
    job.add("a")
    job.call()
    write(job.incoming / "b.npz", *make_images(60, classes=3, seed=1))
    job.call(recipe(epochs=1, method="dash", tolerance=1.0))
    assert job.load()(make_images(4, classes=3)[0]).shape == (4, 3)


def test_later_models_have_a_learning_rate_of_their_own(job):
    job.add("a")
    described = {"architecture": {"model": "logistic"}, "learning_rate": 0.02}
    later = recipe(epochs=1, describe=described, method="continue", later=(0.0, optax.sgd(0.0)), compare_scratch=True)
    assert job.call(later)["settings"]["learning_rate"] == 0.02
    parent = job.load().state.params
    job.add("b", seed=1)
    lineage = job.call(later)
    assert lineage["settings"]["learning_rate"] == 0.0
    assert same(job.load(2).state.params, parent)
    assert lineage["scratch"]["model"] == 2
    assert lineage["scratch"]["train_accuracy"] > 0.5  # it learns: from scratch the rate is the first model's


def test_a_killed_training_starts_anew_by_another_method(job):
    job.add("a")
    job.call()
    job.add("b", seed=1)
    with pytest.raises(Killed):
        job.call(observe=killed_at(2))
    with pytest.raises(Killed):
        job.call(recipe(method="continue"), observe=killed_at(1))
    assert any("was for other data or settings: it starts anew" in line for line in job.lines)


def test_a_model_gives_the_outputs_that_it_was_judged_by(job):
    images, labels = make_images(80)
    write(job.incoming / "a.npz", images, labels)
    lineage = job.call()
    pool = read_pool([str(job.incoming / "a.npz")], (), None, 0.25, print)
    accuracy = (np.argmax(job.load()(pool.held_out[0]), axis=1) == pool.held_out[1]).mean()
    assert accuracy == pytest.approx(lineage["metrics"]["accuracy"])


def test_held_out_images_stay_so_as_data_grow(job):
    job.add("a", 300)
    small = read_pool([str(job.incoming / "*.npz")], (), None, 0.25, print)
    job.add("b", 300, seed=1)
    large = read_pool([str(job.incoming / "*.npz")], (), None, 0.25, print)
    for part in ("train", "held_out"):
        own, all_ = ({image.tobytes() for image in getattr(pool, part)[0]} for pool in (small, large))
        assert own < all_
    assert not {x.tobytes() for x in large.train[0]} & {x.tobytes() for x in large.held_out[0]}
    assert 0.2 < len(large.held_out[1]) / 600 < 0.3


def test_is_held_out_by_hand():
    assert is_held_out(bytes([63, *[255] * 31]), 0.25)
    assert not is_held_out(bytes([64, *[0] * 31]), 0.25)


def test_duplicates_count_once_and_the_last_label_holds(job):
    images, labels = make_images(80)
    write(job.incoming / "a.npz", images, labels)
    job.call()
    write(job.incoming / "b.npz", images[:10], labels[:10])
    assert job.call() is None  # the same images with the same labels
    assert job.lines == ["10 images came more than once and count once"]

    corrected = labels[:10].copy()
    corrected[0] = 1 - corrected[0]
    write(job.incoming / "c.npz", images[:10], corrected)
    lineage = job.call()
    assert "20 images came more than once and count once; 1 with another label, of which the last holds" in job.lines
    assert lineage["metrics"]["train_images"] + lineage["metrics"]["held_out_images"] == 80
    pool = read_pool([str(job.incoming / "*.npz")], lineage["files"], lineage, 0.25, print)
    given = {image.tobytes(): label for part in (pool.train, pool.held_out) for image, label in zip(*part, strict=True)}
    assert given[images[0].tobytes()] == corrected[0]


def test_changed_vanished_and_moved_files_are_told(job):
    a, b, c = job.add("a"), job.add("b", seed=1), job.add("c", seed=2)
    job.call()
    b.unlink()
    c.rename(c.with_name("d.npz"))
    assert job.call() is None  # what is left is known
    assert job.lines == [
        f"{b} is gone: its 80 images are no longer trained on",
        f"{c} is now {c.with_name('d.npz')}",
    ]
    job.add("a", seed=3)
    lineage = job.call()
    assert f"{a} changed since it was trained on: its present images count" in job.lines
    assert lineage["metrics"]["train_images"] + lineage["metrics"]["held_out_images"] == 160
    assert [row["path"] for row in lineage["files"]] == [str(a), str(c.with_name("d.npz"))]


def test_a_moved_file_stays_known_where_it_is(job, tmp_path):
    """Also where the call that finds it trains nothing, and the next one does not name it."""
    job.add("a")
    moved = job.add("b", seed=1)
    job.call()
    shelf_before = (job.folder / "models/0001/lineage.json").read_bytes()
    archive = tmp_path / "archive" / "b.npz"
    archive.parent.mkdir()
    moved.rename(archive)
    assert retrain(job.folder, [str(archive)], recipe(), say=job.lines.append) is None
    assert job.lines == [f"{moved} is now {archive}"]
    assert (job.folder / "models/0001/lineage.json").read_bytes() == shelf_before
    before = job.files()
    assert job.call() is None
    assert (job.lines, job.files()) == ([], before)  # it is told once

    job.add("b", seed=2)  # other images in the old place
    lineage = job.call()
    assert job.lines == []
    assert lineage["metrics"]["train_images"] + lineage["metrics"]["held_out_images"] == 240
    assert [row["path"] for row in lineage["files"]] == [str(job.incoming / "a.npz"), str(archive), str(moved)]
    assert job.call() is None
    assert job.lines == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_text("{"), "places.json cannot be read: "),
        (lambda path: write_json(path, {"model": 1, "files": [{}]}), "is damaged: files[0].path is missing; remove it"),
    ],
)
def test_damaged_notes_of_moved_files_stop_no_call(job, damage, told):
    job.add("a").rename(job.incoming / "b.npz")
    job.call()
    (job.incoming / "b.npz").rename(job.incoming / "c.npz")
    job.call()
    damage(job.folder / "places.json")
    assert job.call() is None
    assert told in job.lines[0]
    assert job.lines[1] == f"{job.incoming / 'b.npz'} is now {job.incoming / 'c.npz'}"
    assert job.call() is None
    assert job.lines == []  # it was noted anew


def test_known_files_count_whether_or_not_a_pattern_names_them(job, tmp_path):
    job.add("a")
    job.call()
    other = write(tmp_path / "elsewhere" / "b.npz", *make_images(40, seed=1))
    lineage = retrain(job.folder, [str(other)], recipe(), say=print)
    assert [row["images"] for row in lineage["files"]] == [80, 40]


def test_files_that_cannot_be_used_are_left_out_and_told(job):
    job.add("a")
    job.call()
    write(job.incoming / "b.npz", np.zeros((5, 6, 6, 1), np.uint8), np.zeros(5, int))
    (job.incoming / "c.npz").write_bytes(b"half a file")
    write(job.incoming / "d.npz", *make_images(5), class_names=np.array(["zero", "one"]))
    write(job.incoming / "e.npz", *make_images(20, seed=5), class_names=np.array(["one", "zero"]))
    lineage = job.call()
    assert len(job.lines) == 3
    assert job.lines[0].startswith(f"left out: {job.incoming / 'b.npz'}: images of (6, 6, 1) where the model's are (4,")
    assert job.lines[1].startswith(f"left out: {job.incoming / 'c.npz'} is not a .npz archive")
    assert "class_names one, zero are not those of the model, zero, one" in job.lines[2]
    assert [row["images"] for row in lineage["files"]] == [80, 5]


def test_new_classes_grow_the_head_and_count_as_wrong_before(job):
    job.add("a")
    job.call()
    write(job.incoming / "b.npz", *make_images(120, classes=3, seed=1))
    lineage = job.call(recipe(epochs=6))
    assert "new classes: 2" in job.lines
    assert lineage["class_names"] == ("0", "1", "2")
    assert lineage["before"] < 0.9 < lineage["metrics"]["accuracy"]
    assert job.load()(make_images(4, classes=3)[0]).shape == (4, 3)


def test_new_classes_are_told_where_they_are_trained_on(job):
    job.add("a")
    job.call()
    names = np.array(["0", "1", "\u202eeerht", *(f"class {number}" for number in range(60))])
    write(job.incoming / "b.npz", *make_images(120, classes=3, seed=1), class_names=names)
    aside = recipe(epochs=1, optimizer=optax.sgd(0.0), shrink=-1.0, perturb=0.0)
    assert not job.call(aside)["promoted"]
    (line,) = job.lines
    assert line.startswith("new classes: \\u202eeerht, class 0, ")
    assert line.endswith(" and 41 more")
    assert job.call() is None
    assert job.lines == []


def test_nothing_new_but_what_could_not_be_used_is_told_apart(job):
    job.add("a")
    job.call()
    half = job.incoming / "b.npz"
    half.write_bytes(b"half an upload")
    before = job.files()
    with pytest.raises(LeftOut, match=rf"^no new data, unless in what could not be used \({half}\): nothing changed$"):
        job.call()
    with pytest.raises(LeftOut, match=r"\(.*/x\*\.npz\)"):
        retrain(job.folder, [str(job.incoming / "a.npz"), str(job.incoming / "x*.npz")], recipe())
    assert job.files() == before
    job.add("c", seed=1)
    assert job.call()["model"] == 2  # what can be used is
    half.unlink()
    assert job.call() is None


def test_a_grown_network_leaves_new_units_newly_drawn():
    old, fresh = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, {"w": jnp.full((2, 3), 10.0), "b": jnp.full(3, 10.0)}
    start = grown(partial(shrink_perturb, shrink=0.5, perturb=0.1))(old, fresh)
    np.testing.assert_allclose(start["w"], [[1.5, 1.5, 10], [1.5, 1.5, 10]])
    np.testing.assert_allclose(start["b"], [1.5, 1.5, 10])
    assert grown(lambda old, _: old)({"b": np.ones(2)}, {"b": np.zeros(3)})["b"].tolist() == [1, 1, 0]


def test_a_worse_model_is_kept_aside_and_not_trained_again(job):
    job.add("a")
    job.call()
    job.add("b", seed=1)
    broken = recipe(epochs=1, optimizer=optax.sgd(0.0), shrink=-1.0, perturb=0.0)  # the parent's opposite
    lineage = job.call(broken)
    assert not lineage["promoted"]
    assert lineage["change"]["mean"] == pytest.approx(lineage["metrics"]["accuracy"] - lineage["before"])
    assert job.load().lineage["model"] == 1
    assert job.call() is None
    assert (job.folder / "models" / "0002" / "lineage.json").exists()
    job.add("c", seed=2)
    assert job.call()["parent"] == 1
    assert job.load().lineage["model"] == 3


def test_again_trains_where_nothing_is_new(job):
    job.add("a")
    job.call(recipe(again=True))
    job.add("b", seed=1)
    broken = recipe(epochs=1, optimizer=optax.sgd(0.0), shrink=-1.0, perturb=0.0)
    place = (job.folder / "current.json").read_text()
    assert not job.call(broken)["promoted"]
    (job.folder / "current.json").write_text(place)
    assert job.call(recipe(again=True))["model"] == 2  # which a stopped call had trained: that is settled first
    lineage = job.call(recipe(again=True, method="scratch"))
    assert (lineage["model"], lineage["parent"], lineage["promoted"]) == (3, 1, True)
    known = lineage["files"]
    assert job.call() is None
    assert retrain(job.folder, [], recipe(again=True), say=job.lines.append)["files"] == known


def test_the_change_is_paired():
    change = retraining._change(np.array([1.0, 1, 0, 0]), np.array([1.0, 1, 1, 0]))
    assert change == pytest.approx({"mean": 0.25, "standard_error": 0.25})  # differences 0, 0, 1, 0


def test_tolerance_decides(job):
    job.add("a")
    job.call()
    job.add("b", seed=1)
    broken = recipe(epochs=1, optimizer=optax.sgd(0.0), shrink=-1.0, perturb=0.0, tolerance=1.0)
    assert job.call(broken)["promoted"]


def test_rollback_goes_to_the_parent_and_new_data_start_from_there(job):
    for seed, name in enumerate("abc"):
        job.add(name, seed=seed)
        job.call()
    assert job.roll_back() == (3, 2)
    assert job.call() is None  # what model 3 has seen is not new
    assert job.roll_back() == (2, 1)
    with pytest.raises(RunError, match="model 1 has no parent to roll back to"):
        job.roll_back()
    job.add("d", seed=3)
    assert job.call()["parent"] == 1
    assert job.load().lineage["model"] == 4


def test_from_scratch_is_what_a_first_model_on_these_data_would_be(job, tmp_path):
    images, labels = make_images(80)
    write(job.incoming / "a.npz", images, labels)
    job.call(recipe(seed=1))
    write(job.incoming / "b.npz", images[:10], 1 - labels[:10])
    still = optax.sgd(0.0)  # so that where they start from is told by where they end
    opposite = {"shrink": -1.0, "perturb": 0.0}
    lineage = job.call(recipe(epochs=2, seed=1, optimizer=still, compare_scratch=True, **opposite))
    assert lineage["model"] == 2
    alone = Job(tmp_path)
    alone.folder = tmp_path / "other"
    # Model 1 of seed 2 draws what model 2 of seed 1 draws.
    first = alone.call(recipe(epochs=2, seed=2, optimizer=still))
    expected = first["metrics"] | {"model": 2, "train_seconds": lineage["scratch"]["train_seconds"]}
    assert lineage["scratch"] == expected
    assert lineage["metrics"]["train_accuracy"] != expected["train_accuracy"]
    assert not list(job.folder.rglob("scratch"))


class Killed(BaseException):
    pass


def killed_at(epoch):
    def observe(rows):
        if rows[0]["epoch"] == epoch:
            raise Killed

    return observe


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_killed_training_ends_in_the_same_model(job, tmp_path, epoch):
    whole = Job(tmp_path / "whole")
    (tmp_path / "whole").mkdir()
    for one in (job, whole):
        one.add("a")
        one.call()
        one.add("b", seed=1)
    whole.call()
    with pytest.raises(Killed):
        job.call(observe=killed_at(epoch))
    assert job.load().lineage["model"] == 1
    seen = []
    job.call(observe=lambda rows: seen.append(rows[0]["epoch"]))
    assert seen == list(range(epoch + 1, 4))  # it went on where it was
    assert same(job.load(2).state.params, whole.load(2).state.params)


def test_a_killed_training_starts_anew_for_other_data(job):
    job.add("a")
    with pytest.raises(Killed):
        job.call(observe=killed_at(2))
    job.add("b", seed=1)
    assert job.call()["metrics"]["epochs"] == 3
    assert any("was for other data or settings: it starts anew" in line for line in job.lines)


def test_a_call_killed_before_its_decision_is_settled_by_the_next(job):
    job.add("a")
    job.call()
    place = (job.folder / "current.json").read_text()
    job.add("b", seed=1)
    job.call()
    (job.folder / "current.json").write_text(place)  # as if killed between the model and the decision
    assert job.call()["model"] == 2
    assert job.load().lineage["model"] == 2
    assert job.call() is None


def test_refusals(job):
    with pytest.raises(DataError, match="there is no image to train on"):
        job.call()
    with pytest.raises(DataError, match="no such data file"):
        retrain(job.folder, [str(job.incoming / "none.npz")], recipe())
    with pytest.raises(RunError, match=r"there is no folder .*/other; name one that"):
        roll_back(job.folder / "other", load_model)
    job.add("a", 3)
    with pytest.raises(DataError, match=r"of 3 images 0 are held out, 1 must be; give more images"):
        job.call(recipe(holdout=1e-9))
    assert not job.folder.exists()  # of calls that cannot work nothing is left
    job.add("b")
    job.call()
    with pytest.raises(RunError, match=r"another architecture \(model logistic there, mlp here\)"):
        job.call(recipe(describe={"architecture": {"model": "mlp"}}))
    with pytest.raises(RunError, match=r"begun with --holdout=0\.25, which must stay, not 0\.5"):
        job.call(recipe(holdout=0.5))
    shutil.rmtree(job.folder / "models" / "0001" / "parameters" / "1" / "state")
    job.add("c", seed=2)
    with (
        pytest.warns(UserWarning, match="is damaged, passed over"),
        pytest.raises(RunError, match=r"model 1 cannot be loaded from .*; else begin in a new"),
    ):
        job.call()


def mean_task(num_classes, image_shape, mean, std, axis_name):
    """Logistic regression on images less a running mean, as BatchNorm keeps one."""

    def init(key):
        return {"w": 0.01 * jax.random.normal(key, (int(np.prod(image_shape)), num_classes))}, {"mean": jnp.zeros(())}

    def apply(params, stats, inputs, weights, train, keys):
        x = inputs.reshape(len(inputs), -1) / 255.0
        if train:
            stats = {"mean": 0.9 * stats["mean"] + 0.1 * (x.mean(1) * weights).sum() / weights.sum()}
        return (x - stats["mean"]) @ params["w"], stats

    return Task(init, apply, cross_entropy, correct)


def test_batch_statistics_are_those_of_the_train_images(job):
    job.add("a")
    job.call(recipe(epochs=1)._replace(make_task=mean_task))
    train = read_pool([str(job.incoming / "a.npz")], (), None, 0.25, print).train[0]
    model = load_model(job.folder, mean_task)
    np.testing.assert_allclose(model.state.batch_stats["mean"], train.mean() / 255, rtol=1e-5)


def resnet_task(num_classes, image_shape, mean, std, axis_name):
    model = models.ResNet(num_classes, stage_sizes=(1,), width=4, stem_pool=False, axis_name=axis_name)
    return image_task(model, image_shape, mean, std)


def test_devices_that_split_a_batch_give_one_devices_models(tmp_path):
    def train(folder, mesh):
        folder.mkdir()
        job = Job(folder)
        stop = any_of(at_accuracy(0.9), after_epochs(20))
        for seed, name in enumerate("ab"):  # the second model starts from the first one's parameters
            job.add(name, seed=seed)
            job.call(recipe(optimizer=optax.sgd(0.05), mesh=mesh)._replace(make_task=resnet_task, stop=stop))
        return load_model(job.folder, resnet_task)

    one, two = train(tmp_path / "one", None), train(tmp_path / "two", parallel.data_mesh(2))
    metrics = [model.lineage["metrics"] for model in (one, two)]
    assert [row["stop"] for row in metrics] == ["accuracy", "accuracy"]
    for field in ("model", "epochs", "accuracy"):
        assert metrics[0][field] == metrics[1][field]
    for x, y in zip(jax.tree.leaves(one.state), jax.tree.leaves(two.state), strict=True):
        assert np.linalg.norm(x - y) <= 2e-6 * max(np.linalg.norm(x), 1e-2)


def test_load_model_knows_the_architecture_of_the_scripts_models(job):
    job.add("a")
    job.call()
    images = make_images(3)[0]
    np.testing.assert_array_equal(build.load_model(job.folder)(images), job.load()(images))
    with pytest.raises(RunError, match=r"there is no folder .*/none; name one that"):
        build.load_model(job.folder / "none")


def test_classes_by_hand():
    merge = partial(incoming._merge_classes, path="file")
    assert merge(("0", "1"), ("cat", "dog", "eel"), {2}) == ("cat", "dog", "eel")
    assert merge(("cat", "dog"), None, {2, 0}, trained_on=True) == ("cat", "dog", "2")
    with pytest.raises(DataError, match="the label 0 has no name where the known classes have, cat, dog; add class_na"):
        merge(("cat", "dog"), None, {2, 0})
    assert merge(("cat", "dog", "2"), ("cat", "dog", "eel"), {2}) == ("cat", "dog", "eel")
    assert merge(("cat", "dog"), ("cat",), {0}) == ("cat", "dog")
    with pytest.raises(DataError, match="the label 9 where 2 classes are known leaves a gap"):
        merge(("0", "1"), None, {1, 9})
    with pytest.raises(DataError, match="two classes would have one name"):
        merge((), ("cat", "cat"), {1})


def test_a_moved_file_keeps_its_place(job):
    images, labels = make_images(80)
    write(job.incoming / "a.npz", images, 1 - labels)
    write(job.incoming / "b.npz", images, labels)  # corrects it
    job.call()
    (job.incoming / "a.npz").rename(job.incoming / "z.npz")
    assert job.call() is None


@pytest.mark.parametrize("removed_first", [True, False])
def test_a_number_is_never_given_twice(job, removed_first):
    for seed, name in enumerate("abc"):
        job.add(name, seed=seed)
        job.call()
    (job.folder / "current.json").write_text('{"current": 2, "decided": 3}')  # as if model 3 had been kept aside
    if not removed_first:
        job.roll_back()
    shutil.rmtree(job.folder / "models" / "0003")
    if removed_first:
        job.roll_back()
    assert job.call()["model"] == 4
    assert job.load().lineage["model"] == 4


def test_rollback_takes_back_new_classes(job):
    job.add("a")
    job.call()
    wrong = write(job.incoming / "b.npz", *make_images(80, classes=3, seed=1))
    assert len(job.call()["class_names"]) == 3
    job.roll_back()
    wrong.unlink()
    job.add("c", seed=2)
    assert len(job.call()["class_names"]) == 2


def add_photos(folder, name, seed):
    (folder / name).mkdir(parents=True)
    for number, image in enumerate(np.random.default_rng(seed).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)):
        Image.fromarray(image).save(folder / name / f"{number}.png")


def test_after_a_rollback_nothing_is_new_whatever_order_classes_came_in(job, tmp_path):
    photos = tmp_path / "photos"

    def call(**more):
        return retrain(job.folder, [str(photos)], recipe(image_size=4, tolerance=1.0, **more), say=job.lines.append)

    for seed, names in enumerate(("ac", "d", "b")):
        for name in names:
            add_photos(photos, name, 10 * seed + ord(name))
        lineage = call()
    assert (lineage["model"], lineage["class_names"]) == (3, ("a", "c", "d", "b"))
    assert call() is None
    for number in (1, 2):
        job.roll_back(number)
        assert call() is None  # the newest model knows d by another number than model 1 would give it
    job.roll_back(1)
    add_photos(photos, "e", 99)
    lineage = call()
    assert (lineage["model"], lineage["parent"], lineage["class_names"]) == (4, 1, ("a", "c", "b", "d", "e"))
    assert call() is None
    job.roll_back(3)
    assert call() is None


def test_a_label_that_changed_is_new_by_any_numbers():
    data = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1), np.array([0, 1, 2, 2] * 2)
    known = incoming._split(*by_digest(data), ("a", "b", "c"), [], 0.5)
    swapped = incoming._split(*by_digest((data[0], np.array([0, 2, 1, 1] * 2))), ("a", "c", "b"), [], 0.5)
    np.testing.assert_array_equal(incoming.samples_as(swapped, ("a", "b", "c")), known.samples)
    changed = incoming._split(*by_digest((data[0], np.array([0, 2, 1, 1, 0, 2, 1, 2]))), ("a", "c", "b"), [], 0.5)
    assert np.setdiff1d(incoming.samples_as(changed, ("a", "b", "c")), known.samples).size == 1


def by_digest(data):
    digests = [hashlib.sha256(image.tobytes()).digest() for image in data[0]]
    return dict(zip(digests, data[0], strict=True)), dict(zip(digests, data[1].tolist(), strict=True))


@pytest.mark.parametrize(
    ("theirs", "own", "numbers"),
    [
        (("a", "c", "d"), ("a", "c", "b", "d"), [0, 1, 3, 2]),
        (("0", "1"), ("cat", "dog", "eel"), [0, 1, 2]),  # numbers that have got their names
        (("cat", "dog"), ("0", "1"), [0, 1]),
        (("a", "x", "y"), ("a", "b"), [0, 3]),
    ],
)
def test_a_classs_number_among_others(theirs, own, numbers):
    assert [incoming._number_among(theirs, number, name) for number, name in enumerate(own)] == numbers


def test_all_known_files_gone_is_nothing_new(job):
    path = job.add("a")
    job.call()
    path.unlink()
    assert retrain(job.folder, [str(path)], recipe(), say=job.lines.append) is None
    assert "is gone" in job.lines[-1]
    with pytest.raises(DataError, match=r"^there is no image to train on again: every file that models know is gone; "):
        retrain(job.folder, [], recipe(again=True), say=job.lines.append)
    with pytest.raises(DataError, match=r"no file matches .*/incoming/\*\.npz$"):
        job.call()
    assert read_json(job.folder / "current.json") == {"current": 1, "decided": 1}


def test_two_sizes_in_the_first_call_are_the_users_to_decide(job):
    job.add("a")
    write(job.incoming / "b.npz", np.zeros((5, 6, 6, 1), np.uint8), np.zeros(5, int))
    with pytest.raises(DataError, match=r"b\.npz: images of \(6, 6, 1\) where .*a\.npz has \(4, 4, 1\)"):
        job.call()


def test_a_model_that_a_killed_call_had_trained_is_reported(job):
    job.add("a")
    job.call()
    place = (job.folder / "current.json").read_text()
    job.add("b", seed=1)
    job.call(recipe(epochs=1, optimizer=optax.sgd(0.0), shrink=-1.0, perturb=0.0))
    (job.folder / "current.json").write_text(place)
    assert not job.call()["promoted"]
    (job.folder / "current.json").unlink()
    assert job.call()["model"] == 2  # decided anew
    assert job.load().lineage["model"] == 1
    (job.folder / "current.json").write_text(place)
    job.add("c", seed=2)  # beside new data too
    assert job.call()["model"] == 3
    told = "model 2, which a stopped call had trained, is kept aside: it is worse than its parent"
    assert [line for line in job.lines if "stopped" in line] == [told]


def test_it_is_reported_also_where_the_call_can_do_no_more(job):
    job.add("a")
    job.call()
    (job.folder / "current.json").unlink()
    with pytest.raises(DataError, match="no file matches"):
        retrain(job.folder, [str(job.folder / "none*.npz")], recipe(), say=job.lines.append)
    assert job.lines[-1] == "model 1, which a stopped call had trained, is current"


def test_a_loss_of_exactly_the_tolerance_passes(job, monkeypatch):
    right = {1: 7, 2: 6}  # of 50: by float32 6 / 50 is less than 7 / 50 - 0.02

    job.add("a")
    job.call()
    job.add("b", seed=1)
    order, measured = [2, 1], retraining._scores  # the new model is tested first

    def scores(setup, state):
        number = order.pop(0)
        monkeypatch.setattr(retraining, "score_each", lambda *_: (jnp.arange(50) < right[number]).astype(jnp.float32))
        return measured(setup, state)

    monkeypatch.setattr(retraining, "_scores", scores)
    lineage = job.call(recipe(tolerance=0.02))
    assert (lineage["before"], lineage["metrics"]["accuracy"], lineage["change"]["mean"]) == (0.14, 0.12, -0.02)
    assert lineage["promoted"]
    assert not order


def test_a_method_that_there_is_none_of_is_refused(job):
    job.add("a")
    job.call()
    job.add("b", seed=1)
    with pytest.raises(UsageError, match=r"^unknown method 'mine'; available: shrink-perturb, continue, scratch, dash"):
        job.call(recipe(method="mine"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("current.json", ": decided is None, not a whole number from 0 on;"),
        ("models/0001/lineage.json", " is damaged: model is missing;"),
        ("models/0001/samples.npy", r" cannot be read \(it is not what was written\);"),
    ],
)
def test_a_damaged_file_is_named_and_starts_no_training(job, name, damage):
    job.add("a")
    job.call()
    job.add("b", seed=1)
    (job.folder / name).write_text("{}")
    before = job.files()
    with pytest.raises(RunError, match=f"{name}{damage}"):
        job.call()
    assert job.files() == before


def test_a_bit_of_the_samples_that_flipped_starts_no_training(job):
    job.add("a")
    job.call()
    path = job.folder / "models/0001/samples.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"samples\.npy cannot be read \(it is not what was written\)"):
        job.call()
    assert [path.name for path in (job.folder / "models").iterdir()] == ["0001"]


@pytest.mark.parametrize("name", ["lineage.json", "samples.npy", "parameters"])
def test_a_damaged_newest_model_that_was_rolled_back_blocks_no_call(job, name):
    for seed, letter in enumerate("ab"):
        job.add(letter, seed=seed)
        job.call()
    job.roll_back()
    path = job.folder / "models/0002" / name
    shutil.rmtree(path) if path.is_dir() else path.write_text("{}")
    job.add("c", seed=2)
    lineage = job.call()
    assert (lineage["model"], lineage["parent"]) == (3, 1)
    assert [row["images"] for row in lineage["files"]] == [80, 80, 80]
    told = [line for line in job.lines if line.startswith(f"model 2 is passed over: {path}")]
    assert len(told) == (name != "parameters")  # which no one needs
    assert job.call() is None


def killing(function, calls):
    """The function, which kills its caller instead after so many calls."""
    left = iter(range(calls, -1, -1))

    def call(*arguments, **options):
        if not next(left):
            raise Killed
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [
        (shelf.checkpoint, "save", 3),  # of the parameters: those of three epochs come before
        (shelf.np, "save", 0),
        (os, "fsync", 0),
        (shelf, "finish", 0),
        (shelf, "settle", 1),
        (shelf, "_clear_up", 0),
        (shelf, "_write_standing", 0),
    ],
)
def test_a_call_killed_at_its_end_ends_in_the_same_folder(job, tmp_path, monkeypatch, module, name, calls):
    whole = Job(tmp_path / "whole")
    (tmp_path / "whole").mkdir()
    for one in (job, whole):
        one.add("a")
        one.call()
        one.add("b", seed=1)
    whole.call()
    with monkeypatch.context() as patch:
        patch.setattr(module, name, killing(getattr(module, name), calls))
        with pytest.raises(Killed):
            job.call()
    assert job.call()["model"] == 2
    assert job.call() is None
    assert same(job.load().state, whole.load().state)
    names = [
        {str(path.relative_to(one.folder)) for path in one.folder.rglob("*") if "parameters" not in path.parts}
        for one in (job, whole)
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("refused", ["os.fsync", "pathlib.Path.rename", "pathlib.Path.mkdir"])
def test_a_full_disk_is_one_line_and_the_next_call_goes_on(job, monkeypatch, refused):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    job.add("a")
    with monkeypatch.context() as patch:
        patch.setattr(refused, refuse)
        with pytest.raises((RunError, OSError), match="No space left on device"):
            job.call()
    assert job.call()["model"] == 1


def test_a_model_is_judged_by_the_models_and_data_that_the_call_read(job):
    """Files that are changed while it trains change neither what is compared nor what the lineage tells."""
    a = job.add("a")
    job.call()
    job.add("b", seed=1)
    logits = job.load(1)(make_images(9)[0])

    def change(rows):
        a.write_bytes(b"changed")
        shutil.rmtree(job.folder / "models/0001/parameters", ignore_errors=True)

    lineage = job.call(observe=change)
    assert lineage["metrics"]["train_images"] + lineage["metrics"]["held_out_images"] == 160
    assert lineage["change"]["mean"] == pytest.approx(lineage["metrics"]["accuracy"] - lineage["before"])
    assert logits.shape == (9, 2)
    assert job.load().lineage["model"] == 2


def test_an_unfinished_model_of_another_parent_starts_anew(job, tmp_path):
    """As a folder that was put back from an older copy has one: its number is the same, its parameters are not."""
    other = Job(tmp_path / "other")
    (tmp_path / "other").mkdir()
    for one, seed in ((job, 0), (other, 5)):
        one.add("a")
        one.call(recipe(seed=seed))
    job.add("b", seed=1)
    with pytest.raises(Killed):
        job.call(observe=killed_at(2))
    shutil.rmtree(job.folder / "models/0001/parameters")
    shutil.copytree(other.folder / "models/0001/parameters", job.folder / "models/0001/parameters")
    seen = []
    job.call(observe=lambda rows: seen.append(rows[0]["epoch"]))
    assert seen == [1, 2, 3]
    assert any("was for other data or settings: it starts anew" in line for line in job.lines)


def test_another_interval_of_checkpoints_goes_on_with_the_training(job):
    job.add("a")
    told = {"architecture": {"model": "logistic"}}
    with pytest.raises(Killed):
        job.call(recipe(describe=told | {"checkpoint_every": 1}), observe=killed_at(2))
    seen = []
    job.call(recipe(describe={"checkpoint_every": 7} | told), observe=lambda rows: seen.append(rows[0]["epoch"]))
    assert seen == [3]


def test_what_a_killed_call_had_half_written_goes_at_the_next(job):
    job.add("a")
    job.call()
    before = job.files()
    (job.folder / f".current.json.{os.getpid()}.part").write_text("half")  # by a process of this number
    assert job.call() is None
    assert job.files() == before


def test_a_damaged_config_of_an_unfinished_model_starts_it_anew(job):
    job.add("a")
    with pytest.raises(Killed):
        job.call(observe=killed_at(2))
    (job.folder / "models/0001.part/config.json").write_text("{")
    assert job.call()["metrics"]["epochs"] == 3
    assert "config.json cannot be read" in job.lines[0]


@pytest.mark.parametrize("patterns", [str, lambda path: path, lambda path: [path]])
def test_data_files_by_one_name_or_path(job, patterns):
    path = job.add("a")
    assert retrain(job.folder, patterns(path), recipe())["files"][0]["path"] == str(path)


def test_a_home_is_found(job, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    job.add("a")
    retrain("~/model", [str(job.incoming / "a.npz")], recipe())
    assert job.load().lineage["model"] == 1


def test_a_folder_of_the_users_in_the_place_of_a_training_is_let_be(job):
    part = job.folder / "models" / "0001.part"
    part.mkdir(parents=True)
    (part / "thesis.tex").write_text("mine")
    job.add("a")
    with pytest.raises(RunError, match=r"0001\.part holds thesis\.tex, which no training left; move it away"):
        job.call()
    assert (part / "thesis.tex").read_text() == "mine"


def test_what_a_killed_clearing_left_is_cleared(job):
    part = job.folder / "models" / "0001.part"
    part.mkdir(parents=True)
    (part / "records.jsonl").write_text("{}\n")
    job.add("a")
    assert job.call()["model"] == 1


def test_models_whose_nodes_tell_sizes_grow_and_take_new_heads():
    """An Equinox layer's sizes are part of the tree's structure."""
    old, fresh = (eqx.nn.Linear(4, count, key=jax.random.key(seed)) for seed, count in enumerate((2, 3)))
    wider = grown(lambda params, _: params)(old, fresh)
    assert (wider.out_features, wider.weight.shape) == (3, (3, 4))
    assert jnp.array_equal(wider.weight, jnp.concatenate([old.weight, fresh.weight[2:]]))
    headed = new_heads(partial(shrink_perturb, shrink=0.5, perturb=0.0))(old, fresh)
    assert jnp.array_equal(headed.weight, fresh.weight)


def test_a_network_that_cannot_be_grown_is_refused():
    with pytest.raises(TaskError, match=r"grown: the fresh 'b' is \[2\], too small for \[3\]"):
        grown(lambda old, _: old)({"b": np.ones(3)}, {"b": np.zeros(2)})
    with pytest.raises(TaskError, match="the old parameters have no leaf 'c', which the fresh ones have"):
        grown(lambda old, _: old)({"b": np.ones(3)}, {"b": np.ones(3), "c": np.ones(1)})


def test_a_grown_network_keeps_each_leaf_as_it_was():
    """The old leaf's dtype and kind, and what is no array."""
    grow = grown(lambda old, _: old)
    old = {"a": np.ones(2), "b": jnp.ones(2, jnp.float16), "c": 0.5}
    found = grow(old, {"a": np.zeros(3), "b": jnp.zeros(3, jnp.bfloat16), "c": 0.25})
    assert (type(found["a"]), found["a"].dtype, found["a"].tolist()) == (np.ndarray, np.float64, [1, 1, 0])
    assert (found["b"].dtype, found["b"].tolist(), found["c"]) == (jnp.float16, [1, 1, 0], 0.5)

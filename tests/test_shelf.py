"""The folder of models: what is read of it is checked, and only a model that can be loaded becomes current.

The folder is that of tests/fixtures: models 1 and 2, of 10 classes on images [8, 8, 1], 2 current.
"""

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsjax.errors import DataError, RunError, UsageError
from wsjax.retraining import shelf
from wsjax.scripts.build import load_model
from wsjax.storage.files import read_json, write_json
from wsjax.storage.lock import hold

FIXTURE = Path(__file__).parent / "fixtures" / "model_folder"
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(FIXTURE, tmp_path / "model"))


def change(path, field, value):
    """Writes another value of a field, such as "metrics.steps" or "files.0.path"; DROP takes it away."""
    content = read_json(path)
    *parents, last = [int(name) if name.isdecimal() else name for name in field.split(".")]
    place = content
    for name in parents:
        place = place[name]
    if value is DROP:
        del place[last]
    else:
        place[last] = value
    write_json(path, content)


DROP = object()


def state(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.transpose(0, 3, 1, 2), "not uint8 [7, 1, 8, 8]"),
        (IMAGES[:, :4], "not uint8 [7, 4, 8, 1]"),
        (IMAGES[..., 0], "not uint8 [7, 8, 8]"),
        (IMAGES.reshape(7, 64), "not uint8 [7, 64]"),
        (IMAGES[0], "not uint8 [8, 8, 1]; give one image as images[None]"),
        (IMAGES / 255, "not float64 [7, 8, 8, 1]; its pixels are from 0 to 255"),
        (jnp.asarray(IMAGES) / 255, "not float32 [7, 8, 8, 1]; its pixels are from 0 to 255"),
        (IMAGES.astype(int).tolist(), "not int64 [7, 8, 8, 1]; its pixels are from 0 to 255"),
        ([IMAGES[0], IMAGES[0, :4]], "not a list of several sizes"),
        ([], "not float64 [0]; its pixels are from 0 to 255"),
        (3, "not int64 []; its pixels are from 0 to 255"),
        (None, "not object []; its pixels are from 0 to 255"),
    ],
)
def test_images_of_another_kind_are_refused(images, message):
    wanted = "model 2 takes images as it was trained on, uint8 [N, 8, 8, 1]"
    with pytest.raises(DataError, match=f"^{re.escape(f'{wanted}, {message}')}$") as error:
        load_model(FIXTURE)(images)
    assert isinstance(error.value, ValueError)


def test_images_in_any_container():
    model = load_model(FIXTURE)
    whole = model(IMAGES)
    assert whole.shape == (7, 10)
    assert model(IMAGES[:0]).shape == (0, 10)
    np.testing.assert_array_equal(model(list(IMAGES)), whole)
    np.testing.assert_array_equal(model(jnp.asarray(IMAGES)), whole)
    np.testing.assert_allclose(jax.jit(lambda images: model(images))(IMAGES), whole, rtol=1e-5, atol=1e-5)


def test_a_model_can_be_jitted_and_tells_what_it_takes():
    model = load_model(FIXTURE)
    np.testing.assert_allclose(jax.jit(model)(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    assert model.class_names == tuple("0123456789")
    assert model.image_shape == (8, 8, 1)
    assert repr(model) == "<wsjax model 2: uint8 [N, 8, 8, 1] to 10 classes>"


@pytest.mark.parametrize("number", ["1", 1.0, True])
def test_what_is_no_whole_number_is_no_models(number):
    with pytest.raises(UsageError, match=rf"^a model is named by its number, such as 2, not by {number!r}$"):
        load_model(FIXTURE, number)


def test_many_images_are_looked_at_in_pieces(monkeypatch):
    model = load_model(FIXTURE)
    whole = model(IMAGES)
    sizes = []

    def apply(params, batch_stats, images, weights, train, keys):
        sizes.append((len(images), len(weights)))
        return model.task.apply(params, batch_stats, images, weights, train)

    monkeypatch.setattr(shelf, "IMAGES_AT_ONCE", 3)
    pieces = dataclasses.replace(model, task=model.task._replace(apply=apply))(IMAGES)
    assert sizes == [(3, 3), (3, 3), (1, 1)]
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", 1, "model is 1, not 2"),
        ("model", "2", "model is '2', not 2"),
        ("model", True, "model is True, not 2"),
        ("parent", 2, "parent is 2, not 1, or null"),
        ("parent", True, "parent is True, not 1, or null"),
        ("promoted", "yes", "promoted is 'yes', not true or false"),
        ("promoted", 1, "promoted is 1, not true or false"),
        ("before", "0.5", "before is '0.5', not a finite number, or null"),
        ("metrics", None, "metrics is None, not an object"),
        ("metrics.steps", "12", "metrics.steps is '12', not a whole number from 1 on"),
        ("metrics.accuracy", None, "metrics.accuracy is None, not a finite number"),
        ("change", 0.5, "change is 0.5, not an object, or null"),
        ("change.mean", DROP, "change.mean is missing, or null"),
        ("scratch.model", 3, "scratch.model is 3, not a whole number from 1 to 2"),
        ("settings", [], "settings is [], not an object"),
        ("settings.holdout", 1.5, "settings.holdout is 1.5, not a number between 0 and 1"),
        ("settings.holdout", DROP, "settings.holdout is missing"),
        ("class_names", [], "class_names is [], not a list"),
        ("class_names", "0123456789", "class_names is '0123456789', not a list"),
        ("class_names.3", 3, "class_names[3] is 3, not a text"),
        ("image_shape", [8, 8], "image_shape is [8, 8], not a list of 3"),
        ("image_shape.0", -8, "image_shape[0] is -8, not a whole number from 1 on"),
        ("mean", [0.1, 0.2], "mean is [0.1, 0.2], not a list of 1"),
        ("std", [0], "std[0] is 0, not a number above 0"),
        ("files", {}, "files is {}, not a list"),
        ("files.1.sha256", "12", "files[1].sha256 is '12', not a SHA-256 in hexadecimal"),
        ("files.0.path", None, "files[0].path is None, not a text"),
        ("files.0", "a.npz", "files[0] is 'a.npz', not an object"),
        ("samples", 7, "samples is 7, not a SHA-256 in hexadecimal"),
    ],
)
def test_a_lineage_that_cannot_be_is_refused(folder, field, value, message):
    path = folder / "models" / "0002" / "lineage.json"
    change(path, field, value)
    way_out = "restore it from a copy; else make another model current: --rollback_to=N, of 1"
    with pytest.raises(RunError, match=f"^{re.escape(f'{path} is damaged: {message}; {way_out}')}$"):
        load_model(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", "16", "settings.architecture.width is '16'"),
        ("hidden", [4, "4"], r"settings.architecture.hidden is \(4, '4'\)"),
        ("hidden", [0], "settings.architecture: --hidden must be positive, not 0"),
        ("activation", "gelu", "settings.architecture: unknown activation 'gelu'; available: tanh, relu"),
        ("depth", 3, "settings.architecture is .* which wsjax retrain never wrote"),
    ],
)
def test_an_architecture_that_no_script_wrote_is_refused(folder, field, value, message):
    path = folder / "models" / "0002" / "lineage.json"
    change(path, f"settings.architecture.{field}", value)
    with pytest.raises(RunError, match=f"^{re.escape(str(path))}: {message}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("current", 3, "current is 3, which is no model"),
        ("current", -1, "current is -1, which is no model"),
        ("current", 0, "current is 0, which is no model"),
        ("current", "2", "current is '2', which is no model"),
        ("current", True, "current is True, which is no model"),
        ("current", 2.0, "current is 2.0, which is no model"),
        ("current", [2], "current is [2], which is no model"),
        ("decided", 1, "decided is 1, not a whole number from 2 on"),
        ("decided", None, "decided is None, not a whole number from 2 on"),
        ("decided", False, "decided is False, not a whole number from 2 on"),
        ("decided", 10**40, f"decided is {10**40}, not a whole number from 2 on"),
        ("decided", DROP, "decided is None, not a whole number from 2 on"),
    ],
)
def test_a_current_model_that_cannot_be_is_refused_and_another_can_be_chosen(folder, field, value, message):
    path = folder / "current.json"
    change(path, field, value)
    before = state(folder)
    for call in (load_model, lambda folder: shelf.roll_back(folder, load_model)):
        with pytest.raises(RunError, match=f"^{re.escape(f'{path}: {message}; restore it from a copy; else make')}"):
            call(folder)
    assert state(folder) == before
    assert shelf.roll_back(folder, load_model, 1) == (None, 1)
    assert load_model(folder).lineage["model"] == 1
    assert shelf.read_standing(folder) == (1, 2)


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '{"current": 1, "current": 2}x'])
def test_a_current_json_that_is_none_is_named(folder, text):
    (folder / "current.json").write_text(text)
    with pytest.raises(
        RunError, match=r"current\.json cannot be read: .*; else make another model current: .* of 1, 2$"
    ):
        load_model(folder)


def test_without_current_json_it_is_decided_anew(folder):
    (folder / "current.json").unlink()
    assert shelf.settle(folder)["model"] == 2
    assert load_model(folder).lineage["model"] == 2


def remove_parameters(model):
    shutil.rmtree(model / "parameters")


def empty_parameters(model):
    shutil.rmtree(model / "parameters")
    (model / "parameters").mkdir()


def take_anothers_parameters(model):
    remove_parameters(model)
    shutil.copytree(model.with_name("0002") / "parameters", model / "parameters")


def damage_lineage(model):
    (model / "lineage.json").write_text("{}")


@pytest.mark.parametrize(
    "damage", [shutil.rmtree, remove_parameters, empty_parameters, take_anothers_parameters, damage_lineage]
)
def test_rollback_goes_only_to_a_model_that_can_be_loaded(folder, damage):
    damage(folder / "models" / "0001")
    before = state(folder)
    for number in (None, 1):
        message = r"(0001|model 1).*; restore it from a copy \(model 2 stays current\)$"
        with pytest.raises(RunError, match=message):
            shelf.roll_back(folder, load_model, number)
    assert state(folder) == before
    assert load_model(folder).lineage["model"] == 2


def test_a_lost_parent_is_told_with_the_models_that_there_are(folder):
    shutil.copytree(folder / "models" / "0002", folder / "models" / "0003")
    write_json(
        folder / "models" / "0003" / "lineage.json", read_json(FIXTURE / "models/0002/lineage.json") | {"model": 3}
    )
    write_json(folder / "current.json", {"current": 2, "decided": 3})
    shutil.rmtree(folder / "models" / "0001")
    with pytest.raises(RunError) as error:
        shelf.roll_back(folder, load_model)
    assert str(error.value) == (
        f"{folder} has no model 1, only 2, 3; restore it from a copy; else make another model current: "
        "--rollback_to=N, of 3 (model 2 stays current)"
    )


@pytest.mark.parametrize("damage", [remove_parameters, empty_parameters, damage_lineage, shutil.rmtree])
def test_a_damaged_current_model_is_told_and_another_can_be_chosen(folder, damage):
    damage(folder / "models" / "0002")
    with pytest.raises(RunError, match=r"else make another model current: --rollback_to=N, of 1$"):
        load_model(folder)
    shelf.roll_back(folder, load_model, 1)
    assert load_model(folder).lineage["model"] == 1


def test_rollback_to_where_nothing_is_to_do(folder):
    with pytest.raises(RunError, match="model 2 is current already"):
        shelf.roll_back(folder, load_model, 2)
    with pytest.raises(RunError, match=r"model has no model 7; name one that there is: 1, 2 \(model 2 stays"):
        shelf.roll_back(folder, load_model, 7)
    for number in (-1, 0, 9):
        with pytest.raises(RunError, match=rf"model has no model {number}; name one that there is: 1, 2$"):
            load_model(folder, number)
    assert shelf.roll_back(folder, load_model) == (2, 1)
    with pytest.raises(RunError, match="model 1 has no parent to roll back to"):
        shelf.roll_back(folder, load_model)


def test_only_numbers_as_they_are_written_here_are_models(folder):
    for name in ("3", "00003", "0004.part", "\u0660\u0660\u0660\u0665", "copy of 0002", "1234567890"):
        (folder / "models" / name).mkdir()
    assert shelf.numbers(folder) == [1, 2]
    (folder / "models" / "0006").write_text("a file takes the number too")
    assert shelf.numbers(folder) == [1, 2, 6]


def test_a_damaged_model_that_is_not_decided_waits(folder):
    write_json(folder / "current.json", {"current": 1, "decided": 1})
    lineage = (folder / "models/0002/lineage.json").read_bytes()
    damage_lineage(folder / "models" / "0002")
    assert shelf.settle(folder) is None
    (folder / "models/0002/lineage.json").write_bytes(lineage)
    assert shelf.settle(folder)["model"] == 2
    assert shelf.read_standing(folder) == (2, 2)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
def test_samples_of_an_older_version_that_are_damaged_are_named(folder, content):
    (folder / "models/0002/samples.npy").write_bytes(content)
    with pytest.raises(RunError, match=r"0002/samples\.npy cannot be read \(.*\); restore it from a copy; else make"):
        shelf.newest(folder, 2, print)


@pytest.mark.parametrize(
    "array", [np.zeros(3), np.zeros((3, 3), np.uint64), np.array([{}, {}]), np.zeros(3, [("a", "u8")])]
)
def test_samples_of_an_older_version_that_are_no_hashes_are_named(folder, array):
    np.save(folder / "models/0002/samples.npy", array)
    with pytest.raises(RunError, match=r"0002/samples\.npy cannot be read \("):
        shelf.newest(folder, 2, print)


def test_a_bit_of_the_samples_that_flipped_is_found(folder):
    model = load_model(folder)
    part = shelf.part_folder(folder, 3)
    part.mkdir()
    samples = np.arange(5, dtype=np.uint64)
    shelf.store(part, model.lineage | {"model": 3, "parent": 2}, model.state, samples)
    shelf.finish(folder, 3)
    np.testing.assert_array_equal(shelf.newest(folder, 3, print)[1], samples)
    path = folder / "models/0003/samples.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RunError, match=r"samples\.npy cannot be read \(it is not what was written\)"):
        shelf.newest(folder, 3, print)


def test_a_newer_model_that_cannot_be_read_is_told_and_passed_over(folder):
    shelf.roll_back(folder, load_model)
    damage_lineage(folder / "models" / "0002")
    lines = []
    lineage, samples = shelf.newest(folder, 1, lines.append)
    assert (lineage["model"], len(samples)) == (1, 100)
    (line,) = lines
    assert line.startswith(f"model 2 is passed over: {folder}/models/0002/lineage.json is damaged: model is missing")


def test_a_home_is_found(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "model")
    assert load_model("~/model").lineage["model"] == 2
    assert shelf.lineage_of("~/model")["model"] == 2
    assert shelf.roll_back("~/model", load_model) == (2, 1)
    assert not (tmp_path / "model" / "~").exists()
    with pytest.raises(
        UsageError,
        match=r"^~nobody-of-this-name/m: there is no home folder for ~nobody-of-this-name; write",
    ):
        load_model("~nobody-of-this-name/m")


def test_nothing_is_made_where_nothing_is(tmp_path):
    for call in (load_model, shelf.lineage_of, lambda folder: shelf.roll_back(folder, load_model)):
        with pytest.raises(RunError, match=r"^there is no folder .*none; name one that wsjax retrain has made$"):
            call(tmp_path / "none")
        with pytest.raises(UsageError, match=r"^a folder of models is named by its path, not by None$"):
            call(None)
        (tmp_path / "none").mkdir()
        with pytest.raises(RunError, match=r"none has no model (yet|to roll back)$"):
            call(tmp_path / "none")
        (tmp_path / "none").rmdir()
    (tmp_path / "file").write_text("mine")
    for call in (load_model, lambda folder: shelf.roll_back(folder, load_model)):
        with pytest.raises(UsageError, match=r"file is a file; name a folder for the models$"):
            call(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_held_folder_is_not_rolled_back(folder):
    with hold(folder), pytest.raises(RunError, match="is in use by pid"):
        shelf.roll_back(folder, load_model)


def test_what_a_killed_call_had_half_written_goes(folder):
    names = (".current.json.{}.part", ".places.json.{}.part", "models/0002/.lineage.json.{}.part")
    names += ("models/0002/.samples.npy.{}.part", "models/0003.part/.config.json.{}.part")
    (folder / "models/0003.part").mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in names:
        for process in (ended.pid, os.getpid(), os.getppid()):
            (folder / name.format(process)).write_text("half")
    mine = [
        folder / ".notes.json.1.part",
        folder / ".current.json.part",
        folder / f".current.json.{ended.pid}.part.bak",
    ]
    for path in mine:
        path.write_text("mine")
    (folder / f"models/.lineage.json.{ended.pid}.part").mkdir()
    shelf.roll_back(folder, load_model)
    left = {path for path in folder.rglob(".*") if path.is_file()}
    assert left == {*mine, *(folder / name.format(os.getppid()) for name in names)}  # this one runs


def test_only_what_a_training_left_is_cleared(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "records.jsonl").write_text("mine")
    link = tmp_path / "0001.part"
    link.symlink_to(mine)
    with pytest.raises(RunError, match=r"0001\.part is no folder that a training left; move it away"):
        shelf.clear(link)
    part = tmp_path / "0002.part"
    (part / "checkpoints" / "first-seeds-1").mkdir(parents=True)
    (part / ".lineage.json.12.part").write_text("")
    (part / "checkpoints" / "link").symlink_to(mine)
    (part / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"0002\.part holds thesis\.tex, which no training left; move it away"):
        shelf.clear(part)
    (part / "thesis.tex").unlink()
    shelf.clear(part)
    assert not part.exists()
    (tmp_path / "0003.part").write_text("mine")
    with pytest.raises(RunError, match=r"0003\.part is no folder that a training left"):
        shelf.clear(tmp_path / "0003.part")
    assert (mine / "records.jsonl").read_text() == "mine"

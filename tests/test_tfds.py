"""`load` through tensorflow-datasets: sets as it lays them on disk, written here without TensorFlow."""

import importlib.util
import io
import json
import os
import shutil
import time

import numpy as np
import pytest

from wsjax.data import datasets
from wsjax.data import prepared as door
from wsjax.errors import DataError

pytest.importorskip("importlib_resources")
tfds = pytest.importorskip("tensorflow_datasets")
array_record = pytest.importorskip("array_record.python.array_record_module")
pillow = pytest.importorskip("PIL.Image")

NUM_EXAMPLES = {"train": 6, "test": 3}
# The versions and features that tensorflow-datasets gives these sets.
PREPARED = {
    "cifar10": ("cifar10", "3.0.2", {"label": 10}),
    "cifar100": ("cifar100", "3.0.2", {"label": 100, "coarse_label": 20}),
    "svhn": ("svhn_cropped", "3.1.0", {"label": 10}),
}


def examples(split):
    random = np.random.RandomState(NUM_EXAMPLES[split])
    images = random.randint(0, 256, (NUM_EXAMPLES[split], 32, 32, 3)).astype(np.uint8)
    return images, random.randint(0, 10, NUM_EXAMPLES[split])


def serialise(index, image, label, labels, image_key="image"):
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    png = io.BytesIO()
    pillow.fromarray(image.squeeze()).save(png, "png")
    texts = {"id": str(index).encode(), image_key: png.getvalue()}
    numbers = {name: 19 - label if name == "coarse_label" else label for name in labels}
    features = {k: tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[v])) for k, v in texts.items()} | {
        k: tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[v])) for k, v in numbers.items()
    }
    return tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=features)).SerializeToString()


def array_record_writer(path):
    return array_record.ArrayRecordWriter(path, "group_size:1")


def prepare(root, name, file_format="array_record", open_writer=array_record_writer):
    """Writes a small prepared set of the given name under `root` and returns its folder."""
    tfds_name, version, labels = PREPARED[name]
    splits = {split: list(zip(*examples(split), strict=True)) for split in NUM_EXAMPLES}
    return lay_down(root / tfds_name / version, tfds_name, splits, labels, (32, 32, 3), file_format, open_writer)


def lay_down(
    folder, name, splits, labels, shape, file_format="array_record", open_writer=array_record_writer, image_key="image"
):
    """Writes a set as tensorflow-datasets prepares it, of (image, label) by split, and returns its folder."""
    folder.mkdir(parents=True)
    told = []
    for split, pairs in splits.items():
        writer = open_writer(str(folder / f"{name}-{split}.{file_format}-00000-of-00001"))
        for index, (image, label) in enumerate(pairs):
            writer.write(serialise(index, image, int(label), labels, image_key))
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        told.append({"name": split, "filepathTemplate": template, "shardLengths": [str(len(pairs))], "numBytes": "1"})
    info = {"name": name, "version": folder.name, "fileFormat": file_format, "splits": told}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    kinds = "tensorflow_datasets.core.features"
    features = {
        "id": {"pythonClassName": f"{kinds}.text_feature.Text", "text": {}},
        image_key: {
            "pythonClassName": f"{kinds}.image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": [str(size or -1) for size in shape]}},
        },
    } | {
        key: {
            "pythonClassName": f"{kinds}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(number)},
        }
        for key, number in labels.items()
    }
    tree = {"pythonClassName": f"{kinds}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(tree))
    return folder


def check(dataset):
    for split in NUM_EXAMPLES:
        images, labels = examples(split)
        np.testing.assert_array_equal(getattr(dataset, f"{split}_images"), images)
        np.testing.assert_array_equal(getattr(dataset, f"{split}_labels"), labels)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder that tensorflow-datasets looks in of itself, empty here."""
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "home"))
    return tmp_path / "home"


def failure(name, folder):
    with pytest.raises(DataError) as caught:
        datasets.load(name, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", PREPARED)
def test_a_prepared_set_is_read_once_and_kept(tmp_path, home, name):
    prepared = prepare(tmp_path / "data", name)
    dataset = datasets.load(name, tmp_path / "data")
    check(dataset)
    assert dataset.num_classes == (100 if name == "cifar100" else 10)
    assert dataset.mean == datasets.REPORT_MEAN
    shutil.rmtree(prepared)
    check(datasets.load(name, tmp_path / "data"))


def test_a_set_in_the_default_folder_is_found(tmp_path, home):
    prepare(home, "cifar10")
    check(datasets.load("cifar10", tmp_path / "data"))
    assert os.listdir(tmp_path / "data") == ["cifar10.npz"]


def test_a_set_in_the_format_that_only_tensorflow_reads(tmp_path, home):
    tensorflow = pytest.importorskip("tensorflow")
    prepare(tmp_path, "cifar10", "tfrecord", tensorflow.io.TFRecordWriter)
    check(datasets.load("cifar10", tmp_path))


def test_such_a_set_without_tensorflow(tmp_path, home, monkeypatch):
    def as_dataset(*_):
        raise ImportError("No module named 'tensorflow'\nand more")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_dataset", as_dataset)
    prepared = prepare(tmp_path, "cifar10", "tfrecord")
    message = failure("cifar10", tmp_path)
    assert "lacks a package (No module named 'tensorflow')" in message
    assert door.INSTALL_COMMAND in message
    assert prepared.exists()


def test_a_damaged_set(tmp_path, home):
    records = prepare(tmp_path, "cifar10") / "cifar10-test.array_record-00000-of-00001"
    records.write_bytes(records.read_bytes()[:1_000])
    message = failure("cifar10", tmp_path)
    assert str(tmp_path) in message
    assert "are incomplete, remove them and try again" in message
    assert not (tmp_path / "cifar10.npz").exists()


@pytest.fixture
def tensorflow_is(monkeypatch):
    """Makes TensorFlow look installed or missing."""
    find_spec = importlib.util.find_spec

    def pretend(installed):
        def find(name, package=None):
            return (installed or None) if name == "tensorflow" else find_spec(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find)

    return pretend


def test_without_tensorflow_the_message_has_the_command(tmp_path, home, tensorflow_is):
    tensorflow_is(False)
    message = failure("cifar10", tmp_path)
    assert "TensorFlow is missing" in message
    assert door.INSTALL_COMMAND in message


def test_without_a_network_it_fails_fast(tmp_path, home, tensorflow_is, monkeypatch):
    tensorflow_is(True)
    for variable in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # where nothing listens
    start = time.monotonic()
    message = failure("svhn", tmp_path)
    assert time.monotonic() - start < 10
    for part in (
        str(tmp_path / "svhn.npz"),
        "http://ufldl.stanford.edu/housenumbers did not answer within 5 s",
        f"put train_32x32.mat, test_32x32.mat, extra_32x32.mat in {tmp_path / 'downloads' / 'manual'}",
        "test_labels",
    ):
        assert part in message


def test_a_truncated_archive(tmp_path, home, monkeypatch):
    pytest.importorskip("tensorflow")
    monkeypatch.setattr(door, "_reachable", lambda url: pytest.fail("an archive laid down by hand needs no network"))
    archive = tmp_path / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"\x1f\x8b")
    message = failure("cifar10", tmp_path)
    assert "NonMatchingChecksumError" in message
    assert "are incomplete, remove them and try again" in message
    assert archive.exists()


def pairs(count, *shape, seed=0):
    random = np.random.default_rng(seed)
    return [(random.integers(0, 256, shape).astype(np.uint8), number % 3) for number in range(count)]


def test_any_set_of_one_size_stays_as_it_is(tmp_path, home):
    splits = {"train": pairs(6, 28, 28, 1), "test": pairs(3, 28, 28, 1, seed=1)}
    folder = lay_down(tmp_path / "mnist" / "3.0.1", "mnist", splits, {"label": 10}, (28, 28, 1))
    dataset = datasets.load("tfds:mnist", tmp_path)
    np.testing.assert_array_equal(dataset.train_images, [image for image, _ in splits["train"]])
    assert dataset.test_labels.tolist() == [0, 1, 2]
    assert dataset.class_names == tuple("0123456789")
    assert dataset.mean == datasets.channel_statistics(dataset.train_images)[0]
    smaller = datasets.load("tfds:mnist", tmp_path, 7)
    assert smaller.train_images.shape == (6, 7, 7, 1)
    shutil.rmtree(folder)
    for size, kept in ((None, dataset), (7, smaller)):  # each decoded once, and kept
        np.testing.assert_array_equal(datasets.load("tfds:mnist", tmp_path, size).test_images, kept.test_images)
    assert sorted(os.listdir(tmp_path)) == ["mnist", "tfds-mnist-7px.npz", "tfds-mnist.npz"]


def test_images_that_differ_in_size_are_resized(tmp_path, home):
    whole = np.full((64, 96, 3), 200, np.uint8)
    whole[:, 16:80] = 7  # the square in the middle
    splits = {split: [(whole, 0), (whole[:50, 20:70], 1), *pairs(2, 32, 32, 3)] for split in ("train", "test")}
    labels, shape = {"kind": 3}, (None, None, 3)  # a set that is known by its files alone
    lay_down(tmp_path / "own_photos" / "1.0.0", "own_photos", splits, labels, shape, image_key="photo")
    dataset = datasets.load("tfds:own_photos", tmp_path)
    assert dataset.train_images.shape == (4, 32, 32, 3)
    assert np.unique(dataset.train_images[:2]).tolist() == [7]
    np.testing.assert_array_equal(dataset.test_images[2], splits["test"][2][0])
    assert datasets.load("tfds:own_photos", tmp_path, 8).train_images.shape == (4, 8, 8, 3)


def test_a_set_in_a_configuration(tmp_path, home):
    splits = {"train": pairs(4, 32, 32, 3), "test": pairs(2, 32, 32, 3)}
    lay_down(tmp_path / "cmaterdb" / "bangla" / "1.0.0", "cmaterdb", splits, {"label": 10}, (32, 32, 3))
    dataset = datasets.load("tfds:cmaterdb/bangla", tmp_path)
    np.testing.assert_array_equal(dataset.train_images, [image for image, _ in splits["train"]])
    assert (tmp_path / "tfds-cmaterdb-bangla.npz").exists()


@pytest.mark.parametrize(
    ("splits", "labels", "said"),
    [
        (("train", "validation"), {"label": 3}, "tfds:own has no test split, only train, validation; take a set with"),
        (("all",), {"label": 3}, "tfds:own has no train and no test split, only all; take a set with both"),
        (("train", "test"), {}, "tfds:own is no set of 8-bit images with a class each; its features: id, image"),
        (("train", "test"), {"one": 3, "two": 3}, "tfds:own is no set of 8-bit images with a class each; its features"),
    ],
)
def test_sets_of_another_kind(tmp_path, home, splits, labels, said):
    lay_down(tmp_path / "own" / "1.0.0", "own", {split: pairs(2, 8, 8, 3) for split in splits}, labels, (8, 8, 3))
    assert failure("tfds:own", tmp_path).startswith(said)
    assert os.listdir(tmp_path) == ["own"]


def test_names_that_are_none(tmp_path, home):
    message = failure("tfds:mnst", tmp_path)
    assert message == "tfds:mnst: tensorflow-datasets has no set of this name; did you mean tfds:mnist?"
    for name in ("tfds:", "tfds:../x", "tfds:a b", "tfds:a/b/c", "tfds:mnist:3.0.1:2"):
        assert failure(name, tmp_path) == (
            f"{name!r} names no set of tensorflow-datasets; write tfds:NAME or tfds:NAME/CONFIG"
        )


def test_any_set_without_a_network_fails_fast(tmp_path, home, tensorflow_is, monkeypatch):
    tensorflow_is(True)
    asked = []
    monkeypatch.setattr(door, "_reachable", asked.append)
    message = failure("tfds:mnist", tmp_path)
    assert asked == ["https://storage.googleapis.com"]
    assert f"{tmp_path / 'tfds-mnist.npz'} nor a set that tensorflow-datasets prepared" in message
    assert "https://storage.googleapis.com did not answer within 5 s; connect to the network; or" in message
    tensorflow_is(False)
    assert "TensorFlow is missing" in failure("tfds:mnist", tmp_path)

"""`load` through tensorflow-datasets: sets as it lays them on disk, written here without TensorFlow."""

import importlib.util
import io
import json
import os
import shutil
import time

import numpy as np
import pytest

from wsjax.data import datasets, sources
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


def serialise(index, image, label, labels):
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    png = io.BytesIO()
    pillow.fromarray(image).save(png, "png")
    texts = {"id": str(index).encode(), "image": png.getvalue()}
    numbers = {name: label if name == "label" else 19 - label for name in labels}
    features = {k: tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[v])) for k, v in texts.items()} | {
        k: tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[v])) for k, v in numbers.items()
    }
    return tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=features)).SerializeToString()


def array_record_writer(path):
    return array_record.ArrayRecordWriter(path, "group_size:1")


def prepare(root, name, file_format="array_record", open_writer=array_record_writer):
    """Writes a small prepared set of the given name under `root` and returns its folder."""
    tfds_name, version, labels = PREPARED[name]
    folder = root / tfds_name / version
    folder.mkdir(parents=True)
    splits = []
    for split, number in NUM_EXAMPLES.items():
        writer = open_writer(str(folder / f"{tfds_name}-{split}.{file_format}-00000-of-00001"))
        for index, (image, label) in enumerate(zip(*examples(split), strict=True)):
            writer.write(serialise(index, image, int(label), labels))
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"name": split, "filepathTemplate": template, "shardLengths": [str(number)], "numBytes": "1"})
    info = {"name": tfds_name, "version": version, "fileFormat": file_format, "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    kinds = "tensorflow_datasets.core.features"
    features = {
        "id": {"pythonClassName": f"{kinds}.text_feature.Text", "text": {}},
        "image": {
            "pythonClassName": f"{kinds}.image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": ["32", "32", "3"]}},
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
    assert sources.INSTALL_COMMAND in message
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
    assert sources.INSTALL_COMMAND in message


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
    monkeypatch.setattr(sources, "_reachable", lambda url: pytest.fail("an archive laid down by hand needs no network"))
    archive = tmp_path / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"\x1f\x8b")
    message = failure("cifar10", tmp_path)
    assert "NonMatchingChecksumError" in message
    assert "are incomplete, remove them and try again" in message
    assert archive.exists()

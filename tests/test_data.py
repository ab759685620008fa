import dataclasses
import hashlib
import io
import itertools
import os
import pickle
import subprocess
import sys
import zipfile
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsjax.data import datasets, embedded, prepared, sources
from wsjax.errors import DataError

SHAPE = (32, 32, 3)


def valid(**changes):
    """The arrays of a tiny set of 12 + 6 images and 3 classes; a change of None leaves an array out."""
    arrays = {
        "train_images": np.arange(12 * 5 * 4 * 3).reshape(12, 5, 4, 3).astype(np.uint8),
        "train_labels": np.arange(12) % 3,
        "test_images": np.full((6, 5, 4, 3), 7, np.uint8),
        "test_labels": np.arange(6) % 3,
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def named(num_classes, **changes):
    """The arrays of a tiny stand-in for CIFAR or SVHN."""
    images = np.random.RandomState(0).randint(0, 256, (9, *SHAPE)).astype(np.uint8)
    labels = np.arange(9) % num_classes
    return valid(train_images=images, train_labels=labels, test_images=images[:4], test_labels=labels[:4], **changes)


def write(path, arrays, save=np.savez):
    save(path, **arrays)
    return path


def failure(*args, **kwargs):
    """What `load` says when it fails."""
    with pytest.raises(DataError) as caught:
        datasets.load(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_npz_round_trip(tmp_path):
    arrays = valid(class_names=np.array(["cat", "dog", "fox"]))
    dataset = datasets.load(write(tmp_path / "pets.npz", arrays))
    assert dataset.name == "pets"
    assert dataset.class_names == ("cat", "dog", "fox")
    assert dataset.num_classes == 3
    for name in sources.REQUIRED:
        np.testing.assert_array_equal(getattr(dataset, name), arrays[name])
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32


@pytest.mark.parametrize("names", [np.array([b"cat", b"dog", b"fox"]), None])
def test_class_names_as_bytes_or_left_out(tmp_path, names):
    dataset = datasets.load(write(tmp_path / "pets.npz", valid(class_names=names)))
    assert dataset.class_names == (("0", "1", "2") if names is None else ("cat", "dog", "fox"))


def test_a_class_without_images_is_fine_where_it_has_a_name(tmp_path):
    names = np.array(["cat", "dog", "fox", "owl"])
    assert datasets.load(write(tmp_path / "pets.npz", valid(class_names=names))).num_classes == 4


def test_statistics_are_those_of_the_train_images(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (9_000, 3, 2, 2)).astype(np.uint8)  # more than one chunk
    images[..., 1] = 200
    arrays = valid(train_images=images, train_labels=np.arange(9_000) % 3, test_images=images[:6])
    dataset = datasets.load(write(tmp_path / "own.npz", arrays))
    np.testing.assert_allclose(dataset.mean, images.mean(axis=(0, 1, 2)) / 255)
    np.testing.assert_allclose(dataset.std[0], images[..., 0].std() / 255)
    assert dataset.std[1] == 1 / 255


FLOATS = np.zeros((12, 5, 4, 3), np.float32)
BAD_ARRAYS = {
    "a missing array": ({"test_labels": None}, ["lacks test_labels", "found: train_images, train_labels, test_images"]),
    "float images": ({"train_images": FLOATS}, ["train_images is float32", "must be uint8"]),
    "float test images": ({"test_images": FLOATS[:6]}, ["test_images is float32"]),
    "grey images": ({"train_images": np.zeros((12, 5, 4), np.uint8)}, ["(12, 5, 4)", "images[..., None]"]),
    "images as PyTorch has them": (
        {"train_images": np.zeros((12, 3, 5, 5), np.uint8)},
        ["(12, 3, 5, 5)", "put channels last: images.transpose(0, 2, 3, 1)"],
    ),
    "wide images as PyTorch has them": (
        {"train_images": np.zeros((12, 3, 32, 48), np.uint8)},
        ["(12, 3, 32, 48)", "put channels last: images.transpose(0, 2, 3, 1)"],
    ),
    "flat images": ({"train_images": np.zeros((12, 60), np.uint8)}, ["(12, 60)", "[N, height, width, channels]"]),
    "images of no size": ({"train_images": np.zeros((12, 0, 4, 3), np.uint8)}, ["(12, 0, 4, 3)"]),
    "float labels": ({"train_labels": np.zeros(12)}, ["train_labels is float64", "must be integers"]),
    "text labels": ({"test_labels": np.array(["cat"] * 6)}, ["test_labels is <U3"]),
    "labels of rank 2": ({"train_labels": np.zeros((12, 1), int)}, ["(12, 1)", "12 train_images need [12]"]),
    "too few labels": ({"test_labels": np.zeros(5, int)}, ["(5,)", "6 test_images need [6]"]),
    "negative labels": ({"train_labels": np.arange(12) % 3 - 1}, ["label -1", "from 0 on"]),
    "labels from 1": (
        {"train_labels": np.arange(12) % 3 + 1, "test_labels": np.ones(6, int)},
        ["3 different numbers from 1 to 3", "without a gap", "class_names"],
    ),
    "labels that say nothing": (
        {"train_labels": np.zeros(12, int), "test_labels": np.zeros(6, int)},
        ["the number of classes is 1"],
    ),
    "labels with a gap": ({"test_labels": np.full(6, 9)}, ["4 different numbers from 0 to 9"]),
    "labels beyond the names": ({"class_names": np.array(["cat", "dog"])}, ["label 2", "2 classes allow only 0 to 1"]),
    "huge labels": (
        {"test_labels": np.full(6, 2**32), "class_names": np.array(["cat", "dog", "fox"])},
        ["label 4294967296", "0 to 2"],
    ),
    "names that are numbers": ({"class_names": np.arange(3)}, ["class_names is int64", "strings"]),
    "a name twice": ({"class_names": np.array(["a", "b", "a"])}, ["a name twice: a, b, a", "give every class its own"]),
    "an empty name": ({"class_names": np.array(["a", " ", "c"])}, ["class_names has an empty name"]),
    "no names": ({"class_names": np.array([], "U3")}, ["class_names is <U3 (0,)", "list of strings"]),
    "one name": ({"class_names": np.array("cat")}, ["class_names is <U3 ()"]),
    "two sizes": ({"test_images": np.zeros((6, 5, 5, 3), np.uint8)}, ["(5, 4, 3)", "(5, 5, 3)", "one size"]),
    "no images": (
        {"train_images": np.zeros((0, 5, 4, 3), np.uint8), "train_labels": np.zeros(0, int)},
        ["train_images has 0", "at least 2"],
    ),
    "one image": (
        {"test_images": np.zeros((1, 5, 4, 3), np.uint8), "test_labels": np.zeros(1, int)},
        ["test_images has 1", "at least 2"],
    ),
    "objects": ({"train_labels": np.array([0, 1, None] * 4)}, ["'train_labels'", "no objects"]),
    "names as objects": ({"class_names": np.array(["a", "b", "c"], object)}, ["'class_names'", "as strings"]),
}


@pytest.mark.parametrize(("changes", "said"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays(tmp_path, changes, said):
    path = write(tmp_path / "own.npz", valid(**changes))
    message = failure(path)
    for part in (str(path), *said):
        assert part in message


def test_labels_of_several_kinds_of_integers(tmp_path):
    changes = {
        "train_labels": (np.arange(12) % 3).astype(np.uint64),
        "test_labels": (np.arange(6) % 3).astype(np.int64),
    }
    dataset = datasets.load(write(tmp_path / "own.npz", valid(**changes)))
    assert dataset.class_names == ("0", "1", "2")  # NumPy's union of both is float64
    assert dataset.train_labels.tolist() == [0, 1, 2] * 4
    beyond = np.array([2**63 + 1] * 6, np.uint64)
    message = failure(write(tmp_path / "own.npz", valid(test_labels=beyond)))
    assert "numbers from 0 to 9223372036854775809" in message


HAND_MADE = {
    "-1 for no label": ({"train_labels": np.arange(12) % 3 - 1}, "^train_labels has the label -1; number the classes"),
    "a label beyond": ({"test_labels": np.full(6, 3)}, "^test_labels has the label 3, but 3 classes allow only 0 to 2"),
    "a label that would wrap": ({"test_labels": np.full(6, 2**32)}, "^test_labels has the label 4294967296, but"),
    "one class": ({"class_names": ("cat",)}, "^the number of classes is 1; there must be 2 to tell apart$"),
    "durations": ({"train_labels": np.arange(12).astype("m8[s]")}, "train_labels is timedelta64"),
    "too few labels": ({"train_labels": np.zeros(11, int)}, r"train_labels has the shape \(11,\)"),
    "float images": ({"test_images": np.zeros((6, 5, 4, 3))}, "test_images is float64"),
    "two sizes": ({"test_images": np.zeros((6, 4, 4, 3), np.uint8)}, "make them one size"),
    "a mean too few": ({"mean": (0.5, 0.5)}, r"^mean is \(0\.5, 0\.5\); it must be a finite number a channel: 3$"),
    "no spread": ({"std": (0.2, 0.2, 0.0)}, r"^std is .*; it must be a finite number a channel, above 0: 3$"),
    "not a number": ({"mean": (0.5, 0.5, float("nan"))}, "^mean is "),
}


@pytest.mark.parametrize(("changes", "said"), HAND_MADE.values(), ids=HAND_MADE)
def test_a_set_made_by_hand_is_checked_too(changes, said):
    given = valid(class_names=("cat", "dog", "fox"), mean=(0.5,) * 3, std=(0.2,) * 3)
    dataset = datasets.Dataset("pets", **given)
    assert dataset.train_labels.dtype == np.int32
    assert dataset.train_images is given["train_images"]
    with pytest.raises(DataError, match=said):
        datasets.Dataset("pets", **given | changes)
    with pytest.raises(DataError, match=said):
        dataclasses.replace(dataset, **changes)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "own.npz"
    path.write_bytes(pickle.dumps(Bomb()))
    assert "not a .npz archive" in failure(path)
    write(path, valid(class_names=np.array([Bomb()])))
    assert "no objects" in failure(path)


def test_damaged_archives(tmp_path):
    whole = write(tmp_path / "whole.npz", valid()).read_bytes()
    with zipfile.ZipFile(tmp_path / "whole.npz") as archive:
        train_images = archive.getinfo("train_images.npy")
    middle = train_images.header_offset + train_images.file_size // 2
    packed = write(tmp_path / "packed.npz", valid(), np.savez_compressed).read_bytes()
    headless = io.BytesIO()
    with zipfile.ZipFile(headless, "w") as archive:
        for name in sources.REQUIRED:
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01")
    damaged = {
        "empty": (b"", "not a .npz archive"),
        "text": (b"Not Found", "not a .npz archive"),
        "truncated": (whole[: len(whole) // 2], "not a .npz archive, or only a part of one"),
        "one bit": (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], "Bad CRC-32"),
        "deflate": (packed[:60] + b"\xff" * 20 + packed[80:], "cannot read the array 'train_images'"),
        "no header": (headless.getvalue(), "cannot read the array 'train_images'"),
    }
    for name, (content, said) in damaged.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        message = failure(path)
        assert str(path) in message
        assert said in message


def test_unknown_names():
    message = failure("CIFAR-10")
    assert "unknown data set 'CIFAR-10'" in message
    assert (
        "cifar10, cifar100, svhn, digits, digits_low, digits_high, digits_shifted, tfds:NAME, or the path of a"
        in message
    )
    assert "did you mean 'cifar10'?" in message
    assert "did you mean" not in failure("imagenet")
    assert "unknown data set ''" in failure("")


def test_paths_that_are_no_file(tmp_path):
    assert f"cannot read {tmp_path / 'no.npz'}: No such file" in failure(tmp_path / "no.npz")
    assert f"{tmp_path} has no sub-folder; a folder of images has a sub-folder a class" in failure(tmp_path)
    (tmp_path / "file").touch()
    assert f"the data folder {tmp_path / 'file'} is a file" in failure("cifar10", tmp_path / "file")


def never(*_):
    raise AssertionError("this must not be needed")


@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("cifar100", 100), ("svhn", 10)])
def test_a_named_set_comes_from_its_file_first(tmp_path, monkeypatch, name, num_classes):
    monkeypatch.setattr(prepared, "read_tfds", never)
    arrays = named(num_classes)
    write(tmp_path / f"{name}.npz", arrays)
    dataset = datasets.load(name, tmp_path)
    np.testing.assert_array_equal(dataset.train_images, arrays["train_images"])
    assert dataset.name == name
    assert dataset.num_classes == num_classes
    assert dataset.mean == (0.4914, 0.4822, 0.4465)
    assert dataset.std == (0.2023, 0.1994, 0.2010)
    monkeypatch.setenv(datasets.DATA_DIR_VARIABLE, str(tmp_path))
    assert datasets.load(name).num_classes == num_classes


def test_a_named_file_must_hold_that_set(tmp_path):
    write(tmp_path / "cifar10.npz", valid())
    assert "cifar10 has images (32, 32, 3), found (5, 4, 3)" in failure("cifar10", tmp_path)
    write(tmp_path / "cifar100.npz", named(10, class_names=np.array([str(label) for label in range(10)])))
    assert "10 class_names, but this set has 100 classes" in failure("cifar100", tmp_path)
    write(tmp_path / "svhn.npz", named(10) | {"test_labels": np.array([10, 0, 1, 2])})
    assert "label 10" in failure("svhn", tmp_path)


def test_what_was_decoded_is_kept(tmp_path, monkeypatch):
    arrays = named(10)
    monkeypatch.setattr(prepared, "read_tfds", lambda *_: arrays)
    folder = tmp_path / "new" / "folder"
    first = datasets.load("cifar10", folder)
    monkeypatch.setattr(prepared, "read_tfds", never)
    second = datasets.load("cifar10", folder)
    for name in sources.REQUIRED:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert os.listdir(folder) == ["cifar10.npz"]


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "read_tfds", lambda *_: named(10))
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"cannot keep .*cifar10.npz \(Not a directory\)") as caught:
        dataset = datasets.load("cifar10", tmp_path / "file" / "folder")
    assert len(dataset.train_labels) == 9
    assert caught[0].filename == __file__


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def fill(file, **_):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared, "read_tfds", lambda *_: named(10))
    monkeypatch.setattr(np, "savez", fill)
    with pytest.warns(UserWarning, match="No space left"):
        datasets.load("cifar10", tmp_path)
    assert os.listdir(tmp_path) == []


def test_without_tensorflow_datasets_the_message_has_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setitem(sys.modules, "importlib_resources", sys)
    message = failure("cifar10", tmp_path)
    for part in (
        str(tmp_path / "cifar10.npz"),
        "tensorflow_datasets",
        prepared.INSTALL_COMMAND,
        "train_images",
        "uint8",
    ):
        assert part in message
    assert os.listdir(tmp_path) == []


def test_digits():
    dataset = datasets.load("digits")
    assert dataset.train_images.shape == (600, 8, 8, 1)
    assert dataset.test_images.shape == (1_197, 8, 8, 1)
    assert dataset.num_classes == 10
    assert np.bincount(dataset.train_labels).min() > 40
    pixels = np.concatenate([dataset.train_images, dataset.test_images])
    assert np.mean((pixels == 0) | (pixels == 255)) < 0.002  # the noise is not clipped away


def test_digits_are_the_same_bytes_everywhere(monkeypatch):
    def checksum(dataset):
        arrays = [getattr(dataset, name) for name in sources.REQUIRED]
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    expected = "da32a8632194fd2e34eb2b2563e3783d9a9d1d133bae2e15e55281064bfc2ede"
    assert checksum(datasets.load("digits")) == expected
    # However scikit-learn lies on the disk: its own function gives the same.
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    assert checksum(datasets.load("digits")) == expected


def test_halves_of_the_digits_are_parts_of_the_whole():
    whole = datasets.load("digits")
    for name, first in (("digits_low", 0), ("digits_high", 5)):
        half = datasets.load(name)
        assert (half.name, half.num_classes) == (name, 5)
        for split in ("train", "test"):
            labels = getattr(whole, f"{split}_labels")
            own = (labels >= first) & (labels < first + 5)
            np.testing.assert_array_equal(getattr(half, f"{split}_labels"), labels[own] - first)
            np.testing.assert_array_equal(getattr(half, f"{split}_images"), getattr(whole, f"{split}_images")[own])
    assert "did you mean 'digits_high'?" in failure("digits-high")


def test_shifted_digits_are_digits_at_nine_places(monkeypatch):
    noisy = datasets.load("digits_shifted")
    assert (noisy.train_images.shape, noisy.test_images.shape) == ((2_700, 8, 8, 1), (1_497, 8, 8, 1))
    monkeypatch.setattr(embedded, "DIGITS_NOISE", 0)
    clean = datasets.load("digits_shifted")
    np.testing.assert_array_equal(clean.train_labels, noisy.train_labels)
    difference = noisy.train_images.astype(float) - clean.train_images
    assert difference.std() / 255 * 4 == pytest.approx(0.5, rel=0.01)
    # The digits that are not tested, each moved by a pixel at most, with paper where nothing was.
    digits, labels = embedded._clean_digits()
    ink = np.rint((digits / 16 + 1.5) / 4 * 255).astype(np.uint8).reshape(-1, 8, 8)
    tested = Counter(
        (image.tobytes(), label) for image, label in zip(clean.test_images, clean.test_labels, strict=True)
    )
    wanted = Counter()
    for image, label in zip(ink, labels, strict=True):
        if tested[image.tobytes(), label]:
            tested[image.tobytes(), label] -= 1
            continue
        framed = np.pad(image, 1, constant_values=round(1.5 / 4 * 255))
        for y, x in itertools.product(range(3), repeat=2):
            wanted[framed[y : y + 8, x : x + 8].tobytes(), label] += 1
    found = Counter(
        (image.tobytes(), label) for image, label in zip(clean.train_images, clean.train_labels, strict=True)
    )
    assert found == wanted


def test_digits_noise():
    clean, noisy = (embedded.noisy_digits(noise=noise) for noise in (0, 0.25))
    assert len(np.unique(clean["train_images"])) == 17
    assert clean["train_images"].min() == round(1.5 / 4 * 255)
    assert clean["train_images"].max() == round(2.5 / 4 * 255)
    np.testing.assert_array_equal(clean["train_labels"], noisy["train_labels"])
    difference = noisy["train_images"].astype(float) - clean["train_images"]
    assert difference.std() / 255 * 4 == pytest.approx(0.25, rel=0.01)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), num_samples=st.sampled_from([1, 7, 12]), increment=st.integers(1, 15))
def test_pools_are_nested_and_increments_disjoint(seed, num_samples, increment):
    order = datasets.pool_order(jax.random.key(seed), num_samples)
    assert order.dtype == np.int32
    arrivals = order.tolist()
    sizes = datasets.increment_sizes(num_samples, increment)
    pools = [set(arrivals[:size]) for size in (0, *sizes)]
    assert [len(pool) for pool in pools] == [0, *sizes]
    assert all(old <= new for old, new in itertools.pairwise(pools))
    assert sum(len(new - old) for old, new in itertools.pairwise(pools)) == num_samples
    assert pools[-1] == set(range(num_samples))


def test_pool_order_depends_on_the_key_alone():
    first, again, other = (datasets.pool_order(jax.random.key(seed), 50).tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first != list(range(50))


@given(total=st.integers(1, 10**6), increment=st.integers(100, 10**6))
def test_increment_sizes(total, increment):
    sizes = datasets.increment_sizes(total, increment)
    steps = np.diff([0, *sizes])
    assert sizes[-1] == total
    assert all(steps[:-1] == increment)
    assert 0 < steps[-1] <= increment


def test_increment_sizes_by_hand():
    assert datasets.increment_sizes(7, 3) == (3, 6, 7)
    assert datasets.increment_sizes(6, 3) == (3, 6)
    assert datasets.increment_sizes(2, 3) == (2,)
    for total, increment in ((0, 1), (5, 0), (5, -2)):
        with pytest.raises(DataError, match=f"got total {total} and increment {increment}"):
            datasets.increment_sizes(total, increment)


def test_take(tmp_path):
    arrays = valid(train_images=np.tile(np.arange(12, dtype=np.uint8)[:, None, None, None], (1, 5, 4, 3)))
    dataset = datasets.load(write(tmp_path / "own.npz", arrays))
    key = jax.random.key(0)
    small, larger = datasets.take(key, dataset, num_train=5), datasets.take(key, dataset, num_train=8, num_test=2)
    chosen = small.train_images[:, 0, 0, 0]
    assert len(set(chosen.tolist())) == 5
    np.testing.assert_array_equal(small.train_labels, chosen % 3)  # each image keeps its label
    np.testing.assert_array_equal(chosen, larger.train_images[:5, 0, 0, 0])
    assert (len(small.test_labels), len(larger.test_labels)) == (6, 2)
    assert (small.mean, small.std, small.num_classes) == (dataset.mean, dataset.std, 3)
    other = datasets.take(jax.random.key(1), dataset, num_train=5)
    assert other.train_images[:, 0, 0, 0].tolist() != chosen.tolist()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [({"num_train": 13}, "13 train images; possible: 2 to 12"), ({"num_test": 1}, "1 test images; possible: 2 to 6")],
)
def test_take_what_is_not_there(tmp_path, wanted, said):
    dataset = datasets.load(write(tmp_path / "own.npz", valid()))
    with pytest.raises(DataError, match=said):
        datasets.take(jax.random.key(0), dataset, **wanted)


def test_import_loads_no_heavy_package():
    heavy = "('sklearn', 'tensorflow_datasets', 'requests')"
    code = f"import sys, wsjax.data.datasets; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


REAL = os.environ.get(datasets.DATA_DIR_VARIABLE)


@pytest.mark.skipif(not REAL, reason=f"{datasets.DATA_DIR_VARIABLE} names no folder with cifar10.npz")
def test_real_cifar10():
    dataset = datasets.load("cifar10", REAL)
    assert dataset.train_images.shape == (50_000, 32, 32, 3)
    assert dataset.test_images.shape == (10_000, 32, 32, 3)
    assert set(np.bincount(dataset.train_labels)) == {5_000}
    assert set(np.bincount(dataset.test_labels)) == {1_000}
    assert dataset.class_names[0] == "airplane"
    mean, std = datasets.channel_statistics(dataset.train_images)
    np.testing.assert_allclose(mean, dataset.mean, atol=5e-5)
    np.testing.assert_allclose(std, (0.2470, 0.2435, 0.2616), atol=5e-5)


def test_images_without_a_split(tmp_path):
    images, labels = np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, 1])
    path = tmp_path / "day.npz"
    np.savez(path, images=images, labels=labels, class_names=np.array(["a", "b"]))
    read = datasets.read_images(path)
    assert (read.images.shape, read.labels.tolist(), read.class_names) == ((3, 4, 4, 1), [0, 1, 1], ("a", "b"))
    assert read.labels.dtype == np.int32
    np.savez(path, images=images, labels=labels + 2**32)
    with pytest.raises(DataError, match="has the label 4294967297; number the classes from 0 on"):
        datasets.read_images(path)
    np.savez(path, images=images, labels=labels, class_names=np.array(["a"]))
    with pytest.raises(DataError, match="class_names allow only 0 to 0"):
        datasets.read_images(path)
    np.savez(path, images=images)
    with pytest.raises(DataError, match=r"lacks labels; found: images; wanted: images .* and labels"):
        datasets.read_images(path)

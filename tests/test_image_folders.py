"""Folders of images: as the data set of an experiment, and as what comes in to a retraining job."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsjax.data import datasets, folders
from wsjax.errors import DataError
from wsjax.results.names import of_data
from wsjax.retraining.incoming import is_held_out, read_pool
from wsjax.scripts import config, run


def write(folder, count=30, size=(8, 8), form="png"):
    """Writes images that no folder of other names has, and returns their pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(os.fsencode(f"{folder.parent.name}/{folder.name}")))
    images = random.integers(0, 256, (count, *size, 3)).astype(np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03}.{form}")
    return images


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes."""
    write(tmp_path / "photos" / "cat")
    write(tmp_path / "photos" / "dog")
    return tmp_path / "photos"


def as_set(images):
    return {image.tobytes() for image in images}


def failure(path, **more):
    with pytest.raises(DataError) as caught:
        datasets.load(path, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_train_and_test(tmp_path):
    parts = {(split, name): write(tmp_path / split / name, 5) for split in ("train", "test") for name in ("b", "a")}
    (tmp_path / "train" / "c").mkdir()
    shutil.copy(tmp_path / "train" / "a" / "000.png", tmp_path / "train" / "c" / "000.PNG")  # its test has none
    dataset = datasets.load(tmp_path, image_size=8)
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.train_labels.tolist() == [0] * 5 + [1] * 5 + [2]
    assert dataset.test_labels.tolist() == [0] * 5 + [1] * 5
    np.testing.assert_array_equal(dataset.train_images[:5], parts["train", "a"])
    np.testing.assert_array_equal(dataset.test_images[5:], parts["test", "b"])
    assert dataset.mean == datasets.channel_statistics(dataset.train_images)[0]


def test_a_share_is_held_out_for_good_by_the_pixels(photos, tmp_path):
    dataset = datasets.load(str(photos), image_size=8)
    everything = np.concatenate([dataset.train_images, dataset.test_images])
    assert len(as_set(everything)) == 60
    for images, held_out in ((dataset.train_images, False), (dataset.test_images, True)):
        for image in images:
            assert is_held_out(hashlib.sha256(image.tobytes()).digest(), 0.1) is held_out
    (photos / "cat").rename(photos / "zebra")  # another order, more files: the same are held out
    write(photos / "ox")
    assert as_set(dataset.test_images) <= as_set(datasets.load(photos, image_size=8).test_images)


def test_images_are_resized(photos):
    write(photos / "cat", 30, (50, 70), "jpg")
    dataset = datasets.load(photos)
    assert dataset.train_images.shape[1:] == (32, 32, 3)
    assert len(dataset.train_labels) + len(dataset.test_labels) == 90


def test_numbers_are_ordered_by_value(tmp_path):
    for name in ("10", "9", "1"):
        write(tmp_path / name, 20)
    assert datasets.load(tmp_path, image_size=8).class_names == ("1", "9", "10")


def test_what_is_hidden_or_left_by_other_systems(photos):
    for path in (".DS_Store", "cat/.DS_Store", "cat/._000.png", "Thumbs.db", "dog/desktop.ini"):
        (photos / path).write_bytes(b"junk")
    for path in (".git", "__MACOSX", "cat/.cache"):
        (photos / path).mkdir()
    assert datasets.load(photos).class_names == ("cat", "dog")


def test_classes_may_be_called_train_and_test(tmp_path):
    for name in ("bus", "train", "test"):
        write(tmp_path / name, 20)
    assert datasets.load(tmp_path).class_names == ("bus", "test", "train")


def test_links_within_the_folder_are_followed(photos):
    (photos / "dog" / "link.png").symlink_to(photos / "cat" / "000.png")
    (photos / "wolf").symlink_to("dog")
    assert datasets.load(photos).class_names == ("cat", "dog", "wolf")
    (photos.parent / "link").symlink_to(photos)
    assert datasets.load(photos.parent / "link").class_names == ("cat", "dog", "wolf")


@pytest.mark.parametrize(
    ("name", "twin", "how"),
    [
        ("Caf\u00e9", "caf\u00e9", "in upper and lower case"),
        ("caf\u00e9", "cafe\u0301", "in how accents are encoded"),
        ("Caf\u00e9", "cafe\u0301", "in upper and lower case and in how accents are encoded"),
    ],
)
def test_in_what_names_differ(name, twin, how):
    assert folders._how(name, twin) == folders._how(twin, name) == how


def break_folder(photos, kind):
    """Does something to a folder that makes it a bad one, and returns (the file at fault, what is said of it)."""
    cat = photos / "cat"
    if kind == "truncated":
        path = cat / "000.png"
        path.write_bytes(path.read_bytes()[:120])
        return path, "is damaged ("
    if kind == "bomb":
        path = cat / "000.png"
        content = bytearray(path.read_bytes())
        content[16:24] = (60_000).to_bytes(4, "big") * 2
        content[29:33] = __import__("zlib").crc32(content[12:29]).to_bytes(4, "big")
        path.write_bytes(content)
        return path, "has more than 100,000,000 pixels"
    if kind == "text":
        path = cat / "notes.txt"
        path.write_text("hello")
        return path, "is no PNG or JPEG image"
    if kind == "pipe":
        os.mkfifo(cat / "a.png")
        return cat / "a.png", "Is a pipe, socket or device"
    if kind == "no link":
        (cat / "a.png").symlink_to("none.png")
        return cat / "a.png", "No such file or directory"
    if kind == "link out":
        outside = photos.parent / "secret.png"
        shutil.copy(cat / "000.png", outside)
        (cat / "a.png").symlink_to(outside)
        return cat / "a.png", "is a link that leads out of"
    if kind == "class out":
        write(photos.parent / "photos2" / "x")  # whose name begins like that of the folder
        (photos / "x").symlink_to(photos.parent / "photos2" / "x")
        return photos / "x", "is a link that leads out of"
    if kind == "empty":
        (photos / "bird").mkdir()
        (photos / "bird" / ".DS_Store").touch()
        return photos / "bird", "holds no image; put some in, or remove the folder"
    if kind == "case":
        write(photos / "Cat", 3)
        return cat, "differs from the class Cat in upper and lower case alone"
    if kind == "accent":
        write(photos / "e\u0301", 3)
        write(photos / "\u00e9", 3)
        return photos / "\u00e9", "differs from the class e\u0301 in how accents are encoded alone; rename one of them"
    if kind == "control":
        write(photos / "a\nb\x1b[2J", 3)
        return photos / "a\nb\x1b[2J", "a control character, or what is no UTF-8, in a class's name"
    if kind == "bytes":
        write(Path(os.fsdecode(os.fsencode(photos) + b"/caf\xe9")), 3)
        return Path(os.fsdecode(os.fsencode(photos) + b"/caf\xe9")), "what is no UTF-8, in a class's name"
    if kind == "beside":
        shutil.copy(cat / "000.png", photos / "a.png")
        return photos / "a.png", "lies beside the classes"
    if kind == "deep":
        write(cat / "kittens", 3)
        return cat / "kittens", "is a folder within a class"
    raise ValueError(kind)


BAD = (
    *("truncated", "bomb", "text", "pipe", "no link", "link out", "class out", "empty", "case", "accent", "control"),
    *("bytes", "beside", "deep"),
)


@pytest.mark.parametrize("kind", BAD)
def test_an_experiment_names_what_is_amiss(photos, kind):
    path, said = break_folder(photos, kind)
    with pytest.raises(DataError) as caught:
        datasets.load(photos)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", BAD)
def test_a_job_leaves_it_out_and_tells(photos, kind):
    before = size(job(photos)[0])
    path, said = break_folder(photos, kind)
    pool, lines = job(photos)
    (line,) = lines
    assert line.startswith("left out: ")
    assert said.encode("unicode_escape").decode() in line or said in line
    assert path.name in line or not path.name.isprintable()
    lost = {"truncated": 1, "bomb": 1, "case": 27}.get(kind, 0)  # of the twins the first by name stays
    more = {"accent": 3}.get(kind, 0)
    assert size(pool) == before - lost + more


def test_folders_that_are_none(tmp_path, photos, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert failure(tmp_path / "empty").startswith(f"{tmp_path / 'empty'} has no sub-folder; a folder of images has ")
    assert failure(photos / "cat").startswith(f"{photos / 'cat'} has no sub-folder; ")
    assert failure(photos / "cat").endswith(f"; is {photos / 'cat'} a class? Then give {photos}")
    monkeypatch.chdir(photos)
    assert failure("./cat").endswith(f"; is cat a class? Then give {photos}")
    shutil.rmtree(photos / "dog")
    assert failure(photos) == f"{photos}: the number of classes is 1; there must be 2 to tell apart"
    write(tmp_path / "few" / "a", 1)
    write(tmp_path / "few" / "b", 1)
    assert "of 2 images" in failure(tmp_path / "few")
    assert "give more images, or train/ and test/ above the classes" in failure(tmp_path / "few")


def test_splits_that_do_not_fit(tmp_path):
    for split, names in {"train": "ab", "test": "abc"}.items():
        for name in names:
            write(tmp_path / split / name, 3)
    assert failure(tmp_path).startswith(f"{tmp_path / 'test' / 'c'}: {tmp_path / 'train'} has no class of this name")
    shutil.rmtree(tmp_path / "test" / "c")
    (tmp_path / "val").mkdir()
    assert failure(tmp_path).startswith(f"{tmp_path / 'val'} lies beside train/ and test/, which are all that is read")


def test_a_size_that_cannot_be(photos, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros(1))
    for name in ("digits", "cifar10", str(tmp_path / "a.npz")):
        said = f"--image_size=8 is for folders of images and sets of tensorflow-datasets (tfds:NAME); {name} has a size"
        assert failure(name, image_size=8).startswith(said)
    assert failure(photos, image_size=0) == "--image_size must lie between 1 and 4,096, not 0"
    assert failure(photos, image_size="32") == "--image_size must lie between 1 and 4,096, not '32'"


def test_more_than_memory_is_refused_before_a_file_is_read(photos, monkeypatch):
    monkeypatch.setattr(folders, "read_content", lambda path: pytest.fail("it must not be read"))
    monkeypatch.setattr(os, "sysconf", lambda name: 300)
    said = f"{photos}: its arrays unpack to 0.000184 GB, more than this machine's memory"
    assert failure(photos) == said


def test_the_first_bad_file_ends_the_reading(photos, monkeypatch):
    (photos / "cat" / "000.png").write_bytes(b"")
    write(photos / "dog", 300)
    read, real = [], folders.read_content
    monkeypatch.setattr(folders, "read_content", lambda path: read.append(path) or real(path))
    assert "000.png is no PNG or JPEG image" in failure(photos)
    assert len(read) < 200


def test_what_a_data_set_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert of_data("cifar10") == "cifar10"
    assert of_data("some/photos") == of_data("~/photos/") == of_data("photos.npz") == "photos"
    assert of_data(".") == tmp_path.name
    assert of_data("tfds:mnist") == "mnist"
    assert of_data("tfds:cmaterdb/bangla:1.0.0") == "cmaterdb-bangla-1.0.0"


def test_an_experiment_on_a_folder(script, photos):
    own = config.Common(dataset=str(photos), image_size=8)
    assert config.run_name(own) == "photos-mlp-sgd"
    assert run.load_data(own).train_images.shape[1:] == (8, 8, 3)
    (photos / "cat" / "a\nb.png").write_bytes(b"")
    code, _, errors = script("offline", "--dataset", photos)
    assert code == 2
    assert errors.startswith(f"error: {photos}/cat/a\\nb.png is no PNG or JPEG image")
    assert errors.count("\n") == 1
    for size in ("-1", "5000"):
        code, _, errors = script("offline", "--dataset", photos, "--image_size", size)
        assert (code, errors.startswith("error: --image_size must be ")) == (2, True)


def job(*patterns, known=(), base=None, **more):
    """(pool, lines) of a retraining job's reading."""
    lines = []
    pool = read_pool([str(pattern) for pattern in patterns], known, base, 0.25, lines.append, **more)
    assert all(line.isprintable() for line in lines)
    return pool, lines


def size(pool):
    return len(pool.train[1]) + len(pool.held_out[1])


def base_of(pool):
    return {"class_names": pool.class_names, "image_shape": pool.train[0].shape[1:]}


def labels_by_name(pool):
    """Each image's class."""
    parts = (pool.train, pool.held_out)
    return {image.tobytes(): pool.class_names[label] for part in parts for image, label in zip(*part, strict=True)}


def test_a_folder_comes_in(photos):
    cats = as_set([np.asarray(Image.open(path)) for path in (photos / "cat").iterdir()])
    pool, lines = job(photos, image_size=8)
    assert lines == []
    assert pool.class_names == ("cat", "dog")
    (row,) = pool.files
    assert (row["path"], row["images"]) == (str(photos), 60)
    assert {image for image, name in labels_by_name(pool).items() if name == "cat"} == cats
    again, lines = job(photos, known=pool.files, base=base_of(pool))
    assert (lines, again.files) == ([], pool.files)  # 8 pixels, as the model has them
    assert again.samples.tolist() == pool.samples.tolist()


def test_an_image_or_a_class_in_place_of_a_folder_is_told_what_to_give(photos):
    (photos / "cat" / "000.png").rename(photos / "cat" / "000.JPG")
    _, lines = job(photos, photos / "cat" / "000.JPG", photos / "cat", image_size=8)
    assert [line.removeprefix("left out: ") for line in lines] == [
        f"{photos}/cat/000.JPG is one image; give the folder above the class folders, such as --data {photos}, where "
        "cat is a class",
        f"{photos}/cat has no sub-folder; a folder of images has a sub-folder a class with PNG or JPEG files, perhaps "
        f"below train/ and test/; is {photos}/cat a class? Then give {photos}",
    ]
    with pytest.raises(DataError, match=r"there is no image to train on: 60 files for .*/\*/\*$"):
        job(photos / "*" / "*")
    pool, lines = job(write_archive(photos.parent / "a.npz"), photos / "*" / "*", image_size=4)
    assert lines == [
        f"left out: {photos}/cat/000.JPG and 59 more are images; give the folder above the class folders, such as "
        f"--data {photos}, where cat is a class"
    ]
    assert pool.unused == (f"{photos}/cat/000.JPG and 59 more",)


def test_classes_are_known_by_their_names(photos, tmp_path):
    pool, _ = job(photos, image_size=8)
    write(tmp_path / "more" / "dog")
    write(tmp_path / "more" / "ant")
    (tmp_path / "more" / "bee").mkdir()  # no class before it has an image
    later, lines = job(photos, tmp_path / "more", known=pool.files, base=base_of(pool))
    assert later.class_names == ("cat", "dog", "ant")
    assert lines == [f"left out: {tmp_path}/more/bee holds no image; put some in, or remove the folder"]
    assert sorted(labels_by_name(later).values()) == ["ant"] * 30 + ["cat"] * 30 + ["dog"] * 60
    write(tmp_path / "odd" / "DOG")
    write(tmp_path / "odd" / "cat", 1)
    _, lines = job(photos, tmp_path / "odd", known=pool.files, base=base_of(pool))
    assert len(lines) == 1
    assert lines[0].startswith(f"left out: {tmp_path}/odd/DOG differs from the class dog in upper and lower case alone")


def test_a_folder_beside_archives(photos, tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 12, 12, 3)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) % 2, class_names=np.array(["dog", "ox"]))
    pool, lines = job(tmp_path / "*")  # 12 pixels, as those of the archive
    assert lines == []
    assert pool.class_names == ("dog", "ox", "cat")
    assert (size(pool), pool.train[0].shape[1:]) == (100, (12, 12, 3))
    with pytest.raises(DataError, match=r"photos: images of \(8, 8, 3\) where .*a\.npz has \(12, 12, 3\)"):
        job(tmp_path / "*", image_size=8)


def test_a_test_folder_is_left_alone(tmp_path):
    known = {split: [write(tmp_path / split / name) for name in "ab"] for split in ("train", "test")}
    pool, lines = job(tmp_path, image_size=8)
    assert lines == [f"left out: {tmp_path}/test is not read: images are held out by a hash of their pixels"]
    assert labels_by_name(pool).keys() == as_set(np.concatenate(known["train"]))


def test_many_bad_files_do_not_fill_the_mail(photos):
    for number in range(50):
        (photos / "cat" / f"{number}.txt").touch()
    pool, lines = job(photos)
    assert size(pool) == 60
    assert len(lines) == 21
    assert lines[-1] == f"left out: 30 more files of {photos}"


def test_a_folder_without_an_image_is_left_out(photos, tmp_path):
    for path in ("empty", "nested/a/b", "texts/a"):
        (tmp_path / "x" / path).mkdir(parents=True)
    (tmp_path / "x" / "texts" / "a" / "a.txt").touch()
    pool, lines = job(photos, tmp_path / "x" / "*")
    assert size(pool) == 60
    assert [line.partition(f"{tmp_path}/x/")[2].partition(";")[0] for line in lines] == [
        "empty has no sub-folder",
        "nested: not one image could be read",
        "nested/a/b is a folder within a class",
        "texts: not one image could be read",
        "texts/a/a.txt is no PNG or JPEG image, or only the beginning of one",
    ]


def test_more_than_the_limit_is_left_out(photos, tmp_path):
    _, lines = job(photos, write_archive(tmp_path / "a.npz"), image_size=32, max_gigabytes=1e-4)
    assert lines == [f"left out: {photos}: its arrays unpack to 0.000184 GB, more than --max_gigabytes=0.0001"]


def write_archive(path):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
    np.savez(path, images=images, labels=np.arange(40) % 2)
    return path


def test_a_folder_that_changes_moves_or_goes(photos):
    pool, _ = job(photos)
    base = base_of(pool)
    write(photos / "cat", 31)
    (photos / "dog" / "bad.png").touch()
    changed, lines = job(photos, known=pool.files, base=base)
    assert lines == [
        f"left out: {photos}/dog/bad.png is no PNG or JPEG image, or only the beginning of one; "
        "remove the file, or write it anew",
        f"{photos} changed since it was trained on: its present images count",
    ]
    moved = photos.rename(photos.parent / "moved")
    again, lines = job(moved, known=changed.files, base=base)
    assert lines[0] == f"{photos} is now {moved}"
    assert (again.files[0]["path"], again.samples.tolist()) == (str(moved), changed.samples.tolist())
    shutil.rmtree(moved)
    nothing, lines = job(moved, known=again.files, base=base)
    assert (nothing, lines) == (None, [f"{moved} is gone: its 61 images are no longer trained on"])

"""The data files of the retraining job: which there are, which are left out, and that neither stops a call."""

import errno
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsjax.data import datasets, sources
from wsjax.errors import DataError, LeftOut
from wsjax.retraining import incoming
from wsjax.retraining.incoming import read_pool


def make_images(count, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 1)).astype(np.uint8)
    return images, np.arange(count) % 2


def write(path, count=40, seed=0, **more):
    images, labels = make_images(count, seed)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{"images": images, "labels": labels, **more})
    return path


class Said(list):
    """Lines that were said, one a call."""

    def __call__(self, line):
        assert line.isprintable()
        self.append(line)


def read(patterns, known=(), base=None, **more):
    """(pool, lines)."""
    lines = Said()
    pool = read_pool([str(pattern) for pattern in patterns], known, base, 0.25, lines, **more)
    return pool, lines


def paths(pool):
    return [Path(row["path"]) for row in pool.files]


def size(pool):
    return len(pool.train[1]) + len(pool.held_out[1])


def test_every_fault_is_its_own_files(tmp_path):
    good = write(tmp_path / "good.npz")
    (tmp_path / "half.npz").write_bytes(good.read_bytes()[:-100])
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "gone.npz").symlink_to("nothing")
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    (tmp_path / "device.npz").symlink_to("/dev/zero")
    write(tmp_path / "names.npz", class_names=np.array([b"\xff", b"a"]))
    write(tmp_path / "durations.npz", labels=np.arange(40).astype("m8[s]"))
    write(tmp_path / "twice.npz", class_names=np.array(["a", "a"]))
    pool, lines = read([tmp_path / "*.npz"])
    assert paths(pool) == [good]
    bad = sorted(set(tmp_path.iterdir()) - {good})
    assert len(lines) == len(bad) == 9
    for path, line in zip(bad, lines, strict=True):
        assert line.startswith("left out: ")
        assert str(path) in line


def test_too_little_memory_is_no_fault_of_a_files(tmp_path, monkeypatch):
    path = write(tmp_path / "a.npz")

    def read_array(archive, member):
        raise MemoryError("Unable to allocate 7 TiB")

    monkeypatch.setattr(sources, "_read_array", read_array)
    with pytest.raises(MemoryError, match=f"^{re.escape(str(path))}: Unable to allocate 7 TiB$"):
        read([path])


def test_a_known_file_that_cannot_be_read_stays_known(tmp_path):
    first, second = write(tmp_path / "a.npz"), write(tmp_path / "b.npz", seed=1)
    pool, _ = read([tmp_path / "*.npz"])
    second.write_bytes(b"half an upload")
    base = {"class_names": pool.class_names, "image_shape": (4, 4, 1)}
    again, lines = read([tmp_path / "*.npz"], pool.files, base)
    assert paths(again) == [first, second]
    assert (size(pool), size(again)) == (80, 40)
    assert [line.startswith(f"left out: {second} is not a .npz archive") for line in lines] == [True]


@pytest.mark.parametrize("name", ["day[1].npz", "*.npz", "[ab].npz", "a?.npz", "~day.npz"])
def test_a_path_that_exists_is_that_path(tmp_path, monkeypatch, name):
    write(tmp_path / "a.npz", seed=1)
    write(tmp_path / "day1.npz", seed=2)
    path = write(tmp_path / name)
    assert paths(read([path])[0]) == [path]
    monkeypatch.chdir(tmp_path)
    assert paths(read([f"./{name}"])[0]) == [path]
    known = [{"path": str(path), "sha256": "0" * 64, "images": 40}]
    path.unlink()
    _, lines = read([path, "a.npz"], known)
    assert lines == [f"{path} is gone: its 40 images are no longer trained on"]


@pytest.mark.parametrize("folder", ["plain", "with [brackets]"])
def test_patterns_start_from_here_or_from_a_home(tmp_path, monkeypatch, folder):
    (tmp_path / folder / "in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    monkeypatch.setenv("HOME", str(tmp_path / folder))
    path = write(tmp_path / folder / "in" / "a.npz")
    for pattern in ("in/*.npz", "~/in/*.npz", "**/*.npz", "~/in/a.npz", "in/[a].npz", "in/../in/?.npz"):
        assert [each.resolve() for each in paths(read([pattern])[0])] == [path.resolve()]
    path.unlink()
    known = [{"path": str(path), "sha256": "0" * 64, "images": 40}]
    assert read([path], known)[0] is None  # it is named, known and gone: that is told, and no error
    for pattern in ("in/*.npz", "~/in/*.npz", "in/**/*.npz"):  # which match nothing any more
        with pytest.raises(DataError, match=rf"no file matches {re.escape(pattern)}$"):
            read([pattern], known)


def refuse_to_look(monkeypatch, folder, number):
    """Has the system refuse, by an error's number, to list a folder, and whatever is asked about files in it."""

    def refusing(real, start):
        def call(path, *args, **more):
            if str(path).startswith(start):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *args, **more)

        return call

    for name in ("stat", "lstat", "open"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), f"{folder}{os.sep}"))
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), str(folder)))


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO])
def test_a_known_file_that_cannot_be_looked_at_is_not_gone(tmp_path, monkeypatch, number):
    first, second = write(tmp_path / "a" / "1.npz"), write(tmp_path / "2.npz", seed=1)
    pool, _ = read([tmp_path / "**" / "*.npz"])
    assert paths(pool) == [second, first]
    base = {"class_names": pool.class_names, "image_shape": (4, 4, 1)}
    refuse_to_look(monkeypatch, tmp_path / "a", number)
    said = f"left out: cannot read {first}: {os.strerror(number)}; give the path of a .npz file"
    for patterns in ([second], [first, second], [second, tmp_path / "a" / "*.npz"], [tmp_path / "*.npz"]):
        again, lines = read(patterns, pool.files, base)
        assert lines == [said]
        assert (again.files, again.unused, size(again)) == (pool.files, (str(first),), 40)
    with pytest.raises(LeftOut, match=r"unless in what could not be used \(.*/a/1\.npz\)"):
        read([tmp_path / "a" / "*.npz"], pool.files[1:], base)
    with pytest.raises(DataError, match=rf"no file matches .*/a/\*\.npz \(cannot read .*/a: {os.strerror(number)}\)$"):
        read([tmp_path / "a" / "*.npz"])
    new, lines = read([second, tmp_path / "a" / "3.npz"])
    assert (paths(new), lines) == ([second], [said.replace("1.npz", "3.npz")])


def test_a_known_link_to_nothing_is_left_out(tmp_path):
    kept = write(tmp_path / "kept" / "1.npz")
    link, other = tmp_path / "1.npz", write(tmp_path / "2.npz", seed=1)
    link.symlink_to(kept)
    pool, _ = read([tmp_path / "*.npz"])
    kept.unlink()
    again, lines = read([other], pool.files, {"class_names": pool.class_names, "image_shape": (4, 4, 1)})
    assert paths(again) == [link, other]
    assert lines == [f"left out: cannot read {link}: No such file or directory; give the path of a .npz file"]


def test_a_file_counts_once_however_many_links_lead_to_it(tmp_path):
    folder = tmp_path / "in"
    (folder / "z").mkdir(parents=True)
    files = [write(folder / "b.npz"), write(folder / "z" / "c.npz", seed=1)]
    (folder / "a").symlink_to(".")  # a loop
    (folder / "latest.npz").symlink_to(files[1])
    pool, lines = read([folder / "**" / "*.npz"])
    assert (paths(pool), lines) == (files, [])
    base = {"class_names": pool.class_names, "image_shape": (4, 4, 1)}
    known = [{**row, "path": row["path"].replace("/in/", "/in/a/")} for row in pool.files]  # by another way
    again, lines = read([folder / "**" / "*.npz"], known, base)
    assert (again.files, lines) == (known, [])
    again, lines = read([folder / "*.npz"], [*known, *pool.files], base)  # of a model that has each twice
    assert (again.files, lines) == (pool.files, [])


def test_many_files_that_are_left_out_do_not_fill_the_mail(tmp_path):
    good = write(tmp_path / "good.npz")
    for number in range(30):
        (tmp_path / f"{number}.npz").touch()
    pool, lines = read([tmp_path / "*.npz"])
    assert (paths(pool), len(pool.unused), len(lines)) == ([good], 30, 21)
    assert lines[-1] == "left out: 10 more files and folders"
    known = [{"path": str(tmp_path / f"gone{number}"), "sha256": 64 * "0", "images": 7} for number in range(30)]
    lines = read([good], known)[1]
    assert len(lines) == 21
    assert lines[-1] == "10 more files are gone: their 70 images are no longer trained on"


def test_a_pattern_that_matches_nothing(tmp_path):
    path = write(tmp_path / "a.npz")
    pool, lines = read([path, tmp_path / "x*.npz", tmp_path / "b[1].npz"])
    assert paths(pool) == [path]
    assert lines == [f"no file matches {tmp_path / 'x*.npz'}", f"no file matches {tmp_path / 'b[1].npz'}"]
    base = {"class_names": pool.class_names, "image_shape": (4, 4, 1)}
    for known, model in (((), None), (pool.files, base)):
        with pytest.raises(DataError, match=r"no file matches .*x\*\.npz, .*y\*\.npz$"):
            read([tmp_path / "x*.npz", tmp_path / "y*.npz"], known, model)
        with pytest.raises(DataError, match=r"no such data file: .*b\.npz$"):
            read([path, tmp_path / "b.npz"], known, model)
        with pytest.raises(DataError, match=r"^~no-such-user/\*\.npz: there is no home folder"):
            read([path, "~no-such-user/*.npz"], known, model)


def test_what_could_not_be_used_is_told_beside_the_images(tmp_path):
    path = write(tmp_path / "a.npz")
    half = tmp_path / "b.npz"
    half.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    for number, image in enumerate(make_images(40)[0]):
        Image.fromarray(image[..., 0]).save(tmp_path / "photos" / "cat" / f"{number}.png")
    (tmp_path / "photos" / "cat" / "b.png").write_bytes(b"")  # a part of a folder is no file that was given
    write(tmp_path / "c.npz", images=np.zeros((40, 4, 4, 3), np.uint8))
    pool, _ = read([path, tmp_path / "c.npz"], (), {"class_names": ("0", "1"), "image_shape": (4, 4, 1)})
    assert pool.unused == (str(tmp_path / "c.npz"),)
    pool, _ = read([path, half, tmp_path / "x*.npz"])
    assert pool.unused == (str(tmp_path / "x*.npz"), str(half))
    assert read([tmp_path / "photos"])[0].unused == ()
    path.unlink()
    with pytest.raises(LeftOut, match=r"no new data, unless in what could not be used \(.*/b\.npz\): nothing changed"):
        read([path, half], pool.files)


def test_names_cannot_forge_a_line(tmp_path):
    odd = write(tmp_path / "a\nmodel 7 is current\x1b[2J.npz")
    pool, _ = read([odd])
    assert paths(pool) == [odd]
    base = {"class_names": pool.class_names, "image_shape": (4, 4, 1)}
    shown = f"{tmp_path}/a\\nmodel 7 is current\\x1b[2J.npz"

    write(odd, seed=1, class_names=np.array(["0", "1", "\u202eeerht"]))
    assert read([odd], pool.files, base)[1] == [
        f"{shown} changed since it was trained on: its present images count",
    ]
    write(odd)
    moved = odd.rename(tmp_path / "b\r.npz")
    write(tmp_path / "c\n.npz", class_names=np.array(["\u202eeno", "owt"]))
    write(tmp_path / "d\n.npz", 3, labels=np.zeros(2, int))
    _, lines = read([moved, tmp_path / "*.npz", tmp_path / "\x1b*"], pool.files, base)
    assert lines == [
        f"no file matches {tmp_path}/\\x1b*",
        f"{shown} is now {tmp_path}/b\\r.npz",
        f"left out: {tmp_path}/d\\n.npz: labels has the shape (2,); the 3 images need [3]",
        "40 images came more than once and count once",
    ]


def test_all_images_together_have_a_limit(tmp_path):
    for seed, name in enumerate("abc"):
        write(tmp_path / f"{name}.npz", 400, seed=seed)
    write(tmp_path / "d.npz", 400, seed=0)  # the images of a.npz again
    write(tmp_path / "e.npz", 10, seed=3)
    image = make_images(1)[0].nbytes
    pool, lines = read([tmp_path / "*.npz"], max_gigabytes=950 * image / 1e9)
    assert [path.name for path in paths(pool)] == ["a.npz", "b.npz", "d.npz", "e.npz"]
    assert size(pool) == 810
    limit = r"--max_gigabytes=1.52e-05"
    assert lines == [
        f"left out: {tmp_path / 'c.npz'}: with it all images come to 1.92e-05 GB, more than {limit}",
        "400 images came more than once and count once",
    ]
    assert size(read([tmp_path / "*.npz"], max_gigabytes=1210 * image / 1e9)[0]) == 1210


def test_a_file_of_known_images_takes_no_memory(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2_000, 32, 32, 1)).astype(np.uint8)
    for name in "abcdefgh":
        images[0] = ord(name)  # one is new
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(2_000) % 2)
    tracemalloc.start()
    found = incoming._Found()
    for path in sorted(tmp_path.iterdir()):
        found.add(path, 1.0)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.images) == 2_007
    assert found.duplicates == 13_993
    assert images.nbytes < held < 2 * images.nbytes
    assert peak < 5 * images.nbytes


def test_a_file_that_is_left_out_leaves_nothing(tmp_path):
    found = incoming._Found()
    found.add(write(tmp_path / "a.npz", 400), 1.0)
    before = (found.class_names, found.shape, dict(found.labels), found.duplicates, found.corrected)
    for path in (
        write(tmp_path / "b.npz", seed=1, class_names=np.array(["x", "x", "y"])),
        write(tmp_path / "c.npz", seed=1, images=np.zeros((40, 5, 4, 1), np.uint8)),
        write(tmp_path / "d.npz", labels=np.arange(40) % 2 + 5),
    ):
        with pytest.raises(DataError):
            found.add(path, 1.0)
    with pytest.raises(DataError, match=r"f\.npz: with it all images come to .* GB, more than --max_gigabytes="):
        found.add(write(tmp_path / "f.npz", 400, seed=1, class_names=np.array(["0", "1", "2"])), 12e-6)
    assert before == (found.class_names, found.shape, dict(found.labels), found.duplicates, found.corrected)


def test_the_row_has_the_hash_of_what_was_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.npz")
    one, other = path.read_bytes(), write(tmp_path / "b.npz", seed=1).read_bytes()
    contents = {datasets.read_images(tmp_path / name).sha256: seed for seed, name in enumerate(("a.npz", "b.npz"))}
    real = datasets.sources.read_npz

    def uploaded(*args):  # another file comes while this one is read
        path.write_bytes(other if path.read_bytes() == one else one)
        return real(*args)

    monkeypatch.setattr(datasets.sources, "read_npz", uploaded)
    for _ in range(2):
        pool, _ = read([path])
        seed = contents[pool.files[0]["sha256"]]
        expected = {image.tobytes() for image in make_images(40, seed)[0]}
        assert {image.tobytes() for part in (pool.train, pool.held_out) for image in part[0]} == expected


def test_a_file_that_vanishes_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "a.npz")
    write(tmp_path / "b.npz", seed=1)
    real = incoming.in_order

    def in_order(*args):
        files = real(*args)
        path.unlink()
        return files

    monkeypatch.setattr(incoming, "in_order", in_order)
    pool, lines = read([tmp_path / "*.npz"])
    assert paths(pool) == [tmp_path / "b.npz"]
    assert lines == [f"left out: cannot read {path}: No such file or directory; give the path of a .npz file"]


def test_many_class_names_do_not_fill_the_terminal(tmp_path):
    base = {"class_names": ("0", "1"), "image_shape": (4, 4, 1)}
    write(tmp_path / "a.npz", class_names=np.array([f"class {number}" for number in range(90_000)]))
    write(tmp_path / "b.npz", seed=1, class_names=np.array([f"other {number}" for number in range(90_000)]))
    (line,) = read([tmp_path / "*.npz"], base=base)[1]
    assert line.startswith(f"left out: {tmp_path / 'b.npz'}: class_names ")
    assert "and 89,980 more" in line
    assert len(line) < 2_000


@pytest.mark.parametrize(("names", "labels"), [("013", [0, 1, 2, 3]), ("02", [1] * 4), ("013", [3, 0, 1, 1])])
def test_a_label_that_may_be_a_place_or_a_name_is_left_out(tmp_path, names, labels):
    for number, name in enumerate(names):
        (tmp_path / "gap" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(make_images(1, 10 * number + i)[0][0, ..., 0]).save(tmp_path / "gap" / name / f"{i}.png")
    images = np.random.default_rng(99).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    path = write(tmp_path / "gap.npz", images=images, labels=np.array(labels))
    pool, lines = read([tmp_path / "gap", path])
    assert pool.class_names == tuple(names)
    assert len(lines) == 1
    assert re.match(
        rf"left out: {path}: the label [231] may be a place or a name among the known classes, 0, ", lines[0]
    )
    write(path, images=images, labels=np.array(labels) % 2, class_names=np.array(list(names)))
    assert len(read([tmp_path / "gap", path])[0].files) == 2


def test_numbers_that_are_their_own_labels_are_no_riddle():
    known = ("00", "01")
    assert incoming._merge_classes(known, None, {0, 1, 2, 3}, Path("a")) == (*known, "2", "3")
    assert incoming._merge_classes((*known, "cat"), None, {0, 1}, Path("a")) == (*known, "cat")
    with pytest.raises(
        DataError, match=r"a: with its class_names, cat, two classes would have one name; known .*0, cat$"
    ):
        incoming._merge_classes(("0", "cat"), ("cat",), {0}, Path("a"))


def test_labels_without_names_after_classes_with_names_are_left_out(tmp_path):
    first = write(tmp_path / "a.npz", class_names=np.array(["cat", "dog"]))
    pool, _ = read([first])
    base = {"class_names": pool.class_names, "image_shape": (4, 4, 1)}
    path = write(tmp_path / "b.npz", seed=1)
    for labels, named in ((np.arange(40) % 2, 0), (np.full(40, 2), 2)):
        write(path, seed=1, labels=labels)
        again, lines = read([first, path], pool.files, base)
        assert paths(again) == [first]
        assert lines == [
            f"left out: {path}: the label {named} has no name where the known classes have, cat, dog; "
            "add class_names, with the known ones first"
        ]
    write(path, seed=1, labels=np.full(40, 2), class_names=np.array(["cat", "dog", "eel"]))
    assert read([first, path], pool.files, base)[0].class_names == ("cat", "dog", "eel")


def test_labels_that_were_trained_on_stay_what_they_are(tmp_path):
    """A later file gave the numbers their names, or an older version did not ask for them."""
    numbered = write(tmp_path / "a.npz")
    named = write(tmp_path / "b.npz", seed=1, class_names=np.array(["cat", "dog"]))
    pool, lines = read([numbered, named])
    assert (pool.class_names, lines) == (("cat", "dog"), [])
    base = {"class_names": pool.class_names, "image_shape": (4, 4, 1)}
    again, lines = read([numbered, named], pool.files, base)
    assert (paths(again), lines) == ([numbered, named], [])
    write(numbered, seed=2)  # other images: whose labels are meant cannot be told
    again, lines = read([numbered, named], pool.files, base)
    assert lines[0].startswith(f"left out: {numbered}: the label 0 has no name where the known classes have, cat, dog;")
    assert size(again) == 40


def test_a_file_is_one_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    path = write(tmp_path / "in" / "a.npz")
    monkeypatch.chdir(tmp_path / "in")
    for pattern in ("../in/a.npz", "./deep/../a.npz", "../in/*.npz"):
        assert paths(read([pattern, "a.npz"])[0]) == [path]
    stored = [{"path": f"{tmp_path}/in/../in/a.npz", "sha256": read(["a.npz"])[0].files[0]["sha256"], "images": 40}]
    pool, lines = read(["a.npz"], stored, {"class_names": ("0", "1"), "image_shape": (4, 4, 1)})
    assert (paths(pool), lines) == ([path], [])
    other = write(tmp_path / "b.npz", seed=1)
    (tmp_path / "link").symlink_to(tmp_path / "in" / "deep")
    assert paths(read([f"{tmp_path}/link/../a.npz"])[0]) == [tmp_path / "link" / ".." / "a.npz"]
    path.unlink()
    assert read(["../in/*.npz", other], stored)[1] == [
        "no file matches ../in/*.npz",
        f"{path} is gone: its 40 images are no longer trained on",
    ]


def test_the_scripts_limit_reaches_the_files(tmp_path):
    path = write(tmp_path / "a.npz")
    command = [sys.executable, "-c", "from wsjax.commands.main import main; main()", "retrain"]
    line = [*command, "--model_dir", str(tmp_path / "model"), "--data", str(path)]
    done = subprocess.run([*line, "--max_gigabytes=1e-6"], capture_output=True, text=True)
    assert done.returncode == 2
    said = " ".join(done.stdout.split())
    assert said.startswith(f"left out: {path} has ")
    assert said.endswith(" GB, more than --max_gigabytes=1e-06")
    assert done.stderr.startswith("error: there is no image to train on")
    assert done.stderr.count("\n") == 1
    done = subprocess.run([*line, "--max_gigabytes=0"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --max_gigabytes must be positive, not 0.0\n")


def test_a_moved_folder_is_known_whatever_was_left_out_of_it(tmp_path):
    rng = np.random.default_rng(0)

    def photos(folder, *classes):
        for number in range(40):
            (folder / classes[number % 2]).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            image.save(folder / classes[number % 2] / f"{number}.png")

    photos(tmp_path / "a", "cat", "dog")
    photos(tmp_path / "b", "cat", "Dog")  # which differs from dog in its case alone, and is left out
    pool, _ = read([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b").rename(tmp_path / "c")
    base = {"class_names": pool.class_names, "image_shape": pool.train[0].shape[1:]}
    again, lines = read([tmp_path / "a", tmp_path / "c"], pool.files, base)
    assert paths(again) == [tmp_path / "a", tmp_path / "c"]
    assert f"{tmp_path / 'b'} is now {tmp_path / 'c'}" in lines

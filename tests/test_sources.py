"""What files may hold: nothing is believed, nothing unpickled, and whatever is wrong with one is a DataError."""

import contextlib
import http.server
import io
import os
import random
import socket
import struct
import threading
import time
import tracemalloc
import zipfile
from collections import Counter

import numpy as np
import pytest

from wsjax.data import datasets, prepared, sources
from wsjax.data.datasets import read_images
from wsjax.errors import DataError

IMAGES = np.arange(60 * 4 * 4).reshape(60, 4, 4, 1).astype(np.uint8)
LABELS = np.arange(60) % 3
NAMES = np.array(["cat", "dog", "fox"])


def npy(array, version=None):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), version)
    return buffer.getvalue()


def header(descr="|u1", shape="(60, 4, 4, 1)", rest="", version=1):
    """The header of an array, with whatever is written in it."""
    body = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, {rest}}}".encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(body)) + body


def archive(path, compression=zipfile.ZIP_STORED, **members):
    """A data file of whatever members are given in place of its own, as bytes; None leaves one out."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in ({"images": npy(IMAGES), "labels": npy(LABELS)} | members).items():
            if content is not None:
                file.writestr(f"{name}.npy", content)
    return path


def patch(path, name, **fields):
    """Changes what the archive's directory tells of a member."""
    places = {"flags": (8, "<H"), "method": (10, "<H"), "crc": (16, "<I"), "packed": (20, "<I"), "size": (24, "<I")}
    content = bytearray(path.read_bytes())
    entry = content.rindex(f"{name}.npy".encode()) - 46
    assert content[entry : entry + 4] == b"PK\x01\x02"
    for field, value in fields.items():
        offset, form = places[field]
        struct.pack_into(form, content, entry + offset, value)
    path.write_bytes(content)
    return path


def failure(path, **limit):
    """What is said of a file that cannot be read, having allocated next to nothing."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            read_images(path, **limit)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable()
    return message


def test_what_numpy_writes_is_read(tmp_path):
    ways = {
        "stored": lambda path: np.savez(path, images=IMAGES, labels=LABELS, class_names=NAMES, other=np.ones(3)),
        "packed": lambda path: np.savez_compressed(path, images=IMAGES, labels=LABELS, class_names=NAMES),
        "fortran": lambda path: np.savez(path, images=np.asfortranarray(IMAGES), labels=LABELS, class_names=NAMES),
        "unsigned": lambda path: np.savez(path, images=IMAGES, labels=LABELS.astype(np.uint64), class_names=NAMES),
        "big-endian": lambda path: np.savez(path, images=IMAGES, labels=LABELS.astype(">i4"), class_names=NAMES),
        "version 2": lambda path: archive(
            path, images=npy(IMAGES, (2, 0)), labels=npy(LABELS, (2, 0)), class_names=npy(NAMES)
        ),
        "Python 2": lambda path: archive(
            path, images=header(shape="(60L, 4L, 4L, 1L)") + IMAGES.tobytes(), class_names=npy(NAMES)
        ),
        "UTF-8": lambda path: np.savez(path, images=IMAGES, labels=LABELS, class_names=np.char.encode(NAMES, "utf-8")),
    }
    for name, save in ways.items():
        path = tmp_path / f"{name}.npz"
        save(path)
        read = read_images(path)
        np.testing.assert_array_equal(read.images, IMAGES)
        np.testing.assert_array_equal(read.labels, LABELS)
        assert (read.images.dtype, read.labels.dtype, read.class_names) == (np.uint8, np.int32, ("cat", "dog", "fox"))


def test_class_names_may_be_of_any_language(tmp_path):
    texts = ("Katze", "\u0645\u06cc\u200c\u0634\u0648\u062f", "狐 \N{FOX FACE}")
    names = np.array([text.encode() for text in texts])
    assert read_images(archive(tmp_path / "day.npz", class_names=npy(names))).class_names == texts
    assert read_images(archive(tmp_path / "day.npz", class_names=npy(np.array(texts)))).class_names == texts


BIG = 10**12
BAD_MEMBERS = {
    "no magic": ({"images": b"hello"}, "'images' (its header is damaged)"),
    "nothing": ({"images": b""}, "'images' (its header is damaged)"),
    "an open header": ({"labels": header(shape="(60,")}, "'labels' (its header is damaged)"),
    "an odd type": ({"images": header(("u1",))}, "'images' (its header is damaged)"),
    "a deep header": ({"images": header(shape="(" * 5000)}, "'images' (its header is damaged)"),
    "a deeper header": ({"images": header(shape="-" * 9000 + "1")}, "'images' (its header is damaged)"),
    "a long header": ({"images": header(rest=" " * 30_000)}, "'images' (its header is damaged)"),
    "a header of a later version": ({"images": header(version=3)}, "'images' (its header is damaged)"),
    "a header of 4 GB": ({"images": b"\x93NUMPY\x02\0\xff\xff\xff\xff{"}, "'images' (its header is damaged)"),
    "no shape": ({"images": header(shape="None")}, "'images' (its header is damaged)"),
    "10^12 images": ({"images": header(shape=f"({BIG}, 8, 8, 1)")}, "another size than it has"),
    "10^300 images": ({"images": header(shape=f"({10**300}, 8, 8, 1)")}, "another size than it has"),
    "10^12 images of no size": ({"images": header(shape=f"({BIG}, 0, 8, 1)")}, "(1000000000000, 0, 8, 1)"),
    "no images of 10^300 pixels": ({"images": header(shape=f"(0, {10**300}, 8, 1)")}, "'images' ("),
    "a hundred axes": ({"images": header(shape=str((1,) * 100)) + b"0"}, "'images' ("),
    "fewer than it has": ({"images": header(shape="(59, 4, 4, 1)") + IMAGES.tobytes()}, "another size than it has"),
    "more than it has": ({"images": header(shape="(61, 4, 4, 1)") + IMAGES.tobytes()}, "another size than it has"),
    "negative sizes": ({"images": header(shape="(-60, -4, 4, 1)") + IMAGES.tobytes()}, "not numbers from 0 on"),
    "truth for a size": ({"images": header(shape="(60, 4, 4, True)") + IMAGES.tobytes()}, "not numbers from 0 on"),
    "a broken size": ({"images": header(shape="(60, 4, 4, 1.0)") + IMAGES.tobytes()}, "header is damaged"),
    "objects": ({"labels": header("|O", "(60,)") + b"0" * 480}, "of the type object"),
    "records": ({"labels": npy(np.zeros(60, [("label", int)]))}, "of the type [('label', '<i8')]"),
    "arrays of arrays": ({"labels": header("(2,)i4", "(60,)") + b"\0" * 480}, "'labels' ("),
    "durations": ({"labels": npy(LABELS.astype("m8[s]"))}, "of the type timedelta64[s]"),
    "dates": ({"labels": npy(LABELS.astype("M8[s]"))}, "of the type datetime64[s]"),
    "truth for labels": ({"labels": npy(LABELS > 0)}, "labels is bool; it must be integers"),
    "labels beyond all numbers": ({"labels": npy(np.full(60, 2**64 - 1, np.uint64))}, "the label 18446744073709551615"),
    "labels beyond all classes": ({"labels": npy(np.full(60, 100_000))}, "the label 100000; number the classes from 0"),
    "-1 for no label": ({"labels": npy(LABELS - 1)}, "the label -1"),
    "as PyTorch has them": (
        {"images": npy(np.zeros((60, 3, 8, 8), np.uint8))},
        "put channels last: images.transpose(0, 2, 3, 1)",
    ),
    "a pixel of 5,000 channels": ({"images": npy(np.zeros((60, 1, 2, 5000), np.uint8))}, "4,096 channels at most"),
    "bytes that are no text": ({"class_names": npy(np.array([b"\xff", b"a", b"b"]))}, "class_names holds what is no"),
    "numbers that are no text": (
        {"class_names": npy(np.array([0x110000, 65, 66], np.uint32).view("U1"))},
        "class_names holds what is no text",
    ),
    "half a character": ({"class_names": npy(np.array(["a", "b", "\ud800"]))}, r"'\ud800', with a control character"),
    "a NUL": ({"class_names": npy(np.array(["a", "b", "c\0d"]))}, r"'c\x00d', with a control character"),
    "an escape": ({"class_names": npy(np.array(["a", "b", "\x1b[31m"]))}, r"'\x1b[31m', with a control character"),
    "a line": ({"class_names": npy(np.array(["a", "b", "c\u2028d"]))}, r"'c\u2028d', with a control character"),
    "names of no length": ({"class_names": header("<U0", f"({BIG},)")}, "of the type <U0"),
    "a million names": ({"class_names": npy(np.zeros(10**6, "S1"))}, "1,000,000 classes; 100,000 at most"),
    "one name": ({"class_names": npy("cat")}, "class_names is <U3 ()"),
}


@pytest.mark.parametrize(("members", "said"), BAD_MEMBERS.values(), ids=BAD_MEMBERS)
def test_bad_members(tmp_path, members, said):
    assert said in failure(archive(tmp_path / "day.npz", **members))


def test_the_directory_is_not_believed_either(tmp_path):
    path = tmp_path / "day.npz"
    billion = header(shape="(2000000000, 1, 1, 1)")
    told = {
        "it is encrypted": lambda: patch(archive(path), "labels", flags=1),
        "in a way that is not NumPy's": lambda: archive(path, zipfile.ZIP_LZMA),
        # claims of 2 GB, below the limit, that no such archive can hold
        "more bytes than it has": lambda: patch(
            archive(path, images=billion), "images", size=2_000_000_000 + len(billion), packed=2_000_000_000
        ),
        "the array 'images' (the archive tells": lambda: patch(
            archive(path, zipfile.ZIP_DEFLATED, images=billion), "images", size=2_000_000_000 + len(billion)
        ),
        "Bad CRC-32": lambda: patch(archive(path), "images", crc=0),
        # a stream longer than is told: it's cut there, and then the checksum is another
        "for file 'images.npy'": lambda: patch(
            archive(path, zipfile.ZIP_DEFLATED, images=npy(IMAGES) + b"\0" * 50_000_000),
            "images",
            size=len(npy(IMAGES)),
        ),
        "'labels' (it ends early)": lambda: patch(
            archive(path, zipfile.ZIP_DEFLATED, labels=npy(LABELS)[:200]), "labels", size=len(npy(LABELS))
        ),
    }
    for said, make in told.items():
        assert said in failure(make())


def test_a_member_that_is_there_twice(tmp_path):
    path = archive(tmp_path / "day.npz")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("labels.npy", npy(LABELS))
    assert "the array 'labels' (it is there twice)" in failure(path)


def test_a_member_that_is_no_array_is_none(tmp_path):
    path = archive(tmp_path / "day.npz", labels=None)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("labels", npy(LABELS))
        for i in range(1000):
            file.writestr(f"{i}.npy", b"")
    message = failure(path)
    assert "lacks labels; found: images, labels, 0, 1," in message
    assert "and 982 more; wanted" in message


def test_limits_are_on_what_it_unpacks_to_and_name_themselves(tmp_path):
    size = 400_000_000
    path = tmp_path / "day.npz"
    with zipfile.ZipFile(archive(path, labels=None, images=None), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("labels.npy", npy(np.zeros(size // 100, np.int8)))
        with file.open("images.npy", "w") as member:
            member.write(header(shape=f"({size // 100}, 10, 10, 1)"))
            for _ in range(size // 10**6):
                member.write(bytes(10**6))
    assert path.stat().st_size < 3_000_000
    assert "its arrays unpack to 0.404 GB, more than --max_gigabytes=0.4" in failure(path, max_gigabytes=0.4)
    assert "day.npz has 0.00" in failure(path, max_gigabytes=0.0001)
    small = archive(tmp_path / "small.npz")
    assert len(read_images(small, max_gigabytes=small.stat().st_size / 1e9).labels) == 60


def test_a_set_of_ones_own_must_fit_this_machine(tmp_path, monkeypatch):
    path = tmp_path / "own.npz"
    arrays = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES, "test_labels": LABELS}
    np.savez(path, **arrays)
    assert len(datasets.load(path).train_labels) == 60
    monkeypatch.setattr(os, "sysconf", lambda name: 30)
    with pytest.raises(DataError, match=r"own\.npz: its arrays unpack to .* GB, more than this machine's memory"):
        datasets.load(path)


def test_an_array_is_read_without_a_second_copy(tmp_path):
    images = np.zeros((20_000, 32, 32, 1), np.uint8)
    arrays = {"train_images": images, "train_labels": np.arange(20_000) % 2}
    arrays |= {"test_images": images[:2], "test_labels": np.arange(2)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "own.npz", **arrays)
        with (tmp_path / "own.npz").open("rb") as file:
            tracemalloc.start()
            sources.read_npz(file, "own.npz", sources.REQUIRED, sources.WANTED)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert images.nbytes < peak < 1.8 * images.nbytes


def mutations(rng, whole):
    """Endlessly, (kind, mutated file): damage to the archive, and archives that are whole but for an array's header."""
    parts = {"images": npy(IMAGES), "labels": npy(LABELS), "class_names": npy(NAMES)}
    words = (
        "|u1",
        "<i8",
        "|O",
        "<U9",
        "M8",
        "(",
        ")",
        ",",
        "-",
        "[",
        "{",
        "'",
        "\0",
        "9" * 30,
        "60",
        "None",
        "True",
        "L",
    )
    while True:
        content = bytearray(rng.choice(whole))
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        yield "flipped", bytes(content)

        content = bytearray(rng.choice(whole))
        start = content.rindex(b"PK\x01\x02") - rng.randint(0, 150)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(start, len(content))] = rng.choice((0, 1, 255, rng.randrange(256)))
        yield "directory", bytes(content)

        content = rng.choice(whole)
        yield "cut", content[rng.randrange(9) : rng.randrange(len(content))]

        one, other = rng.choice(whole), rng.choice(whole)
        yield "spliced", one[: rng.randrange(len(one))] + other[rng.randrange(len(other)) :]

        name = rng.choice(list(parts))
        array = bytearray(parts[name])
        place, word = rng.randrange(6, 100), rng.choice(words).encode()
        array[place : place + rng.choice((0, len(word)))] = word
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as members:
            for member, content in (parts | {name: bytes(array)}).items():
                members.writestr(f"{member}.npy", content)
        yield "header", file.getvalue()


def test_whatever_a_file_holds_is_read_or_told(tmp_path):
    path = tmp_path / "day.npz"
    whole = []
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        archive(path, compression, class_names=npy(NAMES))
        whole.append(path.read_bytes())
    told, read = Counter(), Counter()
    for _, (kind, content) in zip(range(4000), mutations(random.Random(0), whole), strict=False):
        try:
            arrays = sources.read_npz(io.BytesIO(content), "day.npz", ("images", "labels"), "", 0.1)
        except DataError:
            told[kind] += 1
        else:
            read[kind] += 1
            assert all(isinstance(array, np.ndarray) and array.dtype.kind in "biufcSU" for array in arrays.values())
        if kind in ("header", "spliced"):  # what is read goes on to be checked
            path.write_bytes(content)
            with contextlib.suppress(DataError):
                assert len(read_images(path).labels) == 60
    assert set(told) == {"flipped", "directory", "cut", "spliced", "header"}
    assert min(told.values()) > 100
    assert read["flipped"] > 0
    assert read["header"] > 0


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "link to nothing", "link to itself", "no file"])
def test_what_is_no_file_is_told_at_once(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = tmp_path / "day.npz"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("day.npz")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to nothing":
        path.symlink_to("nothing")
    elif kind == "link to itself":
        path.symlink_to(path)
    said = dict.fromkeys(("pipe", "socket", "device"), "Is a pipe, socket or device")
    said |= dict.fromkeys(("link to nothing", "no file"), "No such file or directory")
    said |= {"folder": "Is a directory", "link to itself": "Too many levels of symbolic links"}
    for read in (read_images, datasets.load):
        if kind == "folder" and read is datasets.load:
            continue  # it may hold images
        with pytest.raises(DataError, match=f"cannot read .*day.npz: {said[kind]}; give the path of a .npz file"):
            read(path)


def test_a_pipe_that_takes_a_files_place_does_not_hang(tmp_path, monkeypatch):
    path = archive(tmp_path / "day.npz")
    status = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(type(path), "stat", lambda self: status)
    said = []

    def read():
        with pytest.raises(DataError) as caught:
            read_images(path)
        said.append(str(caught.value))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert [f"{path} is not a .npz archive" in message for message in said] == [True]


def test_the_hash_is_of_the_bytes_that_are_read(tmp_path, monkeypatch):
    first = archive(tmp_path / "day.npz").read_bytes()
    second = archive(tmp_path / "day.npz", labels=npy(LABELS[::-1])).read_bytes()
    path, real = tmp_path / "day.npz", sources.read_bytes
    hashes = {}
    for content in (first, second):
        path.write_bytes(content)
        read = read_images(path)
        hashes[read.sha256] = read.labels.tolist()
    assert len(hashes) == 2

    def uploaded(*args):  # another file comes as soon as this one is read
        content = real(*args)
        path.write_bytes(second if content == first else first)
        return content

    monkeypatch.setattr(sources, "read_bytes", uploaded)
    for _ in range(2):
        read = read_images(path)
        assert hashes[read.sha256] == read.labels.tolist()


def test_homes(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    archive(tmp_path / "home" / "day.npz")
    archive(tmp_path / "~day.npz")
    for path in ("~/day.npz", "./~day.npz", tmp_path / "~day.npz"):
        assert len(read_images(path).labels) == 60
    for door in (read_images, datasets.load, lambda path: datasets.load("cifar10", path)):
        for path, said in {
            "~no-such-user/x.npz": "there is no home folder",
            "a\0.npz": "cannot be a path: .* NUL",
            "\ud800.npz": "cannot be a path: .* surrogates",
        }.items():
            with pytest.raises(DataError, match=said):
                door(path)
    monkeypatch.setenv(datasets.DATA_DIR_VARIABLE, "~no-such-user/data")
    with pytest.raises(DataError, match="~no-such-user/data: there is no home folder"):
        datasets.load("cifar10")


class Refuse(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


def test_reachable(monkeypatch):
    pytest.importorskip("requests", reason="comes with tensorflow-datasets")
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.handle_request).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        assert prepared._reachable(url)  # an error page is an answer
    assert not prepared._reachable(url)
    monkeypatch.setattr(prepared, "NETWORK_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not prepared._reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/")


def test_a_name_look_up_that_hangs_is_given_up(monkeypatch):
    pytest.importorskip("requests", reason="comes with tensorflow-datasets")
    given_up = threading.Event()

    def hang(*_):
        given_up.wait(20)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(prepared, "NETWORK_TIMEOUT", 0.2)
    start = time.monotonic()
    assert not prepared._reachable("http://wsjax.invalid/")
    assert time.monotonic() - start < 5
    given_up.set()

"""An image file as RGB at one size: what each kind of file becomes, and that a bad one is one line."""

import contextlib
import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsjax.data import datasets, image_files
from wsjax.data.image_files import decoded, read_image
from wsjax.errors import DataError, UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)


def packed(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def read(content, size=8):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as those who read a folder have it
        return decoded(content, "a.png", size)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, depth, colour, rows):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_an_image_of_that_size_stays_as_it_is():
    np.testing.assert_array_equal(read(packed(Image.fromarray(PIXELS))), PIXELS)


def test_grey_and_palettes():
    grey = Image.fromarray(PIXELS[..., 0])
    np.testing.assert_array_equal(read(packed(grey)), np.repeat(PIXELS[..., :1], 3, axis=2))
    two = Image.fromarray(PIXELS[..., 0]).point(lambda value: value > 127, "1")
    np.testing.assert_array_equal(read(packed(two))[..., 2], np.where(PIXELS[..., 0] > 127, 255, 0))
    palette = Image.fromarray(PIXELS).quantize(16)
    np.testing.assert_array_equal(read(packed(palette)), np.asarray(palette.convert("RGB")))


def test_16_bits_are_scaled_and_not_clipped():
    values = np.full((8, 8), 65_535, np.uint16)
    values[0, :4] = 0, 256, 257, 32_768
    grey = read(packed(Image.fromarray(values)))
    assert grey[0, :5].tolist() == [[0] * 3, [1] * 3, [1] * 3, [128] * 3, [255] * 3]
    row = b"\0" + np.array([0, 256, 65_535] * 8, ">u2").tobytes()
    assert read(png(8, 8, 16, 2, row * 8))[3, 4].tolist() == [0, 1, 255]


def test_what_is_transparent_lies_on_white():
    alpha = np.dstack([PIXELS, np.full((8, 8), 51, np.uint8)])  # a fifth
    expected = 0.2 * PIXELS + 0.8 * 255
    np.testing.assert_allclose(read(packed(Image.fromarray(alpha))), expected, atol=1)
    grey = Image.merge("LA", [Image.fromarray(PIXELS[..., 0]), Image.new("L", (8, 8), 51)])
    np.testing.assert_allclose(read(packed(grey))[..., 0], expected[..., 0], atol=1)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    assert read(packed(palette))[0, 0].tolist() == [200, 0, 0]
    assert read(packed(palette, transparency=1))[0, 0].tolist() == [255] * 3
    assert read(packed(palette, transparency=bytes([255, 0])))[0, 0].tolist() == [255] * 3
    assert read(packed(Image.new("RGB", (8, 8), "red"), transparency=(255, 0, 0)))[0, 0].tolist() == [255] * 3


def test_of_several_pictures_in_a_file_the_first_counts():
    other = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]}
    np.testing.assert_array_equal(read(packed(Image.fromarray(PIXELS), **other)), PIXELS)
    photo = read(packed(Image.new("RGB", (8, 8), "white"), "MPO", **other))  # as phones write them, named .jpg
    np.testing.assert_array_equal(photo, np.full((8, 8, 3), 255))


@pytest.mark.parametrize(("inks", "colour"), [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))])
def test_printers_inks(inks, colour):
    content = packed(Image.new("CMYK", (8, 8), inks), "JPEG", quality=100)
    np.testing.assert_allclose(read(content)[3, 3].astype(int), colour, atol=3)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, PIXELS), (2, PIXELS[:, ::-1]), (3, PIXELS[::-1, ::-1]), (6, np.rot90(PIXELS, -1)), (8, np.rot90(PIXELS))],
)
def test_a_camera_that_was_held_otherwise(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read(packed(Image.fromarray(PIXELS), exif=exif)), upright)
    photo = packed(Image.fromarray(PIXELS).resize((64, 64), Image.Resampling.NEAREST), "JPEG", quality=100, exif=exif)
    assert np.abs(read(photo, 64)[4::8, 4::8].astype(int) - upright).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_exif_leaves_the_image_as_it_stands(kind):
    content = packed(Image.fromarray(PIXELS), kind, exif=b"Exif\0\0no TIFF header at all")
    with Image.open(io.BytesIO(content)) as plain:
        np.testing.assert_array_equal(read(content), np.asarray(plain.convert("RGB")))
    with pytest.raises(DataError, match="is damaged"):
        read(content[: len(content) * 4 // 5])


def test_the_largest_square_in_the_middle_is_resized():
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, :16, 0], wide[:, 16:48, 1], wide[:, 48:, 2] = 255, 255, 255
    for image in (wide, wide.transpose(1, 0, 2)):
        small = read(packed(Image.fromarray(image)), 4)
        assert small.shape == (4, 4, 3)
        assert np.unique(small.reshape(-1, 3), axis=0).tolist() == [[0, 255, 0]]
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(read(packed(Image.fromarray(stripes)), 8).astype(int) - 128).max() < 8  # antialiased


PNG, JPEG = packed(Image.fromarray(PIXELS)), packed(Image.fromarray(PIXELS), "JPEG")
BAD = {
    "half of a PNG": (PNG[: len(PNG) // 2], "is damaged"),
    "half of a JPEG": (JPEG[: len(JPEG) * 3 // 4], "is damaged"),
    "a PNG of garbage": (PNG[:60] + bytes(60) + PNG[120:], "is damaged"),
    "a header alone": (PNG[:33], "is no PNG or JPEG image, or only the beginning of one"),
    "a text": (b"these are no pixels", "is no PNG or JPEG image"),
    "nothing": (b"", "is no PNG or JPEG image"),
    "a GIF": (packed(Image.fromarray(PIXELS), "GIF"), "is no PNG or JPEG image"),
    "a page": (packed(Image.fromarray(PIXELS), "PDF"), "is no PNG or JPEG image"),
    "a bomb": (png(60_000, 60_000, 8, 2, bytes(9)), "has more than 100,000,000 pixels; make it smaller"),
    "a bomb that Pillow warns of": (png(20_000, 5_001, 8, 2, bytes(9)), "has more than 100,000,000 pixels"),
    "a long line": (png(2**31 - 1, 1, 8, 2, bytes(9)), "has more than 100,000,000 pixels"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line(tmp_path, kind):
    content, said = BAD[kind]
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path} {said}")
    assert "\n" not in message


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(2**31)
    for name, said in {
        "none.png": "No such file or directory; give the path of a PNG or JPEG file",
        ".": "Is a directory",
        "pipe.png": "Is a pipe, socket or device",
        "loop.png": "Too many levels of symbolic links",
        "large.png": "has 2.15 GB, more than the 1 GB of an image file",
    }.items():
        with pytest.raises(DataError, match=said):
            read_image(tmp_path / name)


@pytest.mark.parametrize("size", [(32, 32), 0, -1, "32", 32.0, True, None, 4_097])
def test_a_size_that_cannot_be_is_not_the_files_fault(tmp_path, size):
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(UsageError) as error:
        read_image(tmp_path / "a.png", size)
    wanted = "size must be a whole number of pixels from 1 to 4,096, the side of a square, not "
    assert str(error.value) == f"{wanted}{size!r}"
    assert read_image(tmp_path / "a.png", np.int64(5)).shape == (5, 5, 3)


@pytest.mark.parametrize("path", [None, 3, b"a.png", ["a.png"]])
def test_what_is_no_path_is_one_line(path):
    for read_it in (read_image, datasets.load):
        with pytest.raises(DataError) as error:
            read_it(path)
        assert str(error.value).startswith(f"a path is a text or a pathlib.Path, not {path!r}; ")


@settings(max_examples=200, deadline=None)
@given(
    content=st.sampled_from([PNG, JPEG, packed(Image.fromarray(PIXELS).quantize(9), transparency=3)]),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8),
    length=st.integers(0, 3000),
)
def test_whatever_a_file_holds_it_is_an_image_or_the_users_error(content, changes, length):
    content = bytearray(content)
    for place, value in changes:
        content[place % len(content)] = value
    with contextlib.suppress(DataError):
        image = read(bytes(content[:length]))
        assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)


def test_a_lack_of_memory_is_not_the_files_fault(monkeypatch):
    def full(image):
        raise MemoryError

    monkeypatch.setattr(image_files, "in_rgb", full)
    with pytest.raises(MemoryError):
        read(PNG)

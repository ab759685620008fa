"""Image files, PNG and JPEG, as arrays: upright, in RGB, at one size. Nothing is believed before it is checked."""

from __future__ import annotations

import contextlib
import io
import operator
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from wsjax.data.sources import expand_user, open_file, reason
from wsjax.errors import DataError, UsageError

IMAGE_SIZE = 32
"""Pixels of a side where nothing else is said."""
LARGEST_SIZE = 4_096
MAX_PIXELS = 100_000_000  # of a file: 0.3 GB in RGB. A few bytes of a file can claim any number
_MAX_BYTES = 1_000_000_000  # of a file; what compresses so badly is no photograph
_FORMATS = ("PNG", "JPEG")


def read_image(path: str | os.PathLike[str], size: int = IMAGE_SIZE) -> np.ndarray:
    """Reads an image file as a folder of images is read, for a model that was trained on one.

    The image is turned as its EXIF orientation says. The largest square at its middle is resized, bilinearly and with
    antialiasing where it shrinks; an image of that very size stays as it is. Grey, palette and CMYK images become RGB,
    16 bits a channel are scaled to 8, what is transparent lies on white. Colour profiles are not looked at.

    Args:
      path: the file, PNG or JPEG.
      size: pixels of a side.

    Returns:
      uint8 [size, size, 3].

    Raises:
      UsageError: the size is no whole number from 1 to `LARGEST_SIZE`.
      DataError: the file cannot be read, is no such image, is damaged, or has more than `MAX_PIXELS` pixels.
    """
    size = _checked_size(size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what matters is an error
        return decoded(read_content(expand_user(path)), path, size)


def _checked_size(size: Any) -> int:
    """The size as Python's own number; raises UsageError where it is none that an image can have."""
    with contextlib.suppress(TypeError):
        whole = operator.index(size)
        if not isinstance(size, bool) and 1 <= whole <= LARGEST_SIZE:
            return whole
    limits = f"a whole number of pixels from 1 to {LARGEST_SIZE:,}"
    raise UsageError(f"size must be {limits}, the side of a square, not {size!r:.40}")


def read_content(path: Path) -> bytes:
    """All bytes of a regular file. Raises DataError where it cannot be read, or has more than an image ever has."""
    with open_file(path, "a PNG or JPEG file") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_BYTES:
            raise DataError(f"{path} has {size / 1e9:,.3g} GB, more than the {_MAX_BYTES / 1e9:g} GB of an image file")
        try:
            return file.read(size)
        except OSError as error:
            raise DataError(f"cannot read {path}: {reason(error)}; remove the file, or write it anew") from error


def decoded(content: bytes, origin: object, size: int) -> np.ndarray:
    """The image in a file's bytes, as `read_image` says; errors name `origin`."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:  # known before a pixel is decoded
                raise Image.DecompressionBombError
            image.load()  # what fails from here on is no fault of the pixels
            return fitted(in_rgb(_upright(image)), size)
    except Image.UnidentifiedImageError:
        what = "no PNG or JPEG image, or only the beginning of one"
        raise DataError(f"{origin} is {what}; remove the file, or write it anew") from None
    except Image.DecompressionBombError:
        raise DataError(f"{origin} has more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise DataError(f"{origin} is damaged ({reason(error)}); remove the file, or write it anew") from error


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; as it stands where that is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # Pillow's reader of EXIF raises SyntaxError, ValueError, struct.error and more
        return image


def in_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB, 8 bits a channel, on white where it is transparent."""
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion would clip them
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32_767) // 65_535).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def fitted(image: Image.Image, size: int) -> np.ndarray:
    """The largest square at an image's middle, resized: uint8 [size, size] or [size, size, channels]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))


def fitted_array(pixels: np.ndarray, size: int, grey: bool) -> np.ndarray:
    """Pixels, uint8 [height, width, channels], as `fitted` has them: [size, size, 1] where they are grey, else RGB."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return fitted(image if grey else in_rgb(image), size).reshape(size, size, -1)

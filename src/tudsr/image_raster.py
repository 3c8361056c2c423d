"""What reading and writing picture files have in common: the raster, the limits on its size, the errors."""

import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tudsr.errors import InputError

MAX_PIXELS = 2**30
"""Pictures above this many pixels (1.07 gigapixels) are refused as decompression bombs."""

_TRUSTED_PIXELS = 2**26
_PIXELS_PER_BYTE = 2**13

DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError, OverflowError,
    ZeroDivisionError, NotImplementedError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow, tifffile and NumPy throw at damaged files."""


@dataclass(frozen=True, kw_only=True)
class Raster:
    r"""A picture as it stands in a file, upright.

    Attributes:
        values: (H, W, C), uint8 or uint16 over their whole range; C is 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha
            (never premultiplied).
        icc: the ICC profile that the colours are meant in, or None.
        exif: EXIF as bytes that begin with b"Exif\0\0", without orientation and thumbnail, or None.
        notes: one sentence for each thing of the source that was not taken over.
    """

    values: NDArray[np.uint8] | NDArray[np.uint16]
    icc: bytes | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()


def check_size(width: int, height: int, file_bytes: int) -> None:
    """Refuse decompression bombs: pictures that no photo's file would unfold to.

    Args:
        width: in pixels, as the file claims.
        height: in pixels, as the file claims.
        file_bytes: size of the file.

    Raises:
        InputError: above MAX_PIXELS, and above 64 megapixels where a byte of the file would have to hold more than 8192
            pixels, the most that deflate reaches (with one bit a pixel).
    """
    pixels = width * height
    if pixels > MAX_PIXELS:
        raise InputError(f"{width}x{height} pixels came; at most {MAX_PIXELS} can be read.")
    if pixels > _TRUSTED_PIXELS and pixels > _PIXELS_PER_BYTE * file_bytes:
        raise InputError(
            f"a file of {file_bytes} bytes claims {width}x{height} pixels; it is damaged or meant to harm."
        )


def colour_profile(icc: bytes | None) -> bytes | None:
    """Return an ICC profile for a picture with colours: none in place of one of grey, which cannot mean them.

    Source: ICC.1:2022, 7.2.6 (bytes 16 to 19 of the header: the colour space).
    """
    return None if icc is None or icc[16:20] == b"GRAY" else icc


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder throws at a bad file into one sentence, and lift Pillow's pixel limit to ours.

    Args:
        name: of the picture, to begin the sentence with.

    Raises:
        InputError: for any error of a decoder, and any InputError from inside with the name put before it.
    """
    with _pixel_limit:
        try:
            yield
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        except FileNotFoundError as error:
            raise InputError(f"{name}: no such file.") from error
        except UnidentifiedImageError as error:
            raise InputError(
                f"{name}: not a picture that can be read; PNG, JPEG, WebP, TIFF, BMP and GIF are accepted."
            ) from error
        except (IsADirectoryError, PermissionError) as error:
            raise InputError(f"{name}: cannot be read ({error.strerror}).") from error
        except MemoryError as error:  # Pillow and tifffile also raise it for sizes that damage made up
            raise InputError(f"{name}: damaged, or larger than the memory that is free.") from error
        except DECODE_ERRORS as error:
            raise InputError(f"{name}: damaged or cut short ({error}).") from error


class _PixelLimit:
    """Raises Pillow's process-wide limit while any thread reads, and puts it back after the last one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._before: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                Image.MAX_IMAGE_PIXELS = self._before


_pixel_limit = _PixelLimit()

"""Plain integers to picture files, written whole or not at all. No torch."""

import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from tudsr.checkpoint import atomic_path
from tudsr.errors import InputError
from tudsr.image_raster import Raster, colour_profile

QUALITY = 95
"""Of JPEG and WebP, 1 to 100."""

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_PIXEL_X, _PIXEL_Y = 40962, 40963  # the picture's sides, as EXIF tells them once more
_JPEG_EXIF_BYTES = 65533
_JPEG_ICC_BYTES = _JPEG_EXIF_BYTES - 14  # beside «ICC_PROFILE», a chunk's number and how many there are
_STRIP_BYTES = 2**20
_CLASSIC_TIFF_BYTES = 2**32 - 2**25  # of pixels; what is more needs BigTIFF, which Pillow does not write compressed
_ZLIB_LEVEL = 3  # zlib's own 6 takes half as long again for a tenth less on disk


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """What a file format can hold."""

    name: str
    max_side: int
    max_pixels: int = 2**62
    alpha: bool = True
    wide: bool = False
    metadata: bool = True


_PNG = FileFormat(name="PNG", max_side=2**31 - 1, wide=True)
_JPEG = FileFormat(name="JPEG", max_side=65500, alpha=False)
_TIFF = FileFormat(name="TIFF", max_side=2**31 - 1, wide=True)
FILE_FORMATS = {
    ".png": _PNG,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": FileFormat(name="WEBP", max_side=16383),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": FileFormat(name="BMP", max_side=2**31 - 1, max_pixels=2**30, alpha=False, metadata=False),
}
"""By suffix, in lower case."""


def file_format(path: Path) -> FileFormat:
    """Look up the format of a file to be written.

    Raises:
        InputError: when the suffix is not one of FILE_FORMATS.
    """
    found = FILE_FORMATS.get(path.suffix.lower())
    if found is None:
        came = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise InputError(f"{path}: a picture cannot be written with {came}; accepted are {', '.join(FILE_FORMATS)}.")
    return found


def check_size(path: Path, height: int, width: int) -> FileFormat:
    """Return the format of a file to be written, and refuse a picture that is too large for it.

    Args:
        path: its suffix names the format.
        height: rows of the picture, in pixels.
        width: columns of the picture, in pixels.

    Raises:
        InputError: for an unknown suffix or too large a picture.
    """
    fmt = file_format(path)
    if max(height, width) > fmt.max_side:
        raise InputError(f"{path}: {width}x{height} pixels came; {fmt.name} holds at most {fmt.max_side} a side.")
    if height * width > fmt.max_pixels:
        raise InputError(f"{path}: {width}x{height} pixels came; {fmt.name} holds at most {fmt.max_pixels} in all.")
    return fmt


def lost_bits(bits: int, fmt: FileFormat) -> tuple[str, ...]:
    """Return a sentence where a picture of 16 bits a channel goes to a format of 8."""
    return (f"{fmt.name} holds 8 bits: 16 were brought down to them.",) if bits == 16 and not fmt.wide else ()


def encode_file(path: Path, raster: Raster) -> tuple[str, ...]:
    """Write a picture under a temporary name beside its own, then rename it; a missing folder is made.

    Args:
        path: its suffix names the format.
        raster: the picture; uint16 only where the format is `wide`.

    Returns:
        One sentence for each thing that the format could not hold.

    Raises:
        InputError: for an unknown suffix, a picture too large for the format, or a file that cannot be written.
    """
    height, width, channels = raster.values.shape
    fmt = check_size(path, height, width)
    assert fmt.wide or raster.values.dtype == np.uint8, f"{fmt.name} holds 8 bits"
    exif, notes = _fit_exif(raster, fmt)
    if channels in (2, 4) and not fmt.alpha:
        notes.append(f"{fmt.name} holds no transparency: the picture was laid on white.")
    if fmt.name == "WEBP" and colour_profile(raster.icc) != raster.icc:
        notes.append("WEBP holds no grey: the profile of grey was left out.")
        raster = replace(raster, icc=None)
    try:
        with atomic_path(path) as part:
            _save(part, raster, fmt, exif)
    except (OSError, ValueError, RuntimeError, struct.error) as error:
        raise InputError(f"{path}: cannot be written ({error}).") from error
    return tuple(notes)


def _fit_exif(raster: Raster, fmt: FileFormat) -> tuple[bytes | None, list[str]]:
    if not fmt.metadata and (raster.exif or raster.icc):
        return None, [f"{fmt.name} holds neither EXIF nor a colour profile: they were left out."]
    without = ""
    if fmt.name == "TIFF" and _needs_own_writer(raster, fmt):
        without = "TIFF above 4 GB" if raster.values.nbytes > _CLASSIC_TIFF_BYTES else "16-bit colour TIFF"
    return fit_exif(raster.exif, raster.values.shape[:2], fmt, without)


def fit_exif(
    data: bytes | None, size: tuple[int, ...], fmt: FileFormat, without: str = ""
) -> tuple[bytes | None, list[str]]:
    """Return EXIF as a file gets it, its sides corrected to (height, width), and a sentence where it is left out.

    Args:
        data: EXIF as bytes, or None.
        size: of the picture.
        fmt: of the file.
        without: the kind of file, where its writer knows no EXIF; else "".
    """
    exif = resized_exif(data, size)
    if exif and without:
        return None, [f"EXIF was left out of the {without}."]
    if exif and fmt.name == "JPEG" and len(exif) > _JPEG_EXIF_BYTES:
        return None, [f"EXIF of {len(exif)} bytes is more than JPEG holds and was left out."]
    return exif, []


def resized_exif(data: bytes | None, size: tuple[int, ...]) -> bytes | None:
    """Correct the sides, (height, width), that EXIF repeats."""
    if data is None:
        return None
    exif = Image.Exif()
    exif.load(data)
    if ExifTags.IFD.Exif not in exif:
        return data
    details = exif.get_ifd(ExifTags.IFD.Exif)
    if _PIXEL_X in details or _PIXEL_Y in details:
        details[_PIXEL_Y], details[_PIXEL_X] = size
    return exif.tobytes()


def _needs_own_writer(raster: Raster, fmt: FileFormat) -> bool:
    """Whether Pillow cannot write it: 16 bits in more than one channel, or a TIFF with 64-bit offsets."""
    wide_colour = raster.values.dtype == np.uint16 and raster.values.shape[2] > 1
    return wide_colour or (fmt.name == "TIFF" and raster.values.nbytes > _CLASSIC_TIFF_BYTES)


def _save(part: Path, raster: Raster, fmt: FileFormat, exif: bytes | None) -> None:
    if _needs_own_writer(raster, fmt):
        write = write_png if fmt.name == "PNG" else _write_tiff
        write(part, raster.values, raster.icc, exif)
        return
    laid = raster.values.shape[2] in (2, 4) and not fmt.alpha
    image = _laid(raster.values) if laid else _image(raster.values)
    options: dict[str, Any] = {}
    if fmt.metadata:
        options |= {name: value for name, value in (("exif", exif), ("icc_profile", raster.icc)) if value}
    if fmt.name == "PNG":
        options |= {"compress_level": _ZLIB_LEVEL}
    elif fmt.name == "JPEG":
        options |= {"quality": QUALITY, "subsampling": 0}
    elif fmt.name == "WEBP":
        options |= {"quality": QUALITY}
    elif fmt.name == "TIFF":
        # Pillow cannot write EXIF's sub-directories into a compressed TIFF.
        options |= {"compression": "raw" if exif else "tiff_adobe_deflate"}
    image.save(part, format=fmt.name, **options)


def _image(values: NDArray) -> Image.Image:
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)


def _laid(values: NDArray) -> Image.Image:
    """Return a picture on white, laid strip by strip: `on_white` makes several copies of what it is given."""
    height, width, channels = values.shape
    image = Image.new(_MODES[channels].rstrip("A"), (width, height))
    rows = max(1, _STRIP_BYTES // (width * channels))
    for y in range(0, height, rows):
        image.paste(_image(on_white(values[y : y + rows])), (0, y))
    return image


def on_white(values: NDArray) -> NDArray:
    """Lay a picture, (H, W, 2 or 4) uint8, on white: (H, W, 1 or 3); one without alpha comes back as it is."""
    if values.shape[2] not in (2, 4):
        return values
    image = Image.fromarray(values)
    flat = Image.new(image.mode.rstrip("A"), image.size, "white")
    flat.paste(image.convert(flat.mode), mask=image.getchannel("A"))
    laid = np.asarray(flat)
    return laid[..., None] if laid.ndim == 2 else laid


def jpeg_metadata(icc: bytes | None, exif: bytes | None) -> bytes:
    """Return what stands behind a JPEG's first two bytes, as Pillow has it. Source: ICC.1:2022, B.4 (chunks)."""
    segments = [(0xE0, bytes.fromhex("4a46494600 0101 00 0001 0001 0000"))]  # JFIF 1.01 without a resolution
    if exif:
        segments.append((0xE1, exif))
    chunks = [(icc or b"")[at : at + _JPEG_ICC_BYTES] for at in range(0, len(icc or b""), _JPEG_ICC_BYTES)]
    segments += [(0xE2, b"ICC_PROFILE\0" + bytes((at, len(chunks))) + chunk) for at, chunk in enumerate(chunks, 1)]
    return b"".join(struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data for marker, data in segments)


def write_png(part: Path, values: Any, icc: bytes | None, exif: bytes | None) -> None:
    """Write a PNG strip by strip. Source: PNG, third edition, 5.3 (chunks) and 9.2 (filter 1).

    Args:
        part: the file to write.
        values: (H, W, C), uint8 or uint16: an array, or what has its shape and dtype and gives rows by slices.
        icc: the ICC profile, or None.
        exif: EXIF bytes, or None.
    """
    height, width, channels = values.shape
    depth = 8 * values.dtype.itemsize
    with part.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        header = struct.pack(">IIBBBBB", width, height, depth, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
        file.write(_png_chunk(b"IHDR", header))
        if icc:
            file.write(_png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
        if exif:
            file.write(_png_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
        packer = zlib.compressobj(_ZLIB_LEVEL)
        rows = max(1, _STRIP_BYTES // (width * channels))
        for y in range(0, height, rows):
            strip = packer.compress(_png_filtered(values[y : y + rows]))
            if strip:
                file.write(_png_chunk(b"IDAT", strip))
        file.write(_png_chunk(b"IDAT", packer.flush()))
        file.write(_png_chunk(b"IEND", b""))


def _png_filtered(strip: NDArray) -> bytes:
    rows = strip.shape[0]
    raw = strip.astype(strip.dtype.newbyteorder(">")).reshape(rows, -1).view(np.uint8)  # (rows, bytes)
    step = strip.itemsize * strip.shape[2]
    filtered = np.empty((rows, raw.shape[1] + 1), np.uint8)
    filtered[:, 0] = 1
    filtered[:, 1 : 1 + step] = raw[:, :step]
    np.subtract(raw[:, step:], raw[:, :-step], out=filtered[:, 1 + step :])
    return filtered.tobytes()


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _write_tiff(part: Path, values: NDArray, icc: bytes | None, exif: bytes | None) -> None:
    import tifffile  # only here: it is slow to import and seldom needed

    assert exif is None, "tifffile writes no EXIF directory"
    channels = values.shape[2]
    tifffile.imwrite(
        part,
        values if channels > 1 else values[..., 0],
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        bigtiff=values.nbytes > _CLASSIC_TIFF_BYTES,
        compression="adobe_deflate",
        iccprofile=icc,
        metadata=None,
        software=False,
    )

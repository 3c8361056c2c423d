"""Pictures that are too large for memory: from a file to plain numbers on disk, and back, through libvips."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tudsr.checkpoint import atomic_path
from tudsr.errors import InputError
from tudsr.image_decode import READABLE, frame_notes, split_exif
from tudsr.image_encode import file_format
from tudsr.image_raster import check_size, decoding

_FORMATS = {1: "uchar", 2: "ushort"}
_GREY, _COLOUR = ("b-w", "grey16"), ("srgb", "rgb16", "rgb")


@dataclass(frozen=True, kw_only=True)
class Header:
    r"""What a picture file says before it is decoded.

    Attributes:
        height: rows, upright.
        width: columns, upright.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; a palette counts as what it unfolds to.
        bits: of a channel, 8 or 16.
        icc: the ICC profile, or None.
        exif: EXIF as bytes that begin with b"Exif\0\0", without orientation, or None.
        notes: one sentence for each thing of the source that is not taken over.
    """

    height: int
    width: int
    channels: int
    bits: int
    icc: bytes | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel as plain numbers."""
        return self.channels * self.bits // 8


def read_header(path: Path) -> Header:
    """Read a picture file's header.

    Raises:
        InputError: when the file is missing, not a picture, or claims more pixels than its size can hold.
    """
    with decoding(str(path)), Image.open(path, formats=READABLE) as image:
        check_size(image.width, image.height, path.stat().st_size)
        notes = frame_notes(image)
        orientation, exif = split_exif(image, notes)
        turned = orientation >= 5
        grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
        wide = ";16" in str(image.tile) or image.mode.startswith("I") or 16 in getattr(image, "tag_v2", {}).get(258, ())
        return Header(
            height=image.width if turned else image.height,
            width=image.height if turned else image.width,
            channels=(1 if grey else 3) + image.has_transparency_data,
            bits=16 if wide else 8,
            icc=None if image.mode in ("CMYK", "LAB") else image.info.get("icc_profile"),
            exif=exif,
            notes=tuple(notes),
        )


def spool_input(path: Path, header: Header, raw: Path) -> None:
    """Decode a picture file, upright, to plain numbers in a file, row by row, channels together.

    Args:
        path: the picture.
        header: what `read_header` said of it.
        raw: the file to write or replace; height * width * channels numbers of `header.bits`.

    Raises:
        InputError: when libvips is not installed, or the picture cannot be decoded to what its header says.
    """
    vips = _vips()
    try:
        image = vips.Image.new_from_file(str(path), access="sequential", fail_on="truncated").autorot()
        if image.interpretation not in (*_GREY, *_COLOUR):
            image = image.colourspace("srgb")
        if image.format not in _FORMATS.values():
            raise InputError(f"{path}: values of kind {image.format} came; 8 or 16 bits are accepted.")
        came = (image.height, image.width, image.bands, 16 if image.format == "ushort" else 8)
        said = (header.height, header.width, header.channels, header.bits)
        if came != said:
            raise InputError(f"{path}: decodes to {came} (rows, columns, channels, bits), not to {said} as it says.")
        with atomic_path(raw) as part:
            image.rawsave(str(part))
    except vips.Error as error:
        raise InputError(f"{path}: damaged or cut short ({_words(error)}).") from error


def encode_spooled(path: Path, raw: Path, header: Header, size: tuple[int, int], quality: int = 95) -> tuple[str, ...]:
    """Write a picture file from plain numbers on disk, in one pass from top to bottom; whole or not at all.

    Args:
        path: its suffix names the format.
        raw: the numbers, as `spool_input` writes them.
        header: channels, bits, profile and EXIF of the picture.
        size: its height and width.
        quality: of JPEG and WebP, 1 to 100.

    Returns:
        One sentence for each thing that the format could not hold.

    Raises:
        InputError: when libvips is not installed, does not write the format, or the file cannot be written.
    """
    vips, fmt = _vips(), file_format(path)
    if fmt.name == "BMP":
        raise InputError(f"{path}: a picture larger than memory is written as PNG, TIFF, JPEG or WebP, not as BMP.")
    kind = (
        ("grey16" if header.bits == 16 else "b-w")
        if header.channels < 3
        else ("rgb16" if header.bits == 16 else "srgb")
    )
    notes = []
    try:
        image = vips.Image.rawload(
            str(raw), size[1], size[0], header.channels, format=_FORMATS[header.bits // 8], interpretation=kind,
            access="sequential",
        )  # fmt: skip
        if header.channels in (2, 4) and not fmt.alpha:
            image = image.flatten(background=255)
            notes.append(f"{fmt.name} holds no transparency: the picture was laid on white.")
        for name, data in (("icc-profile-data", header.icc), ("exif-data", header.exif)):
            if data:
                image.set_type(vips.GValue.blob_type, name, data)
        with atomic_path(path) as part:
            image.write_to_file(str(part), **_options(fmt.name, quality))
    except vips.Error as error:
        raise InputError(f"{path}: cannot be written ({_words(error)}).") from error
    return tuple(notes)


def _options(name: str, quality: int) -> dict[str, Any]:
    known: dict[str, dict[str, Any]] = {
        "PNG": {"compression": 3},
        "JPEG": {"Q": quality, "subsample_mode": "off"},
        "WEBP": {"Q": quality},
        "TIFF": {"bigtiff": True, "compression": "deflate", "predictor": "horizontal"},
    }
    return known[name]


def _vips() -> Any:
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise InputError(
            "This picture is larger than the memory it may take; the extra [huge] (libvips) enlarges it from disk: "
            "pip install 'tudsr[huge]'."
        ) from error
    pyvips.cache_set_max(0)  # nothing is read twice
    return pyvips


def _words(error: Exception) -> str:
    return " ".join(str(error).split())

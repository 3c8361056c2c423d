"""Pictures that are too large for memory: from a file to plain numbers on disk and back, a strip of rows at a time."""

import shutil
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from PIL import Image, UnidentifiedImageError

from tudsr.checkpoint import atomic_path
from tudsr.errors import InputError
from tudsr.image_decode import READABLE, decode_file, frame_notes, said_around_pixels, split_exif
from tudsr.image_encode import QUALITY, file_format, fit_exif, jpeg_metadata, on_white, write_png
from tudsr.image_raster import check_size, decoding
from tudsr.image_raw import RawFile

SPOOLED_FORMATS = ("PNG", "TIFF", "JPEG")
_STREAMED = ("JPEG", "PNG", "TIFF")  # what libvips reads from top to bottom, to the same numbers as Pillow does
_PILLOW_BYTES = 4  # of a pixel, in most of its modes
_WEBP_BYTES = 8  # of a pixel: libwebp's canvas, and that of the frame before
_MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "I;16": 1}


@dataclass(frozen=True, kw_only=True)
class Header:
    r"""What a picture file says before it is decoded.

    Attributes:
        height: rows, upright.
        width: columns, upright.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
        bits: of a channel, 8 or 16.
        streams: whether libvips can decode it.
        decode_bytes: the most memory that decoding takes, beyond some rows.
        orientation: EXIF's, 1 where the rows lie in the file as they are seen.
        icc: the ICC profile, or None.
        exif: EXIF as bytes that begin with b"Exif\0\0", without orientation, or None.
        notes: one sentence for each thing of the source that is not taken over.
    """

    height: int
    width: int
    channels: int = 3
    bits: int = 8
    streams: bool = False
    decode_bytes: int = 0
    orientation: int = 1
    icc: bytes | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel as plain numbers."""
        return self.channels * self.bits // 8

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels."""
        return self.height, self.width, self.channels

    @property
    def dtype(self) -> DTypeLike:
        """Of the plain numbers."""
        return np.uint16 if self.bits == 16 else np.uint8


def read_header(path: Path) -> Header:
    """Read a picture file's header; its size is exact, its kind what can be known without decoding.

    Raises:
        InputError: when the file is missing, not a picture, or claims more pixels than its size can hold.
    """
    with decoding(str(path)):
        try:
            with Image.open(path, formats=READABLE) as image:
                check_size(image.width, image.height, path.stat().st_size)
                return _header(image, said_around_pixels(path, image) if image.format == "PNG" else image)
        except UnidentifiedImageError:
            if path.suffix.lower() not in (".tif", ".tiff"):
                raise
        return _tifffile_header(path)


def _header(image: Image.Image, said: Image.Image) -> Header:
    """Return what an image says that was opened, and `said`, which has its EXIF."""
    notes, layout = frame_notes(image), str(getattr(image, "tile", ""))  # before anything that may decode
    grey_alpha = "LA;16B" in layout
    tags: Any = getattr(image, "tag_v2", {})
    wide = ";16" in layout or image.mode.startswith("I") or 16 in tags.get(258, ())
    orientation, exif = split_exif(said, notes)
    turned = orientation >= 5 and image.format != "TIFF"  # of a TIFF, Pillow gives the sides as they are seen
    known = image.mode in _MODES and "transparency" not in image.info and tags.get(284, 1) == 1 and not notes
    known = known and tags.get(277, _MODES[image.mode]) == _MODES[image.mode]  # a band that nobody names is not shown
    premultiplied = tags.get(338) == (1,)  # which Pillow decodes in 8 bits, libvips in 16
    known = known and not premultiplied
    header = Header(
        height=image.width if turned else image.height,
        width=image.height if turned else image.width,
        channels=2 if grey_alpha else _MODES.get(image.mode, 3) + image.has_transparency_data * (image.mode == "P"),
        bits=16 if wide and not premultiplied else 8,
        streams=known and image.format in _STREAMED and not (image.format == "TIFF" and orientation != 1),
        orientation=orientation,
        icc=None if image.mode in ("CMYK", "LAB") else image.info.get("icc_profile"),
        exif=exif,
        notes=tuple(notes),
    )
    return replace(header, decode_bytes=_decode_bytes(image, header))


def _decode_bytes(image: Image.Image, header: Header) -> int:
    """Return what decoding takes; measured for each kind at 4096² (tests/test_files.py holds it to that at 2048²)."""
    pixels = header.height * header.width
    values = pixels * header.pixel_bytes
    coefficients = 2 * pixels * len(image.getbands()) if "progressive" in image.info else 0  # libjpeg keeps them all
    if header.streams:
        tags: Any = getattr(image, "tag_v2", {})
        strip = max(tags.get(279, (0,))) if tags.get(259, 1) != 1 else 0  # libtiff reads a packed strip as a whole
        whole = header.orientation != 1 or bool(image.info.get("interlace"))
        return coefficients + strip + (values if whole else 0)
    # Pillow's own picture and a converted one, for floats another, and the numbers with a copy; 16 bits are decoded
    # twice, in 8, and put together.
    own = (3 if image.mode == "F" else 2) * _PILLOW_BYTES + _WEBP_BYTES * (image.format == "WEBP")
    return coefficients + own * pixels + (3 if header.bits == 16 else 2) * values


def _tifffile_header(path: Path) -> Header:
    import tifffile  # only here: it is slow to import and seldom needed

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        check_size(page.imagewidth, page.imagelength, path.stat().st_size)
        tag = page.tags.get(274)
        turned = tag is not None and tag.value >= 5
        height, width = page.imagelength, page.imagewidth
        channels, bits = min(page.samplesperpixel, 4), 16 if page.bitspersample == 16 else 8
        return Header(
            height=width if turned else height, width=height if turned else width, channels=channels, bits=bits,
            decode_bytes=2 * height * width * channels * bits // 8,  # and a copy that is upright
        )  # fmt: skip


def spool_input(path: Path, header: Header, raw: Path) -> Header:
    """Decode a picture file, upright, to plain numbers in a file, row by row, channels together.

    Args:
        path: the picture.
        header: what `read_header` said of it; where it does not stream, it is decoded in memory.
        raw: the file to write or replace.

    Returns:
        What was found: height * width * channels numbers of `bits`.

    Raises:
        InputError: when the picture cannot be decoded, or libvips is needed and not installed.
    """
    if header.streams and _streamed(path, header, raw):
        return header
    raster = decode_file(path)
    with atomic_path(raw) as part:
        raster.values.tofile(part)
    height, width, channels = raster.values.shape
    return replace(
        header, height=height, width=width, channels=channels, bits=8 * raster.values.itemsize,
        icc=raster.icc, exif=raster.exif, notes=raster.notes,
    )  # fmt: skip


def _streamed(path: Path, header: Header, raw: Path) -> bool:
    """Decode by libvips; False when what it finds is not what the header says."""
    vips = libvips()
    try:
        # Turned rows are not read from top to bottom: libvips then decodes to a file of its own first.
        access = "sequential" if header.orientation == 1 else "random"
        image = vips.Image.new_from_file(str(path), access=access, fail_on="truncated")
        if header.orientation != 1:  # which libvips does not find everywhere
            image = image.copy()
            image.set_type(vips.GValue.gint_type, "orientation", header.orientation)
            image = image.autorot()
        bits = {"uchar": 8, "ushort": 16}.get(image.format)
        if (image.height, image.width, image.bands, bits) != (*header.shape, header.bits):
            return False
        with atomic_path(raw) as part:
            image.rawsave(str(part))
        return True
    except vips.Error as error:
        raise InputError(f"{path}: cannot be decoded ({' '.join(str(error).split())}).") from error


def check_spooled(path: Path) -> None:
    """Refuse a format that is not written a strip at a time.

    Raises:
        InputError: naming those that are, or when libvips is needed and not installed.
    """
    name = file_format(path).name
    if name not in SPOOLED_FORMATS:
        known = ", ".join(SPOOLED_FORMATS)
        raise InputError(f"{path}: a picture that does not fit into memory is written as {known}, not as {name}.")
    if name == "JPEG":
        libvips()


def encode_spooled(path: Path, raw: RawFile, header: Header) -> tuple[str, ...]:
    """Write a picture file from plain numbers on disk, in one pass from top to bottom; whole or not at all.

    Args:
        path: its suffix names the format, one of SPOOLED_FORMATS.
        raw: the numbers, of the header's shape and dtype.
        header: size, channels, bits, profile and EXIF of the picture to write.

    Returns:
        One sentence for each thing that the format could not hold.

    Raises:
        InputError: when the format is another one, or the file cannot be written.
    """
    check_spooled(path)
    fmt, rows = file_format(path), raw
    exif, notes = fit_exif(header.exif, header.shape[:2], fmt, "TIFF" if fmt.name == "TIFF" else "")
    if header.channels in (2, 4) and not fmt.alpha:
        notes.append(f"{fmt.name} holds no transparency: the picture was laid on white.")
    with atomic_path(path) as part:
        if fmt.name == "PNG":
            write_png(part, rows, header.icc, exif)
        elif fmt.name == "TIFF":
            _write_tiff(part, rows, header.icc)
        else:
            _write_jpeg(part, rows, header.icc, exif)
    return tuple(notes)


def _write_tiff(part: Path, rows: RawFile, icc: bytes | None, level: int | None = 6, flat: bool = False) -> None:
    import tifffile  # only here: it is slow to import and seldom needed

    height, width, channels = rows.shape
    colours = channels - (flat and channels in (2, 4))
    strips = (on_white(strip) if flat else strip for strip in rows.strips())
    data = (strip.tobytes() if level is None else zlib.compress(strip.tobytes(), level) for strip in strips)
    shape = (height, width) if colours == 1 else (height, width, colours)  # tifffile knows no axis of one grey
    tifffile.imwrite(
        part, data, shape=shape, dtype=rows.dtype, rowsperstrip=rows.strip_rows, bigtiff=True,
        photometric="rgb" if channels > 2 else "minisblack", planarconfig=None if colours == 1 else "contig",
        extrasamples=["unassalpha"] if colours in (2, 4) else None, iccprofile=icc,
        compression=None if level is None else "adobe_deflate", metadata=None, software=False,
    )  # fmt: skip


def _write_jpeg(part: Path, rows: RawFile, icc: bytes | None, exif: bytes | None) -> None:
    """Write by libvips, from a TIFF on disk: it would map plain numbers, which counts as memory."""
    vips = libvips()
    flat, bare = (part.with_name(f"{part.stem}-{name}") for name in ("flat.tif", "bare.jpg"))
    try:
        _write_tiff(flat, rows, None, level=None, flat=True)
        image = vips.Image.new_from_file(str(flat), access="sequential")
        # libvips would make EXIF of its own, and leave out, without a word, what it cannot hold or finds unfit.
        image.write_to_file(str(bare), Q=QUALITY, subsample_mode="off", keep="none")
        flat.unlink()  # before there is another copy: `Spooled` counts one
        with bare.open("rb") as source, part.open("wb") as target:
            target.write(source.read(2) + jpeg_metadata(icc, exif))
            shutil.copyfileobj(source, target)
    except vips.Error as error:
        raise InputError(f"{part}: cannot be written ({' '.join(str(error).split())}).") from error
    finally:
        for file in (flat, bare):
            file.unlink(missing_ok=True)


def libvips() -> Any:
    """Import pyvips.

    Raises:
        InputError: when it, or libvips, is not installed, naming the extra.
    """
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise InputError(
            "This picture does not fit into the memory it may take; the extra [huge] (libvips) enlarges it from disk: "
            "pip install 'tudsr[huge]'."
        ) from error
    pyvips.cache_set_max(0)  # nothing is read twice
    return pyvips

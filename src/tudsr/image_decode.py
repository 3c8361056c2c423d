"""Picture files and PIL images to plain integers: modes, orientation, transparency, 16 bit, EXIF, ICC. No torch.

Pillow decodes 16-bit colour to 8 bits, without a word. The bytes are all there, though: the same file decoded once with
its own byte order gives the high bytes and once with the opposite order the low ones, whatever the compression.
"""

import contextlib
import io
import os
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, UnidentifiedImageError

from tudsr.errors import InputError
from tudsr.image_raster import DECODE_ERRORS, Raster, check_size, decoding

_PNG_BEGIN, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_PNG_WORDS, _MOST_WORDS = (b"IHDR", b"eXIf", b"iTXt", b"tEXt", b"zTXt"), 2**26
READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")

_SWAPPED = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGBA;16B": "RGBA;16L", "RGBA;16L": "RGBA;16B"}
_SWAPPED["RGBX;16B"], _SWAPPED["RGBX;16L"] = "RGBX;16L", "RGBX;16B"
_NATIVE = {f"{mode};16N": f"{mode};16{'L' if np.little_endian else 'B'}" for mode in ("RGB", "RGBA", "RGBX")}

# Tags of a TIFF's directory that describe the photo; the others describe how this very file is laid out.
_TIFF_TAGS = frozenset({270, 271, 272, 305, 306, 315, 33432, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo})


def decode_file(path: Path) -> Raster:
    """Read a picture file.

    PNG, JPEG, WebP, TIFF, BMP and GIF; of several frames or pages only the first, with a note. Grey stays grey, 16 bit
    stays 16 bit (in colour for PNG and TIFF). CMYK and Lab become sRGB.

    Raises:
        InputError: when the file is missing, not a picture, damaged, or too large (`image_raster.check_size`).
    """
    with decoding(str(path)):
        try:
            with _open(path) as image:
                if not _is_planar_16(image):
                    return _decode_open(path, image)
        except UnidentifiedImageError:
            if path.suffix.lower() not in (".tif", ".tiff"):
                raise
        return _decode_tifffile(path)


def decode_pil(image: Image.Image) -> Raster:
    """Take over a PIL image of any mode; of an animated one, the frame that it stands at.

    Pillow holds 16-bit colour in 8 bits, so that an image opened from such a file has lost the rest.

    Raises:
        InputError: when the image cannot be decoded, or has 32-bit values out of range.
    """
    with decoding("the PIL image"):
        return _upright(image, frame_notes(image), low=None)


def _open(path: Path) -> ImageFile.ImageFile:
    image = Image.open(path, formats=READABLE)
    assert isinstance(image, ImageFile.ImageFile), "a picture opened from a file knows its tiles"
    return image


def _is_planar_16(image: Image.Image) -> bool:
    """Whether it is a 16-bit TIFF with each channel by itself, whose values Pillow mixes up."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(284) == 2 and 16 in tags.get(258, ())


def _rawmode(tile: ImageFile._Tile) -> str:
    """Give the name of the layout in which a tile's bytes are unpacked."""
    return tile.args if isinstance(tile.args, str) else str((tile.args or ("",))[0])


def _decode_open(path: Path, image: ImageFile.ImageFile) -> Raster:
    check_size(image.width, image.height, path.stat().st_size)
    notes = frame_notes(image)
    rawmodes = {_rawmode(tile) for tile in image.tile}
    rawmode = next(iter(rawmodes)) if len(rawmodes) == 1 else ""
    rawmode = _NATIVE.get(rawmode, rawmode)
    other = "RGBA" if rawmode == "LA;16B" else _SWAPPED.get(rawmode)
    if other is not None:
        low = _decode_low_bytes(path, other)
        return _upright(image, notes, low=low, grey=rawmode == "LA;16B")
    if any(";16" in mode for mode in rawmodes) and not image.mode.startswith("I"):
        notes.append("Its 16-bit values were read in 8 bits.")
    return _upright(image, notes, low=None)


def _decode_low_bytes(path: Path, rawmode: str) -> NDArray[np.uint8]:
    """Decode with another byte order: (H, W, 3 or 4) of low bytes, in the file's own orientation."""
    with _open(path) as image:
        tiles = []
        for tile in image.tile:
            rest = tile.args[1:] if isinstance(tile.args, tuple) else ()
            tiles.append(tile._replace(args=(rawmode, *rest)))
        image.tile = tiles
        image.load()
        low = np.asarray(image)
    # Grey with alpha has the four bytes that 8-bit RGBA has: grey high, grey low, alpha high, alpha low.
    return low[..., [1, 1, 1, 3]] if rawmode == "RGBA" else low


def _upright(image: Image.Image, notes: list[str], *, low: NDArray[np.uint8] | None, grey: bool = False) -> Raster:
    key = image.info.get("transparency")
    if low is not None:
        image.info.pop("transparency", None)  # a 16-bit key means nothing to the 8-bit picture
    icc = image.info.get("icc_profile")
    image.load()  # a TIFF is turned upright here, and loses its tag
    values = _values(image, notes)
    if low is not None:
        values = values.astype(np.uint16) * np.uint16(256) + low
    if values.dtype == np.uint16 and key is not None:
        opaque = (values != np.asarray(key, np.uint16)).any(axis=-1, keepdims=True)
        values = np.concatenate([values, opaque * np.uint16(65535)], axis=-1)
    orientation, exif = split_exif(image, notes)
    values = np.ascontiguousarray(_turn(values[..., ::3] if grey else values, orientation))
    return Raster(values=values, icc=None if image.mode in ("CMYK", "LAB") else icc, exif=exif, notes=tuple(notes))


def _values(image: Image.Image, notes: list[str]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Give (H, W, C) integers of a loaded image."""
    if image.mode.startswith("I") or image.mode == "F":
        return _wide_grey(image)[..., None]
    if image.mode in ("CMYK", "LAB"):
        return np.asarray(_to_srgb(image, notes))
    has_alpha = image.has_transparency_data
    colours = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    mode = colours + "A" * has_alpha
    values = np.asarray(image if image.mode == mode else image.convert(mode))
    return values[..., None] if values.ndim == 2 else values


def _wide_grey(image: Image.Image) -> NDArray[np.uint16]:
    values = np.asarray(image)
    top = 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= top):  # also refuses NaN
        raise InputError(f"grey values from {values.min()} to {values.max()} came; 0 to {top} are accepted.")
    if image.mode == "F":
        values = np.rint(values * 65535)
    wide = values.astype(np.uint16)
    inverted = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0
    return 65535 - wide if inverted and image.mode != "F" else wide


def _to_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """Convert CMYK or Lab by the embedded profile, or by Pillow's formula when there is no usable one."""
    icc = image.info.get("icc_profile")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    try:
        if image.mode == "CMYK" and not icc:
            raise ImageCms.PyCMSError("there is no profile")
        source = ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(icc or b"")
        converted = ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(source), srgb, outputMode="RGB")
        assert converted is not None
    except (ImageCms.PyCMSError, OSError) as error:
        notes.append(f"{image.mode} became sRGB by a plain formula ({error}).")
        return image.convert("RGB")
    notes.append(f"{image.mode} became sRGB by its profile.")
    return converted


def frame_notes(image: Image.Image) -> list[str]:
    """Return a sentence where a file holds more frames or pages than the one that is used."""
    # The second frame of an MPO is a phone's preview or gain map, nothing that anybody would miss.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return [f"It holds {getattr(image, 'n_frames', 2)} frames or pages; only one, the first of a file, is used."]
    return []


def said_around_pixels(path: Path, image: Image.Image) -> Image.Image:
    """Return an image with what a PNG that was opened says of itself; Pillow would decode it to look behind the pixels.

    EXIF may stand there, and orientation in XMP or in the text that ImageMagick writes for EXIF.
    """
    with path.open("rb") as file:
        kept = [file.read(len(_PNG_BEGIN))]
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind in _PNG_WORDS and size <= _MOST_WORDS:
                kept += head, file.read(size + 4)
            else:
                file.seek(size + 4, os.SEEK_CUR)
    said = Image.new("L", (1, 1))
    said.info = image.info
    with contextlib.suppress(*DECODE_ERRORS), Image.open(io.BytesIO(b"".join((*kept, _PNG_END)))) as words:
        said.info = words.info
    return said


def split_exif(image: Image.Image, notes: list[str]) -> tuple[int, bytes | None]:
    """Give the orientation (1 to 8) and the EXIF bytes without it."""
    try:
        exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        dropped = {tag: value for tag, value in exif.items() if not _is_kept(image, tag, value)}
        for tag in dropped:
            del exif[tag]
        data = exif.tobytes() if len(exif) else None
        exif.update(dropped)  # the image may be the user's own
    except DECODE_ERRORS as error:
        notes.append(f"Its EXIF is damaged and was left out ({error}).")
        return 1, None
    return orientation if orientation in range(1, 9) else 1, data


def _is_kept(image: Image.Image, tag: int, value: object) -> bool:
    """Whether a tag still holds for the picture once it is upright, enlarged and in another file."""
    if image.format != "TIFF":
        return tag != ExifTags.Base.Orientation
    # The notes of array libraries on an array's shape would be a lie after enlarging.
    return tag in _TIFF_TAGS and not str(value).startswith(('{"shape"', "ImageJ="))


def _turn(values: NDArray, orientation: int) -> NDArray:
    """Turn (H, W, C) upright. Source: EXIF 2.32, tag Orientation (1 to 8)."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


def _decode_tifffile(path: Path) -> Raster:
    """Read the first page of a TIFF that Pillow cannot, such as 16-bit grey with alpha; its EXIF is not read."""
    import tifffile  # only here: it is slow to import and seldom needed

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        check_size(page.imagewidth, page.imagelength, path.stat().st_size)
        values = page.asarray()
        if values.ndim == 2:
            values = values[..., None]
        elif page.planarconfig == 2:
            values = values.transpose(1, 2, 0)
        icc, orientation = page.tags.get(34675), page.tags.get(274)
        photometric = int(page.photometric)
    accepted = values.dtype in (np.uint8, np.uint16) and values.ndim == 3 and photometric in (1, 2)
    if not accepted or values.shape[2] > 4:
        raise InputError(
            f"a TIFF of {values.dtype}, shape {values.shape} and photometric {photometric} came; grey or RGB "
            "with or without alpha, in 8 or 16 bits, is accepted."
        )
    values = np.ascontiguousarray(_turn(values, orientation.value if orientation else 1))
    return Raster(values=values, icc=icc.value if icc else None)

"""Pictures from and to files, PIL, NumPy and torch: the only place where [-1, 1] meets other ranges.

`read_picture` and `write_picture` are the whole of what the rest of the package knows of files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from torch import Tensor

from tudsr.errors import InputError
from tudsr.image_decode import decode_file, decode_pil
from tudsr.image_encode import encode_file, file_format, lost_bits
from tudsr.image_raster import Raster

PictureLike = TypeVar("PictureLike", Image.Image, NDArray, Tensor)

_STRIP_PIXELS = 2**18
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class PictureInfo:
    r"""What a picture carries besides its pixels.

    Attributes:
        bits: of a channel in the source, 8 or 16; a file that can hold 16 is written so.
        grey: whether the source has one colour channel; the output then has one too.
        icc: the ICC profile that the colours are meant in, or None; it is written back.
        exif: EXIF as bytes that begin with b"Exif\0\0", without orientation, or None; it is written back.
        notes: one sentence for each thing of the source that was not taken over, for the user to see.
    """

    bits: int = 8
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture, upright, as everything inside works on it.

    Attributes:
        pixels: (1, 3, H, W), float32, RGB in [-1, 1]; of a grey picture all three channels are equal.
        alpha: (1, 1, H, W), float32 in [0, 1], 1 being opaque, or None.
        info: what to write back beside the pixels.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    info: PictureInfo = PictureInfo()

    @property
    def height(self) -> int:
        """Rows."""
        return self.pixels.shape[-2]

    @property
    def width(self) -> int:
        """Columns."""
        return self.pixels.shape[-1]


def read_picture(path: Path | str) -> Picture:
    """Read a picture file: PNG, JPEG, WebP, TIFF, BMP or GIF.

    It comes upright (the EXIF orientation is applied and its tag removed); of several frames or pages only the first is
    read, and a note says so. 16-bit PNG and TIFF keep their 16 bits, grey and colour alike. Palettes become RGB, CMYK
    and Lab become sRGB; other colours stay in the space of their ICC profile, which is kept.

    Args:
        path: the file; up to image_raster.MAX_PIXELS pixels.

    Returns:
        The picture, on the CPU.

    Raises:
        InputError: when the file is missing, not a picture, damaged or too large.
    """
    return _picture(decode_file(Path(path)))


def write_picture(path: Path | str, picture: Picture) -> tuple[str, ...]:
    """Write a picture file, its format named by the suffix: .png, .jpg, .jpeg, .webp, .tif, .tiff or .bmp.

    Missing folders are made. The file appears whole or not at all. Values outside the range are clamped; grey pictures
    get one channel (except in WebP, which has none such), 16-bit ones 16 bits where PNG and TIFF are chosen. JPEG and
    BMP hold no transparency: the picture is laid on white.

    Args:
        path: the file to write or replace.
        picture: on any device.

    Returns:
        One sentence for each thing that the format could not hold; mostly none.

    Raises:
        InputError: for an unknown suffix, a picture larger than the format allows, or a file that cannot be written.
    """
    path = Path(path)
    fmt, bits = file_format(path), picture.info.bits
    values = _values(picture, np.uint16 if bits == 16 and fmt.wide else np.uint8)
    raster = Raster(values=values, icc=picture.info.icc, exif=picture.info.exif)
    return (*encode_file(path, raster), *lost_bits(bits, fmt))


def picture_from(obj: object) -> Picture:
    """Take over a picture in memory.

    Args:
        obj: a PIL image of any mode; or a NumPy array (H, W) or (H, W, C); or a torch tensor (C, H, W) or (1, C, H, W)
            on any device. C is 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha. Arrays and tensors hold uint8, uint16,
            or floats in [0, 1].

    Returns:
        The picture, on the CPU, sharing no memory with obj; floats count as 8 bit when they are written to a file.

    Raises:
        InputError: for another type, shape, dtype or range.
    """
    if isinstance(obj, Image.Image):
        return _picture(decode_pil(obj))
    if isinstance(obj, Tensor):
        return _picture(Raster(values=_checked(_tensor_to_hwc(obj), f"a tensor of shape {tuple(obj.shape)}")))
    if isinstance(obj, np.ndarray):
        values = obj[..., None] if obj.ndim == 2 else obj
        return _picture(Raster(values=_checked(values, f"an array of shape {obj.shape}")))
    raise InputError(f"A picture is a PIL image, a NumPy array or a torch tensor, not {type(obj).__name__}.")


def picture_like(picture: Picture, obj: PictureLike) -> PictureLike:
    """Give a picture back in the form of another: `picture_from` the other way round.

    Args:
        picture: the picture, of any size.
        obj: anything that `picture_from` accepts; its kind, dtype, layout and device are the result's. A PIL
            image comes back in mode L, LA, RGB, RGBA or I;16, with EXIF and ICC profile in its info.

    Returns:
        A new object; values outside the range are clamped.

    Raises:
        InputError: for an obj of another type.
    """
    if isinstance(obj, Image.Image):
        return _to_pil(picture)
    if isinstance(obj, Tensor):
        dtype = np.float32 if obj.dtype.is_floating_point else _NUMPY_INTEGERS[obj.dtype]
        chw = torch.from_numpy(_values(picture, dtype)).permute(2, 0, 1).contiguous()
        return chw.to(obj.device, obj.dtype).reshape((1,) * (obj.ndim - 3) + chw.shape)
    if isinstance(obj, np.ndarray):
        values = _values(picture, obj.dtype)
        return values[..., 0] if obj.ndim == 2 else values
    raise InputError(f"A picture is a PIL image, a NumPy array or a torch tensor, not {type(obj).__name__}.")


_NUMPY_INTEGERS = {torch.uint8: np.uint8, torch.uint16: np.uint16}


def _tensor_to_hwc(x: Tensor) -> NDArray:
    chw = x[0] if x.ndim == 4 and x.shape[0] == 1 else x
    if chw.ndim != 3 or chw.shape[0] not in (1, 2, 3, 4):
        raise InputError(f"A tensor of shape {tuple(x.shape)} came; (C, H, W) or (1, C, H, W), C 1 to 4, is accepted.")
    chw = chw.detach().cpu()
    return (chw.float() if chw.dtype.is_floating_point else chw).numpy().transpose(1, 2, 0)  # (H, W, C)


def _checked(values: NDArray, name: str) -> NDArray:
    if values.ndim != 3 or values.shape[2] not in (1, 2, 3, 4) or values.size == 0:
        raise InputError(f"{name} came; (H, W) or (H, W, C), C 1 to 4, of at least 1x1 pixels is accepted.")
    if values.dtype in (np.uint8, np.uint16):
        return values
    if values.dtype not in (np.float16, np.float32, np.float64):
        raise InputError(f"{name} of {values.dtype} came; uint8, uint16 and floats in [0, 1] are accepted.")
    if not (values.min() >= 0 and values.max() <= 1):  # also refuses NaN
        raise InputError(f"{name} with floats from {values.min()} to {values.max()} came; [0, 1] is accepted.")
    return values


def _peak(dtype: DTypeLike) -> int:
    """Give the value of white."""
    return int(np.iinfo(dtype).max) if np.dtype(dtype).kind == "u" else 1


def _picture(raster: Raster) -> Picture:
    pixels, alpha = pixels_of(raster.values)
    info = PictureInfo(
        bits=16 if raster.values.dtype == np.uint16 else 8,
        grey=raster.values.shape[2] < 3,
        icc=raster.icc,
        exif=raster.exif,
        notes=raster.notes,
    )
    return Picture(pixels=pixels, alpha=alpha, info=info)


def _values(picture: Picture, dtype: DTypeLike) -> NDArray:
    """Give (H, W, C) of a dtype, by strips so that no second float copy of the picture is made."""
    channels = (1 if picture.info.grey else 3) + (picture.alpha is not None)
    values = np.empty((picture.height, picture.width, channels), dtype)
    rows = max(1, _STRIP_PIXELS // picture.width)
    for y in range(0, picture.height, rows):
        alpha = None if picture.alpha is None else picture.alpha[..., y : y + rows, :]
        values[y : y + rows] = values_of(picture.pixels[..., y : y + rows, :], alpha, picture.info.grey, dtype)
    return values


def values_of(pixels: Tensor, alpha: Tensor | None, grey: bool, dtype: DTypeLike) -> NDArray:
    """Turn rows of a picture into plain numbers.

    Args:
        pixels: (1, 3, rows, W), RGB in [-1, 1], on any device; clamped.
        alpha: (1, 1, rows, W) in [0, 1], on any device, or None.
        grey: whether one colour channel is wanted, the luma.
        dtype: uint8, uint16 or a float, whose white is 1.

    Returns:
        (rows, W, C); C is 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
    """
    strip, peak = pixels[0].detach().float(), _peak(dtype)
    if grey:
        strip = torch.einsum("c,chw->hw", strip.new_tensor(_LUMA), strip)[None]
    planes = [_scaled(strip * 0.5 + 0.5, peak)]
    if alpha is not None:
        planes.append(_scaled(alpha[0].detach().to(strip), peak))
    values = np.empty((*strip.shape[-2:], sum(map(len, planes))), dtype)
    whole = torch.cat(planes)  # (C, rows, W)
    if whole.is_cuda and values.dtype == np.uint8:  # a quarter of the bytes to send
        whole = whole.to(torch.uint8)
    torch.from_numpy(values).permute(2, 0, 1).copy_(whole.cpu())  # torch converts faster than NumPy
    return values


def pixels_of(values: NDArray) -> tuple[Tensor, Tensor | None]:
    """Turn plain numbers, (rows, W, C), uint8, uint16 or floats in [0, 1], into pixels and alpha: `values_of` undone.

    Returns:
        (1, 3, rows, W), float32 in [-1, 1], and (1, 1, rows, W), float32 in [0, 1], or None without alpha.
    """
    planes = values.transpose(2, 0, 1)  # (C, H, W), a view
    channels, height, width = planes.shape
    peak = _peak(planes.dtype)
    has_alpha = channels in (2, 4)
    pixels = np.empty((1, 3, height, width), np.float32)
    np.multiply(planes[: channels - has_alpha], np.float32(2 / peak), out=pixels[0], casting="unsafe")
    pixels -= 1
    alpha = None
    if has_alpha:
        alpha = torch.from_numpy((planes[None, -1:] / np.float32(peak)).astype(np.float32, copy=False))  # (1, 1, H, W)
    return torch.from_numpy(pixels), alpha


def _scaled(strip: Tensor, peak: int) -> Tensor:
    """Scale [0, 1] to [0, peak], whole numbers unless peak is 1."""
    strip = strip.clamp(0, 1).mul_(peak)
    return strip if peak == 1 else strip.round_()


def _to_pil(picture: Picture) -> Image.Image:
    # PIL has 16 bits for plain grey only.
    wide = picture.info.bits == 16 and picture.info.grey and picture.alpha is None
    values = _values(picture, np.uint16 if wide else np.uint8)
    image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
    meta = {"icc_profile": picture.info.icc, "exif": picture.info.exif}
    image.info.update({name: value for name, value in meta.items() if value})
    return image

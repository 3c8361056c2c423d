"""Resampling, padding and cropping of NCHW tensors, and the size of an output picture."""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tudsr.errors import InputError


def output_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Give the size of a picture enlarged by a scale.

    Each side is max(1, side * scale rounded half up), the product being taken in float64.

    Args:
        height: rows of the input, at least 1.
        width: columns of the input, at least 1.
        scale: enlargement, a finite number of at least 1; it need not be whole.

    Returns:
        Height and width of the output, in pixels.

    Raises:
        InputError: when a side is below 1 or the scale is below 1 or not finite.
    """
    if height < 1 or width < 1:
        raise InputError(f"A picture of {width}x{height} pixels has nothing to enlarge; both sides must be at least 1.")
    if not math.isfinite(scale) or scale < 1:
        raise InputError(f"The scale must be a finite number of at least 1, not {scale}.")
    return _round_half_up(height * scale), _round_half_up(width * scale)


def upsample(x: Tensor, height: int, width: int) -> Tensor:
    """Enlarge by bicubic interpolation (a = -0.75, half-pixel centres, replicated borders, no antialiasing).

    Source: METHOD («Generator»): x_up = bicubic(x, M or N). Overshoot at edges is kept, so values may leave the
    input's range a little.

    Args:
        x: pictures, (B, C, h, w), any float dtype and any range; computed in float32, or float64 if that is given.
        height: rows of the output, meant to be at least h.
        width: columns of the output, meant to be at least w.

    Returns:
        A new tensor (B, C, height, width) of x's dtype.
    """
    return _bicubic(x, height, width, antialias=False)


def downsample(x: Tensor, height: int, width: int) -> Tensor:
    """Shrink by antialiased bicubic interpolation (a = -0.5, the kernel widened by the ratio, as Pillow does it).

    Args:
        x: pictures, (B, C, h, w), any float dtype and any range; computed in float32, or float64 if that is given.
        height: rows of the output, meant to be at most h.
        width: columns of the output, meant to be at most w.

    Returns:
        A new tensor (B, C, height, width) of x's dtype; not clamped.
    """
    return _bicubic(x, height, width, antialias=True)


def pad_bottom_right(x: Tensor, height: int, width: int) -> Tensor:
    """Extend to a canvas, the picture staying at the top left.

    An axis is mirrored (without repeating the border) where it is long enough for that, else its border is repeated.

    Args:
        x: (B, C, h, w), any float dtype; h and w at least 1.
        height: rows of the canvas, at least h.
        width: columns of the canvas, at least w.

    Returns:
        (B, C, height, width); x itself when there is nothing to add.
    """
    pad_h, pad_w = height - x.shape[-2], width - x.shape[-1]
    assert min(pad_h, pad_w) >= 0, "the canvas must hold the picture"
    if pad_w:
        x = F.pad(x, (0, pad_w, 0, 0), mode=_pad_mode(pad_w, x.shape[-1]))  # (B, C, h, width)
    if pad_h:
        x = F.pad(x, (0, 0, 0, pad_h), mode=_pad_mode(pad_h, x.shape[-2]))  # (B, C, height, width)
    return x


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extend at the bottom and the right until both sides are multiples of a number, as `pad_bottom_right` does.

    Args:
        x: (B, C, h, w), any float dtype.
        multiple: in pixels of x, at least 1.

    Returns:
        (B, C, H, W), H and W the least multiples that hold x; `crop(y, h, w)` takes the padding off again.
    """
    height, width = x.shape[-2:]
    return pad_bottom_right(x, height + -height % multiple, width + -width % multiple)


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Cut the top left part out: the inverse of `pad_bottom_right`.

    Args:
        x: (B, C, H, W), any dtype.
        height: rows to keep, at most H.
        width: columns to keep, at most W.

    Returns:
        A view (B, C, height, width) of x.
    """
    assert height <= x.shape[-2], "a crop cannot enlarge"
    assert width <= x.shape[-1], "a crop cannot enlarge"
    return x[..., :height, :width]


def _round_half_up(value: float) -> int:
    return max(1, math.floor(value + 0.5))


def _bicubic(x: Tensor, height: int, width: int, *, antialias: bool) -> Tensor:
    work = x if x.dtype == torch.float64 else x.float()
    y = F.interpolate(work, size=(height, width), mode="bicubic", align_corners=False, antialias=antialias)
    return y.to(x.dtype)  # (B, C, height, width)


def _pad_mode(pad: int, side: int) -> str:
    return "reflect" if pad < side else "replicate"

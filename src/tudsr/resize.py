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


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Cut the top left part out.

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

"""Resampling of NCHW tensors, and the size of an output picture."""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tudsr.errors import InputError

Region = Callable[[int, int, int, int], Tensor]
"""(y0, y1, x0, x1) -> (B, C, y1 - y0, x1 - x0): a part of a picture that need not be in memory as a whole."""

_A = -0.75
_BLOCK_PX = 256  # outputs of one matrix product: the matrix is a band, and larger ones hold more zeros
_BLOCK_ROWS = 64
_STRIP_PIXELS = 2**20


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
    part = upsampled(part_of(x), (x.shape[-2], x.shape[-1]), (height, width))
    step = max(_BLOCK_ROWS, _STRIP_PIXELS // width // _BLOCK_ROWS * _BLOCK_ROWS)
    return torch.cat([part(y, min(height, y + step), 0, width) for y in range(0, height, step)], dim=-2)


def part_of(x: Tensor) -> Region:
    """Return the parts of a picture that is in memory, (B, C, H, W), as views."""
    return lambda y0, y1, x0, x1: x[..., y0:y1, x0:x1]


def rows_of(whole: Region, size: tuple[int, int], start: int) -> Iterator[Tensor]:
    """Yield a picture's rows from `start` on, (B, C, rows, W), in strips; `size` is its height and width."""
    height, width = size
    step = max(1, _STRIP_PIXELS // width)
    for y in range(start, height, step):
        yield whole(y, min(height, y + step), 0, width)


def upsampled(source: Region, before: tuple[int, int], after: tuple[int, int]) -> Region:
    """Return the parts of `upsample`'s result without making the whole.

    Positions are computed in float64: torch's own bicubic interpolation takes them in float32, which is a thousandth
    of a pixel off where a side has ten thousand.

    Args:
        source: the picture to enlarge.
        before: its height and width.
        after: height and width of the whole result.

    Returns:
        A function that reads as much of `source` as a part needs: two pixels around it, and whole blocks of rows.
    """

    def part(y0: int, y1: int, x0: int, x1: int) -> Tensor:
        first = y0 // _BLOCK_ROWS * _BLOCK_ROWS
        end = min(after[0], -(-y1 // _BLOCK_ROWS) * _BLOCK_ROWS)
        top, bottom = _needed(before[0], after[0], first, end)
        left, right = _needed(before[1], after[1], x0, x1)
        x = source(top, bottom, left, right)
        work = x if x.dtype == torch.float64 else x.float()
        columns = [
            _bicubic_matrix(before[1], after[1], start, min(x1, start + _BLOCK_PX), work.device, work.dtype)
            for start in range(x0, x1, _BLOCK_PX)
        ]
        strips = []
        # Whole blocks of rows at fixed places, so that a row's last bits do not depend on which others were asked for.
        for y in range(first, end, _BLOCK_ROWS):
            strip = _block(work, (y, min(end, y + _BLOCK_ROWS)), before[0], after[0], top, left, columns)
            strips.append(strip[..., max(0, y0 - y) : y1 - y, :].to(x.dtype))
        return torch.cat(strips, dim=-2)  # (B, C, y1 - y0, x1 - x0)

    return part


def _block(
    x: Tensor, rows: tuple[int, int], before: int, after: int, top: int, left: int, columns: list[tuple[int, Tensor]]
) -> Tensor:
    """Return some rows of the result, (B, C, rows, columns), of a part of the source that begins at (top, left)."""
    first, matrix = _bicubic_matrix(before, after, *rows, x.device, x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        tall = matrix @ x[..., first - top : first - top + matrix.shape[1], :]  # (B, C, rows, w)
        return torch.cat([tall[..., at - left : at - left + each.shape[1]] @ each.mT for at, each in columns], dim=-1)


def _needed(before: int, after: int, start: int, stop: int) -> tuple[int, int]:
    """Return the half-open range of an axis's inputs that its outputs from start to stop are made of."""
    first = math.floor((start + 0.5) * before / after - 0.5) - 1
    last = math.floor((stop - 0.5) * before / after - 0.5) + 2
    return min(max(first, 0), before - 1), min(max(last, 0), before - 1) + 1


@lru_cache(maxsize=128)  # 20 MB at most; every window and strip of two passes asks for the blocks that it lies in
@torch.inference_mode(False)  # what is kept must serve training too
def _bicubic_matrix(
    before: int, after: int, start: int, stop: int, device: torch.device, dtype: torch.dtype
) -> tuple[int, Tensor]:
    """Return the first input and the weights, (stop - start, inputs), of an axis's outputs from start to stop.

    They are computed in float64 on the CPU and rounded once.

    Source: Keys 1981, «Cubic convolution interpolation for digital image processing», equation 4, with its free
    parameter a.
    """
    first, end = _needed(before, after, start, stop)
    centre = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * before / after - 0.5
    left = centre.floor()
    t = centre - left
    matrix = torch.zeros(stop - start, end - first, dtype=torch.float64)
    for tap in (-1, 0, 1, 2):
        d = (t - tap).abs()
        near = ((_A + 2) * d - (_A + 3)) * d * d + 1
        far = (((d - 5) * d + 8) * d - 4) * _A
        index = (left.long() + tap).clamp(0, before - 1) - first
        matrix.scatter_add_(1, index[:, None], torch.where(d < 1, near, far)[:, None])
    return first, matrix.to(device, dtype)


def downsample(x: Tensor, height: int, width: int) -> Tensor:
    """Shrink by antialiased bicubic interpolation (a = -0.5, the kernel widened by the ratio, as Pillow does it).

    Args:
        x: pictures, (B, C, h, w), any float dtype and any range; computed in float32, or float64 if that is given.
        height: rows of the output, meant to be at most h.
        width: columns of the output, meant to be at most w.

    Returns:
        A new tensor (B, C, height, width) of x's dtype; not clamped.
    """
    work = x if x.dtype == torch.float64 else x.float()
    y = F.interpolate(work, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
    return y.to(x.dtype)  # (B, C, height, width)


def _round_half_up(value: float) -> int:
    return max(1, math.floor(value + 0.5))

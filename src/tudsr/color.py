"""Colour fixes: a stage's output takes the colours of its own upsampled input.

Every fix works row by row, top to bottom, so that neither picture need be in memory as a whole. `sr` and `ref` are
(B, C, H, W) of equal size, float32 or float64, [-1, 1]; the result is not clamped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tudsr.resize import Region, part_of

LEVELS = 5
HALO_PX = 2**LEVELS - 1
"""Rows above and below that a row of the low-pass depends on: 1 + 2 + 4 + 8 + 16."""

Size = tuple[int, int]

_MARGIN_PX = 2 ** (LEVELS - 1)
_STRIP_PIXELS = 2**19
_ADAIN_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class ColorFix:
    """One way to fix colours.

    Attributes:
        rows: (sr, ref, (H, W), start, statistics) -> the fixed rows from `start` on; `sr` yields the rows of the
            picture from `start - halo_px`, or from the first one, to the last.
        halo_px: rows above a row that its fix depends on.
        statistics: (sr, ref, (H, W)) -> what `rows` needs to know of the whole pictures beforehand; None for nothing.
    """

    rows: Callable[[Iterator[Tensor], Region, Size, int, Tensor | None], Iterator[Tensor]]
    halo_px: int = 0
    statistics: Callable[[Region, Region, Size], Tensor] | None = None


def fix_color(name: str, sr: Tensor, ref: Tensor) -> Tensor:
    """Apply a colour fix to pictures that are in memory.

    Args:
        name: a key of COLOR_FIXES.
        sr: the pictures to fix, (B, C, H, W), float32 or float64, [-1, 1].
        ref: those with the right colours, of the same shape and dtype.

    Returns:
        The fixed pictures, not clamped.
    """
    fix, size = COLOR_FIXES[name], (sr.shape[-2], sr.shape[-1])
    statistics = fix.statistics(part_of(sr), part_of(ref), size) if fix.statistics else None
    return torch.cat(list(fix.rows(iter([sr]), part_of(ref), size, 0, statistics)), dim=-2)


@torch.no_grad()
def wavelet_rows(
    sr: Iterator[Tensor], ref: Region, size: Size, start: int = 0, statistics: Tensor | None = None
) -> Iterator[Tensor]:
    """Keep the high frequencies of `sr` and take the low ones of `ref`.

    The low-pass is the à-trous one of five levels: at level i the 3x3 binomial kernel [1, 2, 1] x [1, 2, 1] / 16 with
    dilation 2**i and replicated borders. It is linear, so that one low-pass is enough: sr - low(sr - ref). It works by
    strips of rows with a halo; the result depends neither on them nor on `start`, to the bit.

    Source: the à-trous wavelet decomposition (Holschneider et al. 1989; Shensa 1992), used as a colour fix for
    diffusion super-resolution by StableSR (Wang et al. 2023).

    Args:
        sr: see `ColorFix.rows`.
        ref: the picture with the right colours.
        size: height and width of both, in pixels.
        start: the first row that is wanted.
        statistics: not used.

    Yields:
        (B, C, rows, W), not clamped.
    """
    height, width = size
    done = top = max(0, start - HALO_PX)  # rows [top, done) of the low-passed difference, [y, done) of sr are at hand
    y = start
    raw = low = None
    for strip in strips(sr, strip_rows(width)):
        end = done + strip.shape[-2]
        across = _low_pass_x(strip - ref(done, end, 0, width))
        strip = strip[..., max(0, y - done) :, :]
        low = across if low is None else torch.cat([low, across], dim=-2)
        raw = strip if raw is None else torch.cat([raw, strip], dim=-2)
        done = end
        ready = (done if done == height else done - HALO_PX) - y
        if ready > 0:
            yield raw[..., :ready, :] - _low_pass_y(low)[..., y - top : y - top + ready, :]
            raw, y = raw[..., ready:, :].clone(), y + ready
            above = max(0, y - HALO_PX)
            low, top = low[..., above - top :, :].clone(), above
        del strip  # a view of rows whose memory `strips` sets free


def adain_statistics(sr: Region, ref: Region, size: Size) -> Tensor:
    """Return each channel's mean, gain and mean to come, (3, B, C, 1, 1), float64, for `adain_rows`.

    Args:
        sr: the whole picture to fix.
        ref: the picture with the right colours.
        size: height and width of both, in pixels.
    """
    (mean, std), (ref_mean, ref_std) = _mean_std(sr, size), _mean_std(ref, size)
    return torch.stack([mean, ref_std / std.clamp(min=_ADAIN_EPS), ref_mean])


@torch.no_grad()
def adain_rows(
    sr: Iterator[Tensor], ref: Region, size: Size, start: int = 0, statistics: Tensor | None = None
) -> Iterator[Tensor]:
    """Give each channel of `sr` the mean and the standard deviation of `ref`'s.

    The statistics are those of the whole pictures, each taken in one pass over strips in float64.

    Source: Huang and Belongie 2017, «Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization»,
    equation 8, between pictures rather than features.

    Args:
        sr: see `ColorFix.rows`.
        ref: not looked at again.
        size: likewise.
        start: likewise.
        statistics: from `adain_statistics`.

    Yields:
        (B, C, rows, W), not clamped; a flat channel gets the mean only.
    """
    assert statistics is not None, "AdaIN needs the whole picture's statistics first"
    for strip in sr:
        mean, gain, to = statistics.to(strip)
        yield (strip - mean) * gain + to  # in this order: the gain may be large
        del strip  # likewise


COLOR_FIXES = {
    "wavelet": ColorFix(rows=wavelet_rows, halo_px=HALO_PX),
    "adain": ColorFix(rows=adain_rows, statistics=adain_statistics),
    "none": ColorFix(rows=lambda sr, *_: sr),
}
"""By the name that the settings and the command use."""


def strip_rows(width: int) -> int:
    """Return how many rows of a picture of that width are worked on at once."""
    return max(2 * HALO_PX, _STRIP_PIXELS // width)


def strips(rows: Iterator[Tensor], most: int) -> Iterator[Tensor]:
    """Cut pictures' rows, (B, C, rows, W), into strips of at most that many."""
    for band in rows:
        yield from band.split(most, dim=-2)
        del band  # while the next one is made, this one's memory is free


def _low_pass_x(x: Tensor) -> Tensor:
    """Low-pass (..., h, W) along x."""
    width = x.shape[-1]
    padded = x.new_empty(*x.shape[:-1], width + 2 * _MARGIN_PX)
    half = torch.empty_like(padded)
    padded[..., _MARGIN_PX : _MARGIN_PX + width] = x
    for level in range(LEVELS):
        d = 2**level
        near, far = _MARGIN_PX, _MARGIN_PX + width
        padded[..., near - d : near] = padded[..., near : near + 1]
        padded[..., far : far + d] = padded[..., far - 1 : far]
        # [1, 0.., 2, 0.., 1] is [1, 0.., 1] twice
        pairs = torch.add(padded[..., near - d : far], padded[..., near : far + d], out=half[..., : width + d])
        torch.add(pairs[..., :width], pairs[..., d:], out=padded[..., near:far])
    # Five sums of weights of 4; dividing by a power of two at the end is exact.
    return padded[..., _MARGIN_PX : _MARGIN_PX + width].mul_(4.0**-LEVELS)


def _low_pass_y(x: Tensor) -> Tensor:
    """Low-pass (..., h, W) along y; rows within HALO_PX of a cut that is not the picture's border come out wrong."""
    height, width = x.shape[-2:]
    padded = x.new_empty(*x.shape[:-2], height + 2 * _MARGIN_PX, width)
    half = torch.empty_like(padded)
    near, far = _MARGIN_PX, _MARGIN_PX + height
    padded[..., near:far, :] = x
    for level in range(LEVELS):
        d = 2**level
        padded[..., near - d : near, :] = padded[..., near : near + 1, :]
        padded[..., far : far + d, :] = padded[..., far - 1 : far, :]
        above, below = padded[..., near - d : far, :], padded[..., near : far + d, :]
        pairs = torch.add(above, below, out=half[..., : height + d, :])
        torch.add(pairs[..., :height, :], pairs[..., d:, :], out=padded[..., near:far, :])
    return padded[..., near:far, :].mul_(4.0**-LEVELS)


def _mean_std(part: Region, size: Size) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and population standard deviation, (B, C, 1, 1), float64.

    Source: Chan, Golub and LeVeque 1983, equation 2.1b.
    """
    height, width = size
    count = 0
    mean = squares = torch.zeros((), dtype=torch.float64)
    step = max(1, _STRIP_PIXELS // width)
    for y in range(0, height, step):
        strip = part(y, min(height, y + step), 0, width).double()
        variance, strip_mean = torch.var_mean(strip, dim=(-2, -1), correction=0, keepdim=True)
        n, delta = strip.shape[-2] * width, strip_mean - mean
        squares = squares + variance * n + delta * delta * (count * n / (count + n))
        mean = mean + delta * (n / (count + n))
        count += n
    return mean, (squares / count).sqrt()

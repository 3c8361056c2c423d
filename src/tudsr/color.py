"""Colour fixes: a stage's output takes the colours of its own upsampled input.

Every fix takes `sr` and `ref`, (1, C, H, W) of equal size, float32 or float64, [-1, 1], and returns the fixed picture,
not clamped. To save the memory of a picture, it may write the result into `sr` and return that very tensor.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tudsr.errors import ConfigError

LEVELS = 5
HALO_PX = 2**LEVELS - 1
"""Rows above and below that a row of the low-pass depends on: 1 + 2 + 4 + 8 + 16."""

_MARGIN_PX = 2 ** (LEVELS - 1)
_STRIP_PIXELS = 2**19
_ADAIN_EPS = 1e-5


def fix_color(name: str, sr: Tensor, ref: Tensor) -> Tensor:
    """Apply a colour fix by its name.

    Args:
        name: a key of COLOR_FIXES.
        sr: the picture to fix, (1, C, H, W), float32 or float64, [-1, 1]; it may be overwritten.
        ref: the picture with the right colours, of the same shape and dtype.

    Returns:
        The fixed picture, not clamped; it may be `sr` itself.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in COLOR_FIXES:
        raise ConfigError(f"{name!r} is not a colour fix; known ones: {', '.join(COLOR_FIXES)}.")
    return COLOR_FIXES[name](sr, ref)


@torch.no_grad()
def wavelet(sr: Tensor, ref: Tensor, strip_px: int | None = None) -> Tensor:
    """Keep the high frequencies of `sr` and take the low ones of `ref`.

    The low-pass is the à-trous one of five levels: at level i the 3x3 binomial kernel [1, 2, 1] x [1, 2, 1] / 16 with
    dilation 2**i and replicated borders. It is linear, so that one low-pass is enough: sr - low(sr - ref). It works by
    strips of rows; the working memory is that of some strips, not of the picture.

    Source: the à-trous wavelet decomposition (Holschneider et al. 1989; Shensa 1992), used as a colour fix for
    diffusion super-resolution by StableSR (Wang et al. 2023).

    Args:
        sr: (1, C, H, W), float32 or float64, [-1, 1]; overwritten with the result.
        ref: the same shape and dtype.
        strip_px: rows of a strip, at least 1; the result does not depend on it. None: about half a megapixel.

    Returns:
        `sr`, not clamped.
    """
    height, width = sr.shape[-2:]
    strip_px = strip_px or max(2 * HALO_PX, _STRIP_PIXELS // width)
    for channel, ref_channel in zip(sr[0], ref[0], strict=True):
        rows = channel.new_empty(0, width)  # low-passed along x: rows [top, done) of the picture
        top = done = 0
        for y in range(0, height, strip_px):
            end = min(height, y + strip_px)
            rows = rows[max(0, y - HALO_PX) - top :]
            top = max(0, y - HALO_PX)
            ahead = min(height, end + HALO_PX)  # always past `done`: these rows of sr are still as they came
            rows = torch.cat([rows, _low_pass_x(channel[done:ahead] - ref_channel[done:ahead])])
            done = ahead
            channel[y:end] -= _low_pass_y(rows)[y - top : end - top]
    return sr


@torch.no_grad()
def adain(sr: Tensor, ref: Tensor) -> Tensor:
    """Give each channel of `sr` the mean and the standard deviation of `ref`'s.

    The statistics are those of the whole picture, taken in one pass over strips in float64.

    Source: Huang and Belongie 2017, «Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization»,
    equation 8, between pictures rather than features.

    Args:
        sr: (1, C, H, W), float32 or float64, [-1, 1]; overwritten with the result.
        ref: the same shape and dtype.

    Returns:
        `sr`, not clamped; a flat channel gets the mean only.
    """
    for channel, ref_channel in zip(sr[0], ref[0], strict=True):
        mean, std = _mean_std(channel)
        ref_mean, ref_std = _mean_std(ref_channel)
        gain = ref_std / max(std, _ADAIN_EPS)
        channel.sub_(mean).mul_(gain).add_(ref_mean)  # in this order: the gain may be large
    return sr


def none(sr: Tensor, ref: Tensor) -> Tensor:  # noqa: ARG001
    """Leave `sr` as it is.

    Args:
        sr: (1, C, H, W), any range.
        ref: not looked at.

    Returns:
        `sr`.
    """
    return sr


COLOR_FIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"wavelet": wavelet, "adain": adain, "none": none}
"""By the name that the settings and the command use."""


def _low_pass_x(x: Tensor) -> Tensor:
    """Low-pass (h, W) along x."""
    height, width = x.shape
    padded = x.new_empty(height, width + 2 * _MARGIN_PX)
    half = torch.empty_like(padded)
    padded[:, _MARGIN_PX : _MARGIN_PX + width] = x
    for level in range(LEVELS):
        d = 2**level
        near, far = _MARGIN_PX, _MARGIN_PX + width
        padded[:, near - d : near] = padded[:, near : near + 1]
        padded[:, far : far + d] = padded[:, far - 1 : far]
        # [1, 0.., 2, 0.., 1] is [1, 0.., 1] twice
        pairs = torch.add(padded[:, near - d : far], padded[:, near : far + d], out=half[:, : width + d])
        torch.add(pairs[:, :width], pairs[:, d:], out=padded[:, near:far])
    # Five sums of weights of 4; dividing by a power of two at the end is exact.
    return padded[:, _MARGIN_PX : _MARGIN_PX + width].mul_(4.0**-LEVELS)


def _low_pass_y(x: Tensor) -> Tensor:
    """Low-pass (h, W) along y; rows nearer than HALO_PX to a cut that is not the picture's border come out wrong."""
    height, width = x.shape
    padded = x.new_empty(height + 2 * _MARGIN_PX, width)
    half = torch.empty_like(padded)
    near, far = _MARGIN_PX, _MARGIN_PX + height
    padded[near:far] = x
    for level in range(LEVELS):
        d = 2**level
        padded[near - d : near] = padded[near]
        padded[far : far + d] = padded[far - 1]
        pairs = torch.add(padded[near - d : far], padded[near : far + d], out=half[: height + d])
        torch.add(pairs[:height], pairs[d:], out=padded[near:far])
    return padded[near:far].mul_(4.0**-LEVELS)


def _mean_std(channel: Tensor) -> tuple[float, float]:
    """Mean and population standard deviation of (H, W). Source: Chan, Golub and LeVeque 1983, equation 2.1b."""
    count, mean, squares = 0, 0.0, 0.0
    for strip in channel.split(max(1, _STRIP_PIXELS // channel.shape[1])):
        variance, strip_mean = (float(v) for v in torch.var_mean(strip.double(), correction=0))
        n, delta = strip.numel(), strip_mean - mean
        squares += variance * n + delta * delta * count * n / (count + n)
        mean += delta * n / (count + n)
        count += n
    return mean, (squares / count) ** 0.5

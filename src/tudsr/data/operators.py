"""The operators of the degradation pipeline: blur, resize, Gaussian and Poisson noise.

Pictures are (3, H, W) float32 RGB in [0, 1] here, several at once, each of a size of its own; results may leave that
range. There we differ from Real-ESRGAN, which clips to it after either noise. It shows only where the second noise
meets the final resize and filter before JPEG, which clips too; it is kept because models were trained so, and the test
sets' hashes are pinned to it.
Noise is drawn on the CPU from a seed, so that every device sees the same field. float64 is taken too, and kept: then
every machine finds the same 8-bit values, whatever its libraries do with the last bits (see `settled`).
Source: Wang et al., «Real-ESRGAN» (2021), section 3.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tudsr.data.kernels import Kernel

Pictures = Sequence[Tensor]  # (C, H, W) each; a batch (B, C, H, W) is such a sequence too
Size = tuple[int, int]  # rows, columns

# On one core, direct convolution wins below this side and the FFT from it on, for pictures of 32 px to 384 px.
_FFT_FROM_PX = 9
_NEGLIGIBLE = 1e-6
# Reductions stronger than this are antialiased: Real-ESRGAN (x4) rarely meets them, at x8 they would be the rule and
# the LQ pictures would look like nearest-neighbour ones.
_ANTIALIAS_BELOW = 0.25
_SMALL_LAMBDA = 12.0
_GRAIN = 2.0**-24


def settled(x: Tensor) -> Tensor:
    """Return x; in float64, to the nearest multiple of 2^-24, so that what should be a tie is one.

    Sums of 8-bit values often end in a half. Which way that is rounded, the last bit decides, which is another on other
    processors, and JPEG makes several levels of it.
    """
    return (x / _GRAIN).round_().mul_(_GRAIN) if x.dtype == torch.float64 else x


def whole(x: Tensor) -> Tensor:
    """Round to whole numbers, ties to even, in float64 alike on every machine."""
    return settled(x).round()


def sizes_of(pictures: Pictures) -> list[Size]:
    """Return each picture's rows and columns."""
    return [(picture.shape[-2], picture.shape[-1]) for picture in pictures]


def stacked(pictures: Pictures) -> Tensor:
    """Lay pictures side by side as a batch.

    So one call of an operator does for all: on a GPU the calls cost more than the zeros.

    Args:
        pictures: (C, H, W) each, H and W of its own.

    Returns:
        (B, C, H, W) of the largest H and W; each picture at the top left of its own, with zeros below and beside. Of
        one picture it is a view.
    """
    if len(pictures) == 1:
        return pictures[0][None]
    sizes = sizes_of(pictures)
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    batch = pictures[0].new_zeros(len(pictures), pictures[0].shape[0], height, width)
    for place, picture, (h, w) in zip(batch, pictures, sizes, strict=True):
        place[:, :h, :w] = picture
    return batch


def cut(batch: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """Return the pictures that `stacked` laid side by side, as views, (C, h, w) each."""
    return [each[..., :h, :w] for each, (h, w) in zip(batch, sizes, strict=True)]


def blur(pictures: Pictures, kernels: Sequence[Kernel | None]) -> list[Tensor]:
    """Correlate each picture with its kernel, borders reflected (replicated where it is too small for that).

    Args:
        pictures: (C, H, W) each.
        kernels: (k, k) each, odd, sum one; without one a picture stays as it is.

    Returns:
        (C, H, W) each.
    """
    blurred, by_fft = list(pictures), {}
    for i, kernel in enumerate(kernels):
        kernel = None if kernel is None else _trim(kernel)
        if kernel is None or len(kernel) == 1:
            continue
        weight = torch.from_numpy(np.ascontiguousarray(kernel)).to(pictures[i])
        radius = len(kernel) // 2
        mode = "reflect" if radius < min(pictures[i].shape[-2:]) else "replicate"
        padded = F.pad(pictures[i], (radius,) * 4, mode=mode)  # (C, H+k-1, W+k-1)
        # Off the CPU always by the FFT: convolutions may be computed in TF32 there, which shows in 8 bit.
        if len(kernel) >= _FFT_FROM_PX or padded.device.type != "cpu":
            by_fft[i] = padded, weight
        else:
            blurred[i] = F.conv2d(padded, weight.expand(len(padded), 1, -1, -1), groups=len(padded))
    if by_fft:
        blurred_by_fft = _correlate_fft(*zip(*by_fft.values(), strict=True))
        for i, picture in zip(by_fft, blurred_by_fft, strict=True):
            blurred[i] = picture
    return blurred


def _trim(kernel: Kernel) -> Kernel:
    """Cut off outer rings that together weigh less than `_NEGLIGIBLE`."""
    size = kernel.shape[0]
    magnitude = np.abs(kernel)
    total = magnitude.sum()
    for border in range(size // 2, 0, -1):
        kept = magnitude[border : size - border, border : size - border].sum()
        if total - kept < _NEGLIGIBLE:
            return kernel[border : size - border, border : size - border]
    return kernel


def _correlate_fft(padded: Pictures, weights: Pictures) -> list[Tensor]:
    """Correlate each (C, H+k-1, W+k-1) with its (k, k), valid part only, by the FFT at a fast length."""
    pictures, kernels = stacked(padded), stacked([weight.flip(0, 1)[None] for weight in weights])
    shape = [_fast_length(side) for side in pictures.shape[-2:]]
    spectrum = torch.fft.rfft2(pictures, s=shape) * torch.fft.rfft2(kernels, s=shape)
    whole_parts = cut(torch.fft.irfft2(spectrum, s=shape), sizes_of(padded))
    return [part[:, len(weight) - 1 :, len(weight) - 1 :] for part, weight in zip(whole_parts, weights, strict=True)]


def _fast_length(n: int) -> int:
    """Return the smallest even length >= n without prime factors above 5."""
    n += n % 2
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2


def resize_to(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Resize; aliasing is part of the degradation, save for reductions below a quarter.

    Args:
        x: (B, C, H, W) float32.
        height: rows wanted.
        width: columns wanted.
        mode: "area", "bilinear" or "bicubic".

    Returns:
        (B, C, height, width).
    """
    if x.shape[-2:] == (height, width):
        return x
    if mode == "area":
        return F.interpolate(x, size=(height, width), mode="area")
    antialias = min(height / x.shape[-2], width / x.shape[-1]) < _ANTIALIAS_BELOW
    return F.interpolate(x, size=(height, width), mode=mode, align_corners=False, antialias=antialias)


def add_gaussian_noise(
    pictures: Pictures, levels: Sequence[float], *, grey: bool, seeds: Sequence[int]
) -> list[Tensor]:
    """Add white Gaussian noise.

    Args:
        pictures: (3, H, W) float32 in [0, 1] each.
        levels: each picture's standard deviation, in 8-bit levels.
        grey: whether all channels get the same noise.
        seeds: each picture's seed of the noise field.

    Returns:
        (3, H, W) each, not clamped.
    """
    x = stacked(pictures)
    noisy = x + _normal_for(pictures, grey, seeds) * _each(x, [sigma / 255 for sigma in levels])
    return cut(noisy, sizes_of(pictures))


def add_poisson_noise(pictures: Pictures, levels: Sequence[float], *, grey: bool, seeds: Sequence[int]) -> list[Tensor]:
    """Add shot noise: Poisson counts at a gain that follows from the number of levels a picture uses.

    With v the number of distinct 8-bit levels rounded up to a power of two, the noise is Poisson(v x) / v - x, times
    its level; for grey noise, x is the luma.

    Args:
        pictures: (3, H, W) float32 in [0, 1] each.
        levels: each picture's factor on the noise.
        grey: whether all channels get the same noise.
        seeds: each picture's seed of the noise field.

    Returns:
        (3, H, W) each, not clamped.
    """
    x, sizes = stacked(pictures), sizes_of(pictures)
    clean = whole((_luma(x) if grey else x).clamp(0, 1) * 255)
    gains = [2.0 ** math.ceil(math.log2(used)) for used in _levels_used(cut(clean, sizes))]
    rate = clean * _each(x, [gain / 255 for gain in gains])
    counts = poisson_quantile(_normal_for(pictures, grey, seeds), rate)
    factors = [scale / gain for scale, gain in zip(levels, gains, strict=True)]
    return cut(x + (counts - rate) * _each(x, factors), sizes)


def _levels_used(levels: Pictures) -> list[int]:
    """Return how many of the 256 levels each picture has."""
    marked = torch.cat([picture.flatten() + 256 * i for i, picture in enumerate(levels)])
    counts = torch.bincount(marked.to(torch.int32), minlength=256 * len(levels)).view(-1, 256)
    return (counts > 0).sum(dim=1).tolist()


def _each(x: Tensor, values: Sequence[float]) -> Tensor:
    """Return one value per picture of a batch, (B, 1, 1, 1), in its kind."""
    return x.new_tensor(values).view(-1, 1, 1, 1)


def _luma(x: Tensor) -> Tensor:
    """Return BT.601 luma, (B, 1, H, W), of (B, 3, H, W)."""
    return (x * x.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _normal_for(pictures: Pictures, grey: bool, seeds: Sequence[int]) -> Tensor:
    """Return standard normal numbers for a batch, (B, 1 or C, H, W), each picture's from its seed, drawn on the CPU."""
    fields = [
        torch.randn((1 if grey else c, h, w), generator=torch.Generator().manual_seed(seed))
        for (c, h, w), seed in zip([picture.shape for picture in pictures], seeds, strict=True)
    ]
    return stacked(fields).to(pictures[0])


def poisson_quantile(normal: Tensor, rate: Tensor) -> Tensor:
    """Turn standard normal numbers into Poisson ones, by the quantile.

    One normal number per pixel, whatever the rate: unlike a rejection sampler, a tiny change of one pixel's rate
    cannot shift the random stream of all others. Rates from 12 up use the rounded Cornish-Fisher expansion, lower ones
    sum the distribution.

    Args:
        normal: any shape, float32, standard normal.
        rate: same shape, >= 0.

    Returns:
        Whole numbers >= 0, same shape, float32.
    """
    root = rate.sqrt()
    counts = (rate + root * normal + (normal * normal - 1) / 6).round_().clamp_(min=0)
    small = rate < _SMALL_LAMBDA
    if bool(small.any()):
        counts[small] = _small_poisson_quantile(normal[small], rate[small])
    return counts


def _small_poisson_quantile(normal: Tensor, rate: Tensor) -> Tensor:
    """Return the smallest k with P(K <= k) >= Phi(normal), for (n,) rates below `_SMALL_LAMBDA`."""
    target = torch.special.ndtr(normal)
    term = torch.exp(-rate)
    cumulative = term.clone()
    counts = torch.zeros_like(rate)
    for k in range(1, 40):
        above = target > cumulative
        counts += above
        term = term * rate / k
        cumulative += term
        if not bool(above.any()):
            break
    return counts

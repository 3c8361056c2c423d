"""The operators of the degradation pipeline: blur, resize, Gaussian and Poisson noise.

Pictures are (B, 3, H, W) float32 RGB in [0, 1] here; results may leave that range. There we differ from Real-ESRGAN,
which clips to it after either noise. It shows only where the second noise meets the final resize and filter before
JPEG, which clips too; it is kept because models were trained so, and the test sets' hashes are pinned to it.
Noise is drawn on the CPU from a seed, so that every device sees the same field. float64 is taken too, and kept: then
every machine finds the same 8-bit values, whatever its libraries do with the last bits (see `settled`).
Source: Wang et al., «Real-ESRGAN» (2021), section 3.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tudsr.data.kernels import Kernel

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


def blur(x: Tensor, kernel: Kernel) -> Tensor:
    """Correlate with a kernel, borders reflected (replicated where the picture is too small for that).

    Args:
        x: (B, C, H, W) float32.
        kernel: (k, k), odd, sum one.

    Returns:
        (B, C, H, W).
    """
    kernel = _trim(kernel)
    side, radius = kernel.shape[0], kernel.shape[0] // 2
    if side == 1:
        return x
    weight = torch.from_numpy(np.ascontiguousarray(kernel)).to(x)
    mode = "reflect" if radius < min(x.shape[-2:]) else "replicate"
    padded = F.pad(x, (radius,) * 4, mode=mode)  # (B, C, H+k-1, W+k-1)
    # Off the CPU always by the FFT: convolutions may be computed in TF32 there, which shows in 8 bit.
    if side >= _FFT_FROM_PX or x.device.type != "cpu":
        return _correlate_fft(padded, weight)
    channels = x.shape[1]
    return F.conv2d(padded, weight.expand(channels, 1, side, side), groups=channels)


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


def _correlate_fft(padded: Tensor, weight: Tensor) -> Tensor:
    """Correlate (B, C, H+k-1, W+k-1) with (k, k), valid part only, by the FFT at a fast length."""
    side = weight.shape[0]
    height, width = padded.shape[-2:]
    shape = (_fast_length(height), _fast_length(width))
    spectrum = torch.fft.rfft2(padded, s=shape) * torch.fft.rfft2(weight.flip(0, 1), s=shape)
    return torch.fft.irfft2(spectrum, s=shape)[..., side - 1 : height, side - 1 : width]


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


def add_gaussian_noise(x: Tensor, sigma: float, *, grey: bool, seed: int) -> Tensor:
    """Add white Gaussian noise.

    Args:
        x: (B, 3, H, W) float32 in [0, 1].
        sigma: standard deviation in 8-bit levels.
        grey: whether all channels get the same noise.
        seed: seed of the noise field.

    Returns:
        (B, 3, H, W), not clamped.
    """
    return x + _normal_like(x, grey, seed) * (sigma / 255)


def add_poisson_noise(x: Tensor, scale: float, *, grey: bool, seed: int) -> Tensor:
    """Add shot noise: Poisson counts at a gain that follows from the number of levels the picture uses.

    With v the number of distinct 8-bit levels rounded up to a power of two, the noise is Poisson(v x) / v - x, times
    `scale`; for grey noise, x is the luma.

    Args:
        x: (B, 3, H, W) float32; B = 1, since the gain is the picture's own.
        scale: factor on the noise.
        grey: whether all channels get the same noise.
        seed: seed of the noise field.

    Returns:
        (B, 3, H, W), not clamped.
    """
    clean = _luma(x) if grey else x
    levels = whole(clean.clamp(0, 1) * 255)
    used = int((torch.bincount(levels.flatten().to(torch.int32), minlength=256) > 0).sum())
    gain = 2.0 ** math.ceil(math.log2(used))
    rate = levels * (gain / 255)
    counts = poisson_quantile(_normal_like(x, grey, seed), rate)
    return x + (counts - rate) * (scale / gain)


def _luma(x: Tensor) -> Tensor:
    """Return BT.601 luma, (B, 1, H, W), of (B, 3, H, W)."""
    return (x * x.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _normal_like(x: Tensor, grey: bool, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (x.shape[0], 1 if grey else x.shape[1], *x.shape[-2:])
    return torch.randn(shape, generator=generator).to(x)


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

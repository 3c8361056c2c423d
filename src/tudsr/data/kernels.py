"""Blur kernels of the Real-ESRGAN degradation model: six bivariate families and the 2-D sinc filter.

Pure NumPy; every kernel is (size, size) float64, of odd size, and sums to one.
Source: Wang et al., «Real-ESRGAN» (2021), section 3 and its supplement; Liu et al., «Estimating generalized Gaussian
blur kernels» (2020) for the generalized and plateau shapes.
"""

import math

import numpy as np
from numpy.typing import NDArray

Kernel = NDArray[np.float64]

KERNEL_PROBABILITIES: dict[str, float] = {
    "iso": 0.45,
    "aniso": 0.25,
    "generalized_iso": 0.12,
    "generalized_aniso": 0.03,
    "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}
KERNEL_SIZES_PX = tuple(range(7, 22, 2))
GENERALIZED_BETA = (0.5, 4.0)
PLATEAU_BETA = (1.0, 2.0)
_BESSEL_NODES = 64


def bivariate_kernel(
    size_px: int, sigma_x_px: float, sigma_y_px: float, angle_rad: float, beta: float = 1.0, plateau: bool = False
) -> Kernel:
    """Return a bivariate (generalized) Gaussian or plateau kernel.

    With q = r^T S^-1 r the shape is exp(-q^beta / 2), or 1 / (1 + q^beta) for a plateau; beta = 1 without plateau is
    the ordinary Gaussian.

    Args:
        size_px: odd side of the kernel.
        sigma_x_px: standard deviation along the first principal axis.
        sigma_y_px: standard deviation along the second.
        angle_rad: angle of the first axis against x, counted from x towards y (downwards).
        beta: the shape's exponent, > 0.
        plateau: whether to use the plateau shape.

    Returns:
        (size_px, size_px), indexed [y, x].
    """
    radius = size_px // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    along = math.cos(angle_rad) * x + math.sin(angle_rad) * y
    across = math.cos(angle_rad) * y - math.sin(angle_rad) * x
    q = (along / sigma_x_px) ** 2 + (across / sigma_y_px) ** 2
    shape = 1.0 / (1.0 + q**beta) if plateau else np.exp(-0.5 * q**beta)
    return shape / shape.sum()


def sinc_kernel(size_px: int, cutoff_rad: float) -> Kernel:
    """Return the circular ideal low-pass filter, truncated and normalised: it rings and overshoots.

    Args:
        size_px: odd side of the kernel.
        cutoff_rad: cut-off frequency in radians per pixel, in (0, pi].

    Returns:
        (size_px, size_px): w J1(w r) / (2 pi r), and w^2 / (4 pi) at the centre, over its sum.
    """
    radius = size_px // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    r_squared, where = np.unique(x**2 + y**2, return_inverse=True)
    r = np.sqrt(r_squared[1:].astype(np.float64))
    values = np.empty(len(r_squared))
    values[0] = cutoff_rad**2 / (4 * math.pi)
    values[1:] = cutoff_rad * _bessel_j1(cutoff_rad * r) / (2 * math.pi * r)
    kernel = values[where].reshape(size_px, size_px)
    return kernel / kernel.sum()


def _bessel_j1(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return J1(x) by its integral; the midpoint rule on this periodic integrand is exact to rounding for |x| < 64."""
    tau = (np.arange(_BESSEL_NODES) + 0.5) * math.pi / _BESSEL_NODES
    return np.cos(tau - x[..., None] * np.sin(tau)).mean(axis=-1)


def draw_blur_kernel(rng: np.random.Generator, sigma_px: tuple[float, float], sinc_prob: float) -> Kernel:
    """Draw a blur kernel: sinc with `sinc_prob`, else one of the six families.

    Args:
        rng: source of every random number.
        sigma_px: range of the standard deviations.
        sinc_prob: probability of a sinc filter, whose cut-off is then at least pi/3 (size < 13) or pi/5.

    Returns:
        (size, size) with size drawn from `KERNEL_SIZES_PX`.
    """
    size_px = int(rng.choice(KERNEL_SIZES_PX))
    if rng.random() < sinc_prob:
        return sinc_kernel(size_px, rng.uniform(math.pi / (3 if size_px < 13 else 5), math.pi))
    family = str(rng.choice(list(KERNEL_PROBABILITIES), p=list(KERNEL_PROBABILITIES.values())))
    return draw_family_kernel(family, size_px, rng, sigma_px)


def draw_family_kernel(family: str, size_px: int, rng: np.random.Generator, sigma_px: tuple[float, float]) -> Kernel:
    """Draw a kernel of one named family.

    Args:
        family: a key of `KERNEL_PROBABILITIES`.
        size_px: odd side of the kernel.
        rng: source of every random number.
        sigma_px: range of the standard deviations.

    Returns:
        (size_px, size_px).
    """
    sigma_x = sigma_y = rng.uniform(*sigma_px)
    angle = 0.0
    if family.endswith("aniso"):
        sigma_y = rng.uniform(*sigma_px)
        angle = rng.uniform(-math.pi, math.pi)
    beta = 1.0
    if family.startswith("generalized"):
        beta = _draw_beta(rng, GENERALIZED_BETA)
    elif family.startswith("plateau"):
        beta = _draw_beta(rng, PLATEAU_BETA)
    return bivariate_kernel(size_px, sigma_x, sigma_y, angle, beta, plateau=family.startswith("plateau"))


def _draw_beta(rng: np.random.Generator, beta_range: tuple[float, float]) -> float:
    """Draw an exponent, half of the time below one and half above (a range that starts at one gives one itself)."""
    low, high = beta_range
    return rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)


def draw_sinc_kernel(rng: np.random.Generator) -> Kernel:
    """Draw the final sinc filter: size from `KERNEL_SIZES_PX`, cut-off between pi/3 and pi.

    Returns:
        (size, size).
    """
    return sinc_kernel(int(rng.choice(KERNEL_SIZES_PX)), rng.uniform(math.pi / 3, math.pi))

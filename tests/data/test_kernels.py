"""Kernels against closed forms and scipy."""

import math

import numpy as np
import pytest
from scipy import ndimage, special

from tudsr.data.kernels import (
    GENERALIZED_BETA,
    KERNEL_PROBABILITIES,
    KERNEL_SIZES_PX,
    PLATEAU_BETA,
    bivariate_kernel,
    draw_blur_kernel,
    draw_family_kernel,
    draw_sinc_kernel,
    sinc_kernel,
)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.7])
def test_isotropic_gaussian_is_scipys(sigma: float) -> None:
    impulse = np.zeros((21, 21))
    impulse[10, 10] = 1
    reference = ndimage.gaussian_filter(impulse, sigma, radius=10)
    np.testing.assert_allclose(bivariate_kernel(21, sigma, sigma, 0.0), reference, atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 0.5, math.pi / 2, 2.5])
def test_anisotropic_gaussian_has_its_covariance(angle: float) -> None:
    kernel = bivariate_kernel(41, 3.0, 1.5, angle)
    y, x = np.mgrid[-20:21, -20:21]
    points = np.stack((x.ravel(), y.ravel()))
    moments = (kernel.ravel() * points) @ points.T
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    np.testing.assert_allclose(moments, turn @ np.diag([9.0, 2.25]) @ turn.T, atol=1e-3)


@pytest.mark.parametrize(("beta", "plateau"), [(0.5, False), (3.0, False), (1.0, True), (2.0, True)])
def test_shapes_follow_their_formula(beta: float, plateau: bool) -> None:
    kernel = bivariate_kernel(15, 1.3, 2.1, 0.7, beta, plateau)
    turn = np.array([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]])
    precision = np.linalg.inv(turn @ np.diag([1.3**2, 2.1**2]) @ turn.T)
    for x, y in [(3, -2), (0, 5), (-7, 7), (1, 1)]:
        q = np.array([x, y]) @ precision @ np.array([x, y])
        expected = 1 / (1 + q**beta) if plateau else math.exp(-0.5 * q**beta)  # the centre is 1 in both
        assert kernel[7 + y, 7 + x] / kernel[7, 7] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("cutoff", [math.pi / 5, 1.9, math.pi])
def test_sinc_is_the_circular_low_pass(cutoff: float) -> None:
    y, x = np.mgrid[-10:11, -10:11]
    r = np.hypot(x, y)
    r[10, 10] = 1
    reference = cutoff * special.j1(cutoff * r) / (2 * math.pi * r)
    reference[10, 10] = cutoff**2 / (4 * math.pi)
    np.testing.assert_allclose(sinc_kernel(21, cutoff), reference / reference.sum(), atol=1e-12)


@pytest.mark.parametrize("family", KERNEL_PROBABILITIES)
def test_families_are_normal_and_symmetric(family: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        kernel = draw_family_kernel(family, 13, rng, (0.2, 3.0))
        assert kernel.shape == (13, 13)
        assert kernel.min() >= 0
        assert kernel.sum() == pytest.approx(1)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)
        if not family.endswith("aniso"):
            np.testing.assert_allclose(kernel, np.rot90(kernel), atol=1e-12)


def test_anisotropic_families_are_not_isotropic() -> None:
    rng = np.random.default_rng(1)
    kernel = draw_family_kernel("plateau_aniso", 13, rng, (0.5, 3.0))
    assert np.abs(kernel - np.rot90(kernel)).max() > 1e-3


def test_draws_cover_the_sizes_and_the_sinc_share() -> None:
    rng = np.random.default_rng(2)
    kernels = [draw_blur_kernel(rng, (0.2, 3.0), sinc_prob=0.1) for _ in range(2000)]
    sizes = [len(kernel) for kernel in kernels]
    assert set(sizes) == set(KERNEL_SIZES_PX)
    assert all(kernel.sum() == pytest.approx(1) for kernel in kernels)
    # Only a sinc has negative values; 2000 draws at p = .1 have a standard deviation of 13.
    assert 150 < sum(kernel.min() < 0 for kernel in kernels) < 250
    assert all(draw_sinc_kernel(rng).min() < 0 for _ in range(20))


def test_families_sizes_and_exponents_are_those_of_the_method() -> None:
    assert KERNEL_PROBABILITIES == {
        "iso": 0.45, "aniso": 0.25, "generalized_iso": 0.12, "generalized_aniso": 0.03, "plateau_iso": 0.12,
        "plateau_aniso": 0.03,
    }  # fmt: skip
    assert KERNEL_SIZES_PX == (7, 9, 11, 13, 15, 17, 19, 21)
    assert (GENERALIZED_BETA, PLATEAU_BETA) == ((0.5, 4), (1, 2))

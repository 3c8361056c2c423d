"""Blur, resize and noise against scipy, Pillow, torch and closed forms."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from tudsr.data.jpeg import jpeg
from tudsr.data.kernels import bivariate_kernel, sinc_kernel
from tudsr.data.operators import (
    add_gaussian_noise,
    add_poisson_noise,
    blur,
    poisson_quantile,
    resize_to,
    settled,
    whole,
)

KERNELS = [
    bivariate_kernel(21, 2.0, 3.0, 0.5),
    bivariate_kernel(7, 1.0, 1.5, 0.2),
    None,
    sinc_kernel(13, 2.0),
    bivariate_kernel(9, 0.2, 0.2, 0.0),  # next to nothing, so that it is cut to one pixel
]


def _random(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size_px", [3, 7, 9, 13, 21])
@pytest.mark.parametrize("shape", [(40, 53), (24, 22)])
def test_blur_is_scipys_with_reflected_borders(size_px: int, shape: tuple[int, int]) -> None:
    """Small kernels take the direct path and large ones the FFT; an uneven kernel shows flips."""
    kernel = np.random.default_rng(size_px).random((size_px, size_px))
    kernel /= kernel.sum()
    x = _random(*shape)
    ours = blur(x, [kernel])[0].numpy()
    for channel in range(3):
        reference = ndimage.correlate(x[0, channel].double().numpy(), kernel, mode="mirror")
        np.testing.assert_allclose(ours[channel], reference, atol=2e-6)


@pytest.mark.parametrize("kernel", [bivariate_kernel(21, 0.6, 0.9, 0.4), sinc_kernel(21, 2.0)], ids=["gauss", "sinc"])
def test_trimming_does_not_show(kernel: np.ndarray) -> None:
    x = _random(48, 48)
    reference = ndimage.correlate(x[0, 0].double().numpy(), kernel, mode="mirror")
    np.testing.assert_allclose(blur(x, [kernel])[0][0].numpy(), reference, atol=3e-6)


def test_blur_of_a_picture_smaller_than_the_kernel_replicates_borders() -> None:
    x = _random(4, 6)
    kernel = bivariate_kernel(13, 2.0, 1.0, 0.3)
    reference = ndimage.correlate(x[0, 0].double().numpy(), kernel, mode="nearest")
    np.testing.assert_allclose(blur(x, [kernel])[0][0].numpy(), reference, atol=2e-6)


def test_resize_area_is_the_mean_of_blocks() -> None:
    x = _random(24, 36)
    reference = x[0].numpy().reshape(3, 6, 4, 6, 6).mean(axis=(2, 4))
    np.testing.assert_allclose(resize_to(x, 6, 6, "area")[0].numpy(), reference, atol=1e-6)


def test_moderate_bilinear_resize_aliases_and_strong_one_does_not() -> None:
    """Below a quarter the filter widens as Pillow's does; above, it takes the two nearest samples."""
    x = _random(64, 64, 1)
    moderate = resize_to(x, 32, 32, "bilinear")[0, 0].numpy()
    np.testing.assert_allclose(moderate, x[0, 0].numpy().reshape(32, 2, 32, 2).mean(axis=(1, 3)), atol=1e-6)
    thirds = resize_to(x[..., :63, :63], 21, 21, "bilinear")[0, 0]
    assert torch.allclose(thirds, x[0, 0, 1:63:3, 1:63:3], atol=1e-6)
    pillow = Image.fromarray(x[0, 0].numpy()).resize((10, 10), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(resize_to(x, 10, 10, "bilinear")[0, 0].numpy(), np.asarray(pillow), atol=1e-5)


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    """Return Keys' cubic kernel. Source: Keys 1981, eq. 15, whose a is -1/2."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    return np.where(x < 1, near, np.where(x < 2, a * (x**3 - 5 * x**2 + 8 * x - 4), 0))


def _four_taps(before: int, after: int) -> np.ndarray:
    """Return the (after, before) matrix of bicubic interpolation at pixel centres, a = -0.75, the border repeated."""
    padded = np.arange(-2, before + 2)
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    taps = _keys(centres[:, None] - padded, -0.75)
    return taps @ (padded.clip(0, before - 1)[:, None] == np.arange(before))


@pytest.mark.parametrize("size", [(40, 31), (21, 60), (12, 12)])
def test_moderate_bicubic_resize_takes_four_taps(size: tuple[int, int]) -> None:
    """It aliases, down to a quarter and including it."""
    x = _random(48, 48)
    rows, columns = (_four_taps(48, side) for side in size)
    reference = np.einsum("yh,chw,xw->cyx", rows, x[0].double().numpy(), columns)
    np.testing.assert_allclose(resize_to(x, *size, "bicubic")[0].numpy(), reference, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 9), (11, 40), (48, 5)])
def test_strong_bicubic_resize_is_pillows_antialiased(size: tuple[int, int]) -> None:
    """As soon as one side is reduced to below a quarter; Pillow's kernel has a = -0.5."""
    x = _random(48, 48)
    ours = resize_to(x, *size, "bicubic")[0].numpy()
    for channel in range(3):
        pillow = Image.fromarray(x[0, channel].numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_allclose(ours[channel], np.asarray(pillow), atol=1e-5)


def test_gaussian_noise_has_its_deviation_and_independent_channels() -> None:
    noise = (add_gaussian_noise(torch.full((1, 3, 256, 256), 0.5), [20.0], grey=False, seeds=[3])[0] - 0.5).numpy()
    np.testing.assert_allclose(noise.std(axis=(1, 2)), 20 / 255, rtol=0.02)
    np.testing.assert_allclose(noise.mean(axis=(1, 2)), 0, atol=3 * 20 / 255 / 256)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("add", [add_gaussian_noise, add_poisson_noise])
def test_grey_noise_is_the_same_in_all_channels(add: Callable[..., list[torch.Tensor]]) -> None:
    x = _random(32, 32)
    noise = add(x, [1.5], grey=True, seeds=[1])[0] - x[0]
    assert noise.abs().max() > 0
    torch.testing.assert_close(noise[0], noise[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(noise[0], noise[2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_poisson_noise_has_variance_proportional_to_the_mean(scale: float) -> None:
    """With all 256 levels in use the gain is 256, so at level k the variance is scale^2 (k / 255) / 256."""
    levels = torch.arange(256.0).view(1, 256, 1).expand(3, 256, 400) / 255
    noise = (add_poisson_noise([levels], [scale], grey=False, seeds=[5])[0] - levels).double().numpy()
    assert np.all(noise[:, 0] == 0)
    variance = noise.var(axis=(0, 2))[1:]
    expected = scale**2 * np.arange(1, 256) / 255 / 256
    # 1200 draws a level: the variance's own deviation is about 4 % (more at low counts), of the mean ratio 0.3 %.
    np.testing.assert_allclose(variance, expected, rtol=0.3)
    assert (variance / expected).mean() == pytest.approx(1, abs=0.015)
    assert np.abs(noise.mean(axis=(0, 2))[1:] / np.sqrt(expected)).max() < 5 / np.sqrt(1200)


def test_poisson_gain_follows_the_levels_in_use() -> None:
    """A flat picture uses one level: gain 1, so that its counts are whole numbers."""
    flat = torch.full((3, 64, 64), 102 / 255)
    (noisy,) = add_poisson_noise([flat], [1.0], grey=False, seeds=[2])
    torch.testing.assert_close(noisy, noisy.round(), atol=1e-5, rtol=0)
    assert noisy.var() == pytest.approx(0.4, rel=0.05)


def test_grey_poisson_noise_follows_the_luma() -> None:
    """Flat pure red has luma .299 and gain 1, so that this is the variance too."""
    red = torch.tensor((1.0, 0.0, 0.0)).view(3, 1, 1).expand(3, 128, 128)
    noise = add_poisson_noise([red], [1.0], grey=True, seeds=[4])[0] - red
    assert noise[1].var() == pytest.approx(0.299, rel=0.05)


@pytest.mark.parametrize("rate", [0.3, 2.0, 7.7, 11.9, 12.1, 40.0, 255.0])
def test_poisson_quantile_is_scipys(rate: float) -> None:
    normal = torch.linspace(-3.5, 3.5, 401)
    ours = poisson_quantile(normal, torch.full_like(normal, rate)).numpy()
    reference = stats.poisson.ppf(stats.norm.cdf(normal.double().numpy()), rate)
    assert np.abs(ours - reference).max() <= 1
    assert (ours != reference).mean() < (0.01 if rate < 12 else 0.1)
    assert np.all(np.diff(ours) >= 0)


@pytest.mark.parametrize("add", [add_gaussian_noise, add_poisson_noise])
def test_noise_follows_from_its_seed(add: Callable[..., list[torch.Tensor]]) -> None:
    x = _random(16, 16)
    first, again, other = (add(x, [2.0], grey=False, seeds=[seed])[0] for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_in_float64_a_hair_from_a_tie_is_a_tie() -> None:
    near = torch.tensor(
        [0.5 - 1e-12, 0.5 + 1e-12, 1.5 - 1e-12, -2.5 - 1e-12, 0.5 - 1e-6, 0.5 + 1e-6], dtype=torch.float64
    )
    assert whole(near).tolist() == [0, 0, 2, -2, 0, 1]
    assert torch.equal(settled(torch.arange(-300.0, 300.0, 0.5).double()), torch.arange(-300.0, 300.0, 0.5).double())


def test_in_float32_values_are_left_as_they_are() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 100
    assert torch.equal(settled(x), x)
    assert torch.equal(whole(x), x.round())


@pytest.mark.parametrize("operator", [
    lambda x: blur(x, [bivariate_kernel(21, 2.0, 3.0, 0.5)]),
    lambda x: blur(x, [bivariate_kernel(7, 1.0, 1.0, 0.0)]),
    lambda x: add_gaussian_noise(x, [5.0], grey=False, seeds=[0]),
    lambda x: add_poisson_noise(x, [1.0], grey=True, seeds=[0]),
])  # fmt: skip
def test_float64_is_kept_and_agrees_with_float32(operator: Callable[[torch.Tensor], list[torch.Tensor]]) -> None:
    x = torch.rand(1, 3, 40, 36, generator=torch.Generator().manual_seed(1)).mul(255).round().div(255)
    (wide,), (narrow,) = operator(x.double()), operator(x)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1e-5)


@pytest.mark.parametrize("operator", [
    lambda some, which: blur(some, [KERNELS[i] for i in which]),
    lambda some, which: add_gaussian_noise(some, [5.0 + i for i in which], grey=False, seeds=which),
    lambda some, which: add_gaussian_noise(some, [5.0 + i for i in which], grey=True, seeds=which),
    lambda some, which: add_poisson_noise(some, [1.0 + i for i in which], grey=False, seeds=which),
    lambda some, which: add_poisson_noise(some, [1.0 + i for i in which], grey=True, seeds=which),
    lambda some, which: jpeg(some, [30 + 20 * i for i in which]),
])  # fmt: skip
def test_pictures_of_several_sizes_at_once_come_out_as_alone(operator: Callable[..., list[torch.Tensor]]) -> None:
    """Each with its own kernel, level, seed and quality; a dark one uses fewer levels than what lies beside it."""
    pictures = [_random(*size)[0].double() for size in ((40, 53), (24, 70), (17, 16), (9, 31), (64, 64))]
    pictures[1] = pictures[1] / 9
    together = operator(pictures, list(range(5)))
    for i, picture in enumerate(pictures):
        assert together[i].shape == picture.shape
        torch.testing.assert_close(together[i], operator([picture], [i])[0], rtol=0, atol=1e-12)

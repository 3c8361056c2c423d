"""NIQE against a plain SciPy reading of the paper."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.special import gamma

from tudsr.errors import InputError
from tudsr.eval.niqe import halve, load_prior, niqe


def textured(height: int, width: int, seed: int = 0, blur: float = 1.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(height, width))
    octaves = sum(ndimage.gaussian_filter(noise, blur * 2**k) * 4**k for k in range(4))
    return np.clip(np.rint(128 + 40 * octaves / octaves.std()), 0, 255)


def reference_fit(values: np.ndarray) -> tuple[float, float, float]:
    values = values.ravel()
    left = np.sqrt(np.mean(values[values < 0] ** 2))
    right = np.sqrt(np.mean(values[values > 0] ** 2))
    ratio = left / right
    r_hat = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    r_norm = r_hat * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    grid = np.arange(0.2, 10.001, 0.001)
    shape = grid[np.argmin((gamma(2 / grid) ** 2 / (gamma(1 / grid) * gamma(3 / grid)) - r_norm) ** 2)]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def reference_features(picture: np.ndarray, block: int, window: np.ndarray) -> np.ndarray:
    mean = ndimage.correlate(picture, window, mode="nearest")
    deviation = np.sqrt(np.abs(ndimage.correlate(picture**2, window, mode="nearest") - mean**2))
    normal = (picture - mean) / (deviation + 1)
    rows = []
    for y in range(0, picture.shape[0], block):
        for x in range(0, picture.shape[1], block):
            tile = normal[y : y + block, x : x + block]
            shape, left, right = reference_fit(tile)
            row = [shape, (left + right) / 2]
            for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
                shape, left, right = reference_fit(tile * np.roll(tile, shift, (0, 1)))
                row += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
            rows.append(row)
    return np.array(rows)


def reference_niqe(picture: np.ndarray) -> float:
    prior = load_prior(torch.device("cpu"))
    window = prior.window.numpy()
    half = halve(torch.from_numpy(picture)).numpy()
    features = np.hstack([reference_features(picture, 96, window), reference_features(half, 48, window)])
    difference = prior.mean.numpy() - features.mean(0)
    covariance = (prior.covariance.numpy() + np.cov(features, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(covariance) @ difference))


@pytest.mark.parametrize("size", [(192, 288), (96, 192)])
def test_equals_the_reference(size):
    picture = textured(*size)
    assert niqe(torch.from_numpy(picture)) == pytest.approx(reference_niqe(picture), rel=1e-3)


def test_rows_and_columns_beyond_whole_blocks_do_not_count():
    picture = torch.from_numpy(textured(200, 300))
    assert niqe(picture) == niqe(picture[:192, :288])


def test_levels_are_rounded_first():
    picture = torch.from_numpy(textured(192, 192))
    assert niqe(picture + 0.3) == niqe(picture)


def test_blur_and_noise_are_worse():
    picture = textured(192, 288)
    noisy = np.clip(picture + np.random.default_rng(1).normal(0, 40, picture.shape), 0, 255)
    score = niqe(torch.from_numpy(picture))
    assert niqe(torch.from_numpy(ndimage.gaussian_filter(picture, 3))) > score + 1
    assert niqe(torch.from_numpy(noisy)) > score + 1


def test_half_size_equals_pillow_inside():
    picture = textured(48, 64).astype(np.float32)
    expected = np.asarray(Image.fromarray(picture).resize((32, 24), Image.Resampling.BICUBIC))
    half = halve(torch.from_numpy(picture).double())
    assert half.shape == (24, 32)
    np.testing.assert_allclose(half[2:-2, 2:-2].numpy(), expected[2:-2, 2:-2], atol=1e-3)
    assert halve(torch.full((8, 6), 7.0, dtype=torch.float64)).sub(7).abs().max() < 1e-12


def test_too_small_or_flat_pictures_are_refused():
    with pytest.raises(InputError, match="at least two blocks"):
        niqe(torch.from_numpy(textured(191, 100)))
    with pytest.raises(InputError, match="have any texture"):
        niqe(torch.full((192, 192), 100.0))


def test_flat_blocks_are_left_out():
    picture = textured(192, 288)
    picture[:96, :96] = 100
    assert np.isfinite(niqe(torch.from_numpy(picture)))

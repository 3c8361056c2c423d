"""Our JPEG against Pillow's (libjpeg)."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from tudsr.data.jpeg import jpeg, quantisation_tables


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Something with edges, gradients, colour and fine texture, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((height, width, 3)), (3, 3, 0)) * 8
    texture = ndimage.gaussian_filter(rng.standard_normal((height, width, 1)), (0.7, 0.7, 0)) * 0.4
    edges = np.where(smooth[..., :1] > 0, 1.0, -1.0)
    return np.clip(128 + 45 * (smooth + texture + edges), 0, 255).astype(np.uint8)


def _ours(pixels: np.ndarray, quality: int) -> np.ndarray:
    (out,) = jpeg([_tensor(pixels)], [quality])
    return (out * 255).round().permute(1, 2, 0).numpy()


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def _pillows(pixels: np.ndarray, quality: int) -> tuple[np.ndarray, dict[int, list[int]]]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    file.seek(0)
    with Image.open(file) as photo:
        return np.asarray(photo).astype(np.float64), photo.quantization


@pytest.mark.parametrize("size", [(96, 128), (97, 117)])
@pytest.mark.parametrize("quality", [10, 30, 60, 75, 90, 95, 100])
def test_agrees_with_pillow(quality: int, size: tuple[int, int]) -> None:
    """Mean difference at most 0.6 levels and a third of the coding error; a tenth of all pixels over two levels.

    What remains are single coefficients that fall on a tie and round the other way.
    """
    pixels = _picture(*size)
    reference, _ = _pillows(pixels, quality)
    difference = np.abs(_ours(pixels, quality) - reference)
    coding_error = np.abs(pixels - reference).mean()
    assert difference.mean() < min(0.6, 0.35 * coding_error)
    assert (difference > 2).mean() < 0.1


@pytest.mark.parametrize("quality", [50, 90])
def test_agrees_with_pillow_on_grey(quality: int) -> None:
    pixels = _picture(64, 80)[..., :1].repeat(3, axis=2)
    reference, _ = _pillows(pixels, quality)
    ours = _ours(pixels, quality)
    assert np.abs(ours - reference).mean() < 0.4
    assert np.array_equal(ours[..., 0], ours[..., 2])


@pytest.mark.parametrize("quality", [1, 5, 25, 49, 50, 51, 77, 98, 100])
def test_tables_are_libjpegs(quality: int) -> None:
    _, reference = _pillows(_picture(16, 16), quality)
    luma, chroma = quantisation_tables(torch.tensor([quality]))
    assert luma[0].tolist() == list(reference[0])
    assert chroma[0].tolist() == list(reference[1])


def test_lower_quality_costs_more() -> None:
    pixels = _picture(64, 64)
    errors = [np.abs(_ours(pixels, quality) - pixels).mean() for quality in (10, 30, 60, 90, 100)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 3), (17, 33)])
def test_any_size_and_flat_pictures(size: tuple[int, int]) -> None:
    (out,) = jpeg([torch.full((3, *size), 128 / 255)], [30])
    assert out.shape == (3, *size)
    torch.testing.assert_close(out, torch.full_like(out, 128 / 255))


def test_each_sample_has_its_own_quality() -> None:
    batch = torch.stack([_tensor(_picture(40, 56, seed)) for seed in range(3)])
    qualities = [20, 60, 95]
    together = jpeg(batch, qualities)
    for i in range(3):
        assert torch.equal(together[i], jpeg(batch[i : i + 1], qualities[i : i + 1])[0])

"""The metrics against scikit-image, and the registry's contract."""

import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2gray, rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from tudsr.errors import InputError
from tudsr.eval.metrics import METRICS, as_counted, luma_full, luma_studio, psnr, ssim
from tudsr.perceptual.dists import Dists
from tudsr.perceptual.lpips import Lpips
from tudsr.perceptual.weights import find_weights
from tudsr.resize import downsample


def picture(height: int = 48, width: int = 40, seed: int = 0) -> Tensor:
    """A smooth 8-bit picture with some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16
    smooth = np.stack([np.sin(x + y), np.cos(x - 2 * y), np.sin(2 * x)]) * 90 + 127
    pixels = np.clip(np.rint(smooth + rng.normal(0, 8, smooth.shape)), 0, 255)
    return torch.from_numpy(pixels)[None].float() / 127.5 - 1


def channels_last(x: Tensor) -> np.ndarray:
    return ((x[0].double() + 1) / 2).permute(1, 2, 0).numpy()


SR, GT = picture(seed=0), picture(seed=1)


def test_luma_equals_scikit_image():
    np.testing.assert_allclose(luma_studio(SR)[0, 0].numpy(), rgb2ycbcr(channels_last(SR))[..., 0], atol=1e-3)
    # scikit-image's grey is BT.709's, so full swing is checked through studio swing
    np.testing.assert_allclose(luma_full(SR) * 219 / 255 + 16, luma_studio(SR), atol=0.01)
    assert not np.allclose(luma_full(SR)[0, 0].numpy(), rgb2gray(channels_last(SR)) * 255, atol=0.01)


def test_psnr_equals_scikit_image():
    x, y = (rgb2ycbcr(channels_last(p))[..., 0] for p in (SR, GT))
    expected = peak_signal_noise_ratio(x, y, data_range=255)
    assert METRICS["psnr"].load(None)(SR, GT) == pytest.approx(expected, abs=1e-4)


def test_ssim_equals_scikit_image():
    x, y = (rgb2ycbcr(channels_last(p))[..., 0] for p in (SR, GT))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    _, full = structural_similarity(x, y, full=True, **settings)
    expected = full[5:-5, 5:-5].mean()  # scikit-image pads; only whole windows count
    assert METRICS["ssim"].load(None)(SR, GT) == pytest.approx(expected, abs=1e-6)


def test_ssim_pyiqa_rounds_luma_and_clips_structure():
    x, y = (rgb2ycbcr(channels_last(p))[..., 0].round() for p in (SR, -GT))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    _, full = structural_similarity(x, y, full=True, **settings)
    expected = full[5:-5, 5:-5].clip(min=0).mean()  # luminance is positive, so the structure's sign is the product's
    assert METRICS["ssim_pyiqa"].load(None)(SR, -GT) == pytest.approx(expected, abs=1e-6)
    assert METRICS["ssim"].load(None)(SR, -GT) < expected - 0.01


def test_equal_pictures():
    assert METRICS["psnr"].load(None)(SR, SR) == math.inf
    assert METRICS["ssim"].load(None)(SR, SR) == pytest.approx(1)


def test_psnr_in_closed_form():
    assert psnr(torch.zeros(3, 3), torch.full((3, 3), 0.1), 1.0) == pytest.approx(20)


def test_ssim_does_not_depend_on_order():
    x, y = luma_studio(SR), luma_studio(GT)
    assert ssim(x, y) == pytest.approx(ssim(y, x), abs=1e-12)


def test_lr_consistency_is_infinite_for_what_comes_down_to_the_input_and_falls_with_colour_shifts():
    fn = METRICS["lr_consistency"].load(None)
    lq = downsample(SR, 12, 10)
    assert fn(SR, lq) == math.inf
    assert fn(SR + 0.02, lq) == pytest.approx(40, abs=0.01)  # 20 log10(2 / 0.02)


@pytest.mark.parametrize("name", METRICS)
def test_every_entry_is_complete(name):
    metric = METRICS[name]
    assert metric.name == name
    assert metric.range[0] < metric.range[1]
    assert metric.source
    assert metric.color_space


@pytest.mark.parametrize("name", ["psnr", "ssim", "ssim_pyiqa"])
def test_other_sizes_and_batches_are_refused(name):
    fn = METRICS[name].load(None)
    with pytest.raises(InputError, match="one shape"):
        fn(SR, GT[..., 1:])
    with pytest.raises(InputError, match="one shape"):
        fn(SR.repeat(2, 1, 1, 1), GT.repeat(2, 1, 1, 1))


def test_too_small_for_ssim():
    with pytest.raises(InputError, match="11 px is the least"):
        METRICS["ssim"].load(None)(SR[..., :10], GT[..., :10])


@pytest.mark.weights
@pytest.mark.parametrize("name", ["lpips", "lpips_vgg", "dists"])
def test_networks_measure_without_gradient(name):
    if find_weights("vgg16") is None or find_weights("alexnet") is None:
        pytest.skip("VGG16's and AlexNet's weights are not on this machine")
    fn = METRICS[name].load(None)
    assert fn(SR, SR) == pytest.approx(0, abs=1e-6)
    noisy = fn(SR + 0.3 * torch.randn(SR.shape, generator=torch.Generator().manual_seed(0)), SR)
    assert 0.05 < noisy < 1.5


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_a_true_pictures_maps_are_made_once_for_all_methods(name, monkeypatch):
    kind = {"lpips": Lpips, "dists": Dists}[name]
    monkeypatch.setattr(kind, "load", lambda self, _: self)
    torch.manual_seed(0)
    measure, seen, maps = METRICS[name].load(None), [], kind.maps
    monkeypatch.setattr(kind, "maps", lambda self, x: seen.append(x) or maps(self, x))
    gt, other, first, second = (torch.rand(1, 3, 48, 48) * 2 - 1 for _ in range(4))
    figures = [measure(first, gt), measure(second, gt), measure(second, other), measure(first, gt)]
    assert [sum(x is one for x in seen) for one in (gt, other)] == [2, 1]
    assert figures[0] == figures[3] != figures[1]


def test_no_seam_is_as_good_as_any_other():
    assert {name for name, metric in METRICS.items() if metric.floor is not None} == {"seams", "seam_step"}
    assert METRICS["seams"].floor == METRICS["seam_step"].floor == 1
    assert [as_counted({"direction": "lower", "floor": 1.0}, value) for value in (0.8, 1.0, 1.2)] == [1, 1, 1.2]
    assert as_counted({"direction": "lower"}, 0.8) == 0.8

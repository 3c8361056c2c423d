"""DISTS and LPIPS with the true weights against a plain float64 reading of their papers, in NumPy alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy.ndimage import gaussian_filter

from tudsr.perceptual.dists import Dists
from tudsr.perceptual.lpips import Lpips
from tudsr.perceptual.weights import find_weights, load_convs, load_table

PHOTO = Path(__file__).parents[1] / "photos" / "spices.webp"
VGG_STAGES = [(0, 1), (2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12)]
ALEX_GEOMETRY = [(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]  # stride, padding
HANN = np.outer(np.hanning(5)[1:-1], np.hanning(5)[1:-1])  # DISTS, section II-A: anti-aliasing before each halving

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module", autouse=True)
def _weights():
    if find_weights("vgg16") is None or find_weights("alexnet") is None:
        pytest.skip("VGG16's and AlexNet's weights are not on this machine")


@pytest.fixture(scope="module")
def pair():
    """Return a photo's crop of odd sides and a blurred, noisy, reddish copy; (H, W, 3) in [0, 1], float64."""
    with Image.open(PHOTO) as photo:
        gt = np.asarray(photo.convert("RGB"), np.float64)[40:91, 60:123] / 255
    noise = np.random.default_rng(0).normal(0, 0.03, gt.shape)
    return np.clip(gaussian_filter(gt, (1, 1, 0)) + noise + (0.05, 0, 0), 0, 1), gt


def windows(x, side, stride, pad, value=0.0):
    """(H, W, C) -> (h, w, C, side, side)."""
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)), constant_values=value)
    return sliding_window_view(padded, (side, side), (0, 1))[::stride, ::stride]


def relu_conv(x, weights, number, stride=1, pad=1):
    kernel = weights[f"conv{number}.weight"].double().numpy()  # (out, in, k, k)
    out = np.einsum("hwcij,ocij->hwo", windows(x, kernel.shape[-1], stride, pad), kernel, optimize=True)
    return np.maximum(out + weights[f"conv{number}.bias"].double().numpy(), 0)


def max_pool(x, side):
    return windows(x, side, 2, 0).max((-2, -1))


def l2_pool(x):
    return np.sqrt((windows(x**2, 3, 2, 1) * (HANN / HANN.sum())).sum((-2, -1)))


def vgg(x, pool):
    weights, maps = load_convs("vgg16"), []
    for stage in VGG_STAGES:
        x = pool(x) if maps else x
        for number in stage:
            x = relu_conv(x, weights, number)
        maps.append(x)
    return maps


def alexnet(x):
    weights, maps = load_convs("alexnet"), []
    for number, (stride, pad) in enumerate(ALEX_GEOMETRY):
        x = relu_conv(max_pool(x, 3) if number in (1, 2) else x, weights, number, stride, pad)
        maps.append(x)
    return maps


def reference_lpips(net, x, y):
    """Zhang et al. 2018, equation (1), with version 0.1's scaling of the input."""
    lines, total = load_table(f"lpips_{net}_lin"), 0.0
    maps = [
        (alexnet if net == "alex" else lambda z: vgg(z, lambda a: max_pool(a, 2)))(
            (2 * z - 1 - (-0.030, -0.088, -0.188)) / (0.458, 0.448, 0.450)
        )
        for z in (x, y)
    ]
    for number, (a, b) in enumerate(zip(*maps, strict=True)):
        a, b = (z / (np.linalg.norm(z, axis=-1, keepdims=True) + 1e-10) for z in (a, b))
        weight = next(v for k, v in lines.items() if k.startswith(f"lin{number}")).double().numpy().reshape(-1)
        total += ((a - b) ** 2 @ weight).mean()
    return total


def reference_dists(x, y):
    """Ding et al. 2020, equations (3) to (5)."""
    table = {key: value.double().numpy().reshape(-1) for key, value in load_table("dists").items()}
    maps = [[z, *vgg((z - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225), l2_pool)] for z in (x, y)]
    texture, structure = [], []
    for a, b in zip(*maps, strict=True):
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        covariance = ((a - a.mean(0)) * (b - b.mean(0))).mean(0)
        texture.append((2 * a.mean(0) * b.mean(0) + 1e-6) / (a.mean(0) ** 2 + b.mean(0) ** 2 + 1e-6))
        structure.append((2 * covariance + 1e-6) / (a.var(0) + b.var(0) + 1e-6))
    alpha, beta = table["alpha"], table["beta"]
    similarity = alpha @ np.concatenate(texture) + beta @ np.concatenate(structure)
    return 1 - similarity / (alpha.sum() + beta.sum())


def tensor(x):
    return torch.from_numpy(x).permute(2, 0, 1)[None].float() * 2 - 1


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_the_papers(pair, net):
    expected = reference_lpips(net, *pair)
    assert 0.1 < expected < 1
    assert float(Lpips(net).load()(*map(tensor, pair))) == pytest.approx(expected, abs=1e-4)


def test_dists_is_the_papers(pair):
    expected = reference_dists(*pair)
    assert 0.1 < expected < 1
    assert float(Dists().load()(*map(tensor, pair))) == pytest.approx(expected, abs=1e-4)

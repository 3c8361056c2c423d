"""NIQE: how far a picture's local statistics are from those of undistorted photographs."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody uses)
from torch import Tensor

from tudsr.errors import InputError
from tudsr.perceptual.weights import table_path

BLOCK_PX = 96
SHAPES = torch.arange(200, 10001, dtype=torch.float64) / 1000  # the grid that AGGD's shape is looked up on
MIN_BLOCKS = 2  # a covariance over blocks needs more than one


@dataclass(frozen=True, kw_only=True)
class Prior:
    """The multivariate Gaussian fitted to 125 pristine photos, and the local window; all float64."""

    mean: Tensor  # (36,)
    covariance: Tensor  # (36, 36)
    window: Tensor  # (7, 7), sums to 1


@cache
def load_prior(device: torch.device) -> Prior:
    """Read the prior that ships in the package. Source: the NIQE authors' release, as distributed with BasicSR."""
    with np.load(table_path("niqe_pris_params.npz")) as table:
        tensors = {key: torch.from_numpy(table[key]).to(device) for key in table.files}
    return Prior(
        mean=tensors["mu_pris_param"].flatten(),
        covariance=tensors["cov_pris_param"],
        window=tensors["gaussian_window"],
    )


def niqe(luma: Tensor) -> float:
    """Score one picture; lower is more natural.

    Args:
        luma: (H, W) float, [0, 255]; rounded to whole numbers first, as the authors' code gets it.

    Returns:
        The distance, typically 2 to 20.

    Raises:
        InputError: when the picture holds fewer than two whole blocks of 96 px, or hardly any block has texture.

    Source: Mittal, Soundararajan, Bovik, "Making a 'Completely Blind' Image Quality Analyzer", 2013.
    """
    height, width = luma.shape
    rows, columns = height // BLOCK_PX, width // BLOCK_PX
    if rows * columns < MIN_BLOCKS:
        raise InputError(f"NIQE: a picture of {width}x{height} is too small; at least two blocks of 96x96 are needed.")
    there = luma.device if luma.device.type == "cuda" else torch.device("cpu")  # MPS has no float64
    picture = luma.detach().to(there).double().round()[: rows * BLOCK_PX, : columns * BLOCK_PX]
    prior = load_prior(there)
    full = _block_features(_normalised(picture, prior.window), BLOCK_PX)
    half = _block_features(_normalised(halve(picture), prior.window), BLOCK_PX // 2)
    features = torch.cat([full, half], 1)  # (blocks, 36)
    usable = features[~features.isnan().any(1)]
    if len(usable) < MIN_BLOCKS:
        raise InputError("NIQE: fewer than two blocks of the picture have any texture, so it has no score.")
    # the mean over all blocks that give a feature, the covariance over the blocks that give all of them
    difference = prior.mean - features.nanmean(0)
    pooled = (prior.covariance + usable.T.cov()) / 2
    return float((difference @ torch.linalg.pinv(pooled) @ difference).sqrt())


def halve(picture: Tensor) -> Tensor:
    """Halve both sides by antialiased bicubic with mirrored borders, as MATLAB's imresize(picture, 0.5) does.

    Args:
        picture: (H, W) float64, H and W even.

    Returns:
        (H/2, W/2) float64, not clamped.
    """
    # centres of the 8 taps lie 0.25, 0.75, 1.25 and 1.75 from an output pixel's, in output pixels
    distance = torch.tensor([0.25, 0.75, 1.25, 1.75], dtype=torch.float64)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    side = torch.where(distance <= 1, near, far)  # bicubic, a = -0.5
    taps = torch.cat([side.flip(0), side]).to(picture.device)
    taps = taps / taps.sum()
    for _ in range(2):
        # symmetric padding (the border pixel repeated), which torch does not have
        padded = torch.cat([picture[:3].flip(0), picture, picture[-3:].flip(0)])
        # (H, W) -> (H/2, W) -> transposed, so that the second round does the columns
        picture = (padded.unfold(0, 8, 2) @ taps).T
    return picture


def _normalised(picture: Tensor, window: Tensor) -> Tensor:
    """Mean-subtracted, contrast-normalised coefficients, (H, W)."""
    padded = F.pad(picture[None, None], (3, 3, 3, 3), mode="replicate")
    kernel = window[None, None]
    mean = F.conv2d(padded, kernel)
    deviation = (F.conv2d(padded**2, kernel) - mean**2).abs().sqrt()
    return ((picture - mean) / (deviation + 1))[0, 0]


def _block_features(normalised: Tensor, block_px: int) -> Tensor:
    """18 features of each block, (blocks, 18): 2 of the coefficients, 4 of the products in each of 4 directions."""
    # (H, W) -> (blocks, block_px, block_px)
    blocks = normalised.unfold(0, block_px, block_px).unfold(1, block_px, block_px).flatten(0, 1)
    shape, left, right = _fit_aggd(blocks)
    features = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = _fit_aggd(blocks * blocks.roll(shift, (1, 2)))
        mean = (right - left) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()
        features += [shape, mean, left, right]
    return torch.stack(features, 1)


def _fit_aggd(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit an asymmetric generalised Gaussian to each block by moments; shape, left and right scale, each (blocks,).

    A block without negative or without positive values gives NaN, and is left out later.
    """
    values = blocks.flatten(1)
    negative, positive = values < 0, values > 0
    left = ((values.square() * negative).sum(1) / negative.sum(1)).sqrt()
    right = ((values.square() * positive).sum(1) / positive.sum(1)).sqrt()
    ratio = left / right
    kurtosis = values.abs().mean(1).square() / values.square().mean(1)
    target = kurtosis * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1).square()
    shapes = SHAPES.to(values.device)
    log_gamma = {k: torch.lgamma(k / shapes) for k in (1, 2, 3)}
    curve = (2 * log_gamma[2] - log_gamma[1] - log_gamma[3]).exp()
    shape = shapes[(curve - target.nan_to_num()[:, None]).abs().argmin(1)]
    scale = (0.5 * (torch.lgamma(1 / shape) - torch.lgamma(3 / shape))).exp()
    return shape, left * scale, right * scale

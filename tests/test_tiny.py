"""The shipped model on photos of the repository, degraded as its test sets are: what its users rely on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tudsr
from tudsr.backbones import blueprint
from tudsr.config import ModelConfig
from tudsr.data.degradation import degrade
from tudsr.eval.metrics import METRICS
from tudsr.pipeline import TUDSR
from tudsr.resize import upsample

PHOTOS = Path(__file__).parent / "photos"
SIDE_PX = 256


@pytest.fixture(scope="module")
def tiny() -> TUDSR:
    return tudsr.load("tiny", device="cpu")


def degraded(name: str, scale: int = 4) -> tuple[Tensor, Tensor]:
    """Return (lq, gt), both (1, 3, h, w) in [-1, 1]."""
    pixels = np.array(Image.open(PHOTOS / f"{name}.webp").convert("RGB"))[:SIDE_PX, :SIDE_PX]
    gt = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    height, width = (side // scale for side in gt.shape[1:])
    gt = gt[:, : scale * height, : scale * width]
    return degrade(gt, height, width, preset="light", seed=0, index=0)[None], gt[None]


def enlarged(tiny: TUDSR, lq: Tensor, scale: int = 4, **options: object) -> Tensor:
    return tiny.upscale((lq + 1) / 2, scale, **options) * 2 - 1


def sharpness(x: Tensor) -> float:
    """Return the mean absolute difference of neighbours."""
    return float(x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean())


def test_it_says_of_itself_what_its_blueprint_says(tiny):
    wanted = ModelConfig.parse(blueprint("tiny").settings, "tiny")
    fields = blueprint("tiny").settings.keys()
    assert tiny.config.model_dump(include=fields) == wanted.model_dump(include=fields)


@pytest.mark.parametrize("name", ["budgie", "spices"])
@pytest.mark.parametrize("scale", [4, 8])
def test_fidelity_trades_sharpness_for_psnr(tiny, name, scale):
    lq, gt = degraded(name, scale)
    psnr = METRICS["psnr"].load(None)
    outputs = [enlarged(tiny, lq, scale, fidelity=share) for share in (0, 0.25, 0.5, 0.75, 1)]
    figures = [psnr(sr, gt) for sr in outputs]
    assert figures == sorted(figures), figures
    assert figures[-1] > figures[0] + 0.02
    sharp = [sharpness(sr) for sr in outputs]
    assert sharp == sorted(sharp, reverse=True), sharp


def test_edges_are_steeper_than_bicubic_ones_at_no_more_error(tiny):
    """Over several photos: on the strongly degraded budgie alone, what bicubic keeps of the noise is as steep."""
    steepness, error = np.zeros(2), np.zeros(2)
    for name in ("budgie", "spices", "otters", "lake", "colosseum"):
        lq, gt = degraded(name)
        slopes = gt.diff(dim=-1).abs().mean(1, keepdim=True)
        edges = slopes > slopes.quantile(0.98)
        for i, x in enumerate((enlarged(tiny, lq), upsample(lq, *gt.shape[-2:]))):
            steepness[i] += float(x.diff(dim=-1).abs().mean(1, keepdim=True)[edges].mean())
            error[i] += float((x - gt).abs().mean())
    assert error[0] < 1.1 * error[1]
    assert steepness[0] > 1.3 * steepness[1]

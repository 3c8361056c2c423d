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
from tudsr.eval.methods import shifted_run
from tudsr.eval.metrics import METRICS
from tudsr.eval.seams import SeamMeter
from tudsr.perceptual.weights import find_weights
from tudsr.pipeline import TUDSR
from tudsr.request import Request
from tudsr.resize import upsample

PHOTOS = Path(__file__).parent / "photos"
NAMES = ("budgie", "spices", "otters", "lake", "colosseum", "motherboard")
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


@pytest.fixture(scope="module", params=[4, 8])
def compared(request, tiny) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each photo, what the model makes, what bicubic makes, and the truth."""
    pairs = [degraded(name, request.param) for name in NAMES]
    return [(enlarged(tiny, lq, request.param), upsample(lq, *gt.shape[-2:]), gt) for lq, gt in pairs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("niqe", 0.75),
        pytest.param("lpips", 0.7, marks=pytest.mark.weights),
        pytest.param("dists", 0.9, marks=pytest.mark.weights),
    ],
)
def test_it_is_better_than_bicubic_on_every_photo_and_clearly_so_on_all(compared, name, share):
    metric = METRICS[name]
    if metric.network is not None and find_weights(metric.network) is None:
        pytest.skip(f"the weights of {metric.network} are not on this machine")
    measure = metric.load(None)
    figures = [[measure(x, gt if metric.needs_gt else None) for x in (sr, plain)] for sr, plain, gt in compared]
    ours, bicubic = np.array(figures).T
    assert (ours < bicubic).all(), figures
    assert ours.mean() < share * bicubic.mean(), figures


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "side_px"), [(4, 160), (8, 80)])
def test_its_windows_leave_no_seams(tiny, scale, side_px):
    """Pooled over photos: one photo's borders are few, and lie where its content is."""
    meter, request = SeamMeter(), tiny.settled(Request(scale=scale, most_px=256))
    for name in NAMES:
        lq = degraded(name, 1)[0][..., :side_px, :side_px]
        run = shifted_run(tiny, lq, request)
        assert len(run.grid.windows) == 9
        meter.add(run.plain, run.shifted, run.grid, run.shifted_grid)
    assert meter.report().gradient_ratio <= 1.05, meter.report()

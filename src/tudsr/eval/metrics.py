"""The core metrics: each an entry with its direction, range, colour space, border and source.

A metric takes one picture at a time, (1, 3, H, W) float in [-1, 1]. Published figures are of 8-bit files: round a
picture to 8 bits first (or read it back from its file) to compare with them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody uses)
from torch import Tensor

from tudsr.errors import InputError
from tudsr.eval.niqe import niqe
from tudsr.eval.seams import SeamReport, seam_index
from tudsr.perceptual.dists import Dists
from tudsr.perceptual.features import Distance
from tudsr.perceptual.lpips import Lpips
from tudsr.resize import downsample
from tudsr.windows import WindowGrid

# (sr, reference) -> value; Metric.reference says what the second argument is
MetricFn = Callable[[Any, Any], float]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a metric is and how to get it.

    `range` is the span that values can take; `reference` says what the second argument of the function has to be: the
    true picture, the input, nothing, a `ShiftedRun` of the model itself, or, for a metric of whole sets, the folder of
    true pictures (then the first argument is the folder of outputs); `load(weights_dir)` returns the function
    (sr, reference) -> value, loading its network if it has one; `border_px` tells how much of each side that function
    leaves out, for who compares with figures of cropped pictures: ours measure pictures whole; `network` is the key of
    its network in `tudsr.perceptual.weights.NETS`; `licence` says what the user of somebody else's code has to know;
    `floor`, where lower is better, is a value that is as good as everything below it (see `as_counted`).
    """

    name: str
    direction: Literal["higher", "lower"]
    range: tuple[float, float] = (0.0, float("inf"))
    color_space: str = "RGB"
    reference: Literal["gt", "lq", "none", "model", "set"] = "gt"
    source: str
    load: Callable[[Path | None], MetricFn]
    border_px: int = 0
    network: str | None = None
    licence: str = ""
    floor: float | None = None

    @property
    def needs_gt(self) -> bool:
        """True when the metric compares with the true picture, or a set of outputs with the set of true pictures."""
        return self.reference in ("gt", "set")


def as_counted(metric: Mapping[str, Any], value: float) -> float:
    """Return a figure as it counts beside another one: what lies below the metric's floor is as good as the floor.

    Args:
        metric: its record in results.json.
        value: of a picture, or a mean.
    """
    return max(value, metric.get("floor", -math.inf))


@dataclass(frozen=True, kw_only=True)
class ShiftedRun:
    """One model's output twice, not rounded, its windows lying elsewhere: plain and shifted, (1, 3, H, W)."""

    plain: Tensor
    shifted: Tensor
    grid: WindowGrid
    shifted_grid: WindowGrid


def luma_studio(x: Tensor) -> Tensor:
    """Return BT.601 studio-swing luma, 16 to 235, unrounded, as BasicSR and pyiqa ("ycbcr") define Y.

    Args:
        x: pictures, (B, 3, H, W), [-1, 1].

    Returns:
        (B, 1, H, W) float64.
    """
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=x.device).view(1, 3, 1, 1)
    return ((x.double() + 1) / 2 * weights).sum(1, keepdim=True) + 16


def luma_full(x: Tensor) -> Tensor:
    """Return BT.601 full-swing luma, 0 to 255, unrounded: MATLAB's rgb2gray, pyiqa's "yiq".

    Args:
        x: pictures, (B, 3, H, W), [-1, 1].

    Returns:
        (B, 1, H, W) float64.
    """
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64, device=x.device).view(1, 3, 1, 1)
    return ((x.double() + 1) / 2 * 255 * weights).sum(1, keepdim=True)


def psnr(x: Tensor, y: Tensor, peak: float) -> float:
    """Return the peak signal-to-noise ratio in dB; infinite for equal pictures.

    Args:
        x: any shape.
        y: same shape.
        peak: the value span, for example 255.
    """
    error = (x.double() - y.double()).square().mean()
    return float(10 * torch.log10(peak**2 / error))


def ssim(x: Tensor, y: Tensor, clip_structure: bool = False) -> float:
    """Return the structural similarity, averaged over the pixels whose whole window lies inside.

    Args:
        x: one channel, (1, 1, H, W), of a value span of 255, sides at least 11.
        y: same shape.
        clip_structure: raise negative structure terms to 0, as pyiqa does.

    Raises:
        InputError: when a side is below 11 px.

    Source: Wang et al. 2004: Gaussian window of 11x11, sigma 1.5, K1 = 0.01, K2 = 0.03, population statistics.
    """
    if min(x.shape[-2:]) < 11:
        raise InputError(f"SSIM: a picture of {x.shape[-1]}x{x.shape[-2]} is too small; 11 px is the least side.")
    taps = torch.exp(-torch.arange(-5, 6, dtype=torch.float64, device=x.device).square() / (2 * 1.5**2))
    taps = taps / taps.sum()

    def blurred(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, taps.view(1, 1, 11, 1)), taps.view(1, 1, 1, 11))

    x, y = x.double(), y.double()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    x_mean, y_mean = blurred(x), blurred(y)
    x_var = blurred(x * x) - x_mean**2
    y_var = blurred(y * y) - y_mean**2
    covariance = blurred(x * y) - x_mean * y_mean
    luminance = (2 * x_mean * y_mean + c1) / (x_mean**2 + y_mean**2 + c1)
    structure = (2 * covariance + c2) / (x_var + y_var + c2)
    if clip_structure:
        structure = structure.clamp(min=0)
    return float((luminance * structure).mean())


def _checked(sr: Tensor, reference: Tensor, name: str) -> Tensor:
    """Return the reference, of the same shape as sr; one picture only."""
    if sr.shape != reference.shape or sr.ndim != 4 or len(sr) != 1:
        came = f"{tuple(sr.shape)} and {tuple(reference.shape)}"
        raise InputError(f"{name}: two tensors of one shape (1, 3, H, W) are expected, not {came}.")
    return reference


def _psnr_y(sr: Tensor, gt: Tensor) -> float:
    return psnr(luma_studio(sr), luma_studio(_checked(sr, gt, "psnr")), 255.0)


def _ssim_y(sr: Tensor, gt: Tensor) -> float:
    return ssim(luma_studio(sr), luma_studio(_checked(sr, gt, "ssim")))


def _ssim_pyiqa(sr: Tensor, gt: Tensor) -> float:
    gt = _checked(sr, gt, "ssim_pyiqa")
    return ssim(luma_studio(sr).round(), luma_studio(gt).round(), clip_structure=True)


def _niqe(sr: Tensor, reference: None) -> float:
    return niqe(luma_full(sr)[0, 0])


def _lr_consistency(sr: Tensor, lq: Tensor) -> float:
    return psnr(downsample(sr, *lq.shape[-2:]), lq, 2.0)


def _seams(sr: Tensor, run: ShiftedRun) -> float:
    return _seam_report(run).gradient_ratio


def _seam_step(sr: Tensor, run: ShiftedRun) -> float:
    return _seam_report(run).step_ratio


def _seam_report(run: ShiftedRun) -> SeamReport:
    return seam_index(run.plain, run.shifted, run.grid, run.shifted_grid)


def _network(name: str, net: Distance) -> MetricFn:
    """Wrap a distance network, which follows the picture's device; the last true picture's maps serve all methods."""
    kept: list[tuple[Tensor, list[Tensor]]] = []

    def measure(sr: Tensor, gt: Tensor) -> float:
        gt = _checked(sr, gt, name)
        net.to(sr.device)
        with torch.no_grad():
            if not kept or kept[0][0] is not gt:
                kept[:] = [(gt, net.maps(gt))]
            return float(net.distance(net.maps(sr), kept[0][1]))

    return measure


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="psnr",
            direction="higher",
            color_space="Y, BT.601 studio swing",
            source="BasicSR's psnr on Y; pyiqa's with test_y_channel=True, color_space='ycbcr'; dB",
            load=lambda weights_dir: _psnr_y,
        ),
        Metric(
            name="ssim",
            direction="higher",
            range=(-1.0, 1.0),
            color_space="Y, BT.601 studio swing",
            source="Wang et al. 2004, as in BasicSR: Gaussian window 11x11, sigma 1.5, no padding",
            load=lambda weights_dir: _ssim_y,
        ),
        Metric(
            name="ssim_pyiqa",
            direction="higher",
            range=(0.0, 1.0),
            color_space="Y, BT.601 studio swing, rounded",
            source="pyiqa's ssim with test_y_channel=True, color_space='ycbcr', which the papers report: as ssim, on "
            "whole luma levels, negative structure set to 0",
            load=lambda weights_dir: _ssim_pyiqa,
        ),
        Metric(
            name="lpips",
            direction="lower",
            source="Zhang et al. 2018, LPIPS v0.1 on AlexNet",
            network="alexnet",
            load=lambda weights_dir: _network("lpips", Lpips("alex").load(weights_dir)),
        ),
        Metric(
            name="lpips_vgg",
            direction="lower",
            source="Zhang et al. 2018, LPIPS v0.1 on VGG16",
            network="vgg16",
            load=lambda weights_dir: _network("lpips_vgg", Lpips("vgg").load(weights_dir)),
        ),
        Metric(
            name="dists",
            direction="lower",
            range=(0.0, 2.0),
            source="Ding et al. 2020, at the pictures' own size",
            network="vgg16",
            load=lambda weights_dir: _network("dists", Dists().load(weights_dir)),
        ),
        Metric(
            name="niqe",
            direction="lower",
            color_space="Y, BT.601 full swing, rounded",
            reference="none",
            source="Mittal et al. 2013; blocks of 96x96, two scales",
            load=lambda weights_dir: _niqe,
        ),
        Metric(
            name="lr_consistency",
            direction="higher",
            reference="lq",
            source="ours: PSNR between the output, brought down by antialiased bicubic, and the input; dB",
            load=lambda weights_dir: _lr_consistency,
        ),
        Metric(
            name="seams",
            direction="lower",
            reference="model",
            source="ours: the seam index's gradient_ratio, see eval/seams.py; 1 and less is no seam",
            floor=1.0,
            load=lambda weights_dir: _seams,
        ),
        Metric(
            name="seam_step",
            direction="lower",
            reference="model",
            source="ours: the seam index's step_ratio, what a low-pass of 16 px leaves; not of pictures without room",
            floor=1.0,
            load=lambda weights_dir: _seam_step,
        ),
    )
}

"""The mid-timestep: which t's noise resembles what degradation did to the latent.

Source: OMGSR (arXiv 2508.08227): the one-step timestep is the one whose noised latent has the signal-to-noise ratio of
the low-quality latent over a data set. Which mean OMGSR takes over pictures is not known to us; ours is in decibels.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tudsr.backbones import Backbone
from tudsr.checkpoint import atomic_path, write_text
from tudsr.data.dataset import ValidationSet
from tudsr.data.degradation import PRESETS
from tudsr.data.photos import check_photos, find_photos, split_photos
from tudsr.device import pick_device
from tudsr.errors import ConfigError
from tudsr.folder import load_model
from tudsr.stage import Stage

PLOT_NAME, DATA_NAME = "estimate_t.png", "estimate_t.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The outcome.

    Attributes:
        t: timestep whose SNR is nearest to the LQ latents' mean, 0 to T - 1.
        snr_db: mean SNR of the LQ latents, in decibels.
        spread_db: standard deviation over the pictures, in decibels.
        curve_db: SNR of the noised clean latents at each timestep, (T,), in decibels.
        count: pictures used.
    """

    t: int
    snr_db: float
    spread_db: float
    curve_db: Tensor
    count: int


def estimate(
    model: str | Path,
    data: Path,
    out: Path,
    *,
    scale: float = 4.0,
    count: int = 64,
    degradation: str = "light",
    progress: Progress | None = None,
) -> tuple[Estimate, bool]:
    """Estimate t for a model and a folder of photos, on the device of a run; write a plot and the figures to `out`.

    Args:
        model: embedded name, folder or hub id.
        data: folder of sharp photos.
        out: folder for estimate_t.png and estimate_t.json.
        scale: ratio between truth and LQ.
        count: at most so many photos, chosen by the hash of their names; one detailed crop of the model's R each.
        degradation: a preset's name.
        progress: called with (pictures done, pictures in all).

    Returns:
        The outcome, and whether the plot was written, which takes matplotlib.

    Raises:
        ConfigError: when scale or count is below 1, or the degradation is unknown.
        ModelError, DataError: when the model or the photos cannot be used.
    """
    _check(scale, count, degradation)
    net = load_model(model, pick_device(), torch.float32)
    paths, _ = check_photos(find_photos(data), net.config.r_px)
    if count < len(paths):
        _, paths = split_photos(paths, count, seed=0, root=data)
    crops = ValidationSet(paths, crop_px=net.config.r_px, scale=scale, degradation=degradation, seed=0)
    found = match_snr(net.backbone, _pairs(crops, progress or (lambda *_: None)))
    values = {
        "t": found.t,
        "snr_db": found.snr_db,
        "spread_db": found.spread_db,
        "pictures": found.count,
        "scale": scale,
    }
    write_text(out / DATA_NAME, json.dumps(values, indent=2) + "\n")
    return found, _plot(found, out / PLOT_NAME)


def _check(scale: float, count: int, degradation: str) -> None:
    if not 1 <= scale < float("inf"):
        raise ConfigError(f"scale is {scale}; a number of at least 1 is expected.")
    if count < 1:
        raise ConfigError(f"count is {count}; at least 1 photo is expected.")
    if degradation not in PRESETS:
        raise ConfigError(f"{degradation!r} is not a degradation; known ones: {', '.join(sorted(PRESETS))}.")


def _pairs(crops: ValidationSet, progress: Progress) -> Iterator[tuple[Tensor, Tensor]]:
    for index in range(len(crops)):
        progress(index, len(crops))
        item = crops[index]
        yield item["gt"][None], item["lq"][None]
    progress(len(crops), len(crops))


@torch.no_grad()
def match_snr(backbone: Backbone, pairs: Iterable[tuple[Tensor, Tensor]]) -> Estimate:
    """Compare the latents of truth and upsampled LQ.

    Args:
        backbone: whose latent space and schedule count.
        pairs: (gt (1, 3, H, W), lq (1, 3, h, w)) in [-1, 1], at least one.
    """
    snr, power = [], []
    for pair in pairs:
        gt, lq = (picture.to(backbone.device) for picture in pair)
        z, z_lq = (backbone.encode(x).cpu().double() for x in (gt, Stage.upsample(lq, *gt.shape[-2:])))
        power.append(z.square().mean())
        snr.append(z.square().mean() / (z_lq - z).square().mean().clamp_min(1e-12))
    snr_db = 10 * torch.stack(snr).log10()
    alpha_bar = backbone.alphas_cumprod.cpu().double()  # MPS has no float64
    curve_db = 10 * (alpha_bar * torch.stack(power).mean() / (1 - alpha_bar)).log10()  # unit-variance noise
    t = int((curve_db - snr_db.mean()).abs().argmin())
    spread = snr_db.std().item() if len(snr) > 1 else 0.0
    return Estimate(t=t, snr_db=snr_db.mean().item(), spread_db=spread, curve_db=curve_db, count=len(snr))


def _plot(found: Estimate, path: Path) -> bool:
    try:
        from matplotlib.figure import Figure
    except ImportError:  # the `train` extra is not installed: the JSON file holds the figures
        return False
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.curve_db.tolist(), label="noised latent")
    axes.axhline(found.snr_db, color="C1", label="LQ latent")
    axes.axhspan(found.snr_db - found.spread_db, found.snr_db + found.spread_db, color="C1", alpha=0.2)
    axes.axvline(found.t, color="C2", linestyle="--", label=f"t = {found.t}")
    axes.set(xlabel="timestep", ylabel="SNR, dB", title=f"{found.count} pictures")
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True

"""Figures on a part of the training photos that is never trained on; checkpoints are chosen by them."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tudsr.config import WindowRange
from tudsr.data.dataset import ValidationSet
from tudsr.errors import ConfigError, TudsrError
from tudsr.perceptual.dists import Dists
from tudsr.perceptual.lpips import Lpips
from tudsr.stage import Stage
from tudsr.train.config import TrainConfig
from tudsr.train.objective import Seed
from tudsr.train.tasks import PriorTask, Task

_SHOWN = 6
_PRIOR_ROUNDS = 4
_LEAST_PX = 64  # LPIPS on AlexNet takes 32 and DISTS 16, but on so little they say nothing


def validation_side_px(config: TrainConfig, windows: WindowRange) -> int:
    """Return the side of the validation crops, rounded down to what the model takes.

    Raises:
        ConfigError: when it would be below 64 px or one stride of each of the n windows.
    """
    multiple = windows.stride_px * config.n  # stage 2's first pass makes side / n
    side = (config.val_crop_px or config.crop_px) // multiple * multiple
    least = -(-max(_LEAST_PX, multiple) // multiple) * multiple
    if side < least:
        came = config.val_crop_px or f"crop_px={config.crop_px}"
        raise ConfigError(f"val_crop_px is {came}; at least {least} px are expected for this model and n={config.n}.")
    return side


class Validation:
    """The validation photos' crops, the metrics, and a grid of samples.

    Args:
        paths: photos set aside, already checked.
        config: of the run.
        device: of the model.
        side_px: of the crops, from `validation_side_px`.
    """

    def __init__(self, paths: Sequence[Path], config: TrainConfig, device: torch.device, side_px: int) -> None:
        self.set = ValidationSet(paths, crop_px=side_px, scale=config.val_scale, degradation="light", seed=config.seed)
        self.device, self.side_px, self.seed = device, side_px, config.seed
        if config.stage > 0:
            self.dists = Dists().load(config.weights_dir).to(device).eval()
            self.lpips = Lpips("alex").load(config.weights_dir).to(device).eval()

    @torch.no_grad()
    def run(self, task: Task) -> tuple[dict[str, float], Tensor]:
        """Return the mean figures, and a grid of pictures (input | output | truth), (3, rows * side, 3 * side).

        Raises:
            TudsrError: when the score is not finite: the model is ruined.
        """
        figures: list[dict[str, float]] = []
        rows: list[Tensor] = []
        for i in range(len(self.set)):
            item = self.set[i]
            gt, lq = (item[key][None].to(self.device) for key in ("gt", "lq"))
            if isinstance(task, PriorTask):
                figures.append(self._prior_figures(task, gt, i))
                continue
            sr = task.restore(lq, self.side_px).clamp(-1, 1)
            figures.append(self._figures(sr, gt))
            if len(rows) < _SHOWN:
                rows.append(torch.cat([Stage.upsample(lq, self.side_px, self.side_px), sr, gt], dim=3)[0].cpu())
        means = {f"val_{key}": sum(f[key] for f in figures) / len(figures) for key in figures[0]}
        if not math.isfinite(means["val_score"]):
            raise TudsrError("the validation score is not finite any more; the run stops, checkpoints are intact.")
        return means, torch.cat(rows, dim=1) if rows else torch.empty(3, 0, 0)

    def _prior_figures(self, task: PriorTask, gt: Tensor, index: int) -> dict[str, float]:
        losses = [
            task.loss(gt, Seed(self.seed, index * _PRIOR_ROUNDS + k).torch(0)).item() for k in range(_PRIOR_ROUNDS)
        ]
        mean = sum(losses) / len(losses)
        return {"prior": mean, "score": mean}

    def _figures(self, sr: Tensor, gt: Tensor) -> dict[str, float]:
        mse = (sr - gt).square().mean() / 4  # [-1, 1] → [0, 1]
        dists, lpips = self.dists(sr, gt).item(), self.lpips(sr, gt).item()
        return {"psnr_rgb": -10 * mse.log10().item(), "dists": dists, "lpips": lpips, "score": dists + lpips}

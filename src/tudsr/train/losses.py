"""The generator's losses by name, their weighted sum, and the adversarial losses of both sides."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody uses)
from torch import Tensor, nn

from tudsr.errors import ConfigError
from tudsr.perceptual.backbone_dists import CONVNEXT_STRIDE_PX, FeatureDists
from tudsr.perceptual.dists import Dists, EaDists
from tudsr.perceptual.features import AlexNetFeatures, Vgg16Features
from tudsr.perceptual.lpips import Lpips
from tudsr.perceptual.pretrained import HUB_IDS

REAL_LABEL = 0.8  # one-sided label smoothing; source: METHOD («Losses»)
FAKE_LABEL = 0.0

# (folder of weights, dtype of the feature network, folder or hub id of a transformers backbone) -> module that takes
# (sr, gt) and returns one value per picture
LossFactory = Callable[[Path | None, torch.dtype, str | None], nn.Module]


class Mae(nn.Module):
    """Mean absolute error per picture."""

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        """Return (B,) float32 for two (B, 3, H, W) in [-1, 1]."""
        return (sr.float() - gt.float()).abs().mean((1, 2, 3))


class Mse(nn.Module):
    """Mean squared error per picture."""

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        """Return (B,) float32 for two (B, 3, H, W) in [-1, 1]."""
        return (sr.float() - gt.float()).square().mean((1, 2, 3))


def _mean_5x5(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False)


def _detail(x: Tensor) -> Tensor:
    """Return what a 5x5 mean takes away."""
    return x - _mean_5x5(x)


class Detail(nn.Module):
    """Mean absolute error of the fine detail per picture: of what a 5x5 mean takes away.

    A photo's spectrum falls as 1/f, so that plain MAE is mostly about what a blurred picture has too.
    """

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        """Return (B,) float32 for two (B, 3, H, W) in [-1, 1]."""
        return _detail(sr.float() - gt.float()).abs().mean((1, 2, 3))


class Grid(nn.Module):
    """Mean absolute value of what repeats in the fine detail's error with a generator's own period, per picture.

    A decoder that unfolds channels into patches of pixels learns one patch pattern more easily than detail, and deep
    losses reward it for its contrast. Averaged over 5x5 patches, phase by phase, such a pattern stays whole and
    detail that is merely missing mostly cancels out.

    Args:
        period_px: side of a patch.
    """

    def __init__(self, period_px: int) -> None:
        super().__init__()
        self.period_px = period_px

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        """Return (B,) float32 for two (B, 3, H, W) in [-1, 1]; pixels beyond whole patches are left out."""
        height, width = (side // self.period_px * self.period_px for side in sr.shape[-2:])
        error = _detail(sr.float() - gt.float())[..., :height, :width]
        phases = F.pixel_unshuffle(error, self.period_px)  # (B, 3 period², H / period, W / period)
        return _mean_5x5(phases).abs().mean((1, 2, 3))


def _ea_dists_on(features: str) -> LossFactory:
    """Return the factory of EA-DISTS on a transformers backbone, imported only when it is built."""

    def build(weights_dir: Path | None, dtype: torch.dtype, feature_model: str | None) -> nn.Module:
        return EaDists(FeatureDists.load(feature_model or HUB_IDS[features], dtype=dtype))

    return build


LOSSES: dict[str, LossFactory] = {
    "mae": lambda weights_dir, dtype, feature_model: Mae(),
    "mse": lambda weights_dir, dtype, feature_model: Mse(),
    "detail": lambda weights_dir, dtype, feature_model: Detail(),
    "grid_4": lambda weights_dir, dtype, feature_model: Grid(4),
    "grid_8": lambda weights_dir, dtype, feature_model: Grid(8),
    "dists": lambda weights_dir, dtype, feature_model: Dists(dtype).load(weights_dir),
    "ea_dists": lambda weights_dir, dtype, feature_model: EaDists(Dists(dtype).load(weights_dir)),
    "ea_dists_dinov3": _ea_dists_on("dinov3"),
    "ea_dists_dinov2": _ea_dists_on("dinov2"),
    "ea_dists_convnext": _ea_dists_on("convnext"),
    "lpips_alex": lambda weights_dir, dtype, feature_model: Lpips("alex", dtype).load(weights_dir),
    "lpips_vgg": lambda weights_dir, dtype, feature_model: Lpips("vgg", dtype).load(weights_dir),
}


LEAST_PX: dict[str, int] = {
    "dists": Vgg16Features.min_px,
    "ea_dists": Vgg16Features.min_px,
    "ea_dists_dinov3": 16,
    "ea_dists_dinov2": 14,
    "ea_dists_convnext": CONVNEXT_STRIDE_PX,
    "lpips_alex": AlexNetFeatures.min_px,
    "lpips_vgg": Vgg16Features.min_px,
}
"""Deep loss → the least side of a picture that it takes: one pixel of its coarsest map, or one patch of a ViT."""


class WeightedLosses(nn.Module):
    """The weighted sum of named losses; no parameter of it learns.

    Args:
        weights: loss name to weight, for example {"ea_dists": 5.0, "mae": 0.5}; a weight of 0 leaves the loss out.
        weights_dir: folder of pretrained weights; see `tudsr.perceptual.weights`.
        dtype: of the feature networks' weights.
        feature_model: folder or hub id of the backbone of ea_dists_dinov3, _dinov2 or _convnext; None for the default.

    Raises:
        ConfigError: for an unknown loss.
        WeightsError: when pretrained weights are missing.

    Source: METHOD («Losses»): L_G = 5 EA-DISTS + 0.5 BCE + 0.5 MAE.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        weights_dir: Path | None = None,
        dtype: torch.dtype = torch.float32,
        feature_model: str | None = None,
    ) -> None:
        super().__init__()
        for name in weights:
            if name not in LOSSES:
                raise ConfigError(f"{name!r} is not a known loss; known ones: {', '.join(sorted(LOSSES))}.")
        self.weights = {name: float(weight) for name, weight in weights.items() if weight}
        self.losses = nn.ModuleDict({name: LOSSES[name](weights_dir, dtype, feature_model) for name in self.weights})
        self.requires_grad_(False)

    def forward(self, sr: Tensor, gt: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses, averaged over the batch; the gradient flows to sr only.

        Args:
            sr: generated pictures, (B, 3, H, W), float, [-1, 1].
            gt: true pictures, same shape.

        Returns:
            The weighted sum, a float32 scalar, and each loss before its weight, detached, as loss_g_<name>.
        """
        total = sr.new_zeros((), dtype=torch.float32)
        parts = {}
        for name, loss in self.losses.items():
            value = loss(sr, gt.detach()).mean()
            parts[f"loss_g_{name}"] = value.detach()
            total = total + self.weights[name] * value
        return total, parts


def adversarial_loss(logits: list[Tensor], target: float) -> Tensor:
    """Binary cross-entropy towards a soft label, each level counting the same.

    Args:
        logits: the discriminator's maps, one per level, each (B, 1, h, w) or of any shape, before the sigmoid.
        target: the label, 0 to 1; the generator aims at REAL_LABEL.

    Returns:
        A float32 scalar.

    Source: METHOD («Losses», «Discriminator»): fixed equal weights, since learnable ones can be gamed.
    """
    levels = [F.binary_cross_entropy_with_logits(x.float(), torch.full_like(x, target).float()) for x in logits]
    return torch.stack(levels).mean()


def discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Return L_D = 0.5 (BCE(D(x), 0.8) + BCE(D(sr), 0)), a float32 scalar.

    Args:
        real: logit maps of true pictures, one per level.
        fake: logit maps of generated pictures, one per level.

    Source: METHOD («Losses»).
    """
    return 0.5 * (adversarial_loss(real, REAL_LABEL) + adversarial_loss(fake, FAKE_LABEL))

"""DISTS: structure and texture similarity of deep features; and EA-DISTS, which adds the same on Sobel edges."""

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody uses)
from torch import Tensor, nn

from tudsr.perceptual.features import Distance, Vgg16Features
from tudsr.perceptual.fused import ChannelMoments, L2Pool
from tudsr.perceptual.weights import load_table

CHANNELS = (3, 64, 128, 256, 512, 512)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STABILIZER = 1e-6  # c1 = c2 of the paper's equations (3) and (4)


def texture_and_structure(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Compare two feature maps channel by channel, in float32; the gradient flows to x only.

    Args:
        x: features, (B, C, H, W), not negative for the usual range.
        y: features, same shape.

    Returns:
        Texture similarity (of the means) and structure similarity (of the correlation), each (B, C), 1 for equal maps.

    Source: DISTS (Ding et al. 2020), equations (3) and (4).
    """
    x_mean, y_mean, x_var, y_var, covariance = ChannelMoments.apply(x, y)  # 5 of (B, C)
    texture = (2 * x_mean * y_mean + STABILIZER) / (x_mean.square() + y_mean.square() + STABILIZER)
    structure = (2 * covariance + STABILIZER) / (x_var + y_var + STABILIZER)
    return texture, structure


class Dists(Distance):
    """DISTS on VGG16 with L2-pooling, for sides from 16 px; frozen, and random until `load` is called.

    Args:
        dtype: of the convolutions; the statistics are always float32.

    Source: Ding, Ma, Wang, Simoncelli, "Image Quality Assessment: Unifying Structure and Texture Similarity", 2020.
    """

    mean: Tensor
    std: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.features = Vgg16Features(L2Pool.apply, dtype)
        table = load_table("dists")
        total = table["alpha"].sum() + table["beta"].sum()
        self.register_buffer("alpha", table["alpha"].flatten() / total)
        self.register_buffer("beta", table["beta"].flatten() / total)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def load(self, weights_dir: Path | None = None) -> Self:
        """Load VGG16's pretrained weights; see `tudsr.perceptual.weights`.

        Raises:
            WeightsError: when they cannot be found, fetched or read.
        """
        self.features.load(weights_dir)
        return self

    def distance(self, x_maps: list[Tensor], y_maps: list[Tensor]) -> Tensor:
        """Return the distance of pictures, (B,), by their maps."""
        terms = [texture_and_structure(a, b) for a, b in zip(x_maps, y_maps, strict=True)]
        texture = torch.cat([t for t, _ in terms], 1)  # (B, 1475)
        structure = torch.cat([s for _, s in terms], 1)  # (B, 1475)
        # summing the losses rather than the similarities: no cancellation near 0
        return ((1 - texture) * self.alpha).sum(1) + ((1 - structure) * self.beta).sum(1)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return what `distance` compares of pictures, (B, 3, H, W): themselves in [0, 1] and VGG16's five maps."""
        unit = (x.float() + 1) / 2
        return [unit, *self.features((unit - self.mean) / self.std)]


def sobel(x: Tensor) -> Tensor:
    """Return the Sobel magnitude of the luma, as a picture.

    The magnitude is taken of luma in [0, 1] with the plain integer kernels (a step edge of height 1 gives 4) and the
    picture's border is repeated, so that it makes no edge of its own.

    Args:
        x: pictures, (B, 3, H, W), float, [-1, 1].

    Returns:
        (B, 3, H, W) float32, three equal channels, on the same scale as a picture: -1 where there is no edge.

    Source: METHOD («Losses»); luma, kernels and the 1e-6 below the root after the authors' earlier OMGSR.
    """
    luma = (x.float() + 1) / 2 * x.new_tensor([0.2989, 0.5870, 0.1140], dtype=torch.float32).view(1, 3, 1, 1)
    row = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=x.device)
    kernels = torch.stack([row, row.T]).unsqueeze(1)  # (2, 1, 3, 3)
    padded = F.pad(luma.sum(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    with torch.autocast(x.device.type, enabled=False):  # bf16 would round away slopes the size of fine texture
        slopes = F.conv2d(padded, kernels)  # (B, 1, H+2, W+2) -> (B, 2, H, W)
    magnitude = (slopes.square().sum(1, keepdim=True) + 1e-6).sqrt()
    return (2 * magnitude - 1).expand(-1, 3, -1, -1)


class EaDists(nn.Module):
    """Edge-aware DISTS: DISTS(x, y) + DISTS(Sobel x, Sobel y), in one pass of the feature network.

    Args:
        dists: the distance that both terms use, `Dists` or `tudsr.perceptual.backbone_dists.FeatureDists`.

    Source: METHOD («Losses»): EA-DISTS.
    """

    def __init__(self, dists: nn.Module) -> None:
        super().__init__()
        self.dists = dists

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Measure the distance; the gradient flows to x only.

        Args:
            x: pictures, (B, 3, H, W), float, [-1, 1].
            y: reference pictures, same shape.

        Returns:
            (B,) float32.
        """
        both = self.dists(torch.cat([x, sobel(x)]), torch.cat([y, sobel(y)]))  # (2B,)
        return both[: len(x)] + both[len(x) :]

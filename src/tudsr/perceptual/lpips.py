"""LPIPS v0.1: distance of normalised deep features, weighted per channel."""

from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from tudsr.perceptual.features import AlexNetFeatures, Distance, FrozenConvs, Vgg16Features
from tudsr.perceptual.weights import load_table

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class Lpips(Distance):
    """LPIPS v0.1 on AlexNet or VGG16; frozen, and random until `load` is called.

    Args:
        net: "alex" (the metric that papers report; sides from 32 px) or "vgg" (16 px).
        dtype: of the convolutions; distances are always float32.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018, equation (1).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Literal["alex", "vgg"] = "alex", dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.features: FrozenConvs = AlexNetFeatures(dtype) if net == "alex" else Vgg16Features(dtype=dtype)
        for key, value in load_table(f"lpips_{net}_lin").items():
            self.register_buffer(key.replace(".weight", ""), value)  # lin0 ... lin4, (1, C, 1, 1)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def load(self, weights_dir: Path | None = None) -> Self:
        """Load the network's pretrained weights; see `tudsr.perceptual.weights`.

        Raises:
            WeightsError: when they cannot be found, fetched or read.
        """
        self.features.load(weights_dir)
        return self

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return what `distance` compares of pictures, (B, 3, H, W): the network's five maps."""
        return self.features((x.float() - self.shift) / self.scale)

    def distance(self, x_maps: list[Tensor], y_maps: list[Tensor]) -> Tensor:
        """Return the distance of pictures, (B,), by their maps."""
        distances = []
        for i, (a, b) in enumerate(zip(x_maps, y_maps, strict=True)):
            difference = (_unit_length(a) - _unit_length(b)).square() * self.get_buffer(f"lin{i}")
            distances.append(difference.sum(1).mean((1, 2)))  # (B, C, h, w) -> (B,)
        return torch.stack(distances).sum(0)


def _unit_length(features: Tensor) -> Tensor:
    """Scale each pixel's feature vector to length 1, in float32; the constant keeps dead pixels' gradient finite."""
    features = features.float()
    return features * (features.square().sum(1, keepdim=True) + 1e-10).rsqrt()

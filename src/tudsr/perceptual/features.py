"""The convolutions of VGG16 and AlexNet, frozen, as feature extractors; weights are random until `load` is called."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody uses)
from torch import Tensor, nn

from tudsr.errors import InputError, WeightsError, cause
from tudsr.perceptual.weights import load_convs

VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
ALEXNET_CONVS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))

Pool = Callable[[Tensor], Tensor]


def max_pool_2(x: Tensor) -> Tensor:
    """Halve a feature map by 2x2 max-pooling, as VGG16 was trained with."""
    return F.max_pool2d(x, 2)


class FrozenConvs(nn.Module):
    """Base of the feature networks: frozen convolutions named conv0, conv1, ... in channels_last and one dtype."""

    net: Literal["vgg16", "alexnet"]
    min_px: int  # the smallest side for which every feature map has a pixel

    def __init__(self, convs: list[nn.Conv2d], dtype: torch.dtype) -> None:
        super().__init__()
        self.convs = nn.ModuleDict({f"conv{i}": conv for i, conv in enumerate(convs)})
        self.convs.requires_grad_(False)
        self.convs.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def load(self, weights_dir: Path | None = None) -> Self:
        """Load the pretrained weights.

        Args:
            weights_dir: a folder to look into first.

        Returns:
            This module.

        Raises:
            WeightsError: when they cannot be found, fetched or read.
        """
        try:
            self.convs.load_state_dict(load_convs(self.net, weights_dir))
        except RuntimeError as error:  # torch's word for shapes that differ
            raise WeightsError(f"the weights found for {self.net} do not fit it ({cause(error)}).") from error
        return self

    def _prepare(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < self.min_px:
            height, width = x.shape[-2:]
            raise InputError(f"a picture of {width}x{height} is too small for {self.net}; {self.min_px} is the least.")
        weight = next(self.convs.parameters())
        return x.to(dtype=weight.dtype, memory_format=torch.channels_last)


class Vgg16Features(FrozenConvs):
    """VGG16's features after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    Args:
        pool: what stands between the stages: max-pooling (LPIPS) or L2-pooling (DISTS).
        dtype: of the convolutions and of the features.

    Source: Simonyan and Zisserman, ICLR 2015, configuration D.
    """

    net = "vgg16"
    min_px = 16

    def __init__(self, pool: Pool = max_pool_2, dtype: torch.dtype = torch.float32) -> None:
        widths = [width for stage in VGG16_STAGES for width in stage]
        inputs = [3, *widths[:-1]]
        super().__init__([nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, widths, strict=True)], dtype)
        self.pool = pool

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the five feature maps.

        Args:
            x: normalised pictures, (B, 3, H, W), H and W at least 16.

        Returns:
            (B, 64, H, W), (B, 128, H/2, W/2), (B, 256, H/4, W/4), (B, 512, H/8, W/8), (B, 512, H/16, W/16).

        Raises:
            InputError: when a side is below 16 px.
        """
        h = self._prepare(x)
        convs = iter(self.convs.values())
        features: list[Tensor] = []
        for stage in VGG16_STAGES:
            if features:
                h = self.pool(h)
            for _ in stage:
                h = F.relu(next(convs)(h), inplace=True)
            features.append(h)
        return features


class AlexNetFeatures(FrozenConvs):
    """AlexNet's features after each of its five ReLUs, as torchvision defines the network.

    Args:
        dtype: of the convolutions and of the features.

    Source: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.
    """

    net = "alexnet"
    min_px = 32

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        inputs = [3, *(width for width, *_ in ALEXNET_CONVS[:-1])]
        convs = [
            nn.Conv2d(a, b, kernel, stride=stride, padding=padding)
            for a, (b, kernel, stride, padding) in zip(inputs, ALEXNET_CONVS, strict=True)
        ]
        super().__init__(convs, dtype)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the five feature maps.

        Args:
            x: normalised pictures, (B, 3, H, W), H and W at least 32.

        Returns:
            Widths 64, 192, 384, 256, 256; the first at about a quarter of the picture's size.

        Raises:
            InputError: when a side is below 32 px.
        """
        h = self._prepare(x)
        features: list[Tensor] = []
        for i, conv in enumerate(self.convs.values()):
            if i in (1, 2):
                h = F.max_pool2d(h, 3, stride=2)
            h = F.relu(conv(h), inplace=True)
            features.append(h)
        return features


class Distance(nn.Module):
    """A distance of pictures by feature maps; subclasses say by which (`maps`), and how these compare (`distance`)."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Measure the distance; the gradient flows to x only.

        Args:
            x: pictures, (B, 3, H, W), float, [-1, 1].
            y: reference pictures, same shape.

        Returns:
            (B,) float32, 0 for equal pictures.

        Raises:
            InputError: when a side is too small for the network.
        """
        with torch.no_grad():
            y_maps = self.maps(y)
        return self.distance(self.maps(x), y_maps)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return what `distance` compares of pictures, (B, 3, H, W)."""
        raise NotImplementedError

    def distance(self, x_maps: list[Tensor], y_maps: list[Tensor]) -> Tensor:
        """Return the distance of pictures, (B,), by their maps."""
        raise NotImplementedError

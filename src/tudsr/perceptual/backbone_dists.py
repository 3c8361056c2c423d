"""DISTS's statistics on the features of a transformers backbone (DINOv3, DINOv2, ConvNeXt) in place of VGG16's."""

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody uses)
from torch import Tensor, nn

from tudsr.errors import ConfigError
from tudsr.perceptual.dists import IMAGENET_MEAN, IMAGENET_STD, texture_and_structure
from tudsr.perceptual.features import Distance
from tudsr.perceptual.pretrained import load_pretrained, token_map

VIT_TYPES = ("dinov2", "dinov3_vit")
CONVNEXT_TYPES = ("convnext", "convnextv2", "dinov3_convnext")
CONVNEXT_STRIDE_PX = 32


class FeatureDists(Distance):
    """DISTS over layers of a backbone, every channel weighing the same.

    Of a ViT four layers are taken, evenly spread over its blocks, of a ConvNeXt the end of each stage. A ViT's patch
    tokens are laid back into a map, its class and register tokens left out; pictures are resampled to a multiple of its
    patch. Beside the layers the picture itself is compared, as in DISTS.

    Args:
        backbone: a transformers model of the type dinov2, dinov3_vit, convnext, convnextv2 or dinov3_convnext.
        dtype: of the backbone; the statistics are always float32.

    Raises:
        ConfigError: for another type of model.

    Source: ours, after DISTS (Ding et al. 2020), with the uniform weights of the authors' earlier OMGSR.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        config: Any = backbone.config
        kind = config.model_type
        if kind not in VIT_TYPES + CONVNEXT_TYPES:
            known = ", ".join(VIT_TYPES + CONVNEXT_TYPES)
            raise ConfigError(f"a {kind!r} model cannot give features for DISTS; known types: {known}.")
        self.backbone = backbone.to(dtype).eval().requires_grad_(False)
        self.is_vit = kind in VIT_TYPES
        self.patch_px: int = config.patch_size if self.is_vit else CONVNEXT_STRIDE_PX
        depth: int = config.num_hidden_layers if self.is_vit else len(config.hidden_sizes)
        # Indices into the model's hidden states, of which 0 is the embedding.
        self.layers = [depth * i // 4 for i in (1, 2, 3, 4)] if self.is_vit else range(1, depth + 1)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    @classmethod
    def load(cls, model: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Build from a folder or hub id; only safetensors are read.

        Args:
            model: a folder that transformers wrote, or a hub id.
            dtype: as above.

        Raises:
            WeightsError: when the model cannot be loaded, is of another type or lacks tensors.
        """
        refused = f"{model}: cannot be loaded as a feature backbone"
        remedy = "name a folder or hub id that holds a DINOv2, DINOv3 or ConvNeXt model in safetensors form"
        return cls(load_pretrained(model, VIT_TYPES + CONVNEXT_TYPES, refused, remedy), dtype)

    def distance(self, x_maps: list[Tensor], y_maps: list[Tensor]) -> Tensor:
        """Return the distance of pictures, (B,), at most about 2, by their maps."""
        terms = [texture_and_structure(a, b) for a, b in zip(x_maps, y_maps, strict=True)]
        similarities = torch.cat([part for term in terms for part in term], 1)  # (B, 2 * channels)
        return (1 - similarities).mean(1)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the picture in [0, 1] and the chosen layers as (B, C, h, w)."""
        unit = (x.float() + 1) / 2
        sides = [max(1, round(side / self.patch_px)) * self.patch_px for side in x.shape[-2:]]
        h = F.interpolate(unit, sides, mode="bilinear", antialias=True) if sides != list(x.shape[-2:]) else unit
        pixels = ((h - self.mean) / self.std).to(next(self.backbone.parameters()).dtype)
        states = self.backbone(pixel_values=pixels, output_hidden_states=True).hidden_states
        maps = [states[layer] for layer in self.layers]
        if self.is_vit:
            rows, columns = (side // self.patch_px for side in sides)
            maps = [token_map(tokens, rows, columns) for tokens in maps]
        return [unit, *maps]

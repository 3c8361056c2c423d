"""Discriminators on a frozen vision transformer: DINOv2 or DINOv3 features, heads trained from scratch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 (the name torch's own documentation uses)
from torch import Tensor, nn

from tudsr.errors import ConfigError
from tudsr.perceptual.dists import IMAGENET_MEAN, IMAGENET_STD
from tudsr.perceptual.pretrained import HUB_IDS, load_pretrained, token_map
from tudsr.train.discriminators.base import Discriminator, check_at_least
from tudsr.train.discriminators.heads import token_head

RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class VitKind:
    """One family of frozen ViT: its type in transformers, its published weights and what to do without them."""

    model_type: str
    hub_id: str
    base_config: dict[str, Any]
    remedy: str


DINOV2 = VitKind(
    model_type="dinov2",
    hub_id=HUB_IDS["dinov2"],
    base_config={"image_size": 518},
    remedy="connect to the hub, set the option weights to a folder that holds a DINOv2 model in safetensors form, "
    "or choose the discriminator 'patch', which needs no weights",
)
DINOV3 = VitKind(
    model_type="dinov3_vit",
    hub_id=HUB_IDS["dinov3"],
    base_config={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_register_tokens": 4,
    },
    remedy="accept its licence on its hub page and log in with `hf auth login`, set the option weights to a folder "
    "that holds a DINOv3 ViT in safetensors form, or choose the discriminator 'dinov2' (Apache-2.0) or 'patch'",
)


class VitDiscriminator(Discriminator):
    """Judge the tokens of a frozen ViT after several of its blocks, each level by a head of its own.

    Shallow and middle blocks are read (3, 6 and 9 of 12): they hold detail, not semantics. Blocks above the last one
    read are dropped.

    Source: METHOD, «Discriminator, one per stage»; the idea of frozen features with several heads is from Kumari et
    al., CVPR 2022, and Sauer et al., «StyleGAN-T», ICML 2023.
    """

    frozen_parts = ("vit",)
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        kind: VitKind,
        weights: str | Path | None = None,
        config: dict[str, Any] | None = None,
        blocks: tuple[int, ...] = (3, 6, 9),
        head_width: int = 256,
        augment: str = "color,translation,cutout",
    ) -> None:
        """Load the ViT and build the heads.

        Args:
            kind: the family of ViT.
            weights: a folder that transformers wrote, a hub id, None for the family's published model, or "random".
            config: with "random" only: values of the ViT's configuration that differ from the published model's.
            blocks: the blocks read, counted from 1, in rising order.
            head_width: channels inside each head.
            augment: DiffAugment policy, see `DiffAugment`; empty for none.

        Raises:
            ConfigError: when an option is out of range.
            WeightsError: when the model cannot be loaded.
        """
        super().__init__(augment)
        check_at_least("head_width", head_width, 1)
        vit = _random_vit(kind, config or {}) if weights == RANDOM else _load_vit(kind, weights or kind.hub_id)
        if config and weights != RANDOM:
            raise ConfigError(f"The discriminator's config goes with weights: {RANDOM!r} only, not with {weights!r}.")
        self.blocks = tuple(blocks)
        self.patch_px = int(cast(Any, vit.config).patch_size)
        _drop_blocks_above(vit, self.blocks)
        self.vit = vit.eval().requires_grad_(False)
        channels = int(cast(Any, vit.config).hidden_size)
        self.heads = nn.ModuleList(token_head(channels, head_width) for _ in self.blocks)
        # Constants, hence outside the saved state.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def levels(self, x: Tensor) -> list[Tensor]:
        """Return one logit map (B, 1, ceil(h/2), ceil(w/2)) per block read, h and w counted in tokens."""
        return [head(tokens) for head, tokens in zip(self.heads, self.features(x), strict=True)]

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the frozen features that the heads see.

        Args:
            x: pictures, (B, 3, H, W), in [-1, 1]; padded by reflection at the bottom and right to a multiple of the
                ViT's patch (resampling would blur the very detail that is judged).

        Returns:
            One map (B, C, ceil(H / patch), ceil(W / patch)) per block read, each token normalised to mean 0 and
            variance 1, since the scale of the hidden states differs between blocks and models by orders.
        """
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.patch_px, 0, -height % self.patch_px), mode="reflect")
        rows, columns = x.shape[-2] // self.patch_px, x.shape[-1] // self.patch_px
        pixels = ((x + 1) / 2 - self.mean) / self.std
        states = self.vit(pixel_values=pixels, output_hidden_states=True).hidden_states
        return [token_map(F.layer_norm(states[b], states[b].shape[-1:]), rows, columns) for b in self.blocks]


def _random_vit(kind: VitKind, config: dict[str, Any]) -> nn.Module:
    import transformers  # slow to import, and `patch` does without it

    vit_config = transformers.AutoConfig.for_model(kind.model_type, **{**kind.base_config, **config})
    return cast(nn.Module, transformers.AutoModel.from_config(vit_config))


def _load_vit(kind: VitKind, weights: str | Path) -> nn.Module:
    refused = f"The discriminator's ViT {str(weights)!r} cannot be loaded"
    return load_pretrained(weights, (kind.model_type,), refused, kind.remedy)


def _drop_blocks_above(vit: nn.Module, blocks: tuple[int, ...]) -> None:
    """Shorten a ViT to the last block read.

    Raises:
        ConfigError: when the blocks are not in rising order within the ViT's.
    """
    encoder = cast(Any, vit.encoder if hasattr(vit, "encoder") else vit.model)
    depth = len(encoder.layer)
    if not blocks or list(blocks) != sorted(set(blocks)) or not 1 <= blocks[0] <= blocks[-1] <= depth:
        raise ConfigError(f"The discriminator's blocks are {blocks}; rising numbers from 1 to {depth} are expected.")
    encoder.layer = encoder.layer[: blocks[-1]]

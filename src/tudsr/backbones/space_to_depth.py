"""A parameter-free autoencoder: pixels folded into channels, exactly invertible."""

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 - torch's own habit
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor


@dataclass
class Latents:
    """Encoder output, named as diffusers' AutoencoderTiny names it."""

    latents: Tensor


@dataclass
class Sample:
    """Decoder output."""

    sample: Tensor


class SpaceToDepth(ModelMixin, ConfigMixin):
    """Fold each patch of pixels into channels, in diffusers' folder format.

    Args:
        patch_px: side of the patch that becomes one latent position, in pixels.
        scaling_factor: multiplies the latent; 2 brings photos in [-1, 1] near unit variance.
    """

    @register_to_config
    def __init__(self, patch_px: int = 4, scaling_factor: float = 2.0) -> None:
        super().__init__()

    def encode(self, x: Tensor) -> Latents:
        """Fold x, (B, 3, H, W), into (B, 3 * patch², H / patch, W / patch)."""
        return Latents(F.pixel_unshuffle(x, self.config.patch_px))

    def decode(self, z: Tensor) -> Sample:
        """Unfold z, (B, 3 * patch², h, w), into (B, 3, h * patch, w * patch)."""
        return Sample(F.pixel_shuffle(z, self.config.patch_px))

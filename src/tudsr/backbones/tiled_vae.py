"""SD's autoencoder over a whole picture in bounded memory: exact, where windows have statistics of their own."""

from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import SpatialNorm
from torch import Tensor, nn

from tudsr.backbones.space_to_depth import Latents, Sample
from tudsr.backbones.strips import RowMap, StripLayers, normalised
from tudsr.errors import InputError

MAX_SIDE_PX = 2048
_ELEMENTS = 2**23  # of a strip: 32 MiB in float32, which the system gets back at once


class TiledVAE(nn.Module):
    """Encode and decode whole pictures layer by layer, each layer by strips of rows.

    What comes out is what the autoencoder itself makes, up to rounding: convolutions see their neighbours' rows, the
    statistics of GroupNorm are those of the whole map, and the attention in the middle is over all of it. Maps are held
    where the picture is; only strips go to the weights' device.

    Args:
        vae: whose weights it shares.
        elements: numbers in a strip, about.

    Raises:
        InputError: for another kind of autoencoder.

    Source: METHOD («Traps that the relatives fell into»): Var = E[var] + Var[mean].
    """

    def __init__(self, vae: nn.Module, elements: int = _ELEMENTS) -> None:
        super().__init__()
        if not isinstance(vae, AutoencoderKL) or any(isinstance(part, SpatialNorm) for part in vae.modules()):
            kind = type(vae).__name__
            raise InputError(f"the autoencoder over the whole picture is for AutoencoderKL; this model has {kind}.")
        self.vae, self._elements = vae, elements
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @property
    def config(self) -> Any:
        """The autoencoder's own."""
        return self.vae.config

    @torch.no_grad()
    def encode(self, x: Tensor) -> Latents:
        """Encode x, (B, 3, H, W) in [-1, 1], to the posterior's mode, (B, C, H / f, W / f), unscaled.

        Raises:
            InputError: for a side above MAX_SIDE_PX.
        """
        check_size(*x.shape[-2:])
        net, layers = self.vae.encoder, StripLayers(x.device, self._elements)
        h = layers.conv(net.conv_in, _map_of(x))
        for block in net.down_blocks:
            for resnet in block.resnets:
                h = layers.resnet(resnet, h)
            for down in block.downsamplers or ():
                h = layers.conv(down.conv, h, pads=(0, 1, 0, 1) if down.padding == 0 else None)
        h = _middle(layers, net.mid_block, h)
        h = layers.conv(net.conv_out, h, normalised(net.conv_norm_out, h, net.conv_act))
        if self.vae.quant_conv is not None:
            h = layers.conv(self.vae.quant_conv, h)
        return Latents(h.rows(0, h.height).chunk(2, dim=1)[0])  # mean; log of the variance

    @torch.no_grad()
    def decode(self, z: Tensor) -> Sample:
        """Decode an unscaled latent, (B, C, h, w), to (B, 3, h * f, w * f), about [-1, 1].

        Raises:
            InputError: for a picture with a side above MAX_SIDE_PX.
        """
        check_size(*(self.factor * side for side in z.shape[-2:]))
        net, layers = self.vae.decoder, StripLayers(z.device, self._elements)
        h = _map_of(z)
        if self.vae.post_quant_conv is not None:
            h = layers.conv(self.vae.post_quant_conv, h)
        h = _middle(layers, net.mid_block, layers.conv(net.conv_in, h))
        for block in net.up_blocks:
            for resnet in block.resnets:
                h = layers.resnet(resnet, h)
            for up in block.upsamplers or ():
                h = layers.conv(up.conv, h, factor=2)
        h = layers.conv(net.conv_out, h, normalised(net.conv_norm_out, h, net.conv_act))
        return Sample(h.rows(0, h.height))


def _map_of(x: Tensor) -> RowMap:
    made = RowMap()
    made.append(x, x.device)
    return made


def _middle(layers: StripLayers, block: Any, h: RowMap) -> RowMap:
    h = layers.resnet(block.resnets[0], h)
    for attn, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attn is not None:
            h = layers.attention(attn, h)
        h = layers.resnet(resnet, h)
    return h


def check_size(height: int, width: int) -> None:
    """Refuse a picture that is too large for its attention.

    Raises:
        InputError: for a side above MAX_SIDE_PX.
    """
    if max(height, width) > MAX_SIDE_PX:
        raise InputError(
            f"the picture is {width}x{height} px; the autoencoder over the whole picture takes sides of up to "
            f"{MAX_SIDE_PX} px; larger ones go by windows."
        )

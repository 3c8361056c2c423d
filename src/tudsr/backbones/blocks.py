"""Residual blocks without the passes over memory that inference can do without; the values are the same."""

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from tudsr.backbones.norms import MapGroupNorm


class MapResnetBlock(ResnetBlock2D):
    """A residual block that adds in place outside of training, and does not divide by 1."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        """Return the block's output, (B, C, H, W), of its input and the timestep's embedding."""
        if torch.is_grad_enabled():
            return super().forward(input_tensor, temb, *args, **kwargs)
        h = self.nonlinearity(self.norm1(input_tensor))
        if self.time_emb_proj is None:
            h = self.norm2.after(self.conv1, h)
        else:
            if not self.skip_time_act:
                temb = self.nonlinearity(temb)
            h = self.norm2(_sum(self.time_emb_proj(temb)[:, :, None, None], self.conv1(h)))
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        return _sum(input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor), h)


def _sum(other: Tensor, own: Tensor) -> Tensor:
    """Return other + own, in own's memory where the sum would have its dtype and layout anyway."""
    same = torch.result_type(other, own) == own.dtype and (other.stride() == own.stride() or other.shape != own.shape)
    return own.add_(other) if same else other + own


def reuse_sums(net: nn.Module) -> None:
    """Give a diffusers UNet or VAE `MapResnetBlock` for its plain residual blocks, after `keep_layout`."""
    for module in net.modules():
        if type(module) is ResnetBlock2D and _is_plain(module) and isinstance(module.norm2, MapGroupNorm):
            module.__class__ = MapResnetBlock


def _is_plain(block: ResnetBlock2D) -> bool:
    resizes = block.upsample is not None or block.downsample is not None
    return not resizes and block.time_embedding_norm == "default" and block.output_scale_factor == 1

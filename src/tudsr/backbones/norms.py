"""Group normalisation of large channels_last maps on CUDA, where torch's own would copy them to another layout."""

import torch
from torch import Tensor, nn

_LEAST_PX = 128 * 128


class MapGroupNorm(nn.GroupNorm):
    """Group normalisation that keeps large maps in channels_last on CUDA, outside of training."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised (B, C, H, W), of the same dtype."""
        large = x.is_cuda and x.ndim == 4 and x.shape[-2] * x.shape[-1] >= _LEAST_PX and not torch.is_grad_enabled()
        if large and x.is_contiguous(memory_format=torch.channels_last) and self.affine:
            return torch.cat([self._one(one) for one in x.split(1)]) if len(x) > 1 else self._one(x)
        return super().forward(x)

    def _one(self, x: Tensor) -> Tensor:
        # A channel's statistics first, by the kernels that batch normalisation has for this layout, in float32.
        mean, inverse = torch.batch_norm_stats(x, self.eps)  # (C,), 1 / sqrt(variance + eps)
        means = mean.view(self.num_groups, -1)
        variances = inverse.pow(-2).view(self.num_groups, -1)  # with eps
        centre = means.mean(dim=1, keepdim=True)
        spread = variances.mean(dim=1, keepdim=True) + (means - centre).square().mean(dim=1, keepdim=True)
        each = means.shape[1]
        centre, scale = (one.expand(-1, each).reshape(-1) for one in (centre, spread.rsqrt()))
        return torch.batch_norm_elemt(x, self.weight, self.bias, centre, scale, self.eps)


def keep_layout(net: nn.Module) -> None:
    """Give a diffusers UNet or VAE `MapGroupNorm` for its group normalisations; the weights are the same tensors."""
    for module in net.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = MapGroupNorm

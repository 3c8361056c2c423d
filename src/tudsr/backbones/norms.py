"""Group normalisation of large channels_last maps on CUDA, where torch's own would copy them to another layout."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn

_LEAST_PX = 128 * 128
_here = threading.local()
transform = torch.ops.aten.batch_norm_elemt.out


class MapGroupNorm(nn.GroupNorm):
    """Group normalisation that keeps large maps in channels_last on CUDA, inside `layout_kept`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised (B, C, H, W), of the same dtype."""
        return self._by_channels(x) if self._suits(x) else super().forward(x)

    def after(self, conv: Any, x: Tensor) -> Tensor:
        """Return the normalised conv(x); by channels, the convolution's bias costs no pass over the map."""
        merged = type(conv) is not nn.Conv2d or "forward" in conv.__dict__  # with an adapter, or something kept
        if merged or conv.bias is None or not self._suits(x):
            return self(conv(x))
        return self._by_channels(F.conv2d(x, conv.weight, None, conv.stride, conv.padding), conv.bias)

    def _suits(self, x: Tensor) -> bool:
        large = x.is_cuda and x.ndim == 4 and x.shape[-2] * x.shape[-1] >= _LEAST_PX and self.affine
        return large and getattr(_here, "kept", False) and x.is_contiguous(memory_format=torch.channels_last)

    def _by_channels(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        # The kernels that batch normalisation has for this layout, in float32: they take one picture's statistics by
        # channel, and transform it by channel. Between the two, channels make up groups.
        found = [torch.batch_norm_stats(one, self.eps) for one in x.split(1)]  # (C,), 1 / sqrt(variance + eps)
        mean, inverse = (torch.stack(each).view(len(x), self.num_groups, -1) for each in zip(*found, strict=True))
        if bias is not None:
            bias = bias.to(mean.dtype).view(self.num_groups, -1)
            mean = mean + bias
        centre = mean.mean(dim=-1, keepdim=True)
        spread = (inverse.pow(-2) + (mean - centre).square()).mean(dim=-1, keepdim=True)  # variance + eps
        if bias is not None:
            centre = centre - bias
        centre, scale = (one.expand_as(mean).reshape(len(x), -1) for one in (centre, spread.rsqrt()))
        out = torch.empty_like(x)
        for one, made, shift, factor in zip(x.split(1), out.split(1), centre, scale, strict=True):
            transform(one, self.weight, self.bias, shift, factor, self.eps, out=made)
        return out


@contextlib.contextmanager
def layout_kept() -> Iterator[None]:
    """Let this thread's `MapGroupNorm`s keep the layout.

    Not in training: what a generator makes without gradients must be what it makes with them, to the last bit.
    """
    before = getattr(_here, "kept", False)
    _here.kept = True
    try:
        yield
    finally:
        _here.kept = before


def keep_layout(net: nn.Module) -> None:
    """Give a diffusers UNet or VAE `MapGroupNorm` for its group normalisations; the weights are the same tensors."""
    for module in net.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = MapGroupNorm

"""Feature maps held as strips of rows: layers of diffusers' autoencoder over them, as if over the whole map at once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn

Prepare = Callable[[Tensor], Tensor]
_QUERIES = 1024  # of the attention at once: where no fused kernel is, scores of all against all would not fit


@dataclass
class RowMap:
    """A map, (B, C, H, W), in strips that are forgotten when nobody will read them again.

    Each strip's mean and variance per channel are kept, so that those of the whole map are known at its end.
    """

    height: int = 0
    strips: list[tuple[int, Tensor]] = field(default_factory=list)
    moments: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    def append(self, strip: Tensor, where: torch.device) -> None:
        """Add rows, (B, C, rows, W), below; they are held on `where`."""
        wide = strip.to(torch.promote_types(strip.dtype, torch.float32))
        var, mean = torch.var_mean(wide, dim=(2, 3), unbiased=False)  # (B, C) each
        self.moments.append((strip.shape[-2], mean.cpu().double(), var.cpu().double()))  # MPS has no float64
        self.strips.append((self.height, strip.to(where)))
        self.height += strip.shape[-2]

    def rows(self, y0: int, y1: int) -> Tensor:
        """Return rows y0 to y1, (B, C, y1 - y0, W)."""
        found = [
            s[..., max(y0 - top, 0) : y1 - top, :] for top, s in self.strips if top < y1 and y0 < top + s.shape[-2]
        ]
        return found[0] if len(found) == 1 else torch.cat(found, dim=-2)

    def forget(self, y: int) -> None:
        """Drop the strips that lie above row y."""
        self.strips = [(top, strip) for top, strip in self.strips if top + strip.shape[-2] > y]

    def mean_and_var(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance per channel of the whole map, (B, C), float64."""
        rows, means, variances = zip(*self.moments, strict=True)
        weights = torch.tensor(rows, dtype=torch.float64) / self.height
        return pooled(torch.stack(means), torch.stack(variances), weights.view(-1, 1, 1))


def pooled(means: Tensor, variances: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the union of parts, along the first axis: Var = E[var] + Var[mean].

    Args:
        means: of the parts.
        variances: of the parts, biased.
        weights: their shares of the whole, with the sum 1.
    """
    mean = (weights * means).sum(0)
    return mean, (weights * (variances + (means - mean).square())).sum(0)


def normalised(norm: nn.GroupNorm, of: RowMap, activation: nn.Module) -> Prepare:
    """Return what normalises rows of a map by the statistics of the whole of it, and activates them."""
    mean, var = (one.unflatten(1, (norm.num_groups, -1)).movedim(2, 0) for one in of.mean_and_var())  # (C / G, B, G)
    mean, var = pooled(mean, var, torch.full((len(mean), 1, 1), 1 / len(mean), dtype=torch.float64))  # (B, G)
    weight, bias = norm.weight.cpu().double(), norm.bias.cpu().double()  # (C,)
    each = norm.num_channels // norm.num_groups
    scale = weight * (var + norm.eps).rsqrt().repeat_interleave(each, dim=1)  # (B, C)
    shift = bias - scale * mean.repeat_interleave(each, dim=1)
    wide = torch.promote_types(norm.weight.dtype, torch.float32)
    gain, offset = (one.to(norm.weight.device, wide)[..., None, None] for one in (scale, shift))

    def prepare(rows: Tensor) -> Tensor:
        return activation(torch.addcmul(offset, rows.to(wide), gain)).to(rows.dtype)

    return prepare


class StripLayers:
    """Layers over maps, strip by strip; a map that goes in is used up.

    Args:
        where: the device that maps are held on; layers run where their weights are.
        elements: numbers in a strip, about.
    """

    def __init__(self, where: torch.device, elements: int) -> None:
        self._where, self._elements = where, elements

    def conv(
        self,
        conv: nn.Conv2d,
        x: RowMap,
        prepare: Prepare | None = None,
        pads: tuple[int, int, int, int] | None = None,
        factor: int = 1,
    ) -> RowMap:
        """Convolve a map.

        Args:
            conv: square.
            x: the map.
            prepare: makes the convolution's input of a map's rows.
            pads: zeros left, right, above and below, instead of the convolution's own.
            factor: by which nearest neighbours enlarge the map before.
        """
        made = RowMap()
        for strip, needed in self._conv_strips(conv, x, prepare, pads, factor):
            made.append(strip, self._where)
            x.forget(needed)
        return made

    def resnet(self, block: Any, x: RowMap) -> RowMap:
        """Run a ResnetBlock2D that has no timestep."""
        h, shortcut = RowMap(), RowMap()
        first = self._conv_strips(block.conv1, x, normalised(block.norm1, x, block.nonlinearity))
        if block.conv_shortcut is None:
            shortcut = x
            for strip, _ in first:
                h.append(strip, self._where)
        else:
            for (strip, needed), (beside, _) in zip(first, self._conv_strips(block.conv_shortcut, x), strict=True):
                h.append(strip, self._where)
                shortcut.append(beside, self._where)
                x.forget(needed)
        made = RowMap()
        for strip, needed in self._conv_strips(block.conv2, h, normalised(block.norm2, h, block.nonlinearity)):
            beside = shortcut.rows(made.height, made.height + strip.shape[-2]).to(strip.device)
            made.append((beside + strip) / block.output_scale_factor, self._where)
            h.forget(needed)
            shortcut.forget(made.height)
        return made

    def attention(self, attn: Any, x: RowMap) -> RowMap:
        """Run a self-attention over the whole map."""
        whole = x.rows(0, x.height).to(attn.to_q.weight.device)  # (B, C, H, W)
        x.forget(x.height)
        tokens = attn.group_norm(whole.flatten(2)).transpose(1, 2)  # (B, H * W, C)
        layers = (attn.to_q, attn.to_k, attn.to_v)
        q, k, v = (layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in layers)
        parts = [F.scaled_dot_product_attention(part, k, v) for part in q.split(_QUERIES, dim=2)]
        out = attn.to_out[0](torch.cat(parts, dim=2).transpose(1, 2).flatten(2)).transpose(1, 2)  # (B, C, H * W)
        made = RowMap()
        made.append((out.unflatten(2, whole.shape[2:]) + whole) / attn.rescale_output_factor, self._where)
        return made

    def _conv_strips(
        self,
        conv: nn.Conv2d,
        x: RowMap,
        prepare: Prepare | None = None,
        pads: tuple[int, int, int, int] | None = None,
        factor: int = 1,
    ) -> Iterator[tuple[Tensor, int]]:
        """Yield strips of a convolution's output from top to bottom, each with the first row of x needed after it."""
        size, stride, own = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
        left, right, above, below = pads or (own,) * 4
        height, width = factor * x.height, factor * x.strips[0][1].shape[-1]
        end = (height + above + below - size) // stride + 1
        step = max(1, self._elements // (stride * width * max(conv.in_channels, conv.out_channels)))
        for start in range(0, end, step):
            stop = min(start + step, end)
            y0, y1 = start * stride - above, (stop - 1) * stride + size - above  # of the map, with padding
            rows = _enlarged(x, max(y0, 0), min(y1, height), factor, prepare, conv.weight)
            rows = F.pad(rows, (left, right, max(-y0, 0), max(y1 - height, 0)))
            yield F.conv2d(rows, conv.weight, conv.bias, conv.stride), max(stop * stride - above, 0) // factor


def _enlarged(x: RowMap, y0: int, y1: int, factor: int, prepare: Prepare | None, like: Tensor) -> Tensor:
    """Return rows y0 to y1 of a map that was enlarged by nearest neighbours, where and as `like` is."""
    first = y0 // factor
    rows = x.rows(first, -(-y1 // factor)).to(like.device, like.dtype)
    rows = rows if prepare is None else prepare(rows)
    if factor == 1:
        return rows
    rows = F.interpolate(rows, scale_factor=float(factor), mode="nearest")
    return rows.narrow(-2, y0 - first * factor, y1 - y0)

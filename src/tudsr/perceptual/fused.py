"""L2-pooling and channel moments with hand-written gradients.

Plain autograd would keep, and pass over, several float32 copies of every feature map; these two keep only the maps
themselves. On a CPU that halves the cost of a DISTS step apart from its convolutions.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody uses)
from torch import Tensor
from torch.autograd.function import once_differentiable


class L2Pool(torch.autograd.Function):
    """Root of the Hann-weighted mean square over 3x3, stride 2; `L2Pool.apply(x)`.

    x is (B, C, H, W); the result (B, C, ceil(H/2), ceil(W/2)), same dtype. Differentiable once.
    Source: DISTS (Ding et al. 2020), section II-A.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Pool, and keep what the gradient needs."""
        taps = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
        kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
        mean_square = F.conv2d(x * x, kernel, stride=2, padding=1, groups=x.shape[1])
        pooled = mean_square.add_(1e-12).sqrt_()  # the constant keeps the root's slope finite at 0
        ctx.save_for_backward(x, pooled, kernel)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the gradient: x times the spread-out grad / pooled."""
        x, pooled, kernel = ctx.saved_tensors
        height, width = x.shape[2:]
        spread = F.conv_transpose2d(
            grad / pooled,
            kernel,
            stride=2,
            padding=1,
            output_padding=(1 - height % 2, 1 - width % 2),  # an even side had one more row than the windows reach
            groups=x.shape[1],
        )
        return spread.mul_(x)


class ChannelMoments(torch.autograd.Function):
    """Mean, variance and covariance of two feature maps per channel; `ChannelMoments.apply(x, y)`.

    x and y are (B, C, H, W). The result is (5, B, C), float32 (float64 for float64 maps): mean of x, mean of y,
    variance of x, variance of y, covariance, all over H x W pixels. Differentiable once and with respect to x only:
    the loss is linear in the moments' gradients, hence d/dx = a + b x + c y with a, b, c per channel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        """Measure part by part; see `_parts`."""
        ctx.height = x.shape[2]
        x_rows, y_rows = _rows(x), _rows(y)
        moments = torch.cat([_moments(x_rows[i], y_rows[i]) for i in _parts(x_rows)], 1)  # (5, B, C)
        ctx.save_for_backward(x_rows, y_rows, moments)
        return moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient with respect to x."""
        x_rows, y_rows, (x_mean, y_mean, *_) = ctx.saved_tensors
        pixels = x_rows.shape[1]
        by_x, by_y = 2 * grad[2] / pixels, grad[4] / pixels
        constant = grad[0] / pixels - by_x * x_mean - by_y * y_mean
        constant, by_x, by_y = (each[:, None] for each in (constant, by_x, by_y))  # (B, 1, C)
        out = torch.empty_like(x_rows)
        for i in _parts(out):
            rows = torch.addcmul(constant[i], _wide(x_rows[i]), by_x[i])
            out[i] = rows.addcmul_(_wide(y_rows[i]), by_y[i])
        return out.unflatten(1, (ctx.height, -1)).permute(0, 3, 1, 2), None


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C), without a copy in channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _parts(rows: Tensor) -> list[slice]:
    """Cut a batch into what is worked on at once.

    On a CPU that is a picture, so that its float32 copies stay in the cache; elsewhere all, for the sake of few calls.
    """
    return [slice(i, i + 1) for i in range(len(rows))] if rows.device.type == "cpu" else [slice(None)]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _moments(x: Tensor, y: Tensor) -> Tensor:
    """(b, H*W, C) twice -> (5, b, C); deviations from the mean, since mean squares would cancel."""
    x, y = _wide(x), _wide(y)
    x_mean, y_mean = x.mean(1), y.mean(1)
    x, y = x - x_mean[:, None], y - y_mean[:, None]
    return torch.stack([x_mean, y_mean, (x * x).mean(1), (y * y).mean(1), (x * y).mean(1)])

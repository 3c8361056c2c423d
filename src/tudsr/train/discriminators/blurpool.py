"""Anti-aliased subsampling: blur by the binomial kernel, then keep every second value."""

import torch.nn.functional as F  # noqa: N812 (the name torch's own documentation uses)
from torch import Tensor, nn


class BlurPool(nn.Module):
    """Halve a map without aliasing: [1, 2, 1] / 4 along both axes, borders replicated, stride 2.

    The kernel is two boxes of two in a row, so two mean pools compute it; leaving the padding out of the first one's
    mean is the same as replicating the border, and needs no padded copy.

    Source: Zhang, «Making Convolutional Networks Shift-Invariant Again», ICML 2019, triangle-3 kernel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Blur and subsample.

        Args:
            x: map, (B, C, h, w), h and w at least 1.

        Returns:
            (B, C, ceil(h / 2), ceil(w / 2)), same dtype; value (i, j) is centred on the input's (2i, 2j).
        """
        x = F.avg_pool2d(x, 2, stride=1, padding=1, count_include_pad=False)  # (B, C, h + 1, w + 1)
        return F.avg_pool2d(x, 2, stride=2)  # (B, C, ceil(h / 2), ceil(w / 2))

"""The blocks that all discriminators are built of: normalised convolutions and the head of one level."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tudsr.train.discriminators.blurpool import BlurPool

LEAK = 0.2
GAIN = 2.0


class SpectralConv2d(nn.Conv2d):
    """A same-size convolution by a fixed gain times a weight of norm 1 (as an (out, in·k·k) matrix).

    The norm is estimated by one power iteration per forward in training mode; it is computed outside autocast, since
    in bfloat16 the estimate would be off by up to a percent and the two vectors would stop converging.

    The gain makes up for what a layer of norm 1 and its LeakyReLU take from a typical signal: at the start the logits
    of `patch` vary by 0.3 to 0.5 with it and by 0.01 to 0.05 without. The net remains Lipschitz, with a constant that
    is fixed beforehand.

    Source: Miyato et al., «Spectral Normalization for Generative Adversarial Networks», ICLR 2018.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3) -> None:
        """Build a convolution of odd kernel size, stride 1, with zero padding that keeps the size."""
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2)
        spectral_norm(self)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, channels_in, h, w) to (B, channels_out, h, w)."""
        with torch.autocast(x.device.type, enabled=False):
            weight = GAIN * self.weight
        return self._conv_forward(x, weight, self.bias)


def conv_block(channels_in: int, channels_out: int, kernel: int = 3) -> nn.Sequential:
    """Return convolution with spectral norm and LeakyReLU 0.2: (B, channels_in, h, w) to (B, channels_out, h, w)."""
    return nn.Sequential(SpectralConv2d(channels_in, channels_out, kernel), nn.LeakyReLU(LEAK))


def down_block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Return BlurPool, then `conv_block`: (B, channels_in, h, w) to (B, channels_out, ceil(h/2), ceil(w/2)).

    Blurring first costs a quarter of convolving first; what the blur removes must have passed a non-linearity before.
    """
    return nn.Sequential(BlurPool(), *conv_block(channels_in, channels_out))


def logit_conv(channels: int) -> nn.Conv2d:
    """Return the last layer of a head, (B, channels, h, w) to logits (B, 1, h, w); it sets their scale, so no norm."""
    return nn.Conv2d(channels, 1, 3, padding=1)


def token_head(channels_in: int, width: int) -> nn.Sequential:
    """Return the head of one ViT level: (B, channels_in, h, w) tokens to (B, 1, ceil(h/2), ceil(w/2)) logits."""
    return nn.Sequential(
        conv_block(channels_in, width, kernel=1),
        conv_block(width, width),
        down_block(width, width),
        logit_conv(width),
    )

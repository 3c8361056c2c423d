"""A small patch discriminator trained from scratch, cheap enough for a CPU."""

import torch
import torch.nn.functional as F  # noqa: N812 (the name torch's own documentation uses)
from torch import Tensor, nn

from tudsr.train.discriminators.base import Discriminator, check_at_least
from tudsr.train.discriminators.heads import conv_block, down_block, logit_conv

DETAIL_GAIN = 8.0


class PatchDiscriminator(Discriminator):
    """Judge texture at three scales: logits at 1/2, 1/4 and 1/8 of the picture's side.

    Two convolutions run at full resolution before any blur: the checkerboards of a generator that ends in
    pixel-shuffle lie at the highest frequencies, which a blur would hide; once rectified, their strength is a smooth
    map that survives it.

    The picture is joined by its own fine detail, amplified: a photo's spectrum falls as 1/f, and under a spectral norm
    the strong low frequencies would use up the gain that the weak high ones, where real and generated pictures
    differ, need.

    Source: PatchGAN of Isola et al., CVPR 2017; anti-aliasing of Zhang, ICML 2019; spectral norm of Miyato et al.,
    ICLR 2018.
    """

    def __init__(self, width: int = 48, augment: str = "") -> None:
        """Build the net.

        Args:
            width: channels at half resolution; the others follow from it (half of it at full resolution, doubling at
                each halving below).
            augment: DiffAugment policy, see `DiffAugment`; empty for none.

        Raises:
            ConfigError: when width is below 2 or the policy is unknown.
        """
        super().__init__(augment)
        check_at_least("width", width, 2)
        stem_width = width // 2
        widths = (width, 2 * width, 4 * width)
        self.stem = nn.Sequential(conv_block(6, stem_width), conv_block(stem_width, stem_width))
        self.downs = nn.ModuleList(
            down_block(before, after) for before, after in zip((stem_width, *widths[:-1]), widths, strict=True)
        )
        self.heads = nn.ModuleList(nn.Sequential(conv_block(channels, width), logit_conv(width)) for channels in widths)

    def levels(self, x: Tensor) -> list[Tensor]:
        """Return logits (B, 1, H/2, W/2), (B, 1, H/4, W/4), (B, 1, H/8, W/8), sides rounded up, of (B, 3, H, W)."""
        x = self.stem(_with_detail(x))  # (B, width / 2, H, W)
        logits = []
        for down, head in zip(self.downs, self.heads, strict=True):
            x = down(x)  # (B, width · 2^i, H / 2^(i+1), W / 2^(i+1))
            logits.append(head(x))
        return logits


def _with_detail(x: Tensor) -> Tensor:
    detail = x - F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    return torch.cat([x, DETAIL_GAIN * detail], dim=1)  # (B, 6, H, W)

"""DiffAugment: differentiable augmentation of what a discriminator sees."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the name torch's own documentation uses)
from torch import Tensor

from tudsr.errors import ConfigError

SHIFT = 0.125
CUTOUT = 0.5


class AugmentParams(NamedTuple):
    """One draw of the augmentation for a batch: (B,) tensors of uniform numbers in [0, 1), float64, on the CPU.

    They do not depend on the pictures' size, dtype or device, so one draw may be applied to real and fake alike.
    """

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    shift_y: Tensor
    shift_x: Tensor
    cut_y: Tensor
    cut_x: Tensor


def draw_params(batch: int, generator: torch.Generator) -> AugmentParams:
    """Draw for a batch of pictures.

    The same number of values is drawn whatever the policy, picture after picture: two batches of four get what one of
    eight would.

    Args:
        batch: number of pictures, B.
        generator: source of randomness; on any device.
    """
    shape = (batch, len(AugmentParams._fields))
    values = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return AugmentParams(*values.cpu().T)


def color(x: Tensor, params: AugmentParams) -> Tensor:
    """Change brightness by ±0.5 (of [-1, 1]), saturation by factors 0 to 2 and contrast by factors 0.5 to 1.5.

    Args:
        x: pictures, (B, 3, H, W); the result may leave [-1, 1].
        params: the draw for B pictures.
    """
    x = x + (_per_sample(params.brightness, x) - 0.5)
    grey = x.mean(dim=1, keepdim=True)  # (B, 1, H, W)
    x = grey + (x - grey) * (2 * _per_sample(params.saturation, x))
    mean = x.mean(dim=(1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    return mean + (x - mean) * (_per_sample(params.contrast, x) + 0.5)


def translation(x: Tensor, params: AugmentParams) -> Tensor:
    """Shift by whole pixels, up to an eighth of each side either way; what comes in from outside is zero.

    Args:
        x: pictures, (B, 3, H, W).
        params: the draw for B pictures; shift 0 is up or left, 1 (excluded) is down or right.
    """
    batch, _, height, width = x.shape
    dy, dx = _shift_px(params.shift_y, height), _shift_px(params.shift_x, width)  # (B,) each
    # One ring of zeros is enough: every index from outside is clamped onto it.
    padded = F.pad(x, (1, 1, 1, 1))  # (B, 3, H + 2, W + 2)
    rows = (torch.arange(height) - dy[:, None] + 1).clamp(0, height + 1)[:, :, None]  # (B, H, 1)
    columns = (torch.arange(width) - dx[:, None] + 1).clamp(0, width + 1)[:, None, :]  # (B, 1, W)
    samples = torch.arange(batch)[:, None, None]
    rows, columns, samples = (index.to(x.device) for index in (rows, columns, samples))
    moved = padded.permute(0, 2, 3, 1)[samples, rows, columns]  # (B, H, W, 3)
    return moved.permute(0, 3, 1, 2)  # (B, 3, H, W)


def cutout(x: Tensor, params: AugmentParams) -> Tensor:
    """Set a rectangle of half the height and half the width to zero; it may lie partly outside the picture.

    Args:
        x: pictures, (B, 3, H, W).
        params: the draw for B pictures; the rectangle's centre as a fraction of the sides.
    """
    height, width = x.shape[-2:]
    rows = _cut_axis(params.cut_y, height).to(x.device)[:, None, :, None]  # (B, 1, H, 1)
    columns = _cut_axis(params.cut_x, width).to(x.device)[:, None, None, :]  # (B, 1, 1, W)
    return x * ~(rows & columns)


OPERATIONS: dict[str, Callable[[Tensor, AugmentParams], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}


class DiffAugment:
    """Apply a policy of differentiable augmentations, drawn per picture.

    Source: Zhao et al., «Differentiable Augmentation for Data-Efficient GAN Training», NeurIPS 2020: colour,
    translation by 1/8, cutout of 1/2.
    """

    def __init__(self, policy: str = "") -> None:
        """Read a policy.

        Args:
            policy: names of `OPERATIONS` joined by commas, applied in that order; empty for the identity.

        Raises:
            ConfigError: on an unknown name.
        """
        names = [name.strip() for name in policy.split(",")] if policy.strip() else []
        for name in names:
            if name not in OPERATIONS:
                raise ConfigError(f"Unknown augmentation {name!r}; known ones: {', '.join(OPERATIONS)}.")
        self.operations = [OPERATIONS[name] for name in names]

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draw and apply; for equal augmentation of two batches pass generators in equal states.

        Args:
            x: pictures, (B, 3, H, W), in [-1, 1].
            generator: source of randomness; not touched by an empty policy.

        Returns:
            (B, 3, H, W), same dtype and device; the very same tensor for an empty policy.
        """
        return self.apply(x, draw_params(x.shape[0], generator)) if self.operations else x

    def apply(self, x: Tensor, params: AugmentParams) -> Tensor:
        """Apply a given draw to pictures (B, 3, H, W)."""
        for operation in self.operations:
            x = operation(x, params)
        return x


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).view(-1, 1, 1, 1)


def _shift_px(fraction: Tensor, side: int) -> Tensor:
    reach = int(side * SHIFT + 0.5)
    return (fraction * (2 * reach + 1)).floor().long() - reach


def _cut_axis(centre: Tensor, side: int) -> Tensor:
    size = int(side * CUTOUT + 0.5)
    # The centre falls on every pixel with equal chance, on one place more when the size is even (it has no middle).
    start = (centre * (side + 1 - size % 2)).floor().long() - size // 2
    position = torch.arange(side)
    return (position >= start[:, None]) & (position < start[:, None] + size)  # (B, side)

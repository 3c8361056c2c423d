"""Colours below full transparency: nobody sees them, and no enlargement may draw them into what is seen."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from tudsr.image import Picture
from tudsr.resize import Region, part_of, rows_of

_REACH_PX = 16
"""From what is seen, in pixels of the input: more than interpolation reads, and most of what a network looks at."""


def seen(picture: Picture) -> Tensor:
    """Return a picture's pixels as `covered` has them, (1, 3, H, W)."""
    if picture.alpha is None:
        return picture.pixels
    size = picture.height, picture.width
    return torch.cat(list(rows_of(covered(part_of(picture.pixels), part_of(picture.alpha), size), size, 0)), dim=-2)


def covered(colors: Region, alpha: Region, size: tuple[int, int]) -> Region:
    """Return the parts of a picture whose fully transparent pixels have taken on the colours seen nearest to them.

    Args:
        colors: the picture, (1, 3, h, w), any range.
        alpha: its alpha, (1, 1, h, w), in [0, 1], 1 being opaque.
        size: its height and width.

    Returns:
        A function of the same parts, equal to the bit however the picture is cut. What is seen is as it was, and so is
        what lies more than 16 px away from it.
    """

    def part(y0: int, y1: int, x0: int, x1: int) -> Tensor:
        top, left = max(0, y0 - _REACH_PX), max(0, x0 - _REACH_PX)
        around = top, min(size[0], y1 + _REACH_PX), left, min(size[1], x1 + _REACH_PX)
        return _spread(colors(*around), alpha(*around))[..., y0 - top : y1 - top, x0 - left : x1 - left]

    return part


def _spread(colors: Tensor, alpha: Tensor) -> Tensor:
    """Fill hidden pixels with the mean of their visible neighbours, one ring after another."""
    hidden, weight, weighted = alpha <= 0, alpha, colors * alpha
    for _ in range(_REACH_PX):
        if not hidden.any():
            break
        mass = _sum_around(weight)
        found = hidden & (mass > 0)
        colors = torch.where(found, _sum_around(weighted) / mass, colors)
        weight, weighted = torch.where(found, 1.0, weight), torch.where(found, colors, weighted)
        hidden = hidden & ~found
    return colors


def _sum_around(x: Tensor) -> Tensor:
    """Sum 3 × 3 pixels, nothing being outside. Written out, as its last bits must not depend on where a part begins."""
    x = pad(x, (1, 1, 1, 1))
    x = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    return x[..., :-2] + x[..., 1:-1] + x[..., 2:]

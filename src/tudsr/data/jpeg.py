"""Batched baseline JPEG in torch: what pictures look like after being written and read as JPEG files.

YCbCr, 4:2:0, 8x8 DCT, the standard tables under libjpeg's quality scaling, real rounding; only the entropy coding,
which is lossless, is left out. The same code runs on CPU and GPU (with matrix products in full float32, not TF32); it
is not differentiable.
Source: ITU-T T.81 (JPEG), annexes A and K; ITU-T T.871 (JFIF's YCbCr); libjpeg's quality scaling.
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tudsr.data.operators import Pictures, cut, settled, sizes_of, stacked, whole

# ITU-T T.81, tables K.1 (luminance) and K.2 (chrominance), in raster order.
_LUMA_TABLE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA_TABLE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    *(99,) * 32,
)  # fmt: skip
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_CR_TO_R, _CB_TO_G, _CR_TO_G, _CB_TO_B = 1.402, -0.344136286, -0.714136286, 1.772


@torch.no_grad()
def jpeg(pictures: Pictures, qualities: Sequence[int]) -> list[Tensor]:
    """Write and read pictures as JPEG.

    Args:
        pictures: (3, H, W) float32 or float64 RGB in [0, 1] each, any size from 1x1 up; rounded to 8 bit on entry.
        qualities: each picture's, 1 to 100, libjpeg's scale.

    Returns:
        (3, H, W) each, in [0, 1], of 8-bit values.
    """
    sizes = sizes_of(pictures)
    padded = [F.pad(x, (0, -w % 16, 0, -h % 16), mode="replicate") for x, (h, w) in zip(pictures, sizes, strict=True)]
    rgb = whole(stacked(padded).clamp(0, 1) * 255)
    ycbcr = torch.einsum("oc,bchw->bohw", rgb.new_tensor(_TO_YCBCR), rgb)
    luma = whole(ycbcr[:, :1]) - 128
    chroma = _halve(whole(ycbcr[:, 1:]))  # (B, 2, H16/2, W16/2), already centred on 0
    luma, chroma = _quantise(luma, chroma, torch.tensor(qualities, device=rgb.device))
    # libjpeg's «fancy» triangle upsampling is bilinear interpolation with replicated borders: each picture's own.
    halves = cut(chroma.clamp(-128, 127), [(-(-h // 2), -(-w // 2)) for h, w in sizes])
    chroma = stacked([F.interpolate(half[None], scale_factor=2, mode="bilinear")[0] for half in halves]).round()
    luma = luma[..., : chroma.shape[-2], : chroma.shape[-1]].clamp(-128, 127) + 128
    return cut(_to_rgb(luma, chroma).div_(255), sizes)


def _halve(chroma: Tensor) -> Tensor:
    """Average 2x2 samples; ties go down in even columns and up in odd ones, as in libjpeg, so that no bias is left."""
    tie = chroma.new_tensor((0.25, 0.5)).repeat(chroma.shape[-1] // 4)  # (W/2,)
    return F.avg_pool2d(chroma, 2).add_(tie).floor_()


def _to_rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    """Return rounded RGB in [0, 255] from luma (B, 1, H, W) in [0, 255] and chroma (B, 2, H, W) around 0."""
    blue, red = chroma[:, :1], chroma[:, 1:]
    rgb = torch.cat((luma + _CR_TO_R * red, luma + _CB_TO_G * blue + _CR_TO_G * red, luma + _CB_TO_B * blue), dim=1)
    return whole(rgb).clamp_(0, 255)


def _quantise(luma: Tensor, chroma: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
    """Round the DCT coefficients of both planes to their tables' multiples, and the samples to integers."""
    blocks_y, blocks_c = _to_blocks(luma), _to_blocks(chroma)
    count = blocks_y.shape[1]
    table_y, table_c = quantisation_tables(quality)  # (B, 64) each
    transform = _dct_matrix(luma.dtype).to(luma.device)
    coefficients = torch.cat((blocks_y, blocks_c), dim=1) @ transform.T  # (B, blocks, 64)
    planes = []
    for part, table, like in (
        (coefficients[:, :count], table_y, luma),
        (coefficients[:, count:], table_c, chroma),
    ):
        step = table[:, None, :]
        samples = whole((_round_half_away(part / step) * step) @ transform)
        planes.append(_from_blocks(samples, like))
    return planes[0], planes[1]


def _round_half_away(x: Tensor) -> Tensor:
    """Round ties away from zero, as libjpeg does: the mean of a flat 8x8 block hits them often."""
    return settled(x.abs()).add_(0.5).floor_().copysign_(x)


def quantisation_tables(quality: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the standard tables as libjpeg does.

    Args:
        quality: (B,), 1 to 100.

    Returns:
        Luma and chroma table, (B, 64) float32 each, whole numbers from 1 to 255 in raster order.
    """
    quality = quality.to(torch.float32).clamp(1, 100)
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)[:, None]
    luma, chroma = (
        ((quality.new_tensor(table) * percent + 50) / 100).floor().clamp(1, 255)
        for table in (_LUMA_TABLE, _CHROMA_TABLE)
    )
    return luma, chroma


@cache
def _dct_matrix(dtype: torch.dtype) -> Tensor:
    """Return the 2-D orthonormal 8x8 DCT-II as one (64, 64) matrix on flattened blocks."""
    k = torch.arange(8, dtype=torch.float64)
    one = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) / 2
    one[0] /= math.sqrt(2)
    return torch.kron(one, one).to(dtype)


def _to_blocks(plane: Tensor) -> Tensor:
    """Cut (B, C, H, W), sides multiples of 8, into (B, C*H/8*W/8, 64)."""
    b, c, h, w = plane.shape
    return plane.reshape(b, c, h // 8, 8, w // 8, 8).transpose(3, 4).reshape(b, -1, 64)


def _from_blocks(blocks: Tensor, like: Tensor) -> Tensor:
    """Put blocks (B, C*H/8*W/8, 64) back into a plane of like's shape (B, C, H, W)."""
    b, c, h, w = like.shape
    return blocks.reshape(b, c, h // 8, w // 8, 8, 8).transpose(3, 4).reshape(b, c, h, w)

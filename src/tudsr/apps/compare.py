"""A before/after picture: bicubic enlargement beside the model's, each under its name."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tudsr.image import Picture, picture_like
from tudsr.image_encode import encode_file
from tudsr.image_raster import Raster, colour_profile
from tudsr.resize import upsample

_INK, _PAPER = (32, 32, 32), (255, 255, 255)
_PIXEL_BYTES = 60
"""Memory of a pixel of the enlargement: its and bicubic's floats, copies of one, the canvas, copies of the encoder."""


def comparison_bytes(height: int, width: int) -> int:
    """Return the memory that comparing an enlargement of that size takes, itself included."""
    return height * width * _PIXEL_BYTES


def comparison_size(height: int, width: int) -> tuple[int, int]:
    """Return (height, width) of the comparison for an enlargement of that size, in pixels."""
    return height + _header_px(width), 2 * width + _gap_px(width)


def write_comparison(path: Path, before: Picture, after: Picture, name: str) -> None:
    """Write bicubic | model, side by side under labels.

    Args:
        path: the file to write.
        before: the input.
        after: its enlargement.
        name: the model's, for the label.

    Raises:
        InputError: when the file cannot be written.
    """
    bicubic = Picture(pixels=upsample(before.pixels, after.height, after.width).clamp_(-1, 1))
    rgb = Image.new("RGB", (1, 1))
    panels = [picture_like(Picture(pixels=p.pixels), rgb) for p in (bicubic, after)]
    del bicubic
    labels = [f"bicubic, from {before.width}x{before.height}", f"tudsr {name}, {after.width}x{after.height}"]
    gap, header = _gap_px(after.width), _header_px(after.width)
    font_px = header // 2
    height, width = comparison_size(after.height, after.width)
    canvas = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(font_px)
    for k, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        x = k * (after.width + gap)
        canvas.paste(panel, (x, header))
        draw.text((x + font_px // 2, header // 2), label, fill=_INK, font=font, anchor="lm")
    encode_file(path, Raster(values=np.asarray(canvas), icc=colour_profile(before.info.icc)))


def _gap_px(width: int) -> int:
    return max(4, width // 128)


def _header_px(width: int) -> int:
    return 2 * max(10, width // 28)

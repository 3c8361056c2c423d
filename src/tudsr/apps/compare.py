"""A before/after picture: bicubic enlargement beside the model's, each under its name."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tudsr.image import Picture, picture_from, picture_like, write_picture
from tudsr.resize import upsample

_INK, _PAPER = (32, 32, 32), (255, 255, 255)


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
    labels = [f"bicubic, from {before.width}x{before.height}", f"tudsr {name}, {after.width}x{after.height}"]
    gap = max(4, after.width // 128)
    font_px = max(10, after.width // 28)
    header = 2 * font_px
    canvas = Image.new("RGB", (2 * after.width + gap, after.height + header), _PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(font_px)
    for k, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        x = k * (after.width + gap)
        canvas.paste(panel, (x, header))
        draw.text((x + font_px // 2, header // 2), label, fill=_INK, font=font, anchor="lm")
    write_picture(path, picture_from(canvas))

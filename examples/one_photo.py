"""Enlarge one photo x8: python examples/one_photo.py [PHOTO] [OUTPUT]."""

import sys
from pathlib import Path

from PIL import Image

import tudsr

photo = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "photos/osprey.jpg")
output = Path(sys.argv[2] if len(sys.argv) > 2 else "osprey-x8.png")

model = tudsr.load("tiny")
with Image.open(photo) as image:
    enlarged = model.upscale(image, scale=8)
enlarged.save(output)
print(f"{output}: {enlarged.width}x{enlarged.height}")

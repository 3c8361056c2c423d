"""The paper's ablation on one photo: x4 at once (M4) against x2 twice (M2N2), side by side."""

import sys
from pathlib import Path

from PIL import Image

import tudsr

output = Path(sys.argv[1] if len(sys.argv) > 1 else "once-or-twice.png")
model = tudsr.load("tiny")
with Image.open(Path(__file__).parent / "photos/osprey.jpg") as image:
    once = model.upscale(image, scale=4, stage=1)
    twice = model.upscale(image, m=2, n=2)

both = Image.new("RGB", (once.width + twice.width, once.height))
both.paste(once, (0, 0))
both.paste(twice, (once.width, 0))
both.save(output)
print(output)

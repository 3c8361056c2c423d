"""NumPy arrays and torch tensors go in and come out as they are; any ratio or size will do."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tudsr

with Image.open(Path(__file__).parent / "photos/osprey.jpg") as image:
    array = np.asarray(image.convert("RGB"))[:96, :64]  # (H, W, 3) uint8
tensor = torch.from_numpy(array.copy()).permute(2, 0, 1) / 255  # (3, H, W) float in [0, 1]

model = tudsr.load("tiny")
print(model.upscale(array, scale=2.5).shape)
print(model.upscale(tensor, size=(300, 200)).shape)  # (height, width)

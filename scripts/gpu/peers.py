"""What a published ×4 model makes of a folder of pictures, on CUDA, in float32: something to compare with.

    python scripts/gpu/peers.py WEIGHTS.safetensors LQ_DIR OUT_DIR --scale 4

×8 is the model twice, brought down by area. spandrel knows the networks.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from safetensors.torch import load_file
from spandrel import ModelLoader

from tudsr.data.photos import find_photos

_TILE_PX, _PAD_PX = 512, 32


@torch.inference_mode()
def enlarged(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Enlarge a picture ×4, (1, 3, H, W) in [0, 1], by padded tiles."""
    height, width = x.shape[-2:]
    out = x.new_empty(1, 3, 4 * height, 4 * width)
    for top in range(0, height, _TILE_PX):
        for left in range(0, width, _TILE_PX):
            y0, x0 = max(0, top - _PAD_PX), max(0, left - _PAD_PX)
            tile = model(x[..., y0 : top + _TILE_PX + _PAD_PX, x0 : left + _TILE_PX + _PAD_PX])
            inner = tile[..., 4 * (top - y0) :, 4 * (left - x0) :][..., : 4 * _TILE_PX, : 4 * _TILE_PX]
            rows, columns = min(4 * _TILE_PX, 4 * (height - top)), min(4 * _TILE_PX, 4 * (width - left))
            out[..., 4 * top : 4 * top + rows, 4 * left : 4 * left + columns] = inner[..., :rows, :columns]
    return out.clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--scale", type=int, default=4, choices=(4, 8))
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    state = {name: value.float() for name, value in load_file(args.weights).items()}
    model = ModelLoader().load_from_state_dict(state).model.eval().cuda()
    args.target.mkdir(parents=True, exist_ok=True)
    for path in find_photos(args.source):
        pixels = np.array(Image.open(path).convert("RGB"))
        x = enlarged(model, torch.from_numpy(pixels).cuda().permute(2, 0, 1)[None].float() / 255)
        if args.scale == 8:
            x = F.interpolate(enlarged(model, x), scale_factor=0.5, mode="area")
        values = x[0].permute(1, 2, 0).mul(255).round().byte().cpu().numpy()
        Image.fromarray(values).save(args.target / f"{path.stem}.png", compress_level=1)


if __name__ == "__main__":
    main()

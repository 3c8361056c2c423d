"""How far outputs drift from their input as passes are added: PSNR of the output, brought down, against the input.

python benchmarks/drift.py --model tiny --photos ../shared/data/test/real-lr --scales 2 4 8 16 --crop 64
"""

import argparse
from pathlib import Path

import machine
import torch

from tudsr.data.photos import find_photos
from tudsr.eval.metrics import METRICS
from tudsr.image import Picture, read_picture
from tudsr.pipeline import TUDSR
from tudsr.request import Request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--scales", type=float, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--crop", type=int, default=64, help="side of the input, from the middle, px")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model, consistency = TUDSR.load(args.model), METRICS["lr_consistency"].load(None)
    rows = []
    for scale in args.scales:
        values, color = [], []
        for path in find_photos(args.photos)[: args.limit]:
            pixels = read_picture(path).pixels
            top, left = ((side - args.crop) // 2 for side in pixels.shape[-2:])
            lq = pixels[..., top : top + args.crop, left : left + args.crop].contiguous()
            request = Request(scale=scale)
            sr = model.upscale_picture(Picture(pixels=lq), request).pixels
            values.append(consistency(sr, lq))
            color.append((sr.mean((-2, -1)) - lq.mean((-2, -1))).abs().mean().item() * 127.5)
        plan = model.plan(args.crop, args.crop, Request(scale=scale))
        rows.append({
            "scale": scale, "passes": [round(step.ratio, 3) for step in plan.passes],
            "lr_consistency_db": round(torch.tensor(values).mean().item(), 3),
            "mean_color_shift_8bit": round(torch.tensor(color).mean().item(), 4),
        })  # fmt: skip
    result = {
        "benchmark": "drift", "model": Path(args.model).name, "set": args.photos.name, "pictures": len(values),
        "crop_px": args.crop, "rows": rows,
    }  # fmt: skip
    machine.write(args.out, result)


if __name__ == "__main__":
    main()

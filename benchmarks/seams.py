"""Do window borders show? The seam index of a model over pictures, for several windows and overlaps.

    python benchmarks/seams.py --photos ../shared/data/test/kodak --scale 4 --tile-px 256 --overlap-px 16 32 64

Two runs of each picture, their grids half a tile apart; the lines of all pictures are pooled. Beside the ratios
stands how large the changes at borders are, in levels of 255, and DISTS between windows asked for and the model's own:
what they cost. --tile-px 0 takes the model's own windows, with the given overlaps.
"""

import argparse
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import machine
import torch

from tudsr.data.degradation import degrade
from tudsr.data.photos import find_photos
from tudsr.eval.methods import shifted_run
from tudsr.eval.seams import SeamMeter
from tudsr.image import Picture, read_picture
from tudsr.perceptual.dists import Dists
from tudsr.pipeline import TUDSR
from tudsr.request import Request


def rounded(value: float) -> float | None:
    """Return a figure for JSON: none where there is no border, or no place far enough from borders."""
    return None if math.isnan(value) else round(value, 4)


def measure(model: TUDSR, inputs: list[torch.Tensor], scale: float, tile_px: int, overlap_px: int, dists: Dists) -> Any:
    """Return the seam index of one setting, pooled over the inputs, (1, 3, h, w) each."""
    request = Request(scale=scale, tile_px=tile_px or None, overlap_px=overlap_px)
    meter, cost, difference, windows = SeamMeter(), [], [], []
    for lq in inputs:
        run = shifted_run(model, lq, request)
        meter.add(run.plain, run.shifted, run.grid, run.shifted_grid)
        difference.append((run.plain - run.shifted).abs().mean().item() * 127.5)
        windows.append([len(run.grid.windows), run.grid.window_w, run.grid.window_h, run.shifted_grid.shift_px])
        if tile_px:
            own = model.upscale_picture(Picture(pixels=lq), Request(scale=scale)).pixels
            with torch.no_grad():
                cost.append(dists(run.plain, own).item())
    report = meter.report()
    return {
        "tile_px": tile_px, "overlap_px": overlap_px, "count_width_height_shift_px": windows,
        "gradient_ratio": rounded(report.gradient_ratio), "gradient_8bit": rounded(report.gradient * 127.5),
        "step_ratio": rounded(report.step_ratio), "step_8bit": rounded(report.step * 127.5),
        "mean_abs_difference_8bit": round(fmean(difference), 4),
        "dists_to_own_windows": round(fmean(cost), 5) if cost else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--tile-px", type=int, nargs="+", default=[256])
    parser.add_argument("--overlap-px", type=int, nargs="+", default=[32])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model, dists = TUDSR.load(args.model), Dists().load()
    truths = [read_picture(path).pixels[0] for path in find_photos(args.photos)[: args.limit]]
    inputs = [
        degrade(gt, *(side // args.scale for side in gt.shape[-2:]), preset="light", seed=0, index=i)[None]
        for i, gt in enumerate(truths)
    ]
    rows = [
        measure(model, inputs, args.scale, tile, overlap, dists) for tile in args.tile_px for overlap in args.overlap_px
    ]
    result = {
        "benchmark": "seams", "model": Path(args.model).name, "set": args.photos.name, "pictures": len(inputs),
        "scale": args.scale, "rows": rows,
    }  # fmt: skip
    machine.write(args.out, result)


if __name__ == "__main__":
    main()

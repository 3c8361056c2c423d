"""Figures on pictures that were never trained on: a model's ways of splitting a scale, beside bicubic.

    python benchmarks/heldout.py --photos ../shared/data/test/kodak --scale 4 --out docs/experiments/kodak-x4.json
    python benchmarks/heldout.py --photos HR_DIR --lq LR_DIR --scale 4        (given pairs, by file stem)

Without --lq, inputs are made by the light degradation with fixed seeds. Outputs are rounded to 8 bits before measuring.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import machine
import torch
from torch import Tensor

from tudsr.data.degradation import degrade
from tudsr.data.photos import find_photos
from tudsr.errors import TudsrError
from tudsr.eval.metrics import METRICS
from tudsr.image import Picture, read_picture, write_picture
from tudsr.pipeline import TUDSR, Request
from tudsr.resize import upsample

Method = Callable[[Tensor, int, int], Tensor]


def pairs(photos: Path, lq: Path | None, scale: int, seed: int, limit: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (name, gt, lq), (1, 3, H, W) in [-1, 1]; gt is cropped to a multiple of the scale."""
    inputs = {path.stem: path for path in find_photos(lq)} if lq else {}
    for index, path in enumerate(find_photos(photos)[:limit]):
        gt = read_picture(path).pixels
        height, width = gt.shape[-2] // scale, gt.shape[-1] // scale
        gt = gt[..., : height * scale, : width * scale]
        if lq is None:
            yield path.stem, gt, degrade(gt[0], height, width, preset="light", seed=seed, index=index)[None]
        elif path.stem in inputs:
            yield path.stem, gt, read_picture(inputs[path.stem]).pixels


def methods(model: TUDSR | None, scale: int) -> dict[str, Method]:
    """Return bicubic, twice (M·N) and once (M alone), by the paper's names."""

    def run(request: Request) -> Method:
        assert model is not None
        return lambda lq, height, width: model.upscale_picture(Picture(pixels=lq), request).pixels

    found: dict[str, Method] = {"bicubic": lambda lq, height, width: upsample(lq, height, width)}
    if model is not None:
        found[f"M{scale // 2}N2"] = run(Request(scale=scale))
        found[f"M{scale}"] = run(Request(scale=scale, stage=1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--photos", type=Path, required=True, help="folder of true pictures")
    parser.add_argument("--lq", type=Path, help="folder of their low-quality partners")
    parser.add_argument("--outputs", type=Path, help="folder of a peer's outputs, measured too")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=10**6)
    parser.add_argument("--metrics", default="psnr,ssim,lpips,dists,niqe")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the outputs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model = TUDSR.load(args.model)
    metrics = {name: METRICS[name].load(args.weights) for name in args.metrics.split(",")}
    rows: dict[str, dict[str, list[float]]] = {}
    for name, gt, lq in pairs(args.photos, args.lq, args.scale, args.seed, args.limit):
        results = {}
        for method, fn in methods(model, args.scale).items():
            begun = time.perf_counter()
            results[method] = fn(lq, *gt.shape[-2:])
            rows.setdefault(method, {}).setdefault("seconds", []).append(time.perf_counter() - begun)
        if args.outputs and (args.outputs / f"{name}.png").is_file():
            results[args.outputs.name] = read_picture(args.outputs / f"{name}.png").pixels
        for method, sr in results.items():
            sr = sr.clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)
            if args.keep:
                write_picture(args.keep / method / f"{name}.png", Picture(pixels=sr))
            for key, fn in metrics.items():
                rows.setdefault(method, {}).setdefault(key, [])
                try:
                    with torch.no_grad():
                        rows[method][key].append(fn(sr, gt))
                except TudsrError as error:
                    print(f"{name}, {method}: {error}")
    means = {
        method: {key: round(sum(values) / len(values), 4) for key, values in figures.items() if values}
        for method, figures in rows.items()
    }
    count = len(next(iter(rows.values()))["seconds"])
    result = {
        "benchmark": "heldout", "set": args.photos.name, "pictures": count, "scale": args.scale, "seed": args.seed,
        "degradation": "given" if args.lq else "light", "model": Path(args.model).name,
        "sha256": model.config.sha256, "means": means,
    }  # fmt: skip
    machine.write(args.out, result)


if __name__ == "__main__":
    main()

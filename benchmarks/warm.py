"""Seconds and peak memory of enlargements by one loaded model, case by case, and where the time of the last one goes.

    python benchmarks/warm.py --model DIR --case 256x8 --case '256x8 {"graphs": true, "batch": 1}' --out FILE
        [--profile FILE] [--runs 7]

A case is SIDExSCALE and options of `upscale` as a JSON object. For machines where a process takes long to start;
upscale.py, whose every run is a process of its own, knows cold starts too. On a GPU the peak is what the process held
of it during the case, on a CPU what it held since its start.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import profile_ops
import torch

import tudsr
from tudsr.apps.report import peak_gpu_mb, peak_rss_mb
from tudsr.cost import meta_model
from tudsr.graphs import Graphs
from tudsr.machine import matmul_rate
from tudsr.request import Request

_TOP = 25  # operators that a profile lists


def measure(loaded: tudsr.TUDSR, side: int, scale: float, options: dict[str, Any], runs: int) -> dict[str, Any]:
    """Enlarge one picture of noise, first once, which warms up, then `runs` times."""
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    loaded._graphs = Graphs()  # those of other cases would count in this one's memory
    if loaded.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    enlarge = partial(loaded.upscale, picture, scale=scale, **options)
    first, out = profile_ops.timed(enlarge)
    seconds = [profile_ops.timed(enlarge)[0] for _ in range(runs)]
    return {
        "in_px": [side] * 2, "out_px": list(out.shape[:2]), "scale": scale, "options": options,
        "seconds_first": round(first, 4), "seconds": machine.spread(seconds),
        "peak_mb": peak_gpu_mb() or peak_rss_mb(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--case", action="append", required=True, dest="cases", metavar="'SIDExSCALE {OPTIONS}'")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--profile", type=Path, help="write a profile of the last case")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    loaded = tudsr.load(args.model, device=args.device, dtype=args.dtype)
    dtype, own = loaded.model.backbone.dtype, {"model": Path(args.model).name}
    shapes, matmul = meta_model(args.model, dtype), matmul_rate(loaded.model.backbone.device, dtype)["tflops"]
    rows = []
    for text in args.cases:
        size, _, options = text.partition(" ")
        side, scale = int(size.split("x")[0]), float(size.split("x")[1])
        case = side, scale, json.loads(options or "{}")
        row = measure(loaded, *case, args.runs)
        useful = machine.useful_tflop(shapes, Request.of({"scale": scale, **case[2]}), side)
        share = useful / row["seconds"]["median"] / matmul
        rows.append(row | {"useful_tflop": round(useful, 3), "useful_share_of_matmul": round(share, 3)})
        print(json.dumps(rows[-1]), flush=True)
        common = {"benchmark": "warm", **own, "dtype": str(dtype), "matmul_tflops": round(matmul, 4)}
        machine.write(args.out, common | {"cases": rows})  # what is done survives what is not
    if args.profile:
        found = profile_ops.measure(loaded, *case[:2], _TOP, case[2])
        machine.write(args.profile, {"benchmark": "profile_ops", **own, **found})


if __name__ == "__main__":
    main()

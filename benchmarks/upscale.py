"""Seconds and peak memory of whole enlargements, each run in a fresh process.

    python benchmarks/upscale.py --model tiny --side 256 --scale 8 --runs 5 --out docs/benchmarks/tiny-256-x8.json
    python benchmarks/upscale.py --model DIR --side 128 --scale 8 --runs 1 --out docs/benchmarks/sd21-128-x8.json

«cold» counts from the start of Python; «warm» is the second picture of the same process.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import machine

_ONE_RUN = """
import json, sys, time
begun = time.perf_counter()
import numpy as np
import tudsr
from tudsr.apps.report import peak_rss_mb
model, side, scale, dtype, warm = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], int(sys.argv[5])
picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
loaded = tudsr.load(model, dtype=dtype)
load = time.perf_counter() - begun
seconds = []
for _ in range(1 + warm):
    start = time.perf_counter()
    out = loaded.upscale(picture, scale=scale)
    seconds.append(time.perf_counter() - start)
print(json.dumps({"load": load, "first": seconds[0], "warm": seconds[1:], "peak": peak_rss_mb(),
                  "dtype": str(loaded.model.backbone.dtype), "out": list(out.shape)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--side", type=int, default=256, help="of the square input, px")
    parser.add_argument("--scale", type=float, default=8)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--runs", type=int, default=5, help="fresh processes")
    parser.add_argument("--warm", type=int, default=2, help="further pictures per process")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    rows, cold = [], []
    command = [sys.executable, "-c", _ONE_RUN, args.model, args.side, args.scale, args.dtype, args.warm]
    for _ in range(args.runs):
        begun = time.perf_counter()
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        total = time.perf_counter() - begun
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        cold.append(total - sum(rows[-1]["warm"]))
    megapixels = rows[0]["out"][0] * rows[0]["out"][1] / 1e6
    warm = [seconds for row in rows for seconds in row["warm"]] or [row["first"] for row in rows]
    result = {
        "benchmark": "upscale", "model": Path(args.model).name, "dtype": rows[0]["dtype"],
        "in_px": [args.side] * 2, "out_px": rows[0]["out"][:2], "scale": args.scale,
        "seconds_warm": machine.spread(warm),
        "seconds_per_megapixel": round(machine.spread(warm)["median"] / megapixels, 4),
        "seconds_cold_start_included": machine.spread(cold),
        "peak_rss_mb": machine.spread([row["peak"] for row in rows]),
    }  # fmt: skip
    machine.write(args.out, result)


if __name__ == "__main__":
    main()

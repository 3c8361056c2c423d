"""Seconds and peak memory of whole enlargements, each run in a fresh process; what upscale.py and plain.py share."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_ONE_RUN = """
import json, sys, time
begun = time.perf_counter()
import numpy as np
folder, way, model, side, scale, dtype, warm, options = sys.argv[1:]
sys.path.insert(0, folder)
load = __import__(way).load
from tudsr.apps.report import peak_gpu_mb, peak_rss_mb
picture = np.random.default_rng(0).integers(0, 256, (int(side), int(side), 3), dtype=np.uint8)
loaded = load(model, dtype)
load_seconds = time.perf_counter() - begun
seconds = []
for _ in range(1 + int(warm)):
    start = time.perf_counter()
    out = loaded.upscale(picture, scale=float(scale), **json.loads(options))
    seconds.append(time.perf_counter() - start)
print(json.dumps({"load": load_seconds, "first": seconds[0], "warm": seconds[1:],
                  "peak": peak_rss_mb(), "peak_gpu": peak_gpu_mb(),
                  "dtype": str(loaded.model.backbone.dtype), "out": list(out.shape)}))
"""


def main(way: str, doc: str, dtype: str) -> None:
    """Measure one way of enlarging, as the command line asks, and write what was found.

    Args:
        way: module beside this one whose `load(model, dtype)` gives what has `upscale` and `model`.
        doc: its documentation.
        dtype: the default precision.
    """
    args = _parse(doc, dtype)
    rows, cold = [], []
    own = [Path(__file__).parent, way, args.model, args.side, args.scale, args.dtype, args.warm, args.options]
    command = [sys.executable, "-c", _ONE_RUN, *map(str, own)]
    for _ in range(args.runs):
        begun = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        total = time.perf_counter() - begun
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        cold.append(total - sum(rows[-1]["warm"]))
    _write(way, args, rows, cold)


def _parse(doc: str, dtype: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--side", type=int, default=256, help="of the square input, px")
    parser.add_argument("--scale", type=float, default=8)
    parser.add_argument("--dtype", default=dtype)
    parser.add_argument("--runs", type=int, default=5, help="fresh processes")
    parser.add_argument("--warm", type=int, default=2, help="further pictures per process")
    parser.add_argument("--options", default="{}", help='of `upscale`, as a JSON object, such as {"graphs": true}')
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _write(way: str, args: argparse.Namespace, rows: list[dict[str, Any]], cold: list[float]) -> None:
    import machine  # with torch, which the runs' own process must not load before its clock starts

    megapixels = rows[0]["out"][0] * rows[0]["out"][1] / 1e6
    warm = [seconds for row in rows for seconds in row["warm"]] or [row["first"] for row in rows]
    result = {
        "benchmark": way, "model": Path(args.model).name, "dtype": rows[0]["dtype"],
        "in_px": [args.side] * 2, "out_px": rows[0]["out"][:2], "scale": args.scale,
        "options": json.loads(args.options),
        "seconds_warm": machine.spread(warm),
        "seconds_per_megapixel": round(machine.spread(warm)["median"] / megapixels, 4),
        "seconds_cold_start_included": machine.spread(cold),
        "peak_rss_mb": machine.spread([row["peak"] for row in rows]),
        **({"peak_gpu_mb": machine.spread([row["peak_gpu"] for row in rows])} if rows[0]["peak_gpu"] else {}),
        **_work(args, rows[0]["dtype"], machine.spread(warm)["median"]),
    }  # fmt: skip
    machine.write(args.out, result)


def _work(args: argparse.Namespace, dtype: str, seconds: float) -> dict[str, Any]:
    """Return the work without overlap, and its rate as a share of this machine's matrix product in the same dtype."""
    import machine
    import torch

    from tudsr.cost import meta_model
    from tudsr.device import pick_device
    from tudsr.machine import matmul_rate
    from tudsr.request import Request

    kind = getattr(torch, dtype.removeprefix("torch."))
    request = Request.of({"scale": args.scale} | json.loads(args.options))
    useful = machine.useful_tflop(meta_model(args.model, kind), request, args.side)
    matmul = matmul_rate(pick_device("auto"), kind)["tflops"]
    return {
        "useful_tflop": round(useful, 3), "matmul_tflops": round(matmul, 4),
        "useful_share_of_matmul": round(useful / seconds / matmul, 3),
    }  # fmt: skip

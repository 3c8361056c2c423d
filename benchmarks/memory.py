"""Peak memory of real runs of `tudsr upscale --memory` against the budget.

    python benchmarks/memory.py --model tiny --runs 768x512x4@700MB,768x512x4@2GB --out docs/benchmarks/memory-tiny.json

A run is WIDTHxHEIGHTxSCALE@BUDGET, with a «!» behind it where it is to be refused. Its picture is a sample photo,
enlarged to that size and saved as PNG. Outputs are TIFF in a temporary folder (--work names another: the gigapixel run
needs some 20 GB). With --strict the exit status is 1 where a peak was above its budget, or a run was refused, or not,
otherwise than said.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
from PIL import Image

from tudsr.request import parse_memory
from tudsr.spooled import work_folder

_PHOTO = Path(__file__).parents[1] / "examples" / "photos" / "budgie.jpg"
_RUN = "from tudsr.apps.cli import main; main()"


def measure(text: str, model: str, work: Path) -> dict[str, Any]:
    """Run one enlargement in a process of its own."""
    shape, budget = text.removesuffix("!").split("@")
    width, height, scale = shape.split("x")
    source, target = work / f"{shape}.png", work / f"{shape}-{budget}.tif"
    if not source.exists():
        Image.open(_PHOTO).convert("RGB").resize((int(width), int(height)), Image.Resampling.BICUBIC).save(source)
    shutil.rmtree(work_folder(target), ignore_errors=True)  # to go on with an earlier run's work would cost less
    command = [sys.executable, "-c", _RUN, "upscale", source, "-o", target, "--scale", scale, "--model", model]
    begun = time.perf_counter()
    done = subprocess.run(
        [*map(str, command), "--memory", budget, "--json", "--overwrite"], capture_output=True, text=True, check=False
    )
    row = {"in_px": [int(width), int(height)], "scale": float(scale), "budget_mb": parse_memory(budget) / 1e6}
    if done.returncode:
        return row | {"refused": done.stderr.strip().splitlines()[-1], "within": text.endswith("!")}
    found = json.loads(done.stdout.splitlines()[-1])
    target.unlink()
    megapixels = found["out_size"][0] * found["out_size"][1] / 1e6
    peak = {
        name: found[name] for name in ("peak_rss_mb", "peak_gpu_mb") if name in found
    }  # on a GPU, the latter counts
    return row | {
        "out_px": found["out_size"], **peak,
        "within": list(peak.values())[-1] <= row["budget_mb"] and not text.endswith("!"),
        "seconds": round(time.perf_counter() - begun, 1),
        "seconds_per_megapixel": round(found["seconds"] / megapixels, 3),
        "said": [line for line in done.stderr.splitlines() if "memory" in line or "disk" in line],
    }  # fmt: skip


def broken(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each run that was above its budget, or refused otherwise than said."""
    return [json.dumps(row) for row in rows if not row.get("within")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--runs", required=True, help="WIDTHxHEIGHTxSCALE@BUDGET[!], commas between")
    parser.add_argument("--work", type=Path, help="folder for pictures; kept")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a budget was not kept to")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        rows = []
        for one in args.runs.split(","):
            rows.append(measure(one, args.model, work))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    machine.write(args.out, {"benchmark": "memory", "model": Path(args.model).name, "runs": rows})
    if args.strict and broken(rows):
        sys.exit("Above the budget, or refused otherwise than said:\n" + "\n".join(broken(rows)))

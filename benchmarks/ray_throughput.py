"""Pictures per second of `--engine ray` with K workers, beside K processes that share the pictures by themselves.

    python benchmarks/ray_throughput.py --workers 2 --threads 1 --pictures 16 --out docs/benchmarks/ray-throughput.json

Both enlarge pictures of the same size. A rate is the sum of the workers' own, each from its first picture that counts
to its last one's end, as the journals tell it: starting Python, Ray and the model is paid once and not by the picture,
and its seconds are given beside. `ratio` is the Ray engine's rate by that of the processes; 0.9 is accepted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
from PIL import Image


def write_pictures(folder: Path, count: int, side: int) -> None:
    folder.mkdir(parents=True)
    for seed in range(count):
        values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{seed:03}.png")


def start(inputs: Path, out: Path, args: argparse.Namespace, *more: str) -> subprocess.Popen:
    options = {"--model": args.model, "--scale": args.scale, "--threads": args.threads, "--device": "cpu"}
    command = [
        "-m",
        "tudsr",
        "upscale",
        inputs,
        "-o",
        out,
        "--quiet",
        *(part for pair in options.items() for part in pair),
    ]
    return subprocess.Popen([sys.executable, *map(str, command), *more])


def finish(processes: list[subprocess.Popen]) -> None:
    codes = [process.wait() for process in processes]
    assert not any(codes), f"exit codes {codes}"


def rate(folders: list[Path], skip: int) -> float:
    """Return pictures per second, the sum of the workers' own rates.

    Each worker counts from its first beginning to its last end: over one window for all, processes that do not start
    at the same moment would be charged with the gap.

    Args:
        folders: with journals.
        skip: pictures of each worker that warm it up.
    """
    total = 0.0
    for folder in folders:
        events = [json.loads(line) for line in (folder / ".tudsr-journal.jsonl").read_text().splitlines()]
        for worker in {event.get("worker") for event in events}:
            own = [event for event in events if event.get("worker") == worker]
            began = [event["time"] for event in own if event["event"] == "began"][skip:]
            done = [event["time"] for event in own if event["event"] == "done"][skip:]
            total += len(done) / (done[-1] - began[0]) if done else 0
    return total


def measure(args: argparse.Namespace, engine: str) -> dict[str, Any]:
    """Run once, from fresh folders."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.perf_counter()
        if engine == "ray":
            write_pictures(folder / "in", args.pictures, args.side)
            outs = [folder / "out"]
            finish([start(folder / "in", outs[0], args, "--engine", "ray", "--workers", str(args.workers))])
        else:
            outs = [folder / f"out-{k}" for k in range(args.workers)]
            for k in range(args.workers):
                write_pictures(folder / f"in-{k}", args.pictures // args.workers, args.side)
            finish([start(folder / f"in-{k}", out, args) for k, out in enumerate(outs)])
        total = time.perf_counter() - begun
        return {"rate": rate(outs, args.warm), "whole_seconds": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--side", type=int, default=96, help="of the square inputs, px")
    parser.add_argument("--scale", type=float, default=8)
    parser.add_argument("--pictures", type=int, default=16, help="in all; a multiple of the workers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--warm", type=int, default=1, help="first pictures of each worker that do not count")
    parser.add_argument("--runs", type=int, default=3, help="of each way, in turn")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    rows: dict[str, list[dict[str, Any]]] = {"processes": [], "ray": []}
    for _ in range(args.runs):
        for engine, found in rows.items():
            found.append(measure(args, engine))
    rates = {engine: machine.spread([row["rate"] for row in found]) for engine, found in rows.items()}
    whole = {name: machine.spread([row["whole_seconds"] for row in found]) for name, found in rows.items()}
    result = {
        "benchmark": "ray_throughput", "model": Path(args.model).name, "in_px": [args.side] * 2, "scale": args.scale,
        "pictures": args.pictures, "workers": args.workers, "threads": args.threads, "warm": args.warm,
        "pictures_per_second": rates,
        "whole_seconds": whole,
        "ratio": round(rates["ray"]["median"] / rates["processes"]["median"], 4),
    }  # fmt: skip
    machine.write(args.out, result)


if __name__ == "__main__":
    main()

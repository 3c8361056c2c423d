"""Seconds and peak memory of training steps, as `tudsr train` takes them, from the presets of the model's backbone.

    python benchmarks/train_step.py --model tiny --stages 1,2 --steps 6 --out FILE
    python benchmarks/train_step.py --model DIR --steps 20 --set 'discriminator_options={"weights":"random"}'

Each stage runs in a process of its own, on photos of noise. The peak is the GPU's where there is one, else the
process's resident memory. The first two steps warm up.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_WARM_UP = 2


def run_case(model: str, stage: int, steps: int, overrides: list[str]) -> dict[str, Any]:
    """Train for some steps in this process."""
    import numpy as np
    from PIL import Image

    from tudsr.apps.report import peak_gpu_mb, peak_rss_mb
    from tudsr.train.config import TrainConfig
    from tudsr.train.loop import train

    with tempfile.TemporaryDirectory() as scratch:
        photos, own = Path(scratch) / "photos", [f"steps={steps}", "val_count=0", f"checkpoint_every={steps + 1}"]
        config = TrainConfig.assemble(
            stage=stage, model=model, data=photos, out=Path(scratch) / "run", file=None, overrides=own + overrides
        )
        photos.mkdir()
        side = 2 * config.crop_px
        for seed in range(max(2, config.batch)):
            values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(values).save(photos / f"{seed}.png", compress_level=1)
        ends: list[float] = []
        train(config, progress=lambda *_: ends.append(time.perf_counter()))
    seconds = [after - before for before, after in zip(ends[_WARM_UP - 1 :], ends[_WARM_UP:], strict=False)]
    return {
        "stage": stage, "crop_px": config.crop_px, "n": config.n, "loop": config.loop, "batch": config.batch,
        "accumulate": config.accumulate, "losses": config.losses, "discriminator": config.discriminator,
        "seconds": seconds, "peak_mb": peak_gpu_mb() or peak_rss_mb(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--stages", default="1,2")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="as for tudsr train")
    parser.add_argument("--most-mb", type=float, help="end with 1 where a peak is above that")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        found = run_case(args.model, args.case, args.steps, args.overrides)
        args.out.write_text(json.dumps(found), encoding="utf-8")
        return
    cases = []
    for stage in args.stages.split(","):
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            own = ["--model", args.model, "--steps", str(args.steps), "--case", stage, "--out", file.name]
            more = [part for one in args.overrides for part in ("--set", one)]
            subprocess.run([sys.executable, __file__, *own, *more], check=True)
            cases.append(json.loads(Path(file.name).read_text(encoding="utf-8")))
    import machine

    for case in cases:
        case["seconds"] = machine.spread(case["seconds"])
    machine.write(args.out, {"benchmark": "train_step", "model": Path(args.model).name, "stages": cases})
    if args.most_mb is not None and any(case["peak_mb"] > args.most_mb for case in cases):
        sys.exit(1)


if __name__ == "__main__":
    main()

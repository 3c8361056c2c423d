"""Peak memory of one stage-2 step for N = 1, 2, 4 at fixed R: the paper's loop, the exact loop twice, and no loop.

Run: python benchmarks/chunk_memory.py [--models tiny sd21] [--n 1 2 4] [--out docs/benchmarks/chunk_memory.json]

Each case runs in a process of its own on the CPU, with random weights and R = 256: load the model, run LoRA-2's
forward and backward once on a single window (so that libraries have allocated their own), give freed memory back to
the system, note the resident set, run the step, and take the peak resident set minus that. The peak is reset through
/proc/self/clear_refs, or, where the system does not let us, is the process's own from `getrusage`, which then may be
the warm-up's. Large blocks are mapped one by one (MALLOC_MMAP_THRESHOLD_), else the allocator's habits are measured.
Linux with glibc only.

The windows of `exact` are of exactly R for every N, so that only the loop is compared. Those of `trainer`, the same
loop, are what `tudsr train` takes with the model's preset: for N > 1 a little larger, so that N of them with their
overlap cover a side.

The loss is plain MAE on the whole picture or, in the paper's loop, on each chunk; discriminator and VGG are left out.
In training they add the same for every N only where what they see has one size: a chunk (paper), or a crop of
`loss_crop_px` (exact, as in the presets). In the exact loop without `loss_crop_px`, and without a loop, they see the
whole picture, and what they add grows with N². `pictures_mb` is what the step must hold whatever the loop: y, gt, the
output and its gradient, float32.
"""

import argparse
import ctypes
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

R_PX = 256
LOOPS = ("paper", "exact", "trainer", "none")
MODELS = ("tiny", "sd21")
CLEAR = Path("/proc/self/clear_refs")
MB = 2**20


def reset_peak() -> bool:
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def build_stage(name: str):
    """Return stage 2 of a random model: bf16 base, float32 LoRA-2, gradients through the autoencoder to the LoRA."""
    import torch

    from tudsr import lora
    from tudsr.backbones import blueprint
    from tudsr.config import ModelConfig
    from tudsr.stage import Stage

    torch.manual_seed(0)
    plan = blueprint(name)
    config = ModelConfig.parse(plan.settings, name)
    backbone, _ = plan.build(torch.bfloat16)
    backbone.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    lora.attach(backbone.unet, "stage_2", config.lora)
    for parameter in lora.parameters(backbone.unet, "stage_2"):
        parameter.requires_grad_(True)
    return Stage(backbone, config.t2, "stage_2"), config


def step(stage, config, n: int, loop: str, how: str) -> None:
    """Run forward and backward of one picture of (N R)² pixels."""
    import torch

    from tudsr.config import WindowRange
    from tudsr.presets import training_preset
    from tudsr.train.chunks import exact_loop, paper_loop
    from tudsr.train.config import TrainConfig
    from tudsr.train.tasks import loop_grid
    from tudsr.windows import chunk_grid, plan_windows

    side = n * R_PX
    rng = torch.Generator().manual_seed(1)
    y, gt = (torch.rand(1, 3, side, side, generator=rng).mul_(2).sub_(1) for _ in range(2))

    def mae(sr, real):
        return (sr.float() - real).abs().mean()

    with torch.autocast("cpu", torch.bfloat16), stage.active(how):
        if loop == "none":
            mae(stage(y), gt).backward()
        elif loop == "paper":
            paper_loop(stage, y, gt, mae, chunk_grid(side, n))
        elif loop == "trainer":
            folders = {name: name for name in ("model", "data", "out")}
            wishes = {"stage": 2, "crop_px": side, "n": n, "loop": "exact", "loss_crop_px": None} | folders
            wanted = TrainConfig(**training_preset(config.backbone, 2) | wishes)
            exact_loop(stage, y, gt, mae, loop_grid(wanted, config.windows))
        else:
            overlap = config.windows.overlap_px
            own = WindowRange(min_px=R_PX, max_px=R_PX, stride_px=config.windows.stride_px, overlap_px=overlap)
            exact_loop(stage, y, gt, mae, plan_windows(side, side, own))


def run_case(name: str, n: int, loop: str) -> dict[str, Any]:
    """Measure one case in this process."""
    from tudsr.machine import status_bytes

    how = "switched" if name == "sd21" else "merged"  # what each trains with
    stage, config = build_stage(name)
    step(stage, config, 1, "paper", how)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    cleared = reset_peak()
    before = status_bytes("VmRSS") / MB
    begun = time.perf_counter()
    step(stage, config, n, loop, how)
    seconds = time.perf_counter() - begun
    peak = status_bytes("VmHWM") / MB
    if not cleared:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pictures = 4 * 3 * (n * R_PX) ** 2 * 4 / MB
    return {
        "model": name, "r_px": R_PX, "n": n, "loop": loop, "lora_forward": how, "before_mb": round(before, 1),
        "peak_mb": round(peak, 1), "step_mb": round(peak - before, 1), "pictures_mb": round(pictures, 1),
        "step_without_pictures_mb": round(peak - before - pictures, 1), "seconds": round(seconds, 2),
        "peak_reset": cleared,
    }  # fmt: skip


def run_apart(name: str, n: int, loop: str) -> dict[str, Any]:
    """Measure one case in a process of its own; a case that the machine kills for memory is a result too."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, __file__, "--case", name, str(n), loop, "--out", file.name]
        allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        code = subprocess.run(command, check=False, env=os.environ | allocator).returncode
        if code:
            return {"model": name, "r_px": R_PX, "n": n, "loop": loop, "failed": code}
        return json.loads(Path(file.name).read_text())


def growth(cases: list[dict[str, Any]]) -> dict[str, float]:
    """Return, for each model and loop, the growth of the step's memory from the least N to the largest, in percent."""
    found = {}
    for name in {case["model"] for case in cases}:
        for loop in LOOPS:
            own = sorted(
                (c for c in cases if (c["model"], c["loop"]) == (name, loop) and "failed" not in c),
                key=lambda case: case["n"],
            )
            if len(own) > 1:
                first, last = own[0]["step_without_pictures_mb"], own[-1]["step_without_pictures_mb"]
                found[f"{name} {loop}, N = {own[0]['n']} to {own[-1]['n']}"] = round(100 * (last / first - 1), 1)
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--n", nargs="+", type=int, default=(1, 2, 4))
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=LOOPS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", nargs=3, metavar=("MODEL", "N", "LOOP"), help=argparse.SUPPRESS)
    wishes = parser.parse_args()
    if wishes.case:
        name, n, loop = wishes.case
        wishes.out.write_text(json.dumps(run_case(name, int(n), loop)))
        return
    from tudsr.checkpoint import write_text
    from tudsr.train.runlog import environment

    cases = []
    for name in wishes.models:
        for loop in wishes.loops:
            for n in wishes.n:
                cases.append(run_apart(name, n, loop))
                print(json.dumps(cases[-1]), flush=True)
    report = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment() | {"system": platform.platform()},
        "loss": "MAE only; no discriminator, no VGG",
        "cases": cases,
        "growth_percent_without_pictures": growth(cases),
    }
    print(json.dumps(report["growth_percent_without_pictures"], indent=2))
    if wishes.out:
        write_text(wishes.out, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

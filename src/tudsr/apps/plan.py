"""`tudsr plan`: what an enlargement would take, without running it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tudsr.apps.report import peak_rss_mb
from tudsr.cost import PassCost, meta_model, weights_bytes
from tudsr.device import pick_device, pick_dtype
from tudsr.errors import InputError
from tudsr.folder import Model
from tudsr.machine import free_bytes, matmul_rate
from tudsr.memory import Fit, Need, fit_here
from tudsr.pipeline import BATCH, TUDSR
from tudsr.planner import Plan
from tudsr.request import Request, parse_memory

SHARES = {("tiny", "cpu"): 0.7, ("sd21", "cpu"): 0.7, ("sd21", "cuda"): 0.2}
"""Backbone and device → the share of the matrix product's rate that enlargements reach, overlap counted as work.

At 256² → 2048² (docs/benchmarks). On two CPU cores: tiny in bfloat16; sd21's shapes 0.72 in bfloat16 and 0.6 to 0.8 in
float32. On an H200: sd21's shapes in bfloat16, without graphs.
"""
LOADING_BYTES = 14 * 10**6
"""What a process on the CPU holds once it has loaded the weights, beside them: torch's code that has run, and memory
that the C library keeps. Measured with tiny: 12 to 18 MB."""
_MB, _TERA = 1e6, 1e12


def make_plan(
    width: int,
    height: int,
    scale: float | None,
    *,
    model: str = "tiny",
    memory: str | None = None,
    rate: float | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> dict[str, Any]:
    """Plan one enlargement.

    Args:
        width: of the input, in pixels.
        height: of the input, in pixels.
        scale: ratio; None is `request.DEFAULT_SCALE`.
        model: embedded name, folder or hub id.
        memory: what the process (on CUDA: its memory on the GPU) may take, such as "2GB"; None: what is free here.
        rate: TFLOP/s that the model reaches, as `tudsr bench` measures it; None: a share of this machine's matrix
            product rate, measured now, where that share is known.
        device: auto, cpu, cuda or mps.
        dtype: auto, fp32, bf16 or fp16.

    Returns:
        What `--json` prints; `seconds` and `rate` are null where no rate is known. `peak_mb` (10^6 bytes) is the sum
        of `memory_mb`, which is the GPU's on CUDA. `batch` windows run together; `canvases` says where the
        pictures live, «gpu», «memory» or «disk» (then `on_disk`, and `disk_mb` with the encoded file), `low_memory`
        whether the base's weights are read again after each pass rather than copied, and `most_px` is the largest
        window where windows had to shrink, else null.

    Raises:
        TudsrError: for a model, size, scale, rate, device or dtype that cannot be used.
    """
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise InputError(f"--rate {rate:g}: a number above 0, in TFLOP/s, is expected.")
    request = Request.of({"scale": scale})
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    loaded = meta_model(model, kind)
    plan = TUDSR(loaded).plan(height, width, request)
    found = _fit(loaded, (height, width), plan, request, None if memory is None else parse_memory(memory), where)
    rate = _rate(loaded.config.backbone, where, kind) if rate is None else rate
    tflop = sum(one.flop for one in found.passes) / _TERA
    return {
        "model": model, "device": where.type, "dtype": str(kind).removeprefix("torch."),
        "in_size": [width, height], "out_size": [plan.width, plan.height], "m": plan.m, "n": plan.n,
        "passes": [_pass_record(one) for one in found.passes],
        "tflop": tflop, "useful_tflop": sum(one.useful_flop for one in found.passes) / _TERA,
        "peak_mb": found.peak_bytes / _MB,
        "memory_mb": {name: round(count / _MB, 1) for name, count in found.parts.items()},
        "canvases": _canvases(found, where), "on_disk": found.on_disk, "disk_mb": round(found.disk_bytes / _MB, 1),
        "most_px": found.most_px, "low_memory": found.low_memory, "batch": found.batch,
        "seconds": None if rate is None else tflop / rate, "rate": rate,
    }  # fmt: skip


def _fit(
    shapes: Model, size: tuple[int, int], plan: Plan, request: Request, memory: int | None, device: torch.device
) -> Fit:
    from tudsr.apps import engines  # noqa: F401 - this process then has what an enlargement's imports, and little else

    libraries, loading = (0, 0) if device.type == "cuda" else (int(peak_rss_mb() * _MB), LOADING_BYTES)
    base = libraries + loading + weights_bytes(shapes, merged=False)
    batch = BATCH.get(device.type, 1)
    need = Need(shapes=shapes, size=size, plan=plan, base=base, batch=batch, rereads=True)
    # Nor has it loaded the weights: what is free now has to hold them too.
    return fit_here(need, request, libraries + free_bytes(device) if memory is None else memory, device)


def _canvases(found: Fit, device: torch.device) -> str:
    if found.on_disk:
        return "disk"
    return "gpu" if device.type == "cuda" and not found.on_host else "memory"


def _rate(backbone: str, device: torch.device, dtype: torch.dtype) -> float | None:
    share = SHARES.get((backbone, device.type))
    return None if share is None else share * matmul_rate(device, dtype)["tflops"]


def _pass_record(one: PassCost) -> dict[str, Any]:
    step, grid = one.step, one.grid
    return {
        "stage": step.stage, "ratio": step.ratio, "out_size": [step.width, step.height],
        "rows": len(grid.ys), "columns": len(grid.xs), "window_px": [grid.window_w, grid.window_h],
        "overlap_px": [_overlap_px(grid.xs, grid.window_w), _overlap_px(grid.ys, grid.window_h)],
        "tflop": one.flop / _TERA, "useful_tflop": one.useful_flop / _TERA,
    }  # fmt: skip


def _overlap_px(starts: Sequence[int], side: int) -> int:
    """Return the least overlap of neighbours; 0 for a single window."""
    return min((a + side - b for a, b in zip(starts, starts[1:], strict=False)), default=0)


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Return `make_plan`'s facts for people."""
    (width, height), (out_w, out_h) = plan["in_size"], plan["out_size"]
    ratios = f"M {plan['m']:g}, N {plan['n']:g}"
    memory = ", ".join(f"{name} {value:.0f}" for name, value in plan["memory_mb"].items())
    lines = [f"{plan['model']}: {width}x{height} → {out_w}x{out_h} ({ratios}), {plan['dtype']} on {plan['device']}"]
    lines += [f"pass {number}   {_pass_line(one)}" for number, one in enumerate(plan["passes"], 1)]
    lines.append(f"work     {plan['tflop']:.3g} TFLOP, {plan['useful_tflop']:.3g} without overlap")
    lines.append(f"memory   about {plan['peak_mb']:.0f} MB ({memory})")
    if plan["on_disk"]:
        lines.append(f"disk     {plan['disk_mb']:.0f} MB: the pictures do not fit into the memory and live there")
    elif plan["device"] == "cuda" and plan["canvases"] == "memory":
        lines.append("pictures in the machine's memory: the GPU's has no room for them")
    if plan["batch"] > 1:
        lines.append(f"batch    {plan['batch']} windows run together")
    if plan["low_memory"]:
        lines.append("weights  read again after each pass rather than copied, to fit")
    if plan["most_px"]:
        lines.append(f"windows  shrunk to {plan['most_px']} px to fit; the result is a little different")
    if plan["seconds"] is None:
        lines.append("seconds  not known here; `tudsr bench` measures the TFLOP/s to give as --rate")
    else:
        lines.append(f"seconds  about {plan['seconds']:.3g}, at {plan['rate']:.3g} TFLOP/s")
    return lines


def _pass_line(one: Mapping[str, Any]) -> str:
    (width, height), (window_w, window_h) = one["out_size"], one["window_px"]
    across, down = one["overlap_px"]
    windows = f"{one['rows']}x{one['columns']} windows (rows x columns) of {window_w}x{window_h} px"
    shared = f", overlap {across}x{down} px" if across or down else ""
    work = f"{one['tflop']:.3g} TFLOP, {one['useful_tflop']:.3g} useful"
    return f"stage {one['stage']}, x{one['ratio']:.4g} to {width}x{height}: {windows}{shared}; {work}"

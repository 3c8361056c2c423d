"""`tudsr bench`: seconds, memory and TFLOP/s of enlargements, beside this machine's own matrix product."""

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import tudsr
from tudsr.apps.report import peak_rss_mb, steps_bar
from tudsr.apps.upscale import parse_size
from tudsr.cost import meta_model, pass_costs
from tudsr.folder import Model
from tudsr.image import Picture
from tudsr.machine import commit, machine, matmul_rate
from tudsr.pipeline import TUDSR
from tudsr.request import Request

_CLEAR_PEAK = Path("/proc/self/clear_refs")
_SEED = 0
_MB, _TERA = 1e6, 1e12


def run_bench(
    model: str, sizes: str, scale: float, *, repeat: int, device: str, dtype: str, threads: int | None
) -> dict[str, Any]:
    """Measure a model, each size after one warm-up, under a progress bar.

    Args:
        model: embedded name, folder or hub id.
        sizes: «WxH» of the inputs, commas between.
        scale: ratio.
        repeat: timed runs of each size.
        device: auto, cpu, cuda or mps.
        dtype: auto, fp32, bf16 or fp16.
        threads: CPU threads, or None for torch's own choice.

    Returns:
        What `--json` prints.

    Raises:
        TudsrError: for anything that cannot be used or does not fit into the memory, before any measuring.
    """
    wanted = [parse_size(text, "--sizes") for text in sizes.split(",")]
    request = Request.of({"scale": scale})
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = tudsr.load(model, device, dtype)
    requests = [_fitted(loaded, size, request) for size in wanted]
    net = loaded.model.backbone
    shapes = meta_model(model, net.dtype)
    with steps_bar("bench", enabled=True) as bar:
        task = bar.add_task("", total=len(wanted) * (1 + repeat), figures="")
        peak = matmul_rate(net.device, net.dtype)
        rows = [
            _measure(loaded, shapes, size, fitted, repeat, peak["tflops"], lambda: bar.advance(task))
            for size, fitted in zip(wanted, requests, strict=True)
        ]
    return {
        "tudsr": tudsr.__version__, "commit": commit(), "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(net.device, dtype), "model": model, "scale": scale, "seed": _SEED, "matmul": peak,
        "sizes": rows,
    }  # fmt: skip


def _fitted(loaded: TUDSR, size: tuple[int, int], request: Request) -> Request:
    """Return the request as it fits into what is free, in memory, or refuse the size."""
    settled = loaded.settled(request)
    found = loaded.fit(size, loaded.plan(*size, settled), settled, spool=False)
    return settled if found is None else found.applied(settled)


def _measure(
    loaded: TUDSR,
    shapes: Model,
    size: tuple[int, int],
    request: Request,
    repeat: int,
    matmul_tflops: float,
    done: Callable[[], None],
) -> dict[str, Any]:
    """Measure one size: the pixels only, without files; they start and end on the host, so a device is waited for."""
    height, width = size
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(_SEED)) * 2 - 1
    device = loaded.model.backbone.device
    _reset_peak(device)
    seconds = []
    for _ in range(1 + repeat):
        begun = time.perf_counter()
        loaded.upscale_picture(Picture(pixels=pixels), request)
        seconds.append(time.perf_counter() - begun)
        done()
    plan = loaded.plan(height, width, request)
    peak_mb = _peak_mb(device)
    passes = pass_costs(shapes, plan, request.windows(shapes.config.windows))
    tflop, useful = sum(one.flop for one in passes) / _TERA, sum(one.useful_flop for one in passes) / _TERA
    spread = _spread(seconds[1:])
    rate = tflop / spread["median"]
    return {
        "in_size": [width, height], "out_size": [plan.width, plan.height], "m": plan.m, "n": plan.n,
        "most_px": request.most_px, "seconds": spread, "peak_mb": round(peak_mb, 1),
        "tflop": tflop, "useful_tflop": useful,
        "tflops": rate, "share_of_matmul": rate / matmul_tflops,
    }  # fmt: skip


def _spread(values: list[float]) -> dict[str, Any]:
    """Return median, quartiles and how many."""
    quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": statistics.median(values), "quartiles": [quarters[0], quarters[2]], "runs": len(values)}


def _reset_peak(device: torch.device) -> None:
    """Start the peak anew; where the system cannot, it stays the process's own so far."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what was reserved before, for the matrix product or another size, is no part of it
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        _CLEAR_PEAK.write_text("5", encoding="ascii")


def _peak_mb(device: torch.device) -> float:
    return torch.cuda.max_memory_reserved(device) / _MB if device.type == "cuda" else peak_rss_mb()


def bench_lines(found: Mapping[str, Any]) -> list[str]:
    """Return `run_bench`'s facts for people."""
    where, matmul = found["machine"], found["matmul"]
    chip = where["cpu"] if where["device"] == "cpu" else where["device"]
    lines = [
        f"{found['model']}, x{found['scale']:g}, {where['dtype']} on {chip}, {where['threads']} threads, "
        f"torch {where['torch']}, commit {found['commit']}",
        f"matrix product of {matmul['side']}x{matmul['side']}: {matmul['tflops']:.3g} TFLOP/s",
    ]
    for one in found["sizes"]:
        (width, height), (out_w, out_h), spread = one["in_size"], one["out_size"], one["seconds"]
        low, high = spread["quartiles"]
        shrunk = f"; windows shrunk to {one['most_px']} px to fit into the memory" if one["most_px"] else ""
        lines.append(
            f"{width}x{height} → {out_w}x{out_h}: {spread['median']:.3g} s (quartiles {low:.3g} to {high:.3g}, "
            f"{spread['runs']} runs), peak {one['peak_mb']:.0f} MB; {one['tflop']:.3g} TFLOP, "
            f"{one['tflops']:.3g} TFLOP/s, {one['share_of_matmul']:.0%} of the matrix product's{shrunk}"
        )
    return lines

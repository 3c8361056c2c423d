"""Where the time of one enlargement goes, operator by operator, by torch's own profiler.

    python benchmarks/profile_ops.py --model tiny --side 256 --scale 8 --out docs/benchmarks/profile-tiny-256-x8.json

Each operator's own time, without that of what it calls: of the calling thread on the CPU, of the device's kernels and
copies on CUDA. Bicubic enlarging is matrix products here and counts among them. Not called profile.py: a script's
folder comes first on the path, and torch imports Python's own module of that name.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import tudsr

GROUPS = {
    "attention": ("sdpa", "scaled_dot_product", "attention", "flash", "fmha", "softmax"),
    "convolution": ("convol", "conv2d", "conv_", "fprop", "dgrad", "winograd", "depthwise"),
    "matrix product": ("gemm", "gemv", "nvjet", "splitk", "::mm", "::bmm", "addmm", "baddbmm", "matmul", "::linear"),
    "normalisation": (
        "group_norm", "groupnorm", "batch_norm", "layer_norm", "layernorm", "rowwisemoments", "computefusedparams",
    ),
    "activation": ("silu", "gelu", "relu", "sigmoid", "tanh"),
    "interpolation": ("upsample", "interpolate", "grid_sampl"),
    "copy and cast": (
        "copy", "memcpy", "memset", "fill", "zero_", "clone", "contiguous", "::cat", "catarray", "_pad",
        "pixel_shuffle", "pixel_unshuffle", "nchwtonhwc", "nhwctonchw", "converttensor", "reorder", "to_mkldnn",
    ),
    "elementwise": ("elementwise", "::add", "::sub", "::rsub", "::mul", "::div", "::clamp", "::round", "::lerp"),
}  # fmt: skip
"""Group → parts of its operators' and kernels' names, in lower case. The first that fits counts: cuDNN's attention has
«fprop» in its name as its convolutions do, those have «gemm» in theirs, and many kernels are «elementwise» too."""
_OTHER = "other"
_WARM_UPS = 2


def group_of(name: str) -> str:
    """Return the group of an operator or a kernel."""
    low = name.lower()
    return next((group for group, parts in GROUPS.items() if any(part in low for part in parts)), _OTHER)


def operators(events: Iterable[Any], cuda: bool) -> list[dict[str, Any]]:
    """Return what took time, the longest first.

    Args:
        events: the profiler's `key_averages()`.
        cuda: take what ran on the device only. The host's operators name the same time again, and so do the ranges
            that the profiler lays around kernels.
    """
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    found = [(e, e.self_device_time_total if cuda else e.self_cpu_time_total) for e in events if e.device_type == kind]
    found = [(e, own) for e, own in found if own > 0 and not (cuda and e.is_user_annotation)]
    total = sum(own for _, own in found)
    rows = [
        {"name": e.key, "group": group_of(e.key), "calls": e.count, "ms": own / 1e3, "share": own / total}
        for e, own in found
    ]
    return sorted(rows, key=lambda row: row["ms"], reverse=True)


def grouped(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return calls, milliseconds and share of each group that took time, the longest first."""
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        group = groups.setdefault(row["group"], {"calls": 0, "ms": 0.0, "share": 0.0})
        for key in group:
            group[key] += row[key]
    return dict(sorted(groups.items(), key=lambda item: item[1]["ms"], reverse=True))


def measure(loaded: Any, side: int, scale: float, top: int, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Enlarge one picture of noise, once without the profiler and once under it.

    Args:
        loaded: from `tudsr.load`.
        side: of the square picture, px.
        scale: ratio.
        top: operators that are listed; the groups are of all.
        options: of `upscale`.
    """
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    cuda = loaded.device == "cuda"
    enlarge = partial(loaded.upscale, picture, scale=scale, **(options or {}))
    for _ in range(_WARM_UPS):
        enlarge()
    plain, out = timed(enlarge)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        profiled, _ = timed(enlarge)  # inside: to start and to read the profiler takes time too
    rows = operators(profiler.key_averages(), cuda)
    own_ms = sum(row["ms"] for row in rows)
    busy = {
        "device_busy": {
            "of_plain": round(own_ms / 1e3 / plain, 4), "of_profiled": round(own_ms / 1e3 / profiled, 4),
        },
    }  # fmt: skip
    return {
        "dtype": str(loaded.model.backbone.dtype), "device": loaded.device,
        "in_px": [side] * 2, "out_px": list(out.shape[:2]), "scale": scale, "options": options or {},
        "seconds": {"plain": round(plain, 4), "profiled": round(profiled, 4)},
        **(busy if cuda else {}),
        "own_ms": round(own_ms, 3),
        "groups": {name: _short(group) for name, group in grouped(rows).items()},
        "operators": [_short(row) for row in rows[:top]], "operators_left_out": len(rows[top:]),
    }  # fmt: skip


def timed(enlarge: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the seconds that an enlargement took, and its picture."""
    begun = time.perf_counter()
    out = enlarge()  # ends on the host, so a device is waited for
    return time.perf_counter() - begun, out


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"ms": round(row["ms"], 3), "share": round(row["share"], 4)}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--side", type=int, default=256, help="of the square input, px")
    parser.add_argument("--scale", type=float, default=8)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; of others only the host's time is seen")
    parser.add_argument("--top", type=int, default=25, help="operators that are listed")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    args = _parse()
    model = tudsr.load(args.model, device=args.device, dtype=args.dtype)
    found = measure(model, args.side, args.scale, args.top)
    machine.write(args.out, {"benchmark": "profile_ops", "model": Path(args.model).name, **found})

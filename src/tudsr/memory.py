"""Memory as the user's number: what an enlargement needs, and how it is made to stay below a budget.

In this order: everything in memory; the pictures on disk, a row of windows in memory; smaller windows, down to the
model's smallest, which is the only choice that changes the result.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from tudsr.color import COLOR_FIXES, HALO_PX, strip_rows
from tudsr.config import WindowRange
from tudsr.cost import BYTES_PER_PIXEL, PassCost, pass_costs, weights_bytes, window_bytes
from tudsr.errors import InputError
from tudsr.folder import Model
from tudsr.planner import Plan
from tudsr.request import Request
from tudsr.windows import WindowGrid

T = TypeVar("T")

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_MEMORY_WORDS = ("not enough memory", "can't allocate memory", "out of memory")  # Windows, Linux, MPS
_CGROUP = Path("/sys/fs/cgroup")
_LEFT_FREE = 0.85  # of what is free: other programs take some while this one works
_ENCODER_COPY = 4  # bytes a pixel: Pillow's own copy of a picture it writes
_ALPHA = 4  # bytes a pixel: transparency, which few pictures have
_STRIPS = 10  # strips of rows that upsampling, the colour fix and writing hold at once
_MARGIN = 1.02  # the next process may hold a little more to begin with
_SLACK = 96 * 10**6  # threads' own heaps, libvips, and what the C library keeps of freed memory


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How an enlargement fits into memory.

    Attributes:
        on_disk: whether the pictures live on disk; only rows of windows are in memory then.
        most_px: the largest window side, where windows had to be smaller than the model's; None: they are the model's.
        parts: what takes how many bytes at the peak.
        disk_bytes: what the pictures take on disk.
        passes: their windows and costs.
    """

    on_disk: bool
    most_px: int | None
    parts: dict[str, int]
    disk_bytes: int
    passes: tuple[PassCost, ...]

    @property
    def peak_bytes(self) -> int:
        """Memory at the peak."""
        return sum(self.parts.values())


def parse_memory(text: str | int) -> int:
    """Turn «2GB», «800 MB» or «1.5GiB» into bytes; a number is bytes already.

    Raises:
        InputError: for anything else, and for less than a byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", str(text).strip().lower())
    count = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if count < 1:
        raise InputError(f"memory {text!r}: a size is expected, for example 2GB, 800MB or 1.5GiB.")
    return count


def free_bytes(device: torch.device) -> int:
    """Return what may be used: of the GPU's memory on CUDA, of the machine's (or its container's) elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _LEFT_FREE)
    import psutil

    free = psutil.virtual_memory().available
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return int(free * _LEFT_FREE)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or «max»
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of the many ways in which memory runs out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)


def until_it_fits(run: Callable[[Request], T], request: Request, own: WindowRange, say: Callable[[str], None]) -> T:
    """Run, and where memory runs out all the same (another program took it), run again with half as much at once.

    First fewer windows run together, then windows are smaller, down to the model's smallest.

    Args:
        run: does what a request asks.
        request: the request to begin with.
        own: the model's windows.
        say: told once that less is done at once.

    Returns:
        What `run` returned.

    Raises:
        MemoryError: or what else `run` raises, when there is nothing left to halve.
    """
    said = False
    while True:
        try:
            return run(request)
        except (MemoryError, RuntimeError) as error:
            half = _halved(request, own) if is_out_of_memory(error) else None
            if half is None:
                raise
        request = half  # out of the handler: the error's traceback holds what took the memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not said:
            say("memory ran out; going on with less at once, which may change the result a little.")
            said = True


def _halved(request: Request, own: WindowRange) -> Request | None:
    if request.batch > 1:
        return request.model_copy(update={"batch": request.batch // 2})
    windows = request.windows(own)
    most_px = _half_side(windows.max_px, windows)
    return None if most_px is None else request.model_copy(update={"most_px": most_px})


def _half_side(side_px: int, windows: WindowRange) -> int | None:
    """Return half of a window's side, or None below the smallest."""
    half = side_px // 2 // windows.stride_px * windows.stride_px
    return None if half < max(windows.min_px, 2 * windows.overlap_px) else half


def pictures_bytes(height: int, width: int, plan: Plan, pixel_bytes: int = 3, color: str = "wavelet") -> int:
    """Return the most bytes of whole pictures that are in memory at once when all of them are.

    In each pass: the input picture, the pass's own input where that is another one, its output, and that without a
    colour fix that needs the whole picture's statistics; at the end, beside the input, the output and its transparency,
    once more as integers, and the encoder's copy of these.

    Args:
        height: rows of the input.
        width: columns of the input.
        plan: its passes.
        pixel_bytes: of a pixel in the output file.
        color: a key of color.COLOR_FIXES.
    """
    copies = 2 if COLOR_FIXES[color].statistics else 1
    most = before = 0
    for step in plan.passes:
        made = step.height * step.width
        most = max(most, (height * width + before + copies * made) * BYTES_PER_PIXEL)
        before = made
    last = BYTES_PER_PIXEL + _ALPHA + pixel_bytes + _ENCODER_COPY
    return max(most, height * width * BYTES_PER_PIXEL + before * last)


def spooled_bytes(height: int, width: int, plan: Plan, pixel_bytes: int, color: str = "wavelet") -> int:
    """Return what the pictures take on disk: the input, those between the passes, and the output, not encoded.

    A colour fix that needs the whole picture's statistics keeps each pass's unfixed picture too.
    """
    unfixed = len(plan.passes) if COLOR_FIXES[color].statistics else 0
    kept = [*plan.passes[:-1], *plan.passes[:unfixed]]
    between = sum(step.height * step.width for step in kept)
    return (height * width + plan.height * plan.width) * pixel_bytes + between * BYTES_PER_PIXEL


def rows_bytes(grid: WindowGrid) -> int:
    """Return the memory of the rows in work: a row of windows as it is blended, and strips of it."""
    overlap = max((a + grid.window_h - b for a, b in zip(grid.ys, grid.ys[1:], strict=False)), default=0)
    band = min(grid.height, grid.window_h + 2 * overlap)
    strip = min(grid.height, strip_rows(grid.width) + 2 * HALO_PX)
    return (band + _STRIPS * strip) * grid.width * BYTES_PER_PIXEL


@dataclass(frozen=True, kw_only=True)
class Need:
    """What is to be fitted into memory.

    Attributes:
        shapes: the model on the meta device, from `cost.meta_model`.
        size: height and width of the input.
        plan: its passes.
        base: bytes that are taken anyway: libraries and weights.
        batch: windows that run together.
        pixel_bytes: of a pixel in the files.
        color: the colour fix.
    """

    shapes: Model
    size: tuple[int, int]
    plan: Plan
    base: int
    batch: int = 1
    pixel_bytes: int = 3
    color: str = "wavelet"


def fit(
    need: Need,
    request: Request,
    budget: int,
    *,
    host: int | None = None,
    spool: bool = True,
) -> Fit:
    """Choose where the pictures live, and how large windows are, for an enlargement to stay below a budget.

    Args:
        need: the enlargement.
        request: whose windows are used, or smaller ones.
        budget: bytes.
        host: where the budget is a GPU's memory, the bytes that pictures may take beside it; else None.
        spool: whether the pictures may live on disk.

    Raises:
        InputError: when the least possible is above the budget; it is named.
    """
    least: Fit | None = None
    for choice in _choices(need, request, host, (False, True) if spool else (False,)):
        if choice.peak_bytes <= budget:
            return choice
        if least is None or choice.peak_bytes < least.peak_bytes:
            least = choice
    (height, width), plan = need.size, need.plan
    if least is None:
        raise InputError(f"{width}x{height} → {plan.width}x{plan.height} px: the pictures do not fit beside the GPU.")
    raise InputError(
        f"{width}x{height} → {plan.width}x{plan.height} px does not fit into {budget / 1e6:.0f} MB of memory; "
        f"{math.ceil(_MARGIN * least.peak_bytes / 1e6)} MB is the least it can be done in."
    )


def fit_here(need: Need, request: Request, memory: int | None, device: torch.device, *, spool: bool = True) -> Fit:
    """Fit an enlargement into what the user grants, or, with None, into what is free on this machine; see `fit`."""
    budget = need.base + free_bytes(device) if memory is None else memory
    host = free_bytes(torch.device("cpu")) if device.type == "cuda" else None
    return fit(need, request, budget, host=host, spool=spool)


def _choices(need: Need, request: Request, host: int | None, places: tuple[bool, ...]) -> Iterator[Fit]:
    """Yield from the most to the least memory: smaller windows only where the pictures are where they take least."""
    own, most_px = request.windows(need.shapes.config.windows), request.most_px
    while True:
        windows = request.model_copy(update={"most_px": most_px}).windows(need.shapes.config.windows)
        passes = pass_costs(need.shapes, need.plan, windows)
        for on_disk in places if most_px is None else places[-1:]:
            found = _fit(need, passes, most_px, on_disk=on_disk, on_gpu=host is not None)
            if host is None or on_disk or _host_bytes(need, passes) <= host:
                yield found
        side = most_px or max(max(one.grid.window_h, one.grid.window_w) for one in passes)
        most_px = _half_side(side, own)
        if most_px is None:
            return


def _fit(need: Need, passes: tuple[PassCost, ...], most_px: int | None, *, on_disk: bool, on_gpu: bool) -> Fit:
    parts = {
        "base": need.base,
        "merged weights": weights_bytes(need.shapes) - weights_bytes(need.shapes, merged=False),
        "windows": need.batch * max(window_bytes(one.window) for one in passes),
    }
    if not on_gpu:
        parts["pictures"] = 0 if on_disk else _pictures(need)
        parts["rows"] = max(rows_bytes(one.grid) for one in passes)
        parts["slack"] = _SLACK
    disk = spooled_bytes(*need.size, need.plan, need.pixel_bytes, need.color) if on_disk else 0
    return Fit(on_disk=on_disk, most_px=most_px, parts=parts, disk_bytes=disk, passes=passes)


def _host_bytes(need: Need, passes: tuple[PassCost, ...]) -> int:
    return _pictures(need) + max(rows_bytes(one.grid) for one in passes)


def _pictures(need: Need) -> int:
    return pictures_bytes(*need.size, need.plan, need.pixel_bytes, need.color)

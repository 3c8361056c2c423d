"""Memory as the user's number: what an enlargement needs, and how it is made to stay below a budget.

In this order: everything in memory; fewer windows together; the pictures on disk, a row of windows in memory; adapters
in the base weights' own place; smaller windows, down to the model's smallest, which is the only choice that changes the
result.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import torch

from tudsr.color import COLOR_FIXES, HALO_PX, strip_rows
from tudsr.config import WindowRange
from tudsr.cost import BYTES_PER_PIXEL, PassCost, pass_costs, weights_bytes, window_bytes
from tudsr.errors import InputError
from tudsr.folder import Model
from tudsr.machine import free_bytes
from tudsr.planner import Plan
from tudsr.request import Request
from tudsr.windows import WindowGrid

T = TypeVar("T")

_MEMORY_WORDS = ("not enough memory", "can't allocate memory", "out of memory")  # Windows, Linux, MPS
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
        batch: windows that run together.
        low_memory: whether the running stage's merged layers take the place of the base's (see `Request`).
        most_px: the largest window side, where windows had to be smaller than the model's; None: they are the model's.
        parts: what takes how many bytes at the peak.
        disk_bytes: what the pictures take on disk.
        passes: their windows and costs.
    """

    on_disk: bool
    batch: int = 1
    low_memory: bool = False
    most_px: int | None
    parts: dict[str, int]
    disk_bytes: int
    passes: tuple[PassCost, ...]

    @property
    def peak_bytes(self) -> int:
        """Memory at the peak."""
        return sum(self.parts.values())

    def applied(self, request: Request) -> Request:
        """Return a request that is met this way."""
        found = {"most_px": self.most_px, "low_memory": self.low_memory, "batch": self.batch}
        return request.model_copy(update=found)


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
    if request.batch and request.batch > 1:
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
        batch: windows that run together, at most.
        pixel_bytes: of a pixel in the files.
        color: the colour fix.
        rereads: whether the base's weights can be read again from files.
    """

    shapes: Model
    size: tuple[int, int]
    plan: Plan
    base: int
    batch: int = 1
    pixel_bytes: int = 3
    color: str = "wavelet"
    rereads: bool = False


def fit(
    need: Need,
    request: Request,
    budget: int,
    *,
    host: int | None = None,
    spool: bool = True,
) -> Fit:
    """Choose where pictures and merged layers live, and how large windows are, to stay below a budget.

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
    for choice in _choices(need, request, host, _ways(need, request, spool=spool)):
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


@dataclass(frozen=True, kw_only=True)
class _Way:
    """What costs time only."""

    batch: int
    on_disk: bool
    low_memory: bool


def _ways(need: Need, request: Request, *, spool: bool) -> list[_Way]:
    """Return ways from the quickest to what takes least."""
    way = _Way(batch=need.batch, on_disk=False, low_memory=request.low_memory)
    ways = [way]
    while way.batch > 1:
        ways.append(way := replace(way, batch=way.batch // 2))
    if spool:
        ways.append(way := replace(way, on_disk=True))
    if need.rereads and not way.low_memory:
        ways.append(replace(way, low_memory=True))
    return ways


def _choices(need: Need, request: Request, host: int | None, ways: list[_Way]) -> Iterator[Fit]:
    """Yield from the most to the least memory: smaller windows only after all else."""
    own, most_px = request.windows(need.shapes.config.windows), request.most_px
    while True:
        windows = request.model_copy(update={"most_px": most_px}).windows(need.shapes.config.windows)
        passes = pass_costs(need.shapes, need.plan, windows)
        for way in ways if most_px is None else ways[-1:]:
            found = _fit(need, passes, most_px, way, on_gpu=host is not None)
            if host is None or way.on_disk or _host_bytes(need, passes) <= host:
                yield found
        side = most_px or max(max(one.grid.window_h, one.grid.window_w) for one in passes)
        most_px = _half_side(side, own)
        if most_px is None:
            return


def _fit(need: Need, passes: tuple[PassCost, ...], most_px: int | None, way: _Way, *, on_gpu: bool) -> Fit:
    merged, bare = (weights_bytes(need.shapes, merged=one) for one in (not way.low_memory, False))
    parts = {
        "base": need.base,
        "merged weights": merged - bare,
        "windows": way.batch * max(window_bytes(one.window, need.shapes.backbone.dtype) for one in passes),
    }
    if not on_gpu:
        parts["pictures"] = 0 if way.on_disk else _pictures(need)
        parts["rows"] = max(rows_bytes(one.grid) for one in passes)
        parts["slack"] = _SLACK
    disk = spooled_bytes(*need.size, need.plan, need.pixel_bytes, need.color) if way.on_disk else 0
    return Fit(**asdict(way), most_px=most_px, parts=parts, disk_bytes=disk, passes=passes)


def _host_bytes(need: Need, passes: tuple[PassCost, ...]) -> int:
    return _pictures(need) + max(rows_bytes(one.grid) for one in passes)


def _pictures(need: Need) -> int:
    return pictures_bytes(*need.size, need.plan, need.pixel_bytes, need.color)

"""Memory as the user's number: what an enlargement needs, and how it is made to stay below a budget.

In this order: everything in memory, a GPU's where there is one; fewer windows together; with a GPU, the pictures in the
machine's own memory; the pictures on disk, a row of windows in memory; adapters in the base weights' own place; smaller
windows, down to the model's smallest, which is the only choice that changes the result (but for a GPU's last bits).
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from tudsr.backbones import Backbone
from tudsr.cost import (
    BYTES_PER_PIXEL,
    WORKSPACE,
    PassCost,
    pass_costs,
    pictures_bytes,
    rows_bytes,
    spooled_bytes,
    weights_bytes,
    window_bytes,
)
from tudsr.errors import InputError
from tudsr.folder import Model
from tudsr.machine import free_bytes
from tudsr.planner import Plan
from tudsr.request import Request, half_side
from tudsr.windows import plan_windows

_MARGIN = 1.02  # the next process may hold a little more to begin with
SLACK = 96 * 10**6  # threads' own heaps, libvips, and what the C library keeps of freed memory
_DRIFT = 8 * 10**6  # of the slack: what a process holds to begin with is not the same at each start


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How an enlargement fits into memory.

    Attributes:
        on_disk: whether the pictures live on disk; only rows of windows are in memory then.
        on_host: whether the pictures live in the machine's memory, beside a GPU.
        batch: windows that run together.
        low_memory: whether the running stage's merged layers take the place of the base's (see `Request`).
        most_px: the largest window side, where windows had to be smaller than the model's; None: they are the model's.
        parts: what takes how many bytes at the peak.
        disk_bytes: what the pictures take on disk.
        passes: their windows and costs.
    """

    on_disk: bool
    on_host: bool = False
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

    @property
    def shrunk(self) -> str:
        """Say that windows had to be smaller."""
        return f"windows of at most {self.most_px} px, to keep to the memory; the result is a little different."

    def applied(self, request: Request) -> Request:
        """Return a request that is met this way."""
        found = {name: getattr(self, name) for name in ("most_px", "low_memory", "batch", "on_host")}
        return request.model_copy(update=found)


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
        decode_bytes: that reading the input takes before the work begins, such as `image_spool.Header.decode_bytes`.
        waiting: batches of windows that lie here beside those in work, before or after.
        color: the colour fix.
        rereads: whether the base's weights can be read again from files.
        spool: whether the pictures may live on disk.
        begun: how an earlier run began on disk: its windows and batch are kept where they fit, for the same bytes.
    """

    shapes: Model
    size: tuple[int, int]
    plan: Plan
    base: int
    batch: int = 1
    pixel_bytes: int = 3
    decode_bytes: int = 0
    waiting: int = 0
    color: str = "wavelet"
    rereads: bool = False
    spool: bool = True
    begun: Request | None = None


def has_room(
    model: Model, size: tuple[int, int], plan: Plan, request: Request, pixel_bytes: int, waiting: int = 0
) -> bool:
    """Whether twice what an enlargement can take at most is free, so that nothing is to be chosen or counted.

    Counting takes seconds for a large model, this none. The bounds are `_window_bound` for windows, the UNet once
    more for merged layers, and `_weights_again`. On CUDA the pictures are in the machine's memory too, before and
    after. The model is loaded; the others are as in `Need`.
    """
    net, windows = model.backbone, request.windows(model.config.windows)
    grids = [plan_windows(step.height, step.width, windows) for step in plan.passes]
    pictures = pictures_bytes(*size, plan, pixel_bytes, request.color) + max(map(rows_bytes, grids)) + SLACK
    window = _window_bound(net) + waiting * BYTES_PER_PIXEL
    area = max(grid.window_h * grid.window_w for grid in grids)
    work = int((request.batch or 1) * window * area) + sum(weight.nbytes for weight in net.unet.parameters())
    work += _weights_again(net)
    free = free_bytes(torch.device("cpu"))
    if net.device.type != "cuda":
        return 2 * (pictures + work) < free
    cached = torch.cuda.memory_reserved(net.device) - torch.cuda.memory_allocated(net.device)
    return 2 * pictures < free and 2 * (pictures + work) < free_bytes(net.device) + cached


def _window_bound(net: Backbone) -> float:
    """Return more bytes than a window's pixel ever takes.

    Alive at once are fewer channels than all of the UNet's convolutions make, at the latent's size, and four times the
    widest of the autoencoder's at the picture's: up to eight times what is counted (tests/test_memory.py).
    """
    parts = [part for name, part in net.unet.named_modules() if ".lora_" not in name]  # merged: they do not run
    made = sum(part.out_channels for part in parts if isinstance(part, nn.Conv2d))
    widths = [max(part.in_channels, part.out_channels) for part in net.vae.modules() if isinstance(part, nn.Conv2d)]
    dtype = torch.float32 if net.dtype == torch.float16 else net.dtype  # what overflows is run again
    return WORKSPACE[dtype] * dtype.itemsize * (made / net.patch_px**2 + 4 * max(widths, default=0))


def fit(need: Need, request: Request, budget: int, *, host: int | None = None) -> Fit:
    """Choose where pictures and merged layers live, and how large windows are, to stay below a budget.

    Args:
        need: the enlargement.
        request: whose windows are used, or smaller ones.
        budget: bytes.
        host: where the budget is a GPU's memory, the bytes that pictures may take beside it; else None.

    Raises:
        InputError: when the least possible is above the budget; it is named.
    """
    for choice in _as_begun(need, on_gpu=host is not None):
        if choice.peak_bytes <= budget + _DRIFT:
            return choice
    least: Fit | None = None
    for choice in _choices(need, request, host, _ways(need, request, on_gpu=host is not None)):
        if choice.peak_bytes <= budget:
            return choice
        if least is None or choice.peak_bytes < least.peak_bytes:
            least = choice
    (height, width), plan = need.size, need.plan
    if least is None:
        raise InputError(f"{width}x{height} → {plan.width}x{plan.height} px: the pictures do not fit beside the GPU.")
    raise InputError(
        f"{width}x{height} → {plan.width}x{plan.height} px does not fit into {_in_words(budget)} of memory; "
        f"{math.ceil(_MARGIN * least.peak_bytes / 1e6)} MB is the least it can be done in."
    )


def _in_words(count: int) -> str:
    """Return a budget in MB, or in what is smaller where it is less than one."""
    factor, unit = next(((f, u) for f, u in ((10**6, "MB"), (10**3, "kB")) if count >= f), (1, "B"))
    return f"{count / factor:.0f} {unit}"


def fit_here(need: Need, request: Request, memory: int | None, device: torch.device) -> Fit:
    """Fit an enlargement into what the user grants, or, with None, into what is free on this machine; see `fit`."""
    budget = need.base + free_bytes(device) if memory is None else memory
    host = free_bytes(torch.device("cpu")) if device.type == "cuda" else None
    return fit(need, request, budget, host=host)


@dataclass(frozen=True, kw_only=True)
class _Way:
    """What costs time only."""

    batch: int
    low_memory: bool
    on_disk: bool = False
    on_host: bool = False


def _ways(need: Need, request: Request, *, on_gpu: bool) -> list[_Way]:
    """Return ways from the quickest to what takes least."""
    way = _Way(batch=need.batch, low_memory=request.low_memory)
    ways = [way]
    while way.batch > 1:
        ways.append(way := replace(way, batch=way.batch // 2))
    frugal = need.rereads and not request.low_memory
    if on_gpu:  # the disk saves nothing there: it is for what the host has no room for
        ways += [replace(one, on_host=True) for one in ways]
        ways += [replace(way, low_memory=True, on_host=there) for there in (False, True)] * frugal
        return ways + [replace(one, on_disk=True) for one in ways if one.on_host] * need.spool
    if need.spool:
        ways.append(way := replace(way, on_disk=True))
    return ways + [replace(way, low_memory=True)] * frugal


def _as_begun(need: Need, *, on_gpu: bool) -> Iterator[Fit]:
    """Yield how an earlier run's windows and batch can go on, if there was one."""
    begun = need.begun
    if begun is None:
        return
    passes = pass_costs(need.shapes, need.plan, begun.windows(need.shapes.config.windows))
    for low_memory in (begun.low_memory, True) if need.rereads else (begun.low_memory,):
        way = _Way(batch=begun.batch or 1, low_memory=low_memory, on_disk=True, on_host=on_gpu)
        yield _fit(need, passes, begun.most_px, way, on_gpu=on_gpu)


def _choices(need: Need, request: Request, host: int | None, ways: list[_Way]) -> Iterator[Fit]:
    """Yield from the most to the least memory: smaller windows only after all else."""
    own, most_px = request.windows(need.shapes.config.windows), request.most_px
    frugal = [way for way in ways if (way.batch, way.low_memory) == (ways[-1].batch, ways[-1].low_memory)]
    while True:
        windows = request.model_copy(update={"most_px": most_px}).windows(need.shapes.config.windows)
        passes = pass_costs(need.shapes, need.plan, windows)
        for way in ways if most_px == request.most_px else frugal:
            found = _fit(need, passes, most_px, way, on_gpu=host is not None)
            if host is None or way.on_disk or _in_memory(need) + _rows(passes) <= host:
                yield found
        side = most_px or max(max(one.grid.window_h, one.grid.window_w) for one in passes)
        most_px = half_side(side, own)
        if most_px is None:
            return


def _fit(need: Need, passes: tuple[PassCost, ...], most_px: int | None, way: _Way, *, on_gpu: bool) -> Fit:
    merged, bare = (weights_bytes(need.shapes, merged=one) for one in (not way.low_memory, False))
    work = {
        "merged weights": merged - bare,
        "windows": max(_windows_bytes(one, need, way.batch) for one in passes),
    }
    parts = {"base": need.base} | work
    if not way.on_host:
        work["rows"] = _rows(passes)
        # Spooled pictures take memory only while the input is decoded, before there is anything of the work.
        pictures = max(0, need.decode_bytes - sum(work.values())) if way.on_disk else _in_memory(need)
        parts |= {"pictures": pictures, "rows": work["rows"]} | ({} if on_gpu else {"slack": SLACK})
    disk = spooled_bytes(*need.size, need.plan, need.pixel_bytes, need.color) if way.on_disk else 0
    return Fit(**asdict(way), most_px=most_px, parts=parts, disk_bytes=disk, passes=passes)


def _windows_bytes(one: PassCost, need: Need, batch: int) -> int:
    """Return what windows that run together take, and what one in float32 does where float16 may overflow."""
    net, waits = need.shapes.backbone, need.waiting * one.grid.window_h * one.grid.window_w * BYTES_PER_PIXEL
    work = batch * window_bytes(one.window, net.dtype)
    if net.dtype == torch.float16:
        work = max(work, 2 * window_bytes(one.window, torch.float32) + _weights_again(net))
    return work + batch * waits


def _weights_again(net: Backbone) -> int:
    """Return the bytes of the larger part's weights in float32, which one that overflows in float16 is run again in."""
    parts = (net.unet, net.vae) if net.dtype == torch.float16 else ()
    return max((sum(4 * weight.numel() for weight in part.parameters()) for part in parts), default=0)


def _rows(passes: tuple[PassCost, ...]) -> int:
    return max(rows_bytes(one.grid) for one in passes)


def _in_memory(need: Need) -> int:
    height, width = need.size
    read = need.decode_bytes + height * width * BYTES_PER_PIXEL
    return max(read, pictures_bytes(height, width, need.plan, need.pixel_bytes, need.color))

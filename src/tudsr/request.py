"""What a user asks of one picture."""

import math
import re
from collections.abc import Callable
from typing import Any, Literal, Self, TypeVar

import torch
from pydantic import Field, field_validator, model_validator

from tudsr.color import COLOR_FIXES
from tudsr.config import ModelConfig, Settings, WindowRange
from tudsr.errors import ConfigError, InputError
from tudsr.planner import Plan, plan_passes

DEFAULT_SCALE = 8.0
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
T = TypeVar("T")
_MEMORY_WORDS = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")
"""Of Windows, Linux, MPS, and cuBLAS and cuDNN."""


class Request(Settings):
    """What a user asks of one picture.

    `scale` or `size` (height, width), in pixels; m, n, t1 and t2 overrule the planner and the model; `tile_px` and
    `overlap_px` overrule the model's window range, of which none is larger than `most_px`; `fidelity`, 0 to 1,
    takes up to half of LoRA-1's strength away and mixes up to half of its input into what stage 2 makes of it;
    `batch` windows run together, or as many as suit the device; with `low_memory` a stage's LoRA is written over
    the base's weights, which are read from their files again after each pass (the same picture, a little later);
    with `graphs` the work on a window is recorded once as a CUDA graph, kept for later pictures; with `on_host` a
    GPU gets windows only, never whole pictures; `shift_px` moves the grid of windows (to measure seams). With `vae`
    whole the autoencoder sees the picture as a whole, and only the UNet goes by windows.
    """

    scale: float | None = None
    size: tuple[int, int] | None = None
    m: float | None = None
    n: float | None = None
    t1: int | None = Field(default=None, ge=0, le=999)
    t2: int | None = Field(default=None, ge=0, le=999)
    stage: Literal["both", 1, 2] = "both"
    vae: Literal["windows", "whole"] = "windows"
    color: str = "wavelet"
    fidelity: float = Field(default=0.0, ge=0, le=1)
    tile_px: int | None = Field(default=None, gt=0, le=2**16)
    overlap_px: int | None = Field(default=None, ge=0, le=2**15)
    most_px: int | None = Field(default=None, gt=0)
    batch: int | None = Field(default=None, gt=0)
    low_memory: bool = False
    graphs: bool = False
    on_host: bool = False
    shift_px: int = Field(default=0, ge=0)

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """Build from a user's options; an option that is None is one that was not given.

        ×DEFAULT_SCALE is asked for where neither scale nor size, nor both m and n, say how large.

        Raises:
            ConfigError: for an option that is unknown or out of range.
        """
        large = any(options.get(name) is not None for name in ("scale", "size"))
        by_hand = all(options.get(name) is not None for name in ("m", "n"))
        return cls.parse(options if large or by_hand else options | {"scale": DEFAULT_SCALE}, "upscale")

    def passes(self, height: int, width: int, model: ModelConfig) -> Plan:
        """Return the passes for a picture of that size, within a model's ratios.

        Raises:
            InputError: where `plan_passes` does, and for a timestep of a stage without a pass: with a target size that
                depends on the picture.
        """
        plan = plan_passes(
            height, width, scale=self.scale, size=self.size, m=self.m, n=self.n, stage=self.stage,
            max_m=model.m_range[1], max_n=model.n_range[1], once=model.once_up_to,
        )  # fmt: skip
        stages = {step.stage for step in plan.passes}
        for stage, t in ((1, self.t1), (2, self.t2)):
            if t is not None and stage not in stages:
                raise InputError(
                    f"t{stage} is {t}, but there is no pass of stage {stage}: M is {plan.m:g} and N {plan.n:g}; leave "
                    f"t{stage} out, or give other ratios."
                )
        return plan

    def windows(self, own: WindowRange) -> WindowRange:
        """Return the windows that are used with a model, given its own.

        Raises:
            ConfigError: for a tile or an overlap that the model cannot have.
        """
        found = _window_range(own, self.tile_px, self.overlap_px)
        if self.most_px is None or self.tile_px is not None:
            return found
        return found.model_copy(update={"max_px": max(found.min_px, min(found.max_px, self.most_px))})

    def lessened(self, own: WindowRange, side_px: int, *, on_gpu: bool) -> Self | None:
        """Return a request that takes less at once; None at the end.

        First fewer windows run together, then pictures leave the GPU; the result may only change with smaller windows.

        Args:
            own: the model's windows.
            side_px: the largest side of a window that is in use.
            on_gpu: whether the pictures lie on a GPU.
        """
        if self.batch and self.batch > 1:
            return self.model_copy(update={"batch": self.batch // 2})
        if on_gpu and not self.on_host:
            return self.model_copy(update={"on_host": True})
        windows = self.windows(own)
        most_px = half_side(min(side_px, windows.max_px), windows)
        return None if most_px is None else self.model_copy(update={"most_px": most_px})

    @property
    def taken_back(self) -> float:
        """The share of what the stages add that fidelity takes back: PSNR stops rising at about a half."""
        return self.fidelity / 2

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.graphs and (self.low_memory or self.vae == "whole"):
            raise ValueError("graphs keep merged weights and windows: they go without low_memory and vae=whole")
        return self

    @field_validator("color")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in COLOR_FIXES:
            raise ValueError(f"known colour fixes: {', '.join(COLOR_FIXES)}")
        return name


def half_side(side_px: int, windows: WindowRange) -> int | None:
    """Return half of a window's side, no less than the smallest; None for that one."""
    if side_px <= windows.min_px:
        return None
    return max(side_px // 2 // windows.stride_px * windows.stride_px, windows.min_px)


def _window_range(own: WindowRange, tile_px: int | None, overlap_px: int | None) -> WindowRange:
    """Overrule a model's windows: one side for all, and an overlap, which takes windows of twice its size or more."""
    if tile_px is None and overlap_px is None:
        return own
    stride, overlap = own.stride_px, own.overlap_px if overlap_px is None else overlap_px
    floor = max(stride, -(-2 * overlap // stride) * stride)
    if tile_px is None:
        least, most = max(own.min_px, floor), own.max_px
        if least > most:
            raise ConfigError(
                f"overlap_px is {overlap}; 0 to {most // 2}, half of the model's largest window, is accepted, "
                f"or more with a tile_px of at least {floor}."
            )
    else:
        least = most = tile_px
        if tile_px % stride or tile_px < floor:
            below = tile_px // stride * stride
            nearest = sorted({max(floor, below), max(floor, below + stride)})
            raise ConfigError(
                f"tile_px is {tile_px}; a multiple of the model's stride of {stride} px is accepted, from {floor} px "
                f"with an overlap of {overlap} px; nearest: {' and '.join(map(str, nearest))}."
            )
    return WindowRange(min_px=least, max_px=most, stride_px=stride, overlap_px=overlap)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of the many ways in which memory runs out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)


def until_it_fits(
    run: Callable[[Request], T],
    request: Request,
    lessened: Callable[[Request], Request | None],
    say: Callable[[str], None],
) -> T:
    """Run, and where memory runs out all the same (another program took it), run again with less at once.

    Args:
        run: does what a request asks.
        request: the request to begin with.
        lessened: returns one that takes less, or None where there is none.
        say: told once that less is done at once.

    Returns:
        What `run` returned.

    Raises:
        MemoryError: or what else `run` raises, when there is nothing left to lessen.
    """
    said = False
    while True:
        try:
            return run(request)
        except (MemoryError, RuntimeError) as error:
            less = lessened(request) if is_out_of_memory(error) else None
            if less is None:
                raise
        request = less  # out of the handler: the error's traceback holds what took the memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not said:
            say("memory ran out; going on with less at once, which may change the result a little.")
            said = True


def parse_memory(text: str | int) -> int:
    """Turn «2GB», «800 MB» or «1.5GiB» into bytes; a number is bytes already.

    Raises:
        InputError: for anything else, and for less than a byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", str(text).strip().lower())
    count = float(match[1]) * _UNITS[match[2] or ""] if match else 0
    if not 1 <= count < math.inf:  # so many digits that no float holds them
        raise InputError(f"memory {text!r}: a size is expected, for example 2GB, 800MB or 1.5GiB.")
    return int(count)

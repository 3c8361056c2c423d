"""TUDSR: twice upsampling-diffusion. The paper's figure, top to bottom."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator
from torch import Tensor

from tudsr.canvas import MemoryStore, RowsFrom, Store
from tudsr.color import COLOR_FIXES, color_fix
from tudsr.config import ModelConfig, Settings, WindowRange
from tudsr.device import pick_device, pick_dtype
from tudsr.errors import ConfigError
from tudsr.folder import Model, load_model
from tudsr.image import Picture, PictureLike, picture_from, picture_like
from tudsr.planner import Pass, Plan, plan_passes
from tudsr.resize import Region, part_of, upsample, upsampled
from tudsr.stage import Stage, blended_rows, inference
from tudsr.tiling import Progress
from tudsr.windows import WindowGrid, plan_windows

DEFAULT_SCALE = 8.0
_STRIP_PIXELS = 2**20


class Request(Settings):
    """What a user asks of one picture.

    `scale` or `size` (height, width), in pixels; m, n, t1 and t2 overrule the planner and the model; `tile_px` and
    `overlap_px` overrule the model's window range; `fidelity`, 0 to 1, takes up to half of LoRA-1's strength
    away and mixes up to half of its input into what stage 2 makes of it; `batch` windows run together; `shift_px` moves
    the grid of windows (to measure seams).
    """

    scale: float | None = None
    size: tuple[int, int] | None = None
    m: float | None = None
    n: float | None = None
    t1: int | None = Field(default=None, ge=0, le=999)
    t2: int | None = Field(default=None, ge=0, le=999)
    stage: Literal["both", 1, 2] = "both"
    color: str = "wavelet"
    fidelity: float = Field(default=0.0, ge=0, le=1)
    tile_px: int | None = Field(default=None, gt=0)
    overlap_px: int | None = Field(default=None, ge=0)
    batch: int = Field(default=1, gt=0)
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

    @property
    def taken_back(self) -> float:
        """The share of what the stages add that fidelity takes back: PSNR stops rising at about a half."""
        return self.fidelity / 2

    @field_validator("color")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in COLOR_FIXES:
            raise ValueError(f"known colour fixes: {', '.join(COLOR_FIXES)}")
        return name


class TUDSR:
    """A loaded model that enlarges pictures.

    Args:
        model: from `folder.load_model`.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    @classmethod
    def load(cls, model: str | Path = "tiny", device: str = "auto", dtype: str = "auto") -> Self:
        """Load a model.

        Args:
            model: an embedded name (tiny), a TUDSR folder, or a hub id.
            device: auto, cpu, cuda or mps.
            dtype: auto, fp32, bf16 or fp16.

        Raises:
            ModelError: when the model is not there or damaged.
            InputError: for a device or dtype that cannot be used.
        """
        where = pick_device(device)
        return cls(load_model(model, where, pick_dtype(dtype, where)))

    @property
    def config(self) -> ModelConfig:
        """What the model says of itself."""
        return self.model.config

    def upscale(
        self,
        image: PictureLike,
        scale: float | None = None,
        *,
        progress: Progress | None = None,
        **options: object,
    ) -> PictureLike:
        """Enlarge one picture.

        Args:
            image: PIL image; NumPy (H, W[, C]), uint8, uint16 or float in [0, 1]; torch ([1,] 3, H, W) in [0, 1].
            scale: ratio, at least 1; 8 when neither it nor size, nor both m and n, are given.
            progress: called with (windows done, windows in all).
            options: further fields of `Request`.

        Returns:
            The enlarged picture, of the kind that came.

        Raises:
            InputError: for a picture that cannot be used or contradictory wishes.
            ConfigError: for an unknown or wrong option.
        """
        request = Request.of({"scale": scale, **options})
        return picture_like(self.upscale_picture(picture_from(image), request, progress), image)

    def upscale_picture(self, picture: Picture, request: Request, progress: Progress | None = None) -> Picture:
        """Enlarge one `image.Picture`; alpha is enlarged by bicubic interpolation."""
        plan, store = self.plan(picture.height, picture.width, request), MemoryStore()
        size = picture.height, picture.width
        rows = self.run_passes(part_of(picture.pixels), size, plan, request, store, progress)
        pixels = store.fill("output", plan.height, plan.width, rows)(0, plan.height, 0, plan.width)
        alpha = picture.alpha
        if alpha is not None:
            alpha = upsample(alpha, plan.height, plan.width).clamp_(0, 1)
        return replace(picture, pixels=pixels, alpha=alpha)

    def plan(self, height: int, width: int, request: Request) -> Plan:
        """Return the passes for a picture of that size."""
        r = request
        most = {"max_m": self.config.m_range[1], "max_n": self.config.n_range[1]}
        return plan_passes(height, width, scale=r.scale, size=r.size, m=r.m, n=r.n, stage=r.stage, **most)

    def run_passes(
        self,
        source: Region,
        size: tuple[int, int],
        plan: Plan,
        request: Request,
        store: Store,
        progress: Progress | None = None,
    ) -> RowsFrom:
        """Run every pass but the last, and return what makes the last one's rows.

        Args:
            source: parts of the input picture, (1, 3, h, w), float32, [-1, 1].
            size: its height and width.
            plan: from `plan`.
            request: windows, colour fix, timesteps.
            store: where the pictures between the passes live.
            progress: called with (windows done, windows in all passes).

        Returns:
            start -> the rows of the enlarged picture from there on, (1, 3, rows, W), float32, [-1, 1].
        """
        counts = [len(self.grid(step, request).windows) for step in plan.passes]
        rows: RowsFrom | None = None
        for number, step in enumerate(plan.passes):
            if rows is not None:
                before = plan.passes[number - 1]
                size = before.height, before.width
                source = store.fill(f"pass_{number}", *size, rows)
            rows = self._pass_rows(source, size, step, request, store, _share(progress, counts, number))
        assert rows is not None, "a plan has at least one pass"
        return rows

    def _pass_rows(
        self, x: Region, size: tuple[int, int], step: Pass, request: Request, store: Store, progress: Progress | None
    ) -> RowsFrom:
        """Return what makes the rows of one pass: upsample → encode → one step → decode by windows → blend → colour."""
        height, width = after = step.height, step.width
        lq_up = upsampled(x, size, after)
        grid, fix, stage = self.grid(step, request), color_fix(request.color), self._stage(step.stage, request)

        def blended(start: int) -> Iterator[Tensor]:
            with inference(stage):
                yield from blended_rows(stage, lq_up, grid, request.batch, progress, start)

        def finished(start: int) -> Iterator[Tensor]:
            rows, statistics = blended, None
            if fix.statistics is not None:
                whole = store.fill(f"stage_{step.stage}_{height}x{width}_unfixed", height, width, blended)
                rows, statistics = partial(_rows_of, whole, after), fix.statistics(whole, lq_up, after)
            y = start
            for fixed in fix.rows(rows(max(0, start - fix.halo_px)), lq_up, after, start, statistics):
                sr, below = fixed.clamp_(-1, 1), y + fixed.shape[-2]
                if step.stage == 2 and request.fidelity:
                    # What stage 2 gets is restored already: to restore it again, as its base would, is not truer to it.
                    sr = sr.lerp(lq_up(y, below, 0, width), request.taken_back)
                y = below
                yield sr

        return finished

    def _stage(self, number: int, request: Request) -> Stage:
        own, asked = (self.config.t1, request.t1) if number == 1 else (self.config.t2, request.t2)
        strength = 1 - request.taken_back if number == 1 else 1.0
        return Stage(self.model.backbone, own if asked is None else asked, f"stage_{number}", strength)

    def grid(self, step: Pass, request: Request) -> WindowGrid:
        """Return the windows of a pass."""
        windows = _window_range(self.config.windows, request.tile_px, request.overlap_px)
        return plan_windows(step.height, step.width, windows, request.shift_px)


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


def _rows_of(whole: Region, size: tuple[int, int], start: int) -> Iterator[Tensor]:
    height, width = size
    step = max(1, _STRIP_PIXELS // width)
    for y in range(start, height, step):
        yield whole(y, min(height, y + step), 0, width)


def _share(progress: Progress | None, counts: list[int], number: int) -> Progress | None:
    """Let one pass count its windows among those of all passes."""
    if progress is None:
        return None
    return lambda done, _: progress(sum(counts[:number]) + done, sum(counts))


def load(model: str | Path = "tiny", device: str = "auto", dtype: str = "auto") -> TUDSR:
    """Load a model; see `TUDSR.load`."""
    return TUDSR.load(model, device, dtype)

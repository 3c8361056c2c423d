"""TUDSR: twice upsampling-diffusion. The paper's figure, top to bottom."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator
from torch import Tensor

from tudsr.color import COLOR_FIXES
from tudsr.config import ModelConfig, Settings, WindowRange
from tudsr.device import pick_device, pick_dtype
from tudsr.errors import ConfigError
from tudsr.folder import Model, load_model
from tudsr.image import Picture, PictureLike, picture_from, picture_like
from tudsr.planner import Pass, Plan, plan_passes
from tudsr.resize import upsample
from tudsr.stage import Stage, inference, whole_picture
from tudsr.windows import WindowGrid, plan_windows

DEFAULT_SCALE = 8.0

Progress = Callable[[int, int], None]


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
        plan = self.plan(picture.height, picture.width, request)
        report = _Windows(progress, [self._grid(step, request).windows for step in plan.passes])
        x = picture.pixels
        for step in plan.passes:
            x = self.run_pass(x, step, request, report.step)
        alpha = picture.alpha
        if alpha is not None:
            alpha = upsample(alpha, plan.height, plan.width).clamp_(0, 1)
        return replace(picture, pixels=x, alpha=alpha)

    def plan(self, height: int, width: int, request: Request) -> Plan:
        """Return the passes for a picture of that size."""
        r = request
        most = {"max_m": self.config.m_range[1], "max_n": self.config.n_range[1]}
        return plan_passes(height, width, scale=r.scale, size=r.size, m=r.m, n=r.n, stage=r.stage, **most)

    def run_pass(self, x: Tensor, step: Pass, request: Request, progress: Progress | None = None) -> Tensor:
        """Run one stage on a whole picture: upsample → encode → one step → decode by windows → blend → colour.

        Args:
            x: (1, 3, h, w), float32, [-1, 1].
            step: which stage, and the size to make.
            request: windows, colour fix, timesteps.
            progress: called with (windows done, windows in all) of this pass.

        Returns:
            (1, 3, step.height, step.width), float32, [-1, 1].
        """
        lq_up = Stage.upsample(x, step.height, step.width)
        grid = self._grid(step, request)
        with inference(self._stage(step.stage, request)) as stage:
            sr = whole_picture(stage, lq_up, grid, request.color, request.batch, progress)
            # What stage 2 gets is restored already: to restore it twice, as its bare base would, is not truer to it.
            return sr.lerp_(lq_up, request.taken_back) if step.stage == 2 and request.fidelity else sr

    def _stage(self, number: int, request: Request) -> Stage:
        own, asked = (self.config.t1, request.t1) if number == 1 else (self.config.t2, request.t2)
        strength = 1 - request.taken_back if number == 1 else 1.0
        return Stage(self.model.backbone, own if asked is None else asked, f"stage_{number}", strength)

    def _grid(self, step: Pass, request: Request) -> WindowGrid:
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


class _Windows:
    """Count windows over all passes."""

    def __init__(self, progress: Progress | None, passes: list[tuple[object, ...]]) -> None:
        self._progress, self._total = progress, sum(map(len, passes))
        self._done = 0

    def step(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(self._done + done, self._total)
        if done == total:
            self._done += total


def load(model: str | Path = "tiny", device: str = "auto", dtype: str = "auto") -> TUDSR:
    """Load a model; see `TUDSR.load`."""
    return TUDSR.load(model, device, dtype)

"""Real-ESRGAN's second-order degradation: a plan of plain numbers drawn from (seed, index), and its execution.

Results depend on (seed, index), the crop and the settings alone: not on order, worker or (up to float rounding, which
JPEG may turn into some levels) on device and batch; in float64 on no CPU's rounding either, nor on the batch.
Source: Wang et al., «Real-ESRGAN» (2021); METHOD («Light degradation») for the light preset.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from tudsr.config import Settings
from tudsr.data.jpeg import jpeg
from tudsr.data.kernels import Kernel, draw_blur_kernel, draw_sinc_kernel
from tudsr.data.operators import Pictures, add_gaussian_noise, add_poisson_noise, blur, resize_to, stacked, whole
from tudsr.errors import ConfigError

Range = tuple[float, float]
ResizeMode = Literal["area", "bilinear", "bicubic"]
_RESIZE_MODES: tuple[ResizeMode, ...] = ("area", "bilinear", "bicubic")
_NOISES = {"gaussian": add_gaussian_noise, "poisson": add_poisson_noise}
_SEED_BOUND = 2**63 - 1


class DegradationStage(Settings):
    """One of the two rounds of blur, resize, noise and JPEG.

    Ranges are inclusive and drawn uniformly. `noise_sigma` is in 8-bit levels, `sigma_px` the kernels' standard
    deviation, `resize_probs` the probabilities of up, down, keep.
    """

    blur_prob: float = Field(default=1.0, ge=0, le=1)
    sigma_px: Range
    sinc_prob: float = Field(default=0.1, ge=0, le=1)
    resize: Range
    resize_probs: tuple[float, float, float]
    gaussian_prob: float = Field(default=0.5, ge=0, le=1)
    noise_sigma: Range
    poisson_scale: Range
    grey_prob: float = Field(default=0.4, ge=0, le=1)
    jpeg_quality: tuple[int, int]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("sigma_px", "resize", "noise_sigma", "poisson_scale", "jpeg_quality"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be two numbers with 0 < low <= high")
        if self.jpeg_quality[1] > 100:
            raise ValueError("jpeg_quality may be at most 100")
        if not self.resize[0] <= 1 <= self.resize[1]:
            raise ValueError("resize must contain 1")
        if min(self.resize_probs) < 0 or abs(sum(self.resize_probs) - 1) > 1e-9:
            raise ValueError("resize_probs must be three probabilities that sum to 1")
        return self


class Degradation(Settings):
    """Both rounds and the final sinc filter."""

    first: DegradationStage
    second: DegradationStage
    final_sinc_prob: float = Field(default=0.8, ge=0, le=1)


class DegradationMix(Settings):
    """Presets and their weights; one is drawn per sample."""

    weights: dict[str, float] = {"light": 0.8, "heavy": 0.2}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unknown = sorted(set(self.weights) - set(PRESETS))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a degradation; known ones: {', '.join(sorted(PRESETS))}")
        if not self.weights or min(self.weights.values()) < 0 or sum(self.weights.values()) <= 0:
            raise ValueError("weights must be non-negative with a positive sum")
        return self


PRESETS: dict[str, Degradation] = {
    "light": Degradation(
        first=DegradationStage(
            sigma_px=(0.2, 3.0), resize=(0.3, 1.5), resize_probs=(0.2, 0.7, 0.1), noise_sigma=(1, 15),
            poisson_scale=(0.05, 2.0), jpeg_quality=(60, 95),
        ),
        second=DegradationStage(
            blur_prob=0.5, sigma_px=(0.2, 1.5), resize=(0.6, 1.2), resize_probs=(0.3, 0.4, 0.3), noise_sigma=(1, 12),
            poisson_scale=(0.05, 1.5), jpeg_quality=(60, 100),
        ),
    ),
    "heavy": Degradation(
        first=DegradationStage(
            sigma_px=(0.2, 3.0), resize=(0.15, 1.5), resize_probs=(0.2, 0.7, 0.1), noise_sigma=(1, 30),
            poisson_scale=(0.05, 3.0), jpeg_quality=(30, 95),
        ),
        second=DegradationStage(
            blur_prob=0.8, sigma_px=(0.2, 1.5), resize=(0.3, 1.2), resize_probs=(0.3, 0.4, 0.3), noise_sigma=(1, 25),
            poisson_scale=(0.05, 2.5), jpeg_quality=(30, 95),
        ),
    ),
    # What a good camera does from further away: a soft lens, hardly any noise, the finest JPEG.
    "camera": Degradation(
        first=DegradationStage(
            sigma_px=(0.4, 2.4), resize=(1.0, 1.0), resize_probs=(0.0, 0.0, 1.0), noise_sigma=(0.2, 2),
            poisson_scale=(0.01, 0.05), jpeg_quality=(98, 100),
        ),
        second=DegradationStage(
            blur_prob=0.0, sigma_px=(0.2, 1.5), resize=(1.0, 1.0), resize_probs=(0.0, 0.0, 1.0), noise_sigma=(0.2, 2),
            poisson_scale=(0.01, 0.05), jpeg_quality=(90, 100),
        ),
        final_sinc_prob=0.2,
    ),
}  # fmt: skip

DegradationLike = str | DegradationMix


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """What one round does to one picture: `noise_level` is a sigma in 8-bit levels or a Poisson scale."""

    kernel: Kernel | None
    resize: float
    resize_mode: ResizeMode
    noise: Literal["gaussian", "poisson"]
    noise_level: float
    noise_grey: bool
    noise_seed: int
    jpeg_quality: int


@dataclass(frozen=True, kw_only=True)
class DegradationPlan:
    """All random choices for one picture, save the noise fields, which their seeds give."""

    first: RoundPlan
    second: RoundPlan
    final_kernel: Kernel | None
    final_resize_mode: ResizeMode
    jpeg_last: bool


def draw_plan(preset: DegradationLike, rng: np.random.Generator) -> DegradationPlan:
    """Draw every choice of one picture's degradation.

    Args:
        preset: a preset's name or a mix (of which one preset is drawn).
        rng: source of every random number.

    Raises:
        ConfigError: when the name is not a preset.
    """
    spec = _resolve(preset, rng)
    first = _draw_round(spec.first, rng)
    second = _draw_round(spec.second, rng)
    return DegradationPlan(
        first=first,
        second=second,
        final_kernel=draw_sinc_kernel(rng) if rng.random() < spec.final_sinc_prob else None,
        final_resize_mode=_draw_mode(rng),
        jpeg_last=bool(rng.random() < 0.5),
    )


def _resolve(preset: DegradationLike, rng: np.random.Generator) -> Degradation:
    if isinstance(preset, DegradationMix):
        weights = np.array(list(preset.weights.values()))
        preset = str(rng.choice(list(preset.weights), p=weights / weights.sum()))
    if preset not in PRESETS:
        raise ConfigError(f"{preset!r} is not a degradation; known ones: {', '.join(sorted(PRESETS))}.")
    return PRESETS[preset]


def _draw_round(spec: DegradationStage, rng: np.random.Generator) -> RoundPlan:
    kernel = draw_blur_kernel(rng, spec.sigma_px, spec.sinc_prob) if rng.random() < spec.blur_prob else None
    direction = rng.choice(3, p=spec.resize_probs)
    factor = (rng.uniform(1.0, spec.resize[1]), rng.uniform(spec.resize[0], 1.0), 1.0)[direction]
    gaussian = bool(rng.random() < spec.gaussian_prob)
    return RoundPlan(
        kernel=kernel,
        resize=float(factor),
        resize_mode=_draw_mode(rng),
        noise="gaussian" if gaussian else "poisson",
        noise_level=float(rng.uniform(*(spec.noise_sigma if gaussian else spec.poisson_scale))),
        noise_grey=bool(rng.random() < spec.grey_prob),
        noise_seed=int(rng.integers(_SEED_BOUND)),
        jpeg_quality=int(rng.integers(spec.jpeg_quality[0], spec.jpeg_quality[1] + 1)),
    )


def _draw_mode(rng: np.random.Generator) -> ResizeMode:
    return _RESIZE_MODES[rng.integers(len(_RESIZE_MODES))]


@torch.no_grad()
def apply_plans(gt: Tensor, lq_h: int, lq_w: int, plans: Sequence[DegradationPlan]) -> Tensor:
    """Carry out each picture's plan, an operator at a time for all of them.

    The first round resizes with respect to gt's size, the second with respect to the LQ size.

    Args:
        gt: (B, 3, H, W) float32 or float64 RGB in [-1, 1].
        lq_h: rows of the LQ pictures.
        lq_w: columns of the LQ pictures.
        plans: the choices, one plan a picture.

    Returns:
        (B, 3, lq_h, lq_w) in [-1, 1], of 8-bit values.
    """
    x: Pictures = list(gt.to(torch.promote_types(gt.dtype, torch.float32)) / 2 + 0.5)  # (3, H, W) in [0, 1] each
    height, width = gt.shape[-2:]
    first, second = [plan.first for plan in plans], [plan.second for plan in plans]
    x = _apply_noise(_blur_and_resize(x, first, height, width), first)
    x = _apply_jpeg(x, first, [True] * len(plans))
    x = _apply_noise(_blur_and_resize(x, second, lq_h, lq_w), second)
    x = _apply_jpeg(x, second, [not plan.jpeg_last for plan in plans])
    modes = [plan.final_resize_mode for plan in plans]
    x = [resize_to(each[None], lq_h, lq_w, mode)[0] for each, mode in zip(x, modes, strict=True)]
    x = blur(x, [plan.final_kernel for plan in plans])
    x = _apply_jpeg(x, second, [plan.jpeg_last for plan in plans])
    return whole(stacked(x).clamp(0, 1).mul(255)).div(127.5).sub(1)


def _blur_and_resize(x: Pictures, plans: Sequence[RoundPlan], height: int, width: int) -> list[Tensor]:
    blurred = blur(x, [plan.kernel for plan in plans])
    return [
        resize_to(each[None], max(1, round(height * p.resize)), max(1, round(width * p.resize)), p.resize_mode)[0]
        for each, p in zip(blurred, plans, strict=True)
    ]


def _apply_noise(x: Pictures, plans: Sequence[RoundPlan]) -> Pictures:
    for noise, grey in product(_NOISES, (False, True)):
        chosen = [i for i, plan in enumerate(plans) if (plan.noise, plan.noise_grey) == (noise, grey)]
        levels, seeds = [plans[i].noise_level for i in chosen], [plans[i].noise_seed for i in chosen]
        x = _changed(x, chosen, partial(_NOISES[noise], levels=levels, grey=grey, seeds=seeds))
    return x


def _apply_jpeg(x: Pictures, plans: Sequence[RoundPlan], where: Sequence[bool]) -> Pictures:
    chosen = [i for i, wanted in enumerate(where) if wanted]
    return _changed(x, chosen, partial(jpeg, qualities=[plans[i].jpeg_quality for i in chosen]))


def _changed(x: Pictures, chosen: Sequence[int], operator: Callable[[Pictures], list[Tensor]]) -> Pictures:
    """Return the pictures, the chosen ones, if any, as one call of an operator makes them."""
    made = dict(zip(chosen, operator([x[i] for i in chosen]), strict=True)) if chosen else {}
    return [made.get(i, picture) for i, picture in enumerate(x)]


def degrade(gt: Tensor, lq_h: int, lq_w: int, *, preset: DegradationLike, seed: int, index: int) -> Tensor:
    """Degrade one picture, reproducibly.

    Args:
        gt: (3, H, W) float32 or float64 RGB in [-1, 1].
        lq_h: rows of the LQ picture.
        lq_w: columns of the LQ picture.
        preset: a preset's name or a mix.
        seed: the run's seed, >= 0.
        index: the sample's index, >= 0.

    Returns:
        (3, lq_h, lq_w) in [-1, 1], of 8-bit values, on gt's device.

    Raises:
        ConfigError: when the name is not a preset.
    """
    return degrade_batch(gt[None], lq_h, lq_w, preset=preset, seed=seed, indices=[index])[0]


def degrade_batch(
    gt: Tensor, lq_h: int, lq_w: int, *, preset: DegradationLike, seed: int, indices: Sequence[int]
) -> Tensor:
    """Degrade a batch, each picture as `degrade` would, up to float rounding.

    Args:
        gt: (B, 3, H, W) float32 or float64 RGB in [-1, 1].
        lq_h: rows of the LQ pictures.
        lq_w: columns of the LQ pictures.
        preset: a preset's name or a mix.
        seed: the run's seed, >= 0.
        indices: each sample's index, >= 0.

    Returns:
        (B, 3, lq_h, lq_w) in [-1, 1], of 8-bit values, on gt's device.

    Raises:
        ConfigError: when the name is not a preset.
    """
    return apply_plans(gt, lq_h, lq_w, [draw_plan(preset, np.random.default_rng((seed, i))) for i in indices])

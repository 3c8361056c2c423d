"""How a scale is split into passes: M by stage 1, N by stage 2, and further passes above M·N = 8."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tudsr.errors import InputError
from tudsr.resize import output_size

MAX_M, MAX_N = 4.0, 2.0  # METHOD's; a model may say others
MAX_PIXELS, MAX_SIDE = 2**31, 2**20
_SAYABLE = 10**12
_CLOSE = 1e-6

Which = Literal["both", 1, 2]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One run of a stage: its number (1 or 2), its upsampling ratio, and the size it makes, in pixels."""

    stage: int
    ratio: float
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The passes from a picture to its enlargement.

    Attributes:
        scale: the total ratio (the larger of the two sides' when a target size was given).
        m: ratio of stage 1, or 1 without it.
        n: ratio of the first pass of stage 2, or 1 without it.
        passes: in order; the last one makes the output's exact size.
    """

    scale: float
    m: float
    n: float
    passes: tuple[Pass, ...]

    @property
    def height(self) -> int:
        """Rows of the output."""
        return self.passes[-1].height

    @property
    def width(self) -> int:
        """Columns of the output."""
        return self.passes[-1].width

    def stretched(self, height: int, width: int) -> bool:
        """Whether a picture of that size gets other proportions: a side that no rounding of one ratio makes."""
        return all(
            abs(self.height - height * ratio) > 1 or abs(self.width - width * ratio) > 1
            for ratio in (self.height / height, self.width / width)
        )


def plan_passes(
    height: int,
    width: int,
    *,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    m: float | None = None,
    n: float | None = None,
    stage: Which = "both",
    max_m: float = MAX_M,
    max_n: float = MAX_N,
    once: float = 1.0,
) -> Plan:
    """Split an enlargement into passes.

    Args:
        height: rows of the input.
        width: columns of the input.
        scale: total ratio, at least 1; needed unless size, or both m and n, are given.
        size: (height, width) of the output instead of a scale; neither side may shrink.
        m: ratio of stage 1 by hand.
        n: ratio of stage 2 by hand.
        stage: both, or 1 or 2 for that stage alone at the whole ratio (the paper's M4, M8 and N4, N8).
        max_m: the largest ratio that is planned for stage 1; m by hand may be larger.
        max_n: the largest ratio that is planned for a pass of stage 2; n by hand may be larger.
        once: the largest ratio that stage 1 makes alone although two passes could; at most max_m counts.

    Returns:
        The plan.

    Raises:
        InputError: when the wishes contradict each other, or ask for less than ×1, for more than MAX_PIXELS in all or
            MAX_SIDE a side, or for more than a model whose second stage does not enlarge can make.

    Source: METHOD, «The idea»: s in [2, 8] → N = 2, M = s / 2; s < 2 → stage 1 only; s > 8 → further stage-2 passes of
    at most ×2 each. Here 2 is max_n and 8 is max_m * max_n.
    """
    if scale is None and size is None and m is not None and n is not None:
        scale = m * n
    target, scale = _target(height, width, scale, size)
    if stage == "both" and m is None and n is None:
        ratios = _planned(scale, max_m, max_n, once)
        stages: Sequence[int] = (1,) + (2,) * (len(ratios) - 1)
    else:
        stages, ratios = _by_hand(scale, m, n, stage)
    sizes = [_between(height, width, target, math.prod(ratios[: k + 1]), scale) for k in range(len(ratios))]
    sizes[-1] = target
    passes = tuple(
        Pass(stage=s, ratio=r, height=h, width=w) for s, r, (h, w) in zip(stages, ratios, sizes, strict=True)
    )
    first = {s: r for s, r in reversed(list(zip(stages, ratios, strict=True)))}
    return Plan(scale=scale, m=first.get(1, 1.0), n=first.get(2, 1.0), passes=passes)


def _target(
    height: int, width: int, scale: float | None, size: tuple[int, int] | None
) -> tuple[tuple[int, int], float]:
    if (scale is None) == (size is None):
        raise InputError("Either a scale or a target size is expected, not both and not neither.")
    if size is None:
        assert scale is not None, "checked above"
        if math.isfinite(scale):
            _check_size(height * scale, width * scale)
        return output_size(height, width, scale), scale
    _check_size(*size)
    if size[0] < height or size[1] < width:
        raise InputError(
            f"The target size {size[1]}x{size[0]} is smaller than the picture's {width}x{height}; sides may not shrink."
        )
    return size, max(size[0] / height, size[1] / width)


def _check_size(height: float, width: float) -> None:
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        w, h = (f"{side:.0f}" if side < _SAYABLE else f"over {_SAYABLE}" for side in (width, height))
        raise InputError(
            f"An output of {w}x{h} pixels is too large; at most {MAX_SIDE} a side and {MAX_PIXELS} in all are accepted."
        )


def check_by_hand(m: float | None, n: float | None, stage: Which) -> None:
    """Refuse what is wrong at any ratio.

    Raises:
        InputError: for m or n that is not a finite number of at least 1, or that stands beside a stage alone.
    """
    for name, value in (("m", m), ("n", n)):
        if value is not None and not (math.isfinite(value) and value >= 1):
            raise InputError(f"{name} is {value}; a finite number of at least 1 is expected.")
    if stage != "both" and (m, n) != (None, None):
        raise InputError(f"With stage {stage} alone the whole ratio is that stage's: leave m and n out.")


def _by_hand(scale: float, m: float | None, n: float | None, stage: Which) -> tuple[Sequence[int], list[float]]:
    check_by_hand(m, n, stage)
    if stage != "both":
        return (stage,), [scale]
    first = m if m is not None else scale / (n or 1.0)
    second = n if n is not None else scale / first
    if first < 1 or second < 1 or abs(first * second / scale - 1) > _CLOSE:
        raise InputError(f"m = {first:g} and n = {second:g} do not make x{scale:g}; each must be at least 1.")
    return (1, 2), [first, second]


def _planned(scale: float, max_m: float, max_n: float, once: float) -> list[float]:
    if scale <= max_m and (scale < max_n or scale <= once or max_n <= 1):
        return [scale]
    if scale <= max_m * max_n * (1 + _CLOSE):  # 2.4 / 0.3 is a hair above 8
        n = min(max_n, scale)  # scale is the smaller one where stage 1 can do less than stage 2
        return [scale / n, n]
    if max_n <= 1:
        raise InputError(f"x{scale:g} is more than this model makes; up to x{max_m:g} is accepted.")
    rest = scale / (max_m * max_n)
    more = math.ceil(math.log(rest, max_n) - _CLOSE)
    return [max_m, max_n] + [rest ** (1 / more)] * more


def _between(height: int, width: int, target: tuple[int, int], so_far: float, scale: float) -> tuple[int, int]:
    """Return the size after a part of the ratio; sides whose ratios differ are stretched in proportion, in the log."""
    if scale == 1:
        return target
    share = math.log(so_far) / math.log(scale)
    sides = (height * (target[0] / height) ** share, width * (target[1] / width) ** share)
    exact = (height * so_far, width * so_far)
    # Rounding of the output must not leak into a middle size that the plain ratio gives exactly.
    close = all(abs(a - b) < 0.5 for a, b in zip(sides, exact, strict=True))
    h, w = exact if close else sides
    return min(target[0], max(height, math.floor(h + 0.5))), min(target[1], max(width, math.floor(w + 0.5)))

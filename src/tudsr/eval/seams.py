"""The seam index: do window borders show in the output?

A picture is processed twice, with grids half a tile apart (`windows.half_tile_px`). Whatever the picture shows is in
both outputs; what is left in their difference d comes from where the windows lie.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tudsr.errors import InputError
from tudsr.windows import WindowGrid

SIGMA_PX = 16
"""The low-pass of the step measure, and half the distance over which a step is taken."""

BAND_PX = 1
"""How far around a border a line still counts as the border's."""

BESIDE_PX = 128
"""How far from a border lines are that its own are held against: beyond, a picture shows something else."""

_LATENT_PX = 64  # no latent's grid is coarser
_TRUNCATE = 4  # sigmas


@dataclass(frozen=True, kw_only=True)
class SeamReport:
    """How much more the difference of two runs changes at window borders than elsewhere; 1 is no seam.

    Attributes:
        gradient_ratio: mean |d[i] - d[i - 1]| where windows begin or end (within 1 px), over the mean of the other
            lines beside them, up to 128 px away, that lie as they do on the latent's grid: windows begin at its
            multiples, where d changes more, window or not. Accepted: <= 1.05.
        step_ratio: mean |low[i + 16] - low[i - 16]|, low being d after a Gaussian of 16 px, at the borders and at the
            middles of the overlaps, over the mean of the lines more than 16 px away from all of them; lines within
            64 px of the picture's edge, which the Gaussian reaches over, are left out. NaN where no line is left of
            either kind. A picture holds few independent samples of it: pool several.
        gradient: that mean at the borders by itself, in the pictures' own range.
        step: likewise; NaN as above.
    """

    gradient_ratio: float
    step_ratio: float
    gradient: float
    step: float


def seam_index(a: Tensor, b: Tensor, grid_a: WindowGrid, grid_b: WindowGrid) -> SeamReport:
    """Measure seams on the difference of two outputs of the same pictures.

    Args:
        a: the output with grid_a, (B, C, H, W), any range; a larger B pools pictures of one size.
        b: the output with grid_b, same shape.
        grid_a: the plain grid.
        grid_b: the shifted grid.

    Returns:
        The two ratios, over both axes; 1 where the outputs are equal everywhere.

    Raises:
        InputError: when shapes and grids do not belong together, or no window border lies inside the picture.
    """
    meter = SeamMeter()
    meter.add(a, b, grid_a, grid_b)
    report = meter.report()
    if math.isnan(report.gradient_ratio):
        raise InputError(f"No window border lies inside a picture of {grid_a.width}x{grid_a.height} px.")
    return report


class SeamMeter:
    """The seam index over several pictures of any sizes: every line of every picture counts the same.

    One photo's borders are few and lie where they lie; what the photo shows there moves its ratios by some hundredths.
    """

    def __init__(self) -> None:
        self._gradient, self._step = _Lines(), _Lines()

    def add(self, a: Tensor, b: Tensor, grid_a: WindowGrid, grid_b: WindowGrid) -> None:
        """Take in two outputs of one picture; arguments as in `seam_index`.

        Raises:
            InputError: when shapes and grids do not belong together.
        """
        for picture, grid in ((a, grid_a), (b, grid_b)):
            if picture.ndim != 4 or picture.shape != a.shape or picture.shape[-2:] != (grid.height, grid.width):
                raise InputError(
                    f"A picture of shape {tuple(picture.shape)} does not belong to a grid of "
                    f"{grid.width}x{grid.height} px."
                )
        d = a.float() - b.float()
        low = _low_pass(d, SIGMA_PX)
        edge = (_TRUNCATE - 1) * SIGMA_PX
        for dim, axis in ((-2, "y"), (-1, "x")):
            borders = _borders(grid_a, axis) | _borders(grid_b, axis)
            middles = _middles(grid_a, axis) | _middles(grid_b, axis)
            period = math.gcd(_period(grid_a, axis), _period(grid_b, axis))
            self._gradient.add(_line_means(d, dim, 1), borders, offset=1, apart=BAND_PX, period=period)
            if d.shape[dim] > 2 * (edge + SIGMA_PX):
                inner = low.narrow(dim, edge, d.shape[dim] - 2 * edge)
                means = _line_means(inner, dim, 2 * SIGMA_PX)
                self._step.add(means, borders | middles, offset=edge + SIGMA_PX, apart=SIGMA_PX)

    def report(self) -> SeamReport:
        """Return the ratios so far; NaN where there is no line of either kind."""
        return SeamReport(
            gradient_ratio=self._gradient.ratio(), step_ratio=self._step.ratio(),
            gradient=_mean(self._gradient.at_borders), step=_mean(self._step.at_borders),
        )  # fmt: skip


class _Lines:
    """The changes across the lines of both axes, those at borders apart from those elsewhere."""

    def __init__(self) -> None:
        self.at_borders: list[float] = []
        self.elsewhere: list[float] = []

    def add(self, means: list[float], borders: set[int], offset: int, apart: int, period: int | None = None) -> None:
        """Sort an axis's lines.

        Args:
            means: the change of each line; line i is taken across the border before pixel i + offset.
            borders: where borders lie, as the pixel after the border.
            offset: in pixels.
            apart: lines farther than this from every border are elsewhere, those within BAND_PX at it, others neither.
            period: of the latent's grid, in pixels; only lines that are whole periods away, within BAND_PX, and no more
                than BESIDE_PX, are elsewhere. None: all are.
        """
        for position, mean in enumerate(means, start=offset):
            away = [position - border for border in borders]
            distance = min(map(abs, away), default=math.inf)
            if distance <= BAND_PX:
                self.at_borders.append(mean)
            elif distance > apart and (period is None or any(_is_alike(one, period) for one in away)):
                self.elsewhere.append(mean)

    def ratio(self) -> float:
        """Return the mean at borders over the mean elsewhere; 1 where both are 0, NaN where there is none of either."""
        inside, outside = _mean(self.at_borders), _mean(self.elsewhere)
        if inside == outside:
            return 1.0
        return inside / outside if outside else math.inf * inside  # NaN stays NaN


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _is_alike(away: int, period: int) -> bool:
    """Whether a line so many pixels from a border is near it and lies as it does on a grid of that period."""
    return abs(away) <= BESIDE_PX and abs((away + period // 2) % period - period // 2) <= BAND_PX


def _along(grid: WindowGrid, axis: str) -> tuple[tuple[int, ...], int, int]:
    """Return an axis's starts, the windows' side and the picture's, in pixels."""
    return (grid.ys, grid.window_h, grid.height) if axis == "y" else (grid.xs, grid.window_w, grid.width)


def _period(grid: WindowGrid, axis: str) -> int:
    """Return what all places where windows begin or end are multiples of, in canvas pixels, with the shift."""
    starts, side, _ = _along(grid, axis)
    return math.gcd(_LATENT_PX, side, grid.shift_px, *starts)


def _borders(grid: WindowGrid, axis: str) -> set[int]:
    """Return where windows begin or end, as the pixel after the border, in the picture's own pixels."""
    starts, side, length = _along(grid, axis)
    places = {at - grid.shift_px for start in starts for at in (start, start + side)}
    return {at for at in places if 0 < at < length}


def _middles(grid: WindowGrid, axis: str) -> set[int]:
    """Return the middles of the overlaps, in the picture's own pixels."""
    return set(grid.seams_y if axis == "y" else grid.seams_x)


def _line_means(d: Tensor, dim: int, distance: int) -> list[float]:
    """Return the mean |d[i + distance] - d[i]| of every line across an axis: (length - distance) values."""
    length = d.shape[dim] - distance
    change = (d.narrow(dim, distance, length) - d.narrow(dim, 0, length)).abs()
    other = [axis for axis in range(d.ndim) if axis != dim % d.ndim]
    return change.mean(other, dtype=torch.float64).tolist()  # (B, C, H, W) -> (length,)


def _low_pass(d: Tensor, sigma: int) -> Tensor:
    """Blur by a Gaussian of `sigma` px, borders repeated; (B, C, H, W) of the same shape."""
    radius = _TRUNCATE * sigma
    position = torch.arange(-radius, radius + 1, dtype=d.dtype, device=d.device)
    kernel = torch.exp(-0.5 * (position / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None, None]  # (1, 1, 1, taps)
    flat = d.flatten(0, 1)[:, None]  # (B, C, H, W) -> (B * C, 1, H, W)
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel)
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode="replicate"), kernel.mT)
    return flat.reshape(d.shape)

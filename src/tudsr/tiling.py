"""Run a function over overlapping windows of a picture and blend the results in bounded memory."""

from collections.abc import Callable
from functools import lru_cache
from types import EllipsisType

import numpy as np
import torch
from torch import Tensor

from tudsr.windows import Window, WindowGrid


def tiled(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    grid: WindowGrid,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Apply a function window by window and blend by a symmetric partition of unity.

    Memory is one canvas of the picture's size and `batch` windows. Accumulation is in float32 (float64 for float64
    pictures) whatever `fn` returns, on the device of `x`; `fn` may work elsewhere and in another precision.

    Args:
        fn: (b, C, window_h, window_w) -> (b, C_out, window_h, window_w); must treat its samples independently.
        x: the picture, (B, C, H, W), any value range; H and W are the grid's.
        grid: the windows, from `plan_windows`.
        batch: windows per call of `fn`, from 1.
        progress: called with (windows done, windows in all) after every call of `fn`.

    Returns:
        (B, C_out, H, W), float32 or float64.
    """
    assert x.shape[-2:] == (grid.height, grid.width), "the grid was planned for another picture"
    windows = grid.windows
    canvas: Tensor | None = None
    for first in range(0, len(windows), batch):
        group = windows[first : first + batch]
        outputs = fn(torch.cat([extract(x, grid, window) for window in group]))  # (b * B, C_out, h, w)
        if canvas is None:
            shape = (x.shape[0], outputs.shape[1], grid.height, grid.width)
            canvas = torch.zeros(shape, dtype=blend_dtype(x), device=x.device)
        for window, output in zip(group, outputs.split(x.shape[0]), strict=True):
            add_window(canvas, output, grid, window)
        if progress is not None:
            progress(first + len(group), len(windows))
    assert canvas is not None, "a grid has at least one window"
    return canvas


def blend_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that windows of `x` are accumulated in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def extract(x: Tensor, grid: WindowGrid, window: Window) -> Tensor:
    """Cut a window out of a picture, padding only this window where it reaches over the picture's border.

    An axis is mirrored (without repeating the border) where it is long enough for the grid's padding, else its border
    is repeated: all windows are cut from the same padded picture.

    Args:
        x: the picture, (B, C, H, W).
        grid: the grid that the window belongs to.
        window: the window, in canvas pixels.

    Returns:
        (B, C, window_h, window_w): a view where the window lies inside the picture.
    """
    y0, x0 = window.y0 - grid.shift_px, window.x0 - grid.shift_px
    y1, x1 = y0 + window.height, x0 + window.width
    if min(y0, x0) >= 0 and y1 <= grid.height and x1 <= grid.width:
        return x[..., y0:y1, x0:x1]
    reach_y = max(grid.shift_px, grid.canvas_h - grid.shift_px - grid.height)
    reach_x = max(grid.shift_px, grid.canvas_w - grid.shift_px - grid.width)
    rows = _source_index(y0, y1, grid.height, reach_y, x.device)
    columns = _source_index(x0, x1, grid.width, reach_x, x.device)
    return x[..., rows[:, None], columns]  # (B, C, H, W) -> (B, C, h, w)


def window_weight(
    grid: WindowGrid, window: Window, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """Return a window's share in the blended picture.

    Over all windows the shares of a pixel add up to 1. They fall along a raised cosine over each overlap, mirror
    images of each other, so that a mirrored grid has mirrored weights.

    Args:
        grid: the grid that the window belongs to.
        window: one of the grid's windows.
        dtype: of the result; the weights are computed in float64.
        device: of the result.

    Returns:
        (1, 1, window_h, window_w), in (0, 1].
    """
    rows = axis_weights(grid.ys, grid.window_h)[grid.ys.index(window.y0)]
    columns = axis_weights(grid.xs, grid.window_w)[grid.xs.index(window.x0)]
    weight = torch.tensor(np.outer(rows, columns), dtype=dtype, device=device)
    return weight[None, None]  # (h, w) -> (1, 1, h, w)


@lru_cache(maxsize=64)
def axis_weights(starts: tuple[int, ...], side: int) -> np.ndarray:
    """Return the partition of unity of one axis.

    Args:
        starts: where the windows begin, rising, in pixels.
        side: the windows' side, in pixels.

    Returns:
        (number of windows, side), float64, read-only. Any pixel's weights, over the windows that hold it, add up to 1.
    """
    weights = np.ones((len(starts), side))
    for i, (left, right) in enumerate(zip(starts, starts[1:], strict=False)):
        overlap = max(left + side - right, 0)
        # Sampled at pixel centres: ramp + mirrored ramp = sin² + cos² = 1.
        ramp = np.sin(0.5 * np.pi * (np.arange(overlap) + 0.5) / max(overlap, 1)) ** 2
        weights[i, side - overlap :] *= ramp[::-1]
        weights[i + 1, :overlap] *= ramp
    # Where three windows meet, ramps do not add up to 1 by themselves.
    total = np.zeros(starts[-1] + side)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + side] += row
    for start, row in zip(starts, weights, strict=True):
        row /= total[start : start + side]
    weights.setflags(write=False)
    return weights


def add_window(canvas: Tensor, output: Tensor, grid: WindowGrid, window: Window) -> None:
    """Add a window's weighted output to the canvas, in place, leaving out what lies beyond the picture.

    Args:
        canvas: (B, C, H, W), float32 or float64; changed.
        output: (B, C, window_h, window_w), any dtype and device.
        grid: the grid that the window belongs to.
        window: the window, in canvas pixels.
    """
    seen, inside = grid.visible(window), _inside(grid, window)
    weight = window_weight(grid, window, canvas.dtype, canvas.device)[inside]
    canvas[..., seen.y0 : seen.y1, seen.x0 : seen.x1] += output.to(canvas)[inside] * weight


def share_of(gradient: Tensor, grid: WindowGrid, window: Window) -> Tensor:
    """Return the gradient of a window's output, given the blended picture's: the transpose of `add_window`.

    Args:
        gradient: of the blended picture, (B, C, H, W).
        grid: the grid that the window belongs to.
        window: the window, in canvas pixels.

    Returns:
        (B, C, window_h, window_w): weighted, and zero beyond the picture.
    """
    seen, inside = grid.visible(window), _inside(grid, window)
    share = gradient.new_zeros(*gradient.shape[:2], window.height, window.width)
    weight = window_weight(grid, window, gradient.dtype, gradient.device)[inside]
    share[inside] = gradient[..., seen.y0 : seen.y1, seen.x0 : seen.x1] * weight
    return share


def _inside(grid: WindowGrid, window: Window) -> tuple[EllipsisType, slice, slice]:
    """Return the index of a window's pixels that lie in the picture."""
    seen = grid.visible(window)
    y, x = grid.shift_px - window.y0, grid.shift_px - window.x0
    return ..., slice(seen.y0 + y, seen.y1 + y), slice(seen.x0 + x, seen.x1 + x)


def _source_index(start: int, stop: int, size: int, reach: int, device: torch.device) -> Tensor:
    """Return which pixels of an axis of `size` stand at start to stop when padding goes `reach` px beyond its ends."""
    position = torch.arange(start, stop, device=device)
    if reach >= size:
        return position.clamp(0, size - 1)
    mirrored = torch.where(position < 0, -position, position)
    return torch.where(mirrored >= size, 2 * (size - 1) - mirrored, mirrored)

"""Run a function over overlapping windows of a picture and blend the results in bounded memory."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from types import EllipsisType

import numpy as np
import torch
from torch import Tensor

from tudsr.resize import Region, part_of
from tudsr.windows import Window, WindowGrid

Fn = Callable[[Tensor], Tensor]
Each = Callable[[Fn, Iterator[Tensor]], Iterator[Tensor]]
"""A function and what it is asked -> its answers, in order; `map` is one."""
Progress = Callable[[int, int], None]


def tiled(fn: Fn, x: Tensor, grid: WindowGrid, batch: int = 1, progress: Progress | None = None) -> Tensor:
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
    windows = list(grid.windows)
    canvas: Tensor | None = None
    for done, (window, output) in enumerate(_outputs(fn, part_of(x), grid, _groups(windows, batch)), 1):
        if canvas is None:
            shape = (x.shape[0], output.shape[1], grid.height, grid.width)
            canvas = torch.zeros(shape, dtype=blend_dtype(x), device=x.device)
        add_window(canvas, output, grid, window)
        if progress is not None and (done % batch == 0 or done == len(windows)):
            progress(done, len(windows))
    assert canvas is not None, "a grid has at least one window"
    return canvas


def tiled_rows(
    fn: Fn,
    region: Region,
    grid: WindowGrid,
    batch: int = 1,
    progress: Progress | None = None,
    start: int = 0,
    each: Each = map,
) -> Iterator[Tensor]:
    """Do what `tiled` does for a picture that need not fit into memory: yield the blended rows, top to bottom.

    Memory is one row of windows. The rows are the same whatever `start` is, to the bit: windows are batched within
    their row only, and added in the same order.

    Args:
        fn: as in `tiled`.
        region: gives parts of the picture, (B, C, h, w).
        grid: the windows.
        batch: windows per call of `fn`.
        progress: called with (windows done, windows in all); windows above `start` count as done.
        start: the first row that is wanted, in the picture's pixels.
        each: calls `fn`, perhaps elsewhere; it may take some windows of the next row before it gives this row's last.

    Yields:
        (B, C_out, rows, W), float32 or float64: the rows that no later window touches, from `start` to the last one.
    """
    numbers = [i for i, y0 in enumerate(grid.ys) if grid.visible(_row(grid, y0)[0]).y1 > start]
    groups = [group for i in numbers for group in _groups(_row(grid, grid.ys[i]), batch)]
    outputs = _outputs(fn, region, grid, groups, each)
    band: Tensor | None = None
    top, columns = start, len(grid.xs)  # top is the picture's row that the band begins with
    for number in numbers:
        finished = grid.height if number == len(grid.ys) - 1 else max(top, grid.ys[number + 1] - grid.shift_px)
        for column, (window, output) in enumerate(islice(outputs, columns), 1):
            band = _grown(band, output, grid.visible(window).y1 - top, grid.width)
            add_window(band, output, grid, window, top)
            if progress is not None and (column % batch == 0 or column == columns):
                progress(number * columns + column, len(grid.ys) * columns)
        assert band is not None, "a row has at least one window"
        if finished > top:
            yield band[..., : finished - top, :]
            band = band[..., finished - top :, :].clone()
            top = finished


def share_of_progress(progress: Progress | None, counts: list[int], number: int) -> Progress | None:
    """Let one of several passes, of that many windows each, count its windows among those of all."""
    if progress is None:
        return None
    return lambda done, _: progress(sum(counts[:number]) + done, sum(counts))


def _row(grid: WindowGrid, y0: int) -> list[Window]:
    return [Window(y0=y0, x0=x0, y1=y0 + grid.window_h, x1=x0 + grid.window_w) for x0 in grid.xs]


def _groups(windows: list[Window], batch: int) -> list[list[Window]]:
    return [windows[first : first + batch] for first in range(0, len(windows), batch)]


def _grown(band: Tensor | None, output: Tensor, rows: int, width: int) -> Tensor:
    """Return the band with zeros below it, as many rows as it takes; itself where it has them."""
    have = 0 if band is None else band.shape[-2]
    if band is not None and have >= rows:
        return band
    grown = torch.zeros(*output.shape[:2], rows, width, dtype=blend_dtype(output), device=output.device)
    if band is not None:
        grown[..., :have, :] = band
    return grown


def _outputs(
    fn: Fn, region: Region, grid: WindowGrid, groups: list[list[Window]], each: Each = map
) -> Iterator[tuple[Window, Tensor]]:
    """Run `fn` on groups of windows and yield each window with its output, (B, C_out, window_h, window_w)."""
    inputs = (torch.cat([_cut(region, grid, window) for window in group]) for group in groups)  # (b * B, C, h, w)
    for group, outputs in zip(groups, each(fn, inputs), strict=True):
        yield from zip(group, outputs.chunk(len(group)), strict=True)


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
    return _cut(part_of(x), grid, window)


def _cut(region: Region, grid: WindowGrid, window: Window) -> Tensor:
    y0, x0 = window.y0 - grid.shift_px, window.x0 - grid.shift_px
    y1, x1 = y0 + window.height, x0 + window.width
    if min(y0, x0) >= 0 and y1 <= grid.height and x1 <= grid.width:
        return region(y0, y1, x0, x1)
    rows = _source_index(y0, y1, grid.height, max(grid.shift_px, grid.canvas_h - grid.shift_px - grid.height))
    columns = _source_index(x0, x1, grid.width, max(grid.shift_px, grid.canvas_w - grid.shift_px - grid.width))
    top, left = int(rows.min()), int(columns.min())
    seen = region(top, int(rows.max()) + 1, left, int(columns.max()) + 1)
    rows, columns = (rows - top).to(seen.device), (columns - left).to(seen.device)
    return seen[..., rows[:, None], columns]  # (B, C, H, W) -> (B, C, h, w)


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
    # On CUDA the product is made there, which is quicker than to send it; MPS has no float64.
    there = torch.device(device or "cpu")
    there = there if there.type == "cuda" else torch.device("cpu")
    rows = _axis_on(there, grid.ys, grid.window_h)[grid.ys.index(window.y0)]
    columns = _axis_on(there, grid.xs, grid.window_w)[grid.xs.index(window.x0)]
    return torch.outer(rows, columns).to(device, dtype)[None, None]  # (h, w) -> (1, 1, h, w)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve training too
def _axis_on(device: torch.device, starts: tuple[int, ...], side: int) -> Tensor:
    """Return `axis_weights` on a device: sent there at every window, they would each time wait for its work."""
    return torch.from_numpy(axis_weights(starts, side)).to(device)


def axis_weights(starts: tuple[int, ...], side: int) -> np.ndarray:
    """Return the partition of unity of one axis.

    Args:
        starts: where the windows begin, rising, in pixels.
        side: the windows' side, in pixels.

    Returns:
        (number of windows, side), float64. Any pixel's weights, over the windows that hold it, add up to 1.
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
    return weights


def add_window(canvas: Tensor, output: Tensor, grid: WindowGrid, window: Window, top: int = 0) -> None:
    """Add a window's weighted output to the canvas, in place, leaving out what lies beyond it.

    Args:
        canvas: (B, C, rows, W), float32 or float64; changed.
        output: (B, C, window_h, window_w), any dtype and device.
        grid: the grid that the window belongs to.
        window: the window, in canvas pixels.
        top: the picture's row that `canvas` begins with.
    """
    seen = grid.visible(window)
    above = max(top - seen.y0, 0)
    inside = _inside(grid, window)
    weight = window_weight(grid, window, canvas.dtype, canvas.device)[inside][..., above:, :]
    canvas[..., seen.y0 + above - top : seen.y1 - top, seen.x0 : seen.x1] += (
        output.to(canvas)[inside][..., above:, :] * weight
    )


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


def _source_index(start: int, stop: int, size: int, reach: int) -> Tensor:
    """Return which pixels of an axis of `size` stand at start to stop when padding goes `reach` px beyond its ends."""
    position = torch.arange(start, stop)
    if reach >= size:
        return position.clamp(0, size - 1)
    mirrored = torch.where(position < 0, -position, position)
    return torch.where(mirrored >= size, 2 * (size - 1) - mirrored, mirrored)

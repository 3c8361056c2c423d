"""Integer geometry of windows: which rectangles of a picture are processed, in which order. No tensors here.

A window is a tile at inference (overlapped and blended) and a chunk in training (one backward each). A plan depends
on the picture's size and a `WindowRange` alone. The range is the model's own, unless a user asks for other windows, or
there is too little memory for them: then, and as the last resort (memory.py), the largest of the range are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from tudsr.config import WindowRange
from tudsr.errors import ConfigError, InputError

_LATENT_PX = 8


@dataclass(frozen=True, kw_only=True)
class Window:
    """A rectangle in pixels, half-open: rows y0 to y1, columns x0 to x1."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def height(self) -> int:
        """Rows, in pixels."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Columns, in pixels."""
        return self.x1 - self.x0


@dataclass(frozen=True, kw_only=True)
class WindowGrid:
    """Windows of one size over a picture that is padded to a canvas.

    The picture's top-left pixel sits at (shift_px, shift_px) of the canvas. Windows are the product of the row starts
    `ys` and the column starts `xs`, both in canvas pixels, both rising from 0.
    """

    height: int
    width: int
    window_h: int
    window_w: int
    ys: tuple[int, ...]
    xs: tuple[int, ...]
    shift_px: int = 0

    @property
    def canvas_h(self) -> int:
        """Rows of the padded picture, in pixels."""
        return self.ys[-1] + self.window_h

    @property
    def canvas_w(self) -> int:
        """Columns of the padded picture, in pixels."""
        return self.xs[-1] + self.window_w

    @property
    def windows(self) -> tuple[Window, ...]:
        """All windows in raster order, in canvas pixels."""
        return tuple(Window(y0=y, x0=x, y1=y + self.window_h, x1=x + self.window_w) for y in self.ys for x in self.xs)

    @property
    def work_px(self) -> int:
        """The sum of the windows' areas: what a model computes for this picture."""
        return len(self.ys) * len(self.xs) * self.window_h * self.window_w

    @property
    def seams_y(self) -> tuple[int, ...]:
        """The middles of the overlaps between rows of windows, in the picture's own pixels (before that row)."""
        return _middles(self.ys, self.window_h, self.shift_px)

    @property
    def seams_x(self) -> tuple[int, ...]:
        """The middles of the overlaps between columns of windows, in the picture's own pixels (before that column)."""
        return _middles(self.xs, self.window_w, self.shift_px)

    def visible(self, window: Window) -> Window:
        """Return the part of the picture that a window covers, in the picture's own pixels.

        Args:
            window: one of `windows`, in canvas pixels.
        """
        return Window(
            y0=max(window.y0 - self.shift_px, 0),
            x0=max(window.x0 - self.shift_px, 0),
            y1=min(window.y1 - self.shift_px, self.height),
            x1=min(window.x1 - self.shift_px, self.width),
        )


def plan_windows(height: int, width: int, window_range: WindowRange, shift_px: int = 0) -> WindowGrid:
    """Choose the windows that cover a picture with the least work.

    On each axis, among sides that are multiples of `stride_px` within [min_px, max_px], the pair (side, count) with
    the smallest side * count whose windows cover the axis while neighbours share `overlap_px` or more; ties go to
    fewer windows. Starts are spread evenly. They are multiples of an alignment: the greatest common divisor of the
    stride and of the overlap rounded up to 8 px (or to the stride's own divisor of 8), which is the coarsest grid
    that costs no work, and keeps every window at the same phase of the latent.

    Args:
        height: rows of the picture, in pixels, from 1.
        width: columns of the picture, in pixels, from 1.
        window_range: the model's window sides and overlap.
        shift_px: rows and columns of padding above and left of the picture, less than a window. The plan of the
            unshifted picture is kept and goes on in its largest step as far as needed, so that every cut moves by the
            shift. Should be a multiple of the model's latent factor: see `half_tile_px`.

    Returns:
        The grid, with the least canvas that holds its windows.

    Raises:
        InputError: for a side below 1, or a shift that is negative or as large as a window.
        ConfigError: when the overlap leaves no window side that advances.
    """
    if height < 1 or width < 1:
        raise InputError(f"A picture of {width}x{height} px cannot be cut into windows; sides start at 1 px.")
    window_h, ys = _plan_axis(height, window_range, shift_px)
    window_w, xs = _plan_axis(width, window_range, shift_px)
    if not 0 <= shift_px < min(window_h, window_w):
        raise InputError(f"shift_px is {shift_px}; 0 to {min(window_h, window_w) - 1} is less than a window.")
    return WindowGrid(height=height, width=width, window_h=window_h, window_w=window_w, ys=ys, xs=xs, shift_px=shift_px)


def half_tile_px(height: int, width: int, window_range: WindowRange) -> int:
    """Return the `shift_px` that puts window borders half a step away from where the plain plan has them.

    Args:
        height: rows of the picture, in pixels.
        width: columns of the picture, in pixels.
        window_range: the model's window sides and overlap.

    Returns:
        Half of the smaller axis's step, in pixels, rounded down to the alignment of the starts.
    """
    overlap, align = _overlap_and_align(window_range)
    grid = plan_windows(height, width, window_range)
    steps = (_step(grid.ys, grid.window_h, overlap), _step(grid.xs, grid.window_w, overlap))
    return min(steps) // 2 // align * align


def chunk_grid(side_px: int, n: int) -> WindowGrid:
    """Cut a square picture into the n*n chunks of the looped training, in raster order and without overlap.

    Args:
        side_px: the picture's side N*R, in pixels.
        n: chunks per axis; it divides the side.

    Returns:
        A grid whose windows have the side side_px / n and whose canvas is the picture.

    Source: METHOD, «Training»: y is cut in raster order into N² chunks of R×R.
    """
    assert side_px % n == 0, "settings see to that"
    side = side_px // n
    starts = tuple(range(0, side_px, side))
    return WindowGrid(height=side_px, width=side_px, window_h=side, window_w=side, ys=starts, xs=starts)


def _plan_axis(length: int, window_range: WindowRange, shift_px: int) -> tuple[int, tuple[int, ...]]:
    """Return the side and the starts of one axis's windows, in canvas pixels."""
    overlap, align = _overlap_and_align(window_range)
    candidates = tuple(_candidates(length, window_range, overlap))
    if not candidates:
        raise ConfigError(f"overlap_px {window_range.overlap_px} is too large for windows of {window_range.max_px} px.")
    _, count, side = min(candidates)
    # The last start: as little padding as the alignment allows, over as many aligned units as there are steps.
    units = -(-max(length - side, 0) // align)
    starts = tuple(i * units // max(count - 1, 1) * align for i in range(count))
    while starts[-1] + side < shift_px + length and shift_px:
        starts += (starts[-1] + _step(starts, side, overlap),)
    return side, starts


def _candidates(length: int, window_range: WindowRange, overlap: int) -> Iterator[tuple[int, int, int]]:
    """Yield (work, count, side) with the least count for every side that can cover the axis."""
    for side in range(window_range.min_px, window_range.max_px + 1, window_range.stride_px):
        if side >= length:
            yield side, 1, side
        elif side > overlap:
            count = -(-(length - overlap) // (side - overlap))
            yield side * count, count, side


def _overlap_and_align(window_range: WindowRange) -> tuple[int, int]:
    """Return the overlap rounded up to the latent's phase, and the alignment of the windows' starts."""
    phase = gcd(window_range.stride_px, _LATENT_PX)
    overlap = -(-window_range.overlap_px // phase) * phase
    return overlap, gcd(window_range.stride_px, overlap)


def _step(starts: tuple[int, ...], side: int, overlap: int) -> int:
    """Return the largest step between neighbours, or the largest allowed one where there is a single window."""
    if len(starts) == 1:
        return max(side - overlap, 1)
    return max(b - a for a, b in zip(starts, starts[1:], strict=False))


def _middles(starts: tuple[int, ...], side: int, shift_px: int) -> tuple[int, ...]:
    """Return the middles of the overlaps of neighbours, less the shift."""
    return tuple((a + side + b) // 2 - shift_px for a, b in zip(starts, starts[1:], strict=False))

"""Windows: coverage, bounds, multiples, overlap, and the least work."""

from math import ceil, gcd

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tudsr.backbones import sd21
from tudsr.config import WindowRange
from tudsr.errors import ConfigError, InputError
from tudsr.windows import Window, chunk_grid, half_tile_px, plan_windows

SD21 = WindowRange(**sd21.blueprint().settings["windows"])


@st.composite
def window_ranges(draw: st.DrawFn) -> WindowRange:
    stride = draw(st.sampled_from([4, 8, 12, 16, 32, 64]))
    low = stride * draw(st.integers(-(-16 // stride), 8))
    high = low + stride * draw(st.integers(0, 6))
    return WindowRange(min_px=low, max_px=high, stride_px=stride, overlap_px=draw(st.integers(0, low // 2)))


def rounded_overlap(spec: WindowRange) -> int:
    phase = gcd(spec.stride_px, 8)
    return ceil(spec.overlap_px / phase) * phase


def test_the_issues_example_takes_two_windows_of_544_per_axis():
    grid = plan_windows(1024, 1024, SD21)
    assert (grid.window_h, grid.window_w) == (544, 544)
    assert grid.ys == grid.xs == (0, 480)
    assert (grid.canvas_h, grid.canvas_w) == (1024, 1024)
    assert grid.work_px < 0.51 * 9 * 512**2


@pytest.mark.parametrize("length", [1, 7, 511, 512])
def test_a_small_picture_is_one_smallest_window(length):
    grid = plan_windows(length, length, SD21)
    assert grid.windows == (Window(y0=0, x0=0, y1=512, x1=512),)


def test_one_window_grows_to_the_next_multiple_only():
    grid = plan_windows(513, 600, SD21)
    assert (grid.window_h, grid.window_w) == (528, 608)
    assert len(grid.windows) == 1


def test_raster_order():
    grid = plan_windows(1024, 1500, SD21)
    assert [(w.y0, w.x0) for w in grid.windows] == [(y, x) for y in grid.ys for x in grid.xs]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(window_ranges(), st.integers(1, 1500), st.integers(1, 300), st.integers(0, 15))
def test_coverage_bounds_multiples_and_overlap(spec, height, width, shift):
    grid = plan_windows(height, width, spec, shift_px=shift)
    align = gcd(spec.stride_px, rounded_overlap(spec))
    for starts, side, length in ((grid.ys, grid.window_h, height), (grid.xs, grid.window_w, width)):
        assert spec.min_px <= side <= spec.max_px
        assert side % spec.stride_px == 0
        assert starts[0] == 0
        assert all(start % align == 0 for start in starts)
        assert starts[-1] + side >= length + shift
        assert all(a < b <= a + side - spec.overlap_px for a, b in zip(starts, starts[1:], strict=False))
        assert starts[-1] < length + shift, "a window that sees nothing of the picture"
        if not shift and len(starts) > 1:
            assert starts[-1] + side - length < align, "more padding than the alignment asks for"
        assert align % gcd(spec.stride_px, 8) == 0


@settings(max_examples=150, deadline=None, derandomize=True)
@given(window_ranges(), st.integers(1, 1500))
def test_work_is_the_least_by_brute_force(spec, length):
    overlap = rounded_overlap(spec)
    possible = [
        (count * side, count)
        for side in range(spec.min_px, spec.max_px + 1, spec.stride_px)
        for count in range(1, 110)
        if side >= length or (count > 1 and count * side - (count - 1) * overlap >= length)
    ]
    grid = plan_windows(length, 1, spec)
    if possible:
        assert (len(grid.ys) * grid.window_h, len(grid.ys)) == min(possible)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 5000))
def test_starts_are_spread_evenly(length):
    starts = plan_windows(length, 1, SD21).ys
    steps = {b - a for a, b in zip(starts, starts[1:], strict=False)}
    assert not steps or max(steps) - min(steps) <= SD21.stride_px


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(300, 4000), st.integers(300, 4000))
def test_half_tile_shift_moves_every_border(height, width):
    spec = WindowRange(min_px=128, max_px=256, stride_px=16, overlap_px=32)
    shift = half_tile_px(height, width, spec)
    plain, moved = plan_windows(height, width, spec), plan_windows(height, width, spec, shift)
    assert shift % 16 == 0
    assert (moved.window_h, moved.window_w) == (plain.window_h, plain.window_w)
    for before, after in ((plain.seams_y, moved.seams_y), (plain.seams_x, moved.seams_x)):
        assert after[: len(before)] == tuple(at - shift for at in before)


def test_half_tile_is_half_the_step():
    assert half_tile_px(1024, 1024, WindowRange(min_px=512, max_px=640, stride_px=8, overlap_px=64)) == 240
    # of the windows that are used, however small they might be
    spec = WindowRange(min_px=64, max_px=1024, stride_px=16, overlap_px=32)
    assert plan_windows(2048, 2048, spec).ys == (0, 672, 1344)
    assert half_tile_px(2048, 2048, spec) == 336


def test_visible_is_the_part_of_the_picture():
    grid = plan_windows(600, 1000, SD21, shift_px=64)
    first, last = grid.windows[0], grid.windows[-1]
    assert grid.visible(first) == Window(y0=0, x0=0, y1=min(600, first.y1 - 64), x1=first.x1 - 64)
    assert (grid.visible(last).y1, grid.visible(last).x1) == (600, 1000)


def test_seams_are_the_middles_of_the_overlaps():
    assert plan_windows(1024, 1024, SD21).seams_x == (512,)
    assert chunk_grid(96, 3).seams_y == (32, 64)


@pytest.mark.parametrize(("side", "n"), [(64, 1), (64, 2), (96, 3), (64, 4)])
def test_chunks_cover_the_picture_once(side, n):
    grid = chunk_grid(side, n)
    seen = [(y, x) for w in grid.windows for y in range(w.y0, w.y1) for x in range(w.x0, w.x1)]
    assert len(seen) == len(set(seen)) == side**2
    assert len(grid.windows) == n**2
    assert grid.windows[0] == Window(y0=0, x0=0, y1=side // n, x1=side // n)


def test_impossible_plans_are_refused():
    with pytest.raises(InputError, match="start at 1"):
        plan_windows(0, 5, SD21)
    for shift in (-1, 608):
        with pytest.raises(InputError, match="0 to 607 is less than a window"):
            plan_windows(600, 600, SD21, shift_px=shift)
    with pytest.raises(ConfigError, match="too large"):
        plan_windows(20, 20, WindowRange(min_px=8, max_px=8, stride_px=8, overlap_px=4))

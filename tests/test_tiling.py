"""Tiling: identity for every size, a symmetric partition of unity, one padded picture, bounded memory."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tudsr.config import WindowRange
from tudsr.resize import part_of
from tudsr.tiling import add_window, axis_weights, extract, share_of, tiled, tiled_rows, window_weight
from tudsr.windows import Window, WindowGrid, chunk_grid, plan_windows

SMALL = WindowRange(min_px=16, max_px=32, stride_px=8, overlap_px=8)


def picture(height: int, width: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rng = torch.Generator().manual_seed(height * 1009 + width)
    return torch.rand(batch, 3, height, width, generator=rng, dtype=dtype) * 2 - 1


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 15), st.integers(1, 7))
@example(1, 1, 0, 1)
@example(1, 1, 15, 3)
@example(1, 150, 7, 2)
def test_tiled_identity_is_the_identity(height, width, shift, batch):
    x = picture(height, width)
    result = tiled(lambda window: window, x, plan_windows(height, width, SMALL, shift), batch)
    assert result.shape == x.shape
    assert (result - x).abs().max() <= 1e-6


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(8, 24), st.integers(1, 3), st.integers(0, 12), st.integers(1, 400))
def test_identity_for_any_range(units, spread, overlap, length):
    spec = WindowRange(min_px=units, max_px=units + spread, stride_px=1, overlap_px=min(overlap, units // 2))
    x = picture(length, 3)
    assert (tiled(lambda window: window, x, plan_windows(length, 3, spec)) - x).abs().max() <= 1e-6


def test_identity_at_the_full_models_windows():
    x = picture(1000, 777)
    spec = WindowRange(min_px=512, max_px=640, stride_px=32, overlap_px=64)
    assert (tiled(lambda window: window, x, plan_windows(1000, 777, spec)) - x).abs().max() <= 1e-6


def test_a_pointwise_function_and_a_change_of_channels():
    x = picture(70, 45)
    result = tiled(lambda window: torch.sin(3 * window[:, :1]), x, plan_windows(70, 45, SMALL), batch=3)
    torch.testing.assert_close(result, torch.sin(3 * x[:, :1]), atol=1e-6, rtol=0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(4, 40), st.data())
def test_axis_weights_are_a_symmetric_partition_of_unity(count, side, data):
    steps = data.draw(st.lists(st.integers(1, side), min_size=count - 1, max_size=count - 1))
    starts = tuple(np.cumsum([0, *steps]).tolist())
    weights = axis_weights(starts, side)
    total = np.zeros(starts[-1] + side)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + side] += row
    np.testing.assert_allclose(total, 1, atol=1e-12)
    assert weights.min() > 0
    mirrored = axis_weights(tuple(starts[-1] - start for start in reversed(starts)), side)
    np.testing.assert_allclose(mirrored, weights[::-1, ::-1], atol=1e-12)


def test_ramp_is_a_raised_cosine():
    weights = axis_weights((0, 12), 20)
    k = np.arange(8)
    np.testing.assert_allclose(weights[1, :8], 0.5 - 0.5 * np.cos(np.pi * (k + 0.5) / 8), atol=1e-15)
    np.testing.assert_allclose(weights[0, :12], 1)
    assert np.abs(np.diff(weights[1])).max() < 0.2, "no step"


def test_window_weight_is_the_same_under_transposition():
    tall, wide = plan_windows(100, 30, SMALL), plan_windows(30, 100, SMALL)
    for a, b in zip(tall.windows, wide.windows, strict=True):
        torch.testing.assert_close(window_weight(tall, a), window_weight(wide, b).mT, atol=0, rtol=0)


@pytest.mark.parametrize(("height", "width", "shift"), [(37, 61, 0), (37, 61, 8), (9, 61, 8), (2, 3, 5), (1, 1, 3)])
def test_windows_are_cut_from_one_padded_picture(height, width, shift):
    x = picture(height, width, batch=2)
    grid = plan_windows(height, width, SMALL, shift)
    padded = x.numpy()
    for axis, length, canvas in ((2, height, grid.canvas_h), (3, width, grid.canvas_w)):
        after = canvas - shift - length
        pads = [(0, 0)] * 4
        pads[axis] = (shift, after)
        padded = np.pad(padded, pads, mode="reflect" if max(shift, after) < length else "edge")
    for window in grid.windows:
        wanted = padded[:, :, window.y0 : window.y1, window.x0 : window.x1]
        np.testing.assert_array_equal(extract(x, grid, window).numpy(), wanted)


def test_inner_windows_are_views():
    x = picture(96, 96)
    grid = chunk_grid(96, 3)
    assert all(extract(x, grid, window).data_ptr() >= x.data_ptr() for window in grid.windows)
    assert extract(x, grid, grid.windows[4])._base is x


def test_batching_and_order_change_nothing():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.GroupNorm(2, 8), torch.nn.Conv2d(8, 3, 1))
    x = picture(75, 93)
    grid = plan_windows(75, 93, SMALL)
    with torch.no_grad():
        one = tiled(net, x, grid, batch=1)
        for batch in (2, 5, 100):
            assert (tiled(net, x, grid, batch=batch) - one).abs().max() <= 1e-5
        backwards = torch.zeros_like(x)
        for window in reversed(grid.windows):
            add_window(backwards, net(extract(x, grid, window)), grid, window)
    assert (backwards - one).abs().max() <= 1e-5


def test_a_batch_of_pictures_equals_each_alone():
    x = picture(50, 41, batch=3)
    grid = plan_windows(50, 41, SMALL)
    together = tiled(lambda window: window * window.mean((1, 2, 3), keepdim=True), x, grid, batch=2)
    for i in range(3):
        alone = tiled(lambda window: window * window.mean((1, 2, 3), keepdim=True), x[i : i + 1], grid)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_accumulation_is_at_least_float32(given_dtype, dtype):
    x = torch.full((1, 3, 60, 60), 0.7).to(given_dtype)
    result = tiled(lambda window: window, x, plan_windows(60, 60, SMALL))
    assert result.dtype == dtype
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(result, x.to(dtype), atol=tolerance, rtol=0)


def test_share_is_the_transpose_of_add():
    grid = plan_windows(45, 52, SMALL, shift_px=5)
    rng = torch.Generator().manual_seed(3)
    gradient = torch.randn(2, 3, 45, 52, generator=rng, dtype=torch.float64)
    for window in grid.windows:
        output = torch.randn(2, 3, grid.window_h, grid.window_w, generator=rng, dtype=torch.float64)
        canvas = torch.zeros_like(gradient)
        add_window(canvas, output, grid, window)
        left, right = (canvas * gradient).sum(), (output * share_of(gradient, grid, window)).sum()
        torch.testing.assert_close(left, right, atol=0, rtol=1e-12)


def test_progress_counts_windows():
    calls: list[tuple[int, int]] = []
    grid = plan_windows(60, 60, SMALL)
    count = len(grid.windows)
    tiled(
        lambda window: window, picture(60, 60), grid, batch=4, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(min(i + 4, count), count) for i in range(0, count, 4)]


def test_weights_made_in_inference_mode_serve_training():
    grid = WindowGrid(height=24, width=24, window_h=16, window_w=16, ys=(0, 8), xs=(0, 8))
    with torch.inference_mode():
        tiled(lambda window: window, picture(24, 24), grid)
    scale = torch.ones((), requires_grad=True)
    tiled(lambda window: window * scale, picture(24, 24), grid).sum().backward()
    torch.testing.assert_close(scale.grad, picture(24, 24).sum(), atol=1e-3, rtol=0)


def test_only_windows_beside_the_canvas():
    """No tensor of more than a window is made, apart from the result."""
    sizes: list[int] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.untyped_storage().nbytes())
            return out

    x = picture(128, 128)
    grid = plan_windows(128, 128, SMALL, shift_px=8)
    with Watch():
        tiled(lambda window: window.clone(), x, grid)
    assert sorted(set(sizes))[-1] == x.untyped_storage().nbytes()
    window_bytes = 4 * 3 * grid.window_h * grid.window_w
    assert all(size <= 2 * window_bytes for size in sizes if size != x.untyped_storage().nbytes())


def test_a_window_is_its_rectangle():
    window = Window(y0=3, x0=4, y1=13, x1=24)
    assert (window.height, window.width) == (10, 20)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 150), st.integers(1, 60), st.integers(0, 15), st.integers(1, 4), st.data())
def test_rows_are_the_whole_pictures_from_any_start(height, width, shift, batch, data):
    x, grid = picture(height, width), plan_windows(height, width, SMALL, shift)
    start = data.draw(st.integers(0, height - 1))

    def fn(window):
        return torch.sin(9 * window) + window.mean((1, 2, 3), keepdim=True)

    rows = list(tiled_rows(fn, part_of(x), grid, batch))
    assert (torch.cat(rows, dim=-2) - tiled(fn, x, grid)).abs().max() <= 1e-6
    late = torch.cat(list(tiled_rows(fn, part_of(x), grid, batch, start=start)), dim=-2)
    assert torch.equal(late, torch.cat(rows, dim=-2)[..., start:, :]), "to the bit"


def test_rows_come_as_soon_as_no_window_touches_them():
    x, grid = picture(150, 40), plan_windows(150, 40, SMALL)
    ran: list[int] = []
    calls: list[tuple[int, int]] = []
    heights = []
    for rows in tiled_rows(
        lambda w: ran.append(len(w)) or w, part_of(x), grid, batch=2, progress=lambda *call: calls.append(call)
    ):
        heights.append(rows.shape[-2])
        assert sum(ran) == len(heights) * len(grid.xs), "a row of windows, then its rows"
    assert np.cumsum(heights).tolist() == [*grid.ys[1:], 150]
    assert calls[-1] == (len(grid.windows), len(grid.windows))

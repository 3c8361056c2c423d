"""The seam index: blind to content, sharp on seams, kind to blending."""

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter

from tudsr.config import WindowRange
from tudsr.errors import InputError
from tudsr.eval.metrics import METRICS, ShiftedRun
from tudsr.eval.seams import SeamMeter, _low_pass, seam_index
from tudsr.tiling import extract, tiled
from tudsr.windows import Window, WindowGrid, half_tile_px, plan_windows

SIDE = 704
RANGE = WindowRange(min_px=256, max_px=256, stride_px=16, overlap_px=32)
SHIFT = half_tile_px(SIDE, SIDE, RANGE)
GRID_A, GRID_B = plan_windows(SIDE, SIDE, RANGE), plan_windows(SIDE, SIDE, RANGE, SHIFT)


def noise(seed: int, sigma: float = 0.1) -> torch.Tensor:
    return sigma * torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def position_dependent(x: torch.Tensor) -> torch.Tensor:
    """What a bad model does: every window comes out with its own tilt."""
    ramp = torch.linspace(-0.3, 0.3, x.shape[-1])
    return x + ramp + ramp[: x.shape[-2], None]


def abrupt(x: torch.Tensor, grid: WindowGrid) -> torch.Tensor:
    """Cut the same windows without blending: each pixel from the last window that holds it."""
    out = torch.empty_like(x)
    for window in grid.windows:
        seen = grid.visible(window)
        y, x0 = seen.y0 + grid.shift_px - window.y0, seen.x0 + grid.shift_px - window.x0
        part = position_dependent(extract(x, grid, window))[..., y : y + seen.height, x0 : x0 + seen.width]
        out[..., seen.y0 : seen.y1, seen.x0 : seen.x1] = part
    return out


def test_clean_pairs_are_near_one():
    scene = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(9)).cumsum(-1)
    report = seam_index(scene + noise(1), scene + noise(2), GRID_A, GRID_B)
    assert report.gradient_ratio == pytest.approx(1, abs=0.02)
    assert report.step_ratio == pytest.approx(1, abs=0.1)
    # the difference of neighbours is the sum of four independent normal values of sigma 0.1
    assert report.gradient == pytest.approx(0.2 * math.sqrt(2 / math.pi), rel=0.02)
    louder = seam_index(3 * (scene + noise(1)), 3 * (scene + noise(2)), GRID_A, GRID_B)
    assert (louder.gradient, louder.step) == pytest.approx((3 * report.gradient, 3 * report.step), rel=1e-3)


def test_equal_outputs_have_no_seam():
    report = seam_index(noise(1), noise(1), GRID_A, GRID_B)
    assert (report.gradient_ratio, report.step_ratio) == (1.0, 1.0)


@pytest.mark.parametrize("grid", [GRID_A, GRID_B], ids=["plain", "shifted"])
@pytest.mark.parametrize("dim", [-1, -2])
def test_an_injected_step_is_found(grid, dim):
    a, b = noise(1), noise(2)
    starts = grid.xs if dim == -1 else grid.ys
    at = starts[1] - grid.shift_px
    target = a if grid is GRID_A else b
    target.narrow(dim, at, SIDE - at).add_(1.0)
    report = seam_index(a, b, GRID_A, GRID_B)
    assert report.gradient_ratio > 1.05
    assert report.step_ratio > 1.5


def test_a_faint_step_below_the_noise_is_left_to_the_low_pass():
    a, b = noise(1), noise(2)
    a[..., GRID_A.xs[1] :] += 0.05
    report = seam_index(a, b, GRID_A, GRID_B)
    assert report.gradient_ratio < 1.05
    assert report.step_ratio > 1.3


def test_a_step_elsewhere_is_content():
    a, b = noise(1), noise(2)
    used = {x - g.shift_px + side for g in (GRID_A, GRID_B) for x in g.xs for side in (0, g.window_w)}
    at = next(x for x in range(208, 400, 16) if all(abs(x - u) > 8 for u in used))
    before = seam_index(a, b, GRID_A, GRID_B)
    a[..., at:] += 1.0
    after = seam_index(a, b, GRID_A, GRID_B)
    assert after.gradient_ratio < before.gradient_ratio
    assert after.step_ratio < before.step_ratio


def test_what_lies_on_the_latents_grid_everywhere_is_no_seam():
    """Nor is what the picture shows around a border: both are at lines beside it that lie alike."""
    a, b = noise(1), noise(2)
    rough = torch.ones(SIDE)
    rough[::8] = 3.0  # columns at multiples of 8 differ more, whether windows begin there or not
    rough[250:] *= 2.0
    report = seam_index(a * rough, b * rough, GRID_A, GRID_B)
    assert report.gradient_ratio == pytest.approx(1, abs=0.05)
    at = GRID_A.xs[1]
    a[..., at:] += 1.0
    assert seam_index(a * rough, b * rough, GRID_A, GRID_B).gradient_ratio > 1.05


def test_blending_removes_the_edge_but_cannot_hide_the_step():
    """Windows with tilts of their own: blended, no line shows any more, and the low-pass still tells of the tilts."""
    x = noise(5, 1.0)
    reports = {}
    for name, run in (("abrupt", abrupt), ("blended", lambda x, g: tiled(position_dependent, x, g))):
        reports[name] = seam_index(run(x, GRID_A) + noise(1), run(x, GRID_B), GRID_A, GRID_B)
    assert reports["abrupt"].gradient_ratio > 1.5
    assert reports["blended"].gradient_ratio <= 1.05
    assert min(report.step_ratio for report in reports.values()) > 2


def test_each_seam_metric_is_its_own_ratio():
    """A step that only the low-pass shows (see above) raises the one figure and not the other."""
    a, b = noise(1), noise(2)
    a[..., GRID_A.xs[1] :] += 0.05
    run = ShiftedRun(plain=a, shifted=b, grid=GRID_A, shifted_grid=GRID_B)
    assert METRICS["seams"].load(None)(a, run) < 1.05
    assert METRICS["seam_step"].load(None)(a, run) > 1.3


def test_lines_of_pictures_of_different_sizes_are_pooled():
    a, b = noise(1), noise(2)
    a[..., GRID_A.xs[1] :] += 1.0  # a seam in the one, none in the other
    wide = SIDE + 256
    grids = plan_windows(SIDE, wide, RANGE), plan_windows(SIDE, wide, RANGE, half_tile_px(SIDE, wide, RANGE))
    clean = [torch.randn(1, 1, SIDE, wide, generator=torch.Generator().manual_seed(seed)) * 0.1 for seed in (3, 4)]
    meter = SeamMeter()
    assert math.isnan(meter.report().gradient_ratio)
    meter.add(a, b, GRID_A, GRID_B)
    alone = meter.report()
    meter.add(*clean, *grids)
    both = meter.report()
    assert alone == seam_index(a, b, GRID_A, GRID_B)
    assert 1 < both.gradient_ratio < alone.gradient_ratio
    assert 1 < both.step_ratio < alone.step_ratio


def test_the_step_is_not_measured_where_windows_leave_no_room():
    spec = WindowRange(min_px=64, max_px=64, stride_px=16, overlap_px=16)
    a, b = plan_windows(200, 200, spec), plan_windows(200, 200, spec, half_tile_px(200, 200, spec))
    report = seam_index(noise(1)[..., :200, :200], noise(2)[..., :200, :200], a, b)
    assert report.gradient_ratio == pytest.approx(1, abs=0.05)
    assert math.isnan(report.step_ratio)


def test_a_translation_equivariant_function_has_no_seams():
    kernel = torch.full((1, 1, 3, 3), 1 / 9)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"), kernel)

    x = noise(6, 1.0)
    a, b = tiled(blur, x, GRID_A), tiled(blur, x, GRID_B)
    assert (a - b).abs().max() < 0.02


def test_low_pass_agrees_with_scipy():
    d = torch.randn(2, 3, 70, 91, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = gaussian_filter(d.numpy(), sigma=(0, 0, 16, 16), mode="nearest", truncate=4)
    torch.testing.assert_close(_low_pass(d, 16), torch.from_numpy(wanted), atol=1e-12, rtol=0)


def test_wrong_inputs_are_refused():
    with pytest.raises(InputError, match="does not belong"):
        seam_index(noise(1), noise(1)[..., 1:], GRID_A, GRID_B)
    one = WindowGrid(height=64, width=64, window_h=64, window_w=64, ys=(0,), xs=(0,))
    flat = torch.zeros(1, 3, 64, 64)
    with pytest.raises(InputError, match="No window border"):
        seam_index(flat, flat, one, one)
    assert one.windows == (Window(y0=0, x0=0, y1=64, x1=64),)

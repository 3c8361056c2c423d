"""The looped chunks: gradients against whole back-propagation, memory, DDP hooks, straddling crops."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tudsr.config import WindowRange
from tudsr.tiling import tiled
from tudsr.train.chunks import cut, exact_loop, paper_loop, straddling_crops
from tudsr.windows import WindowGrid, chunk_grid, plan_windows

RANGE = WindowRange(min_px=16, max_px=32, stride_px=8, overlap_px=8)


def small_net(dtype: torch.dtype = torch.float64, width: int = 8) -> nn.Module:
    torch.manual_seed(7)
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(2, width), nn.SiLU()]
    layers += [nn.Conv2d(width, width, 3, padding=1, stride=2), nn.SiLU(), nn.Upsample(scale_factor=2)]
    return nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1)).to(dtype)


def pair(height: int, width: int, batch: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(11)
    y, gt = torch.rand(2, batch, 3, height, width, generator=rng, dtype=torch.float64).to(dtype) * 2 - 1
    return y, gt


def nonlocal_loss(sr: Tensor, gt: Tensor) -> Tensor:
    """A loss that mixes all pixels, so that a wrong assembly cannot hide."""
    d = sr - gt
    return (d**4).mean() + (d.mean((2, 3)) ** 2).sum() + (d[..., 1:] - d[..., :-1]).abs().mean()


def gradients(net: nn.Module) -> Tensor:
    grads = torch.cat([p.grad.flatten() for p in net.parameters()])
    net.zero_grad()
    return grads


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(("height", "width", "batch", "shift"), [(53, 71, 1, 0), (31, 47, 2, 8), (16, 16, 1, 0)])
def test_exact_loop_is_backpropagation_through_the_tiled_generator(height, width, batch, shift):
    net = small_net()
    y, gt = pair(height, width, batch)
    grid = plan_windows(height, width, RANGE, shift)
    whole = tiled(net, y, grid)
    loss = nonlocal_loss(whole, gt)
    loss.backward()
    wanted = gradients(net)
    result = exact_loop(net, y, gt, nonlocal_loss, grid)
    assert relative(gradients(net), wanted) <= 1e-10
    torch.testing.assert_close(result.sr, whole.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(result.losses.sum(), loss.detach(), atol=1e-12, rtol=0)
    assert not result.sr.requires_grad


def test_exact_loop_with_crops_is_the_same_sum():
    net = small_net()
    y, gt = pair(53, 71)
    grid = plan_windows(53, 71, RANGE)
    crops = straddling_crops(grid, 20, 5, np.random.default_rng(0))
    whole = tiled(net, y, grid)
    loss = (whole - gt).abs().mean() + sum(nonlocal_loss(cut(whole, c), cut(gt, c)) for c in crops) / 5
    loss.backward()
    wanted = gradients(net)
    result = exact_loop(net, y, gt, lambda sr, gt: (sr - gt).abs().mean(), grid, crop_loss=nonlocal_loss, crops=crops)
    assert relative(gradients(net), wanted) <= 1e-10
    assert result.losses.shape == (6,)
    torch.testing.assert_close(result.losses.sum(), loss.detach(), atol=1e-12, rtol=0)


def test_crops_alone_serve_as_the_loss():
    net = small_net()
    y, gt = pair(40, 40)
    grid = plan_windows(40, 40, RANGE)
    crops = straddling_crops(grid, 16, 2, np.random.default_rng(1))
    assert exact_loop(net, y, gt, None, grid, crop_loss=nonlocal_loss, crops=crops).losses.shape == (2,)
    assert gradients(net).norm() > 0
    with pytest.raises(AssertionError, match="no loss"):
        exact_loop(net, y, gt, None, grid)


def test_paper_loop_is_the_sum_of_its_chunks_losses():
    net = small_net()
    y, gt = pair(48, 48, batch=2)
    grid = chunk_grid(48, 3)
    parts = [net(cut(y, w)) for w in grid.windows]
    losses = [nonlocal_loss(part, cut(gt, w)) / 9 for part, w in zip(parts, grid.windows, strict=True)]
    sum(losses).backward()
    wanted = gradients(net)
    result = paper_loop(net, y, gt, nonlocal_loss, grid)
    assert relative(gradients(net), wanted) <= 1e-10
    torch.testing.assert_close(result.losses, torch.stack(losses).detach(), atol=1e-14, rtol=0)
    for part, window in zip(parts, grid.windows, strict=True):
        torch.testing.assert_close(cut(result.sr, window), part.detach(), atol=0, rtol=0)


def test_paper_loop_refuses_overlap():
    net, (y, gt) = small_net(), pair(53, 53)
    with pytest.raises(AssertionError, match="once"):
        paper_loop(net, y, gt, nonlocal_loss, plan_windows(53, 53, RANGE))


def test_the_two_loops_differ_where_chunks_overlap():
    """The exact loop is no renamed paper loop: its gradient sees the blended picture."""
    net = small_net()
    y, gt = pair(64, 64)
    paper_loop(net, y, gt, nonlocal_loss, chunk_grid(64, 4))
    paper = gradients(net)
    exact_loop(net, y, gt, nonlocal_loss, plan_windows(64, 64, RANGE))
    assert relative(gradients(net), paper) > 1e-3


def test_parameters_inside_the_losses_keep_their_gradients():
    net, judge = small_net(), small_net()
    y, gt = pair(40, 40)
    exact_loop(net, y, gt, lambda sr, _: judge(sr).mean(), plan_windows(40, 40, RANGE))
    assert all(p.grad is None for p in judge.parameters())
    assert all(p.grad is not None for p in net.parameters())


def loops(net: nn.Module, **hooks):
    y, gt = pair(48, 48)
    yield lambda: paper_loop(net, y, gt, nonlocal_loss, chunk_grid(48, 3), **hooks)
    yield lambda: exact_loop(net, y, gt, nonlocal_loss, plan_windows(48, 48, RANGE), **hooks)


def test_there_is_one_backward_per_window():
    calls: list[float] = []

    def backward(loss: Tensor) -> None:
        calls.append(loss.item())
        loss.backward()

    both = loops(small_net(), backward=backward)
    for loop, count in zip(both, (9, len(plan_windows(48, 48, RANGE).windows)), strict=True):
        calls.clear()
        loop()
        assert len(calls) == count


def test_backward_may_scale():
    net = small_net()
    scaled_loops = loops(net, backward=lambda loss: (loss * 0.25).backward())
    for loop, scaled_loop in zip(loops(net), scaled_loops, strict=True):
        loop()
        plain = gradients(net)
        scaled_loop()
        assert relative(gradients(net), plain * 0.25) <= 1e-12


def test_bfloat16_autocast_trains_all_parameters():
    net = small_net(torch.float32)
    y, gt = pair(40, 40, dtype=torch.float32)
    grid = plan_windows(40, 40, RANGE)
    exact_loop(net, y, gt, nonlocal_loss, grid)
    wanted = gradients(net)
    with torch.autocast("cpu", torch.bfloat16):
        result = exact_loop(net, y, gt, nonlocal_loss, grid)
    assert result.sr.dtype == torch.float32
    assert relative(gradients(net), wanted) < 0.05


class Saved:
    """A tensor kept for backward; counts the bytes alive."""

    live = 0
    peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Saved.live += tensor.nbytes
        Saved.peak = max(Saved.peak, Saved.live)

    def __del__(self) -> None:
        Saved.live -= self.tensor.nbytes


def peak_of(loop) -> int:
    Saved.live = Saved.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        loop()
    assert Saved.live == 0, "a graph outlived its chunk"
    return Saved.peak


def test_peak_memory_is_that_of_one_window():
    net, r_px = small_net(torch.float32), 32
    fixed = WindowRange(min_px=r_px, max_px=r_px, stride_px=8, overlap_px=8)
    peaks: dict[str, list[int]] = {"paper": [], "exact": [], "whole": []}
    for n in (1, 2, 4):
        y, gt = pair(n * r_px, n * r_px, dtype=torch.float32)
        grid = plan_windows(n * r_px, n * r_px, fixed)
        crops = straddling_crops(grid, r_px, 2, np.random.default_rng(n))
        peaks["paper"].append(
            peak_of(lambda y=y, gt=gt, n=n: paper_loop(net, y, gt, crop_mse, chunk_grid(n * r_px, n)))
        )
        peaks["exact"].append(
            peak_of(lambda y=y, gt=gt, g=grid, c=crops: exact_loop(net, y, gt, None, g, crop_loss=crop_mse, crops=c))
        )
        peaks["whole"].append(peak_of(lambda y=y, gt=gt, g=grid: crop_mse(tiled(net, y, g), gt).backward()))
    for name in ("paper", "exact"):
        assert max(peaks[name]) <= 1.1 * peaks[name][0], peaks
    assert peaks["whole"][2] > 8 * peaks["whole"][0], "the measure must see a graph that grows"


def crop_mse(sr: Tensor, gt: Tensor) -> Tensor:
    return ((sr - gt) ** 2).mean()


def straddles(grid: WindowGrid, window) -> bool:
    return any(window.y0 < at < window.y1 for at in grid.seams_y) or any(
        window.x0 < at < window.x1 for at in grid.seams_x
    )


@pytest.mark.parametrize(("height", "width"), [(90, 90), (20, 300), (300, 25), (33, 33)])
def test_crops_straddle_borders(height, width):
    grid = plan_windows(height, width, RANGE)
    crops = straddling_crops(grid, 18, 60, np.random.default_rng(5))
    assert len(crops) == 60
    assert all(straddles(grid, c) for c in crops)
    assert all(c.y0 >= 0 and c.y1 <= height and c.x0 >= 0 and c.x1 <= width for c in crops)
    assert all((c.height, c.width) == (18, 18) for c in crops)
    assert len({(c.y0, c.x0) for c in crops}) > 10


def test_crops_reach_every_border_and_both_axes():
    grid = plan_windows(90, 90, RANGE)
    crops = straddling_crops(grid, 18, 300, np.random.default_rng(5))
    assert all(any(c.y0 < at < c.y1 for c in crops) for at in grid.seams_y)
    assert all(any(c.x0 < at < c.x1 for c in crops) for at in grid.seams_x)


def test_crops_repeat_with_their_seed_and_need_no_border():
    grid = chunk_grid(64, 1)
    draw = [straddling_crops(grid, 16, 8, np.random.default_rng((3, 4))) for _ in range(2)]
    assert draw[0] == draw[1]
    assert straddling_crops(grid, 64, 1, np.random.default_rng(0))[0].y0 == 0

"""The looped chunks: train a generator on a large picture with the memory of one window's graph.

Two loops over the same geometry. `paper_loop` is the paper's: independent chunks, each with its own loss. `exact_loop`
back-propagates through the assembled, blended picture, so that its loss sees what inference shows, seams included.
Both take any callable whose trainable parameters live inside it and which is deterministic: the exact loop runs it
twice per window and relies on the same answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tudsr.tiling import blend_dtype, extract, share_of, tiled
from tudsr.windows import Window, WindowGrid

Generate = Callable[[Tensor], Tensor]
LossFn = Callable[[Tensor, Tensor], Tensor]
Backward = Callable[[Tensor], object]


@dataclass(frozen=True, kw_only=True)
class ChunkResult:
    """What a loop leaves behind, apart from the gradients in the generator's parameters.

    Attributes:
        sr: the generator's picture, detached, (B, 3, H, W), float32 or float64, as the discriminator's step needs it.
        losses: (k,), detached; their sum is the loss whose gradient was accumulated.
    """

    sr: Tensor
    losses: Tensor


def paper_loop(
    generate: Generate,
    y: Tensor,
    gt: Tensor,
    chunk_loss: LossFn,
    grid: WindowGrid,
    *,
    backward: Backward = torch.Tensor.backward,
) -> ChunkResult:
    """Run forward and backward chunk by chunk, in raster order (variant A).

    Args:
        generate: (B, 3, R, R) -> (B, 3, R, R).
        y: stage 2's upsampled input, (B, 3, H, W), in [-1, 1].
        gt: the wanted picture, (B, 3, H, W), in [-1, 1].
        chunk_loss: (sr chunk, gt chunk) -> scalar; divided here by the number of chunks.
        grid: from `chunk_grid`: no overlap, no padding.
        backward: called with each chunk's loss, e.g. `accelerator.backward`.

    Returns:
        The picture and one loss per chunk, already divided.

    Source: METHOD, «The looped chunks, twice», A: per chunk, forward, loss / N², backward.
    """
    assert grid.work_px == grid.height * grid.width, "the paper's chunks cover the picture once"
    windows = grid.windows
    sr = torch.empty(y.shape, dtype=blend_dtype(y), device=y.device)

    def run_chunk(window: Window) -> Tensor:
        """Keep the output; the graph dies with this call."""
        output = generate(extract(y, grid, window))
        loss = chunk_loss(output, extract(gt, grid, window)) / len(windows)
        backward(loss)
        extract(sr, grid, window).copy_(output.detach())
        return loss.detach()

    losses = [run_chunk(window) for window in windows]
    return ChunkResult(sr=sr, losses=torch.stack(losses))


def exact_loop(
    generate: Generate,
    y: Tensor,
    gt: Tensor,
    picture_loss: LossFn | None,
    grid: WindowGrid,
    *,
    crop_loss: LossFn | None = None,
    crops: Sequence[Window] = (),
    backward: Backward = torch.Tensor.backward,
) -> ChunkResult:
    """Back-propagate through the whole tiled generator with one window's graph at a time (variant B).

    Pass 1, without gradient, blends all windows into the picture. The losses' gradient g with respect to that picture
    is taken next; it touches no other parameters, so a discriminator inside a loss keeps its gradients. Pass 2 runs
    every window again and back-propagates (output * blend weight * g's crop).sum(): the chain rule's own sum.

    Args:
        generate: (b, 3, h, w) -> (b, 3, h, w), deterministic, its samples independent of each other.
        y: stage 2's upsampled input, (B, 3, H, W), in [-1, 1].
        gt: the wanted picture, (B, 3, H, W), in [-1, 1].
        picture_loss: (sr, gt) -> scalar on whole pictures, cheap ones such as MAE; None for none.
        grid: overlapping windows, from `plan_windows`.
        crop_loss: (sr crop, gt crop) -> scalar for large loss networks; its mean over `crops` is added.
        crops: where crop_loss looks, in picture pixels, from `straddling_crops`; one graph at a time.
        backward: called once per window, e.g. `accelerator.backward`.

    Returns:
        The blended picture, and the losses: the picture's, then each crop's divided by the number of crops.

    Source: METHOD, «The looped chunks, twice», B.
    """
    with torch.no_grad():
        sr = tiled(generate, y, grid)
    # Under autocast, weights cast in pass 1 are cached without a graph on some versions of torch.
    torch.clear_autocast_cache()
    gradient, losses = _picture_gradient(sr, gt, picture_loss, crop_loss, crops)

    def run_window(window: Window) -> None:
        """Back-propagate one window's share; the graph dies with this call."""
        output = generate(extract(y, grid, window))
        backward((output.to(gradient.dtype) * share_of(gradient, grid, window)).sum())

    for window in grid.windows:
        run_window(window)
    return ChunkResult(sr=sr, losses=losses)


def straddling_crops(grid: WindowGrid, crop_px: int, count: int, rng: np.random.Generator) -> tuple[Window, ...]:
    """Draw square crops that lie across window borders, where seams would show.

    Each crop holds, in its inside, the middle of an overlap, drawn evenly from those of both axes, at a random
    offset; along the other axis it lies anywhere. A grid of one window has no borders: crops lie anywhere.

    Args:
        grid: the windows of the picture.
        crop_px: the crops' side, in pixels, from 2 to the picture's.
        count: how many.
        rng: source of randomness; seed it by (seed, step) so that the draw does not depend on workers.

    Returns:
        Windows in the picture's own pixels, as `exact_loop` takes them.
    """
    assert 2 <= crop_px <= min(grid.height, grid.width), "settings see to that"
    rows = [("y", at) for at in grid.seams_y if 0 < at < grid.height]
    columns = [("x", at) for at in grid.seams_x if 0 < at < grid.width]
    seams = rows + columns
    crops = []
    for _ in range(count):
        axis, at = seams[rng.integers(len(seams))] if seams else ("", 0)
        y0 = _offset(grid.height, crop_px, at if axis == "y" else None, rng)
        x0 = _offset(grid.width, crop_px, at if axis == "x" else None, rng)
        crops.append(Window(y0=y0, x0=x0, y1=y0 + crop_px, x1=x0 + crop_px))
    return tuple(crops)


def cut(x: Tensor, window: Window) -> Tensor:
    """Return a view of a picture's window.

    Args:
        x: (B, C, H, W).
        window: inside the picture, in its own pixels.
    """
    return x[..., window.y0 : window.y1, window.x0 : window.x1]


def _offset(length: int, crop_px: int, seam: int | None, rng: np.random.Generator) -> int:
    """Draw where a crop begins so that a seam, which lies before pixel `seam`, has pixels of it on both sides."""
    low, high = 0, length - crop_px
    if seam is not None:
        low, high = max(low, seam - crop_px + 1), min(high, seam - 1)
    return int(rng.integers(low, high + 1))


def _picture_gradient(
    sr: Tensor, gt: Tensor, picture_loss: LossFn | None, crop_loss: LossFn | None, crops: Sequence[Window]
) -> tuple[Tensor, Tensor]:
    """Return d(loss)/d(sr), (B, 3, H, W), and the losses, (k,); the graph of one crop lives at a time."""
    assert picture_loss is not None or (crop_loss is not None and crops), "there is no loss"
    gradient, losses = torch.zeros_like(sr), []
    if picture_loss is not None:
        losses.append(_add_gradient(picture_loss, sr, gt, gradient, 1))
    if crop_loss is not None:
        for window in crops:
            part = _add_gradient(crop_loss, cut(sr, window), cut(gt, window), cut(gradient, window), len(crops))
            losses.append(part)
    return gradient, torch.stack(losses)


def _add_gradient(loss_fn: LossFn, sr: Tensor, gt: Tensor, gradient: Tensor, share: int) -> Tensor:
    """Add d(loss / share)/d(sr) to `gradient`, in place; return loss / share, detached."""
    leaf = sr.detach().requires_grad_()
    loss = loss_fn(leaf, gt) / share
    gradient += torch.autograd.grad(loss, leaf)[0]
    return loss.detach()

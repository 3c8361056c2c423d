"""What an enlargement costs, without doing it: work and memory, counted on tensors that have shapes and no numbers.

Counted are convolutions, matrix products and attention of autoencoder and UNet, two FLOPs for a multiply-add. Left out,
being small beside them: normalisations, activations, softmax, merging an adapter into the weights (once a pass),
bicubic interpolation, the blend and the colour fix.
"""

import copy
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tudsr import lora
from tudsr.backbones import Backbone
from tudsr.backbones.parts import part_class
from tudsr.color import COLOR_FIXES, HALO_PX, strip_rows
from tudsr.config import ModelConfig, WindowRange, read_object
from tudsr.find import CONFIG_NAME, find_model
from tudsr.folder import Model, read_prompt
from tudsr.planner import Pass, Plan
from tudsr.stage import Stage
from tudsr.windows import WindowGrid, plan_windows

META = torch.device("meta")
BYTES_PER_PIXEL = 3 * 4  # RGB in float32
WORKSPACE = {torch.float32: 1.5, torch.bfloat16: 2.0, torch.float16: 2.0}
"""Dtype → resident memory of a window over its `live_bytes`, for what operations need inside and give back late.

Measured for `tiny` on CPUs, the other parts taken off: in bfloat16 2.0 at 256² → 1024² and 1.6 at 256² → 2048²; in
float32, which needs no conversions, 0.7 to 1.1 at 256² → 2048². Not verified on CUDA."""
_ENCODER_COPY = 4  # bytes a pixel: Pillow's own copy of a picture it writes
_ALPHA = 4  # bytes a pixel: transparency, which few pictures have
_STRIPS = 10  # strips of rows that upsampling, the colour fix and writing hold at once
_BYTES_PER_FLOAT32 = 4
_TIMESTEPS = 1000
_counted: "weakref.WeakKeyDictionary[Backbone, dict[tuple[int, int], WindowCost]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class WindowCost:
    """One window's FLOPs, and the most bytes of tensors alive at once, its pixels included and the weights not."""

    flop: int
    live_bytes: int


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """One pass: what it makes, its windows, and what each of them costs."""

    step: Pass
    grid: WindowGrid
    window: WindowCost

    @property
    def flop(self) -> int:
        """FLOPs of all windows."""
        return len(self.grid.ys) * len(self.grid.xs) * self.window.flop

    @property
    def useful_flop(self) -> float:
        """FLOPs of all windows, less the share of their area that overlaps or lies beyond the picture."""
        return self.flop * self.grid.height * self.grid.width / self.grid.work_px


def meta_model(name: str | Path, dtype: torch.dtype) -> Model:
    """Build a model's networks on the meta device from its config files; no weight is read or allocated.

    Args:
        name: embedded name, folder or hub id.
        dtype: that the networks would run in.

    Returns:
        The model without adapters (whose merged layers cost what the bare ones do) and without a scheduler.

    Raises:
        ModelError: when the model is not there or has a part of an unknown kind.
        ConfigError: when a config file cannot be read.
    """
    folder = find_model(name)
    config = ModelConfig.read(folder / CONFIG_NAME)
    unet, vae = _part(folder / "unet", "UNet", dtype), _part(folder / "vae", "autoencoder", dtype)
    embeds = read_prompt(folder, dtype)
    embeds = None if embeds is None else embeds.to(META)
    backbone = Backbone(unet, vae, torch.empty(_TIMESTEPS, device=META), "epsilon", embeds)
    return Model(config, backbone.eval(), scheduler=None)


def shapes_of(model: Model) -> Model:
    """Build a loaded model's networks on the meta device; the weights of one with a folder are not copied."""
    if model.folder is not None:
        return meta_model(model.folder, model.backbone.dtype)
    return Model(model.config, copy.deepcopy(model.backbone).to(META), scheduler=None)


def _part(folder: Path, part: str, dtype: torch.dtype) -> nn.Module:
    values = read_object(folder / "config.json")
    kind = part_class(folder, part)
    with META:
        net: nn.Module = kind.from_config(values)
    return nn.Module.to(net, dtype)  # diffusers' own `to` warns of what matters only where there are numbers


def pass_costs(model: Model, plan: Plan, windows: WindowRange) -> tuple[PassCost, ...]:
    """Count what the passes of an enlargement take, one window at a time.

    Args:
        model: from `meta_model`.
        plan: the passes.
        windows: their sides and overlap.

    Raises:
        ConfigError: when the overlap leaves no window that advances.
    """
    grids = [plan_windows(step.height, step.width, windows) for step in plan.passes]
    return tuple(
        PassCost(step=step, grid=grid, window=window_cost(model, grid.window_h, grid.window_w))
        for step, grid in zip(plan.passes, grids, strict=True)
    )


def window_bytes(window: WindowCost, dtype: torch.dtype) -> int:
    """Return the resident memory that a window is expected to take in a dtype: WORKSPACE times its live bytes."""
    return int(WORKSPACE[dtype] * window.live_bytes)


def window_cost(model: Model, height: int, width: int) -> WindowCost:
    """Count one window of a size, encode, one step, decode: once for a model, as a large one takes seconds.

    Args:
        model: from `meta_model`.
        height: rows of the window, a multiple of the model's stride.
        width: columns of the window, likewise.
    """
    found = _counted.setdefault(model.backbone, {})
    if (height, width) not in found:
        stage = Stage(model.backbone, model.config.t1, None)
        flops = FlopCounterMode(display=False)
        with torch.no_grad(), LiveBytes(model.backbone) as live, flops, _FusedAttention():
            stage(torch.empty(1, 3, height, width, device=META))
        found[height, width] = WindowCost(flop=flops.get_total_flops(), live_bytes=live.most)
    return found[height, width]


def weights_bytes(model: Model, *, merged: bool = True) -> int:
    """Return the bytes of weights while a stage runs: the networks, both adapters, and the running one's merged layers.

    Args:
        model: from `meta_model`. The adapters, float32, are counted by its own settings.
        merged: whether to count the merged layers, which are there while a stage runs only.
    """
    spec, net = model.config.lora, model.backbone
    adapted: list[Any] = [
        module.weight
        for path, module in net.unet.named_modules()
        if any(f".{path}".endswith(f".{target}") for target in spec.targets)
    ]
    summed: int = sum(weight.nbytes for weight in adapted) if merged else 0
    adapter: int = sum(spec.rank * (weight[0].numel() + weight.shape[0]) for weight in adapted)  # A and B
    bare = sum(parameter.nbytes for parameter in net.parameters())
    return bare + summed + len(lora.STAGES) * adapter * _BYTES_PER_FLOAT32


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves its modes untyped
    """Follow the tensors that operations make: `most` is the largest sum of their bytes that was alive at once.

    Memory inside an operation is not seen.

    Args:
        net: its parameters and buffers, which are there anyway, do not count; nor do views of them.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in (*net.parameters(), *net.buffers())}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self._now += storage.nbytes()
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, count: int) -> None:
        self._known.remove(key)
        self._now -= count


class _FusedAttention(TorchFunctionMode):
    """Let attention be one operation, as it is on CPU and CUDA; on meta it would be spelt out, scores and all."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
        return func(*args, **(kwargs or {}))


def pictures_bytes(height: int, width: int, plan: Plan, pixel_bytes: int = 3, color: str = "wavelet") -> int:
    """Return the most bytes of whole pictures that are in memory at once when all of them are.

    In each pass: the input picture, the pass's own input where that is another one, its output, and that without a
    colour fix that needs the whole picture's statistics; at the end, beside the input, the output and its transparency,
    once more as integers, and the encoder's copy of these.

    Args:
        height: rows of the input.
        width: columns of the input.
        plan: its passes.
        pixel_bytes: of a pixel in the output file.
        color: a key of color.COLOR_FIXES.
    """
    copies = 2 if COLOR_FIXES[color].statistics else 1
    most = before = 0
    for step in plan.passes:
        made = step.height * step.width
        most = max(most, (height * width + before + copies * made) * BYTES_PER_PIXEL)
        before = made
    last = BYTES_PER_PIXEL + _ALPHA + pixel_bytes + _ENCODER_COPY
    return max(most, height * width * BYTES_PER_PIXEL + before * last)


def spooled_bytes(height: int, width: int, plan: Plan, pixel_bytes: int, color: str = "wavelet") -> int:
    """Return what the pictures take on disk at most: the input, those between the passes, and the output, twice.

    It is there as plain numbers and encoded. A colour fix that needs the whole picture's statistics keeps each pass's
    unfixed picture too.
    """
    unfixed = len(plan.passes) if COLOR_FIXES[color].statistics else 0
    kept = [*plan.passes[:-1], *plan.passes[:unfixed]]
    between = sum(step.height * step.width for step in kept)
    return (height * width + 2 * plan.height * plan.width) * pixel_bytes + between * BYTES_PER_PIXEL


def rows_bytes(grid: WindowGrid) -> int:
    """Return the memory of the rows in work: a row of windows as it is blended, and strips of it."""
    overlap = max((a + grid.window_h - b for a, b in zip(grid.ys, grid.ys[1:], strict=False)), default=0)
    band = min(grid.height, grid.window_h + 2 * overlap)
    strip = min(grid.height, strip_rows(grid.width) + 2 * HALO_PX)
    return (band + _STRIPS * strip) * grid.width * BYTES_PER_PIXEL

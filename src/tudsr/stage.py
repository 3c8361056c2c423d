"""One stage: upsample → encode → one step → decode. Inference and training both call it."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tudsr import resize
from tudsr.backbones.base import Backbone
from tudsr.backbones.constants import kept
from tudsr.backbones.norms import layout_kept
from tudsr.color import fix_color
from tudsr.lora import LORA_FORWARDS, overwritten, scaled
from tudsr.one_step import z0_from_prediction
from tudsr.tiling import Fn, tiled
from tudsr.windows import WindowGrid

Base = Callable[[str], Tensor]
"""Name of one of the UNet's weights → the weight as it is in its file."""


class Stage(nn.Module):
    """The generator of one stage, G(x_up) = Dec(z0(E(x_up), t)).

    Args:
        backbone: shared by both stages.
        t: the stage's fixed timestep, 0 to 999.
        adapter: name of the LoRA that runs in `active`, or None for the bare base.
        strength: multiplies the LoRA's weights; 0 to 1.

    Source: METHOD («Generator, both stages»).
    """

    def __init__(self, backbone: Backbone, t: int, adapter: str | None, strength: float = 1.0) -> None:
        super().__init__()
        self.backbone, self.t, self.adapter, self.strength = backbone, t, adapter, strength

    @contextlib.contextmanager
    def active(self, how: str = "merged", base: Base | None = None) -> Iterator[None]:
        """Make the context in which `forward` runs with this stage's adapter.

        Args:
            how: a key of `lora.LORA_FORWARDS`.
            base: gives the base's weights back: the adapter is written over them, whatever `how` says.
        """
        unet, name = self.backbone.unet, self.adapter
        forward = LORA_FORWARDS[how](unet, name) if base is None or name is None else overwritten(unet, name, base)
        with scaled(unet, name, self.strength), forward:
            yield

    @staticmethod
    def upsample(x: Tensor, height: int, width: int) -> Tensor:
        """Bring x, (B, 3, h, w), to (B, 3, height, width) by bicubic interpolation."""
        return resize.upsample(x, height, width)

    def forward(self, lq_up: Tensor) -> Tensor:
        """Restore an upsampled picture or window.

        Args:
            lq_up: (B, 3, H, W), [-1, 1], H and W multiples of the model's stride.

        Returns:
            (B, 3, H, W), about [-1, 1], float32 (float64 for a float64 backbone).
        """
        z = self.backbone.encode(lq_up)  # (B, C, H / f, W / f)
        return self.backbone.decode(self.step(z)).to(self.backbone.wide_dtype)

    def step(self, z: Tensor) -> Tensor:
        """Return z0 of a scaled latent z, both (B, C, h, w), in the wide dtype: the one step, at the stage's t."""
        net, wide = self.backbone, self.backbone.wide_dtype
        pred = net.predict(z, self.t)
        return z0_from_prediction(pred.to(wide), z.to(wide), net.alpha_bar(self.t).to(wide), net.prediction_type)


def whole_picture(stage: Stage, lq_up: Tensor, grid: WindowGrid) -> Tensor:
    """Run an active stage over pictures in memory: window by window, blended, then the wavelet colour fix.

    Args:
        stage: whose adapter is active, without gradients.
        lq_up: (B, 3, H, W), float32, [-1, 1].
        grid: its windows.

    Returns:
        (B, 3, H, W), float32, [-1, 1].
    """
    return fix_color("wavelet", tiled(stage, lq_up, grid), lq_up).clamp_(-1, 1)


@contextlib.contextmanager
def inference(stage: Stage, base: Base | None = None) -> Iterator[Fn]:
    """Run a stage for a picture: no gradient, its adapter merged once, constants kept, train/eval mode put back.

    Args:
        stage: the stage.
        base: see `Stage.active`.

    Yields:
        What the stage makes of windows, (b, 3, h, w), wherever they lie: only they go to its device, and come back.
    """
    device = stage.backbone.device
    training = [module for module in stage.modules() if module.training]
    for module in training:  # by itself: to walk through a large net again would take longer than a small picture
        module.training = False
    try:
        with contextlib.ExitStack() as active:
            with torch.no_grad():
                active.enter_context(stage.active("merged", base))
                active.enter_context(kept(stage.backbone))

            # Gradients are off within each call only: rows are made by generators, and one that is left half way would
            # leave them off for its caller.
            @torch.no_grad()
            def restore(windows: Tensor) -> Tensor:
                with layout_kept():
                    return stage(windows.to(device)).to(windows.device)

            yield restore
    finally:
        for module in training:
            module.training = True


class Turn:
    """Who has the backbone: one run at a time, which ends with the `with` of this object or when the next one begins.

    Rows that nobody asked for to the end do not end theirs: the traceback of an error may hold them for long.
    """

    def __init__(self) -> None:
        self._run = contextlib.ExitStack()

    @contextlib.contextmanager
    def taken(self, run: contextlib.AbstractContextManager[Fn]) -> Iterator[Fn]:
        """End the run before and enter one; leaving, end that one, not a later one."""
        self._run.close()
        with contextlib.ExitStack() as self._run:
            yield self._run.enter_context(run)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._run.close()

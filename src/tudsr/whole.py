"""A pass whose autoencoder sees the whole picture, and only whose UNet goes by windows: statistics without borders."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor

from tudsr.backbones import Backbone
from tudsr.backbones.tiled_vae import TiledVAE
from tudsr.config import WindowRange
from tudsr.errors import ConfigError
from tudsr.stage import Stage
from tudsr.tiling import Fn, Progress, tiled
from tudsr.windows import plan_windows

VAEMode = Literal["windows", "whole"]


@contextlib.contextmanager
def whole_vae(backbone: Backbone) -> Iterator[None]:
    """Let `encode` and `decode` of a backbone take whole pictures, of up to 2048 px a side, in bounded memory.

    Raises:
        InputError: when its autoencoder is not an AutoencoderKL.
    """
    own = backbone.vae
    try:
        backbone.vae = TiledVAE(own)
        yield
    finally:
        backbone.vae = own


def restored(
    stage: Stage,
    lq_up: Tensor,
    windows: WindowRange,
    vae: VAEMode = "whole",
    batch: int = 1,
    progress: Progress | None = None,
) -> Tensor:
    """Run an active stage over a picture; with `vae` whole, only the one step goes by windows, of the latent.

    Args:
        stage: whose adapter is active, without gradients.
        lq_up: (1, 3, H, W), float32, [-1, 1], on any device.
        windows: the model's, in pixels.
        vae: what the autoencoder sees: each window alone, or the whole picture.
        batch: windows per call.
        progress: called with (windows done, windows in all).

    Returns:
        (1, 3, H, W), float32, about [-1, 1], before the colour fix, where `lq_up` is.

    Raises:
        InputError: for a picture or an autoencoder that `TiledVAE` does not take.
    """
    net, (height, width) = stage.backbone, lq_up.shape[-2:]
    if vae == "windows":
        return _by_windows(stage, stage, lq_up, windows, batch, progress)
    with whole_vae(net):
        factor = net.vae.factor
        below, right = (-side % factor for side in (height, width))
        x = F.pad(lq_up, (0, right, 0, below), mode="replicate")
        z = net.encode(x)  # (1, C, H / f, W / f)
        z0 = _by_windows(stage, stage.step, z, latent_windows(windows, factor), batch, progress)
        return net.decode(z0).to(net.wide_dtype)[..., :height, :width]


def _by_windows(
    stage: Stage, run: Fn, x: Tensor, windows: WindowRange, batch: int, progress: Progress | None
) -> Tensor:
    device, grid = stage.backbone.device, plan_windows(x.shape[-2], x.shape[-1], windows)
    return tiled(lambda part: run(part.to(device)).to(part.device), x, grid, batch, progress)


def latent_windows(windows: WindowRange, factor: int) -> WindowRange:
    """Return a model's windows in positions of the latent instead of pixels.

    Raises:
        ConfigError: when they are no multiples of the autoencoder's factor.
    """
    values = windows.model_dump()
    if any(value % factor for value in values.values()):
        raise ConfigError(f"windows of {values} do not divide by {factor}, the autoencoder's factor.")
    return WindowRange(**{key: value // factor for key, value in values.items()})

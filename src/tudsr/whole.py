"""A pass whose autoencoder sees the whole picture, and only whose UNet goes by windows: statistics without borders."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor

from tudsr.backbones import Backbone
from tudsr.backbones.tiled_vae import TiledVAE, check_size
from tudsr.config import WindowRange
from tudsr.errors import ConfigError
from tudsr.stage import Stage
from tudsr.tiling import Progress, tiled
from tudsr.windows import WindowGrid, plan_windows


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


def latent_grid(backbone: Backbone, height: int, width: int, windows: WindowRange) -> WindowGrid:
    """Return the windows of a pass in positions of the latent, and refuse what `TiledVAE` does not take.

    Args:
        backbone: whose autoencoder will see the whole picture.
        height: rows of the pass's picture, in pixels.
        width: columns, likewise.
        windows: the model's, in pixels.

    Raises:
        InputError: for a picture or an autoencoder that `TiledVAE` does not take.
    """
    factor = TiledVAE(backbone.vae).factor
    check_size(height, width)
    return plan_windows(-(-height // factor), -(-width // factor), latent_windows(windows, factor))


@torch.no_grad()
def restored(stage: Stage, lq_up: Tensor, grid: WindowGrid, batch: int = 1, progress: Progress | None = None) -> Tensor:
    """Run an active stage over a picture: only the one step goes by windows, of the latent.

    Args:
        stage: whose adapter is active, without gradients.
        lq_up: (1, 3, H, W), float32, [-1, 1], on any device.
        grid: from `latent_grid`.
        batch: windows per call.
        progress: called with (windows done, windows in all).

    Returns:
        (1, 3, H, W), float32, about [-1, 1], before the colour fix, where `lq_up` is.
    """
    net, (height, width) = stage.backbone, lq_up.shape[-2:]
    with whole_vae(net):
        below, right = (-side % net.vae.factor for side in (height, width))
        z = net.encode(F.pad(lq_up, (0, right, 0, below), mode="replicate"))  # (1, C, H / f, W / f)
        z0 = tiled(lambda part: stage.step(part.to(net.device)).to(part.device), z, grid, batch, progress)
        return net.decode(z0).to(net.wide_dtype)[..., :height, :width]


def latent_windows(windows: WindowRange, factor: int) -> WindowRange:
    """Return a model's windows in positions of the latent instead of pixels.

    Raises:
        ConfigError: when they are no multiples of the autoencoder's factor.
    """
    values = windows.model_dump()
    if any(value % factor for value in values.values()):
        raise ConfigError(f"windows of {values} do not divide by {factor}, the autoencoder's factor.")
    return WindowRange(**{key: value // factor for key, value in values.items()})

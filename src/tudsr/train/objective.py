"""What the nets are trained towards: the losses on pictures, and the game against the discriminator."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tudsr.checkpoint import load_tensors
from tudsr.perceptual.backbone_dists import FeatureDists
from tudsr.train.chunks import cut
from tudsr.train.config import TrainConfig
from tudsr.train.discriminators import Discriminator, build_discriminator
from tudsr.train.losses import REAL_LABEL, WeightedLosses, adversarial_loss, discriminator_loss
from tudsr.windows import Window

PIXEL_LOSSES = ("mae", "mse", "detail", "grid_4", "grid_8")
_STREAM_G, _STREAM_REAL, _STREAM_FAKE, _STREAM_JITTER = 12, 13, 14, 16


@dataclass(frozen=True)
class Seed:
    """Where a micro-step's randomness comes from: nothing else, so that a resumed run repeats it.

    `part` is the number of the chunk or crop, of those that one micro-step judges.
    """

    run: int
    sample: int
    part: int = 0

    def parts(self, count: int) -> Iterator["Seed"]:
        """Yield the seeds of the chunks or crops."""
        return (replace(self, part=number) for number in range(count))

    def torch(self, stream: int) -> torch.Generator:
        """Return a CPU generator of its own for one use."""
        mixed = np.random.SeedSequence((self.run, self.sample, stream, self.part)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(mixed) % 2**63)

    def numpy(self, stream: int) -> np.random.Generator:
        """Return a NumPy generator of its own for one use."""
        return np.random.default_rng((self.run, self.sample, stream, self.part))


class Figures:
    """Detached scalars of one micro-step, averaged over the chunks or crops that gave them."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    def note(self, found: Mapping[str, Tensor]) -> None:
        """Add one value each."""
        for key, value in found.items():
            self._values[key].append(value)

    def means(self) -> dict[str, Tensor]:
        """Return the mean of each."""
        return {key: torch.stack(values).mean() for key, values in self._values.items()}


class Objective:
    """L_G and L_D of one run.

    Pixel losses are cheap enough for a whole picture; deep ones, whose networks are large, and the discriminator may be
    given crops of it. Of each chunk or crop they see one and the same square, in G's step and in D's.

    Args:
        config: names and weights of losses, the discriminator.
        device: where they run.

    Source: METHOD («Losses»).
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        pixel = {name: weight for name, weight in config.losses.items() if name in PIXEL_LOSSES}
        deep = {name: weight for name, weight in config.losses.items() if name not in PIXEL_LOSSES}
        self.loss_gan = config.loss_gan
        self.net_d = _discriminator(config).to(device) if config.loss_gan else None
        self.pixel_losses = WeightedLosses(pixel).to(device)
        self.deep_losses = WeightedLosses(deep, config.weights_dir, dtype, config.feature_model).to(device)
        self.has_pixel = bool(self.pixel_losses.weights)
        self.has_deep = bool(self.deep_losses.weights) or self.net_d is not None
        patches = [net.patch_px for net in self.deep_losses.modules() if isinstance(net, FeatureDists)]
        patches += [] if self.net_d is None else [self.net_d.patch_px]
        self.seen_px = _whole(config.deep_crop_px - config.jitter_px, math.lcm(*patches))

    def pixel(self, sr: Tensor, gt: Tensor, figures: Figures) -> Tensor:
        """Return the weighted pixel losses of a generated picture or part of one."""
        loss, found = self.pixel_losses(sr, gt)
        figures.note(found)
        return loss

    def deep(self, sr: Tensor, gt: Tensor, figures: Figures, seed: Seed) -> Tensor:
        """Return the weighted feature losses and the generator's adversarial loss."""
        sr, gt = self._seen(sr, gt, seed)
        loss, found = self.deep_losses(sr, gt)
        figures.note(found)
        if self.net_d is not None:
            gan = adversarial_loss(self.net_d(sr, seed.torch(_STREAM_G)), REAL_LABEL)
            figures.note({"loss_g_gan": gan.detach()})
            loss = loss + self.loss_gan * gan
        return loss

    def _seen(self, sr: Tensor, gt: Tensor, seed: Seed) -> tuple[Tensor, Tensor]:
        # AlexNet's first layer has stride 4, VGG's pools 2 to 16: always in one phase with a space-to-depth latent,
        # they would draw their grid into the picture.
        side = self.seen_px
        y, x = (int(offset) for offset in seed.numpy(_STREAM_JITTER).integers(sr.shape[-1] - side + 1, size=2))
        square = Window(y0=y, x0=x, y1=y + side, x1=x + side)
        return cut(sr, square), cut(gt, square)

    def total(self, means: Mapping[str, Tensor]) -> Tensor:
        """Return L_G, the weighted sum of the means that `pixel` and `deep` noted; a float32 scalar."""
        weights = self.pixel_losses.weights | self.deep_losses.weights
        weights |= {"gan": self.loss_gan} if self.net_d is not None else {}
        return torch.stack([weight * means[f"loss_g_{name}"] for name, weight in weights.items()]).sum()

    def discriminator(self, sr: Tensor, gt: Tensor, figures: Figures, seed: Seed) -> Tensor:
        """Return L_D on a detached generated part and the true one: on the square that `deep` sees by this seed."""
        assert self.net_d is not None, "asked for by those who have one"
        sr, gt = self._seen(sr, gt, seed)
        real = self.net_d(gt, seed.torch(_STREAM_REAL))
        fake = self.net_d(sr, seed.torch(_STREAM_FAKE))
        loss = discriminator_loss(real, fake)
        figures.note({"loss_d": loss.detach()})
        return loss


def _whole(side_px: int, patch_px: int) -> int:
    """Round a side down to whole patches of the nets that see it, which would pad or resample the rest.

    Where that leaves less than D is promised, the rest is the lesser evil.
    """
    whole = side_px - side_px % patch_px
    return whole if whole >= Discriminator.min_px else side_px


def _discriminator(config: TrainConfig) -> Discriminator:
    # Initial weights come from torch's global generator, which the trainer has seeded.
    net_d = build_discriminator(config.discriminator, **config.discriminator_options)
    net_d.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # the stub lacks it; twice as fast on a CPU
    if config.init_discriminator is not None:
        net_d.load_trainable_state_dict(load_tensors(config.init_discriminator)[0])
    return net_d

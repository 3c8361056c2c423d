"""What every discriminator promises: logit maps, a trainable part and, maybe, a frozen one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from tudsr.errors import ConfigError, WeightsError
from tudsr.lora import flags_kept
from tudsr.train.discriminators.augment import DiffAugment


class Discriminator(nn.Module):
    """Base of all discriminators: maps a picture to logits at several levels, each of which counts the same.

    Submodules named in `frozen_parts` are pretrained feature extractors: they keep their weights, stay in eval mode
    and are left out of the trainable parameters and of the saved state, while gradients flow through them to the
    picture. Subclasses implement `levels`.
    """

    frozen_parts: tuple[str, ...] = ()
    min_px = 64  # the least side that is promised to work; smaller ones leave a ViT a handful of tokens
    patch_px = 1  # sides that are no multiple of it are padded

    def __init__(self, augment: str = "") -> None:
        """Set up the augmentation.

        Args:
            augment: DiffAugment policy such as "color,translation,cutout"; empty for none.

        Raises:
            ConfigError: on an unknown operation in the policy.
        """
        super().__init__()
        self.augment = DiffAugment(augment)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Judge a batch of pictures.

        Args:
            x: pictures, (B, 3, H, W), float, in [-1, 1]; H and W at least 64.
            generator: source of the augmentation's randomness, used in training mode only; None for no augmentation.
                Generators in equal states augment equally, whatever the pictures hold.

        Returns:
            Logit maps, (B, 1, h, w) each, from the shallowest level to the deepest; larger means more real. A loss
            averages each map by itself and then the levels with equal weight.
        """
        if self.training and generator is not None:
            x = self.augment(x, generator)
        return self.levels(x)

    def levels(self, x: Tensor) -> list[Tensor]:
        """Return the logit maps (B, 1, h, w) of pictures (B, 3, H, W) in [-1, 1], without augmentation."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Switch the trainable part's mode; frozen parts stay in eval mode."""
        super().train(mode)
        for name in self.frozen_parts:
            self.get_submodule(name).eval()
        return self

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters for the optimizer, whatever their requires_grad flags say at the moment."""
        return [parameter for name, parameter in self.named_parameters() if self._is_trainable(name)]

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Return the state of the trainable part only (weights and the spectral norms' vectors)."""
        return {name: tensor for name, tensor in self.state_dict().items() if self._is_trainable(name)}

    def load_trainable_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trainable_state_dict` returned.

        Raises:
            WeightsError: when entries are missing, unknown or of another shape.
        """
        own = self.trainable_state_dict()
        odd = sorted(own.keys() ^ state.keys())
        odd += [name for name in own if name in state and own[name].shape != state[name].shape]
        if odd:
            raise WeightsError(
                f"The saved state is not of this {type(self).__name__}: {len(odd)} entries differ in name or shape, "
                f"the first is {odd[0]!r}."
            )
        self.load_state_dict(dict(state), strict=False)

    def _is_trainable(self, name: str) -> bool:
        return not any(name.startswith(f"{part}.") for part in self.frozen_parts)


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Take requires_grad off every parameter of a net, and put each flag back on leaving, on errors too.

    For the generator's step: its gradient flows through the discriminator but leaves the discriminator's own
    gradients untouched. Source: METHOD, «Losses».
    """
    with flags_kept(net):
        net.requires_grad_(False)
        yield


def check_at_least(name: str, value: int, least: int) -> None:
    """Check an integer option.

    Raises:
        ConfigError: when the value is not an integer or is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"The discriminator's {name} is {value!r}; an integer of at least {least} is expected.")

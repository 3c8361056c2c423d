"""The discriminators, by name.

A new one is a file with a subclass of `Discriminator` and one line in `DISCRIMINATORS`.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from tudsr.errors import ConfigError, cause
from tudsr.train.discriminators.base import Discriminator, frozen
from tudsr.train.discriminators.patch import PatchDiscriminator
from tudsr.train.discriminators.vit import DINOV2, DINOV3, VitDiscriminator

__all__ = ["DISCRIMINATORS", "Discriminator", "build_discriminator", "frozen"]

DISCRIMINATORS: dict[str, Callable[..., Discriminator]] = {
    "dinov3": partial(VitDiscriminator, DINOV3),  # ViT-B/16, gated: the paper's
    "dinov2": partial(VitDiscriminator, DINOV2),  # ViT-B/14, Apache-2.0
    "patch": PatchDiscriminator,
}


def build_discriminator(name: str, **options: Any) -> Discriminator:
    """Build a discriminator from its name and options.

    Args:
        name: a key of `DISCRIMINATORS`.
        options: keyword arguments of that entry.

    Returns:
        The net in float32 on the CPU, in training mode (frozen parts in eval mode), with weights drawn from torch's
        global generator.

    Raises:
        ConfigError: on an unknown name or option, or a value out of range.
        WeightsError: when pretrained weights cannot be loaded.
    """
    if name not in DISCRIMINATORS:
        raise ConfigError(f"Unknown discriminator {name!r}; known ones: {', '.join(DISCRIMINATORS)}.")
    known = inspect.signature(DISCRIMINATORS[name]).parameters
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise ConfigError(f"The discriminator {name!r} has no option {unknown[0]!r}; known ones: {', '.join(known)}.")
    try:
        return DISCRIMINATORS[name](**options).train()
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"The discriminator {name!r} cannot be built of {options} ({cause(error)}).") from error

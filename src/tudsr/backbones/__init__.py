"""Backbones by name. A new one is a file with a `blueprint()` and a line in BACKBONES."""

from collections.abc import Callable

from tudsr.backbones import sd21, tiny
from tudsr.backbones.base import Backbone
from tudsr.backbones.blueprint import Blueprint
from tudsr.errors import ConfigError

BACKBONES: dict[str, Callable[[], Blueprint]] = {"sd21": sd21.blueprint, "tiny": tiny.blueprint}

__all__ = ["BACKBONES", "Backbone", "Blueprint", "blueprint"]


def blueprint(name: str) -> Blueprint:
    """Return the blueprint of a backbone.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in BACKBONES:
        raise ConfigError(f"backbone {name!r} is unknown; known ones: {', '.join(BACKBONES)}.")
    return BACKBONES[name]()

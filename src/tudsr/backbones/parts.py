"""The networks of a model folder, as diffusers reads and writes them, safetensors only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tudsr import checkpoint
from tudsr.backbones.space_to_depth import SpaceToDepth
from tudsr.checkpoint import find_weights, save_tensors, weights_variant, write_text
from tudsr.errors import ModelError, cause

WEIGHTS_STEM = "diffusion_pytorch_model"
PARTS = {
    "UNet": ("UNet2DConditionModel",),
    "autoencoder": ("AutoencoderKL", "AutoencoderTiny", SpaceToDepth.__name__),
}
"""A part of a model → what it may be."""


def load_vae(folder: Path, dtype: torch.dtype) -> Any:
    """Load an autoencoder of a known kind.

    Raises:
        ModelError: when it is another kind, missing, pickled or unreadable.
    """
    return load_part(part_class(folder, "autoencoder"), folder, dtype)


def part_class(folder: Path, part: str) -> Any:
    """Return the class of the network in a folder, without its weights.

    Args:
        folder: has a config.json.
        part: a key of PARTS.

    Raises:
        ModelError: for one of an unknown kind.
    """
    import diffusers

    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: config.json with a _class_name is expected ({error}).") from error
    if name not in PARTS[part]:
        raise ModelError(f"{folder}: {part} {name!r} is unknown; accepted: {', '.join(PARTS[part])}.")
    return SpaceToDepth if name == SpaceToDepth.__name__ else getattr(diffusers, name)


def load_part(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load a network of a kind, with its weights.

    Raises:
        ModelError: when they are missing, pickled or unreadable.
    """
    if kind is SpaceToDepth:
        return SpaceToDepth.from_config(SpaceToDepth.load_config(folder))
    if not find_weights(folder):
        pickles = checkpoint.pickles(folder)
        came = f"only pickles ({', '.join(pickles)}), which can run code" if pickles else "no weights"
        raise ModelError(f"{folder}: {came}; safetensors files are expected.")
    try:
        net, info = kind.from_pretrained(
            folder,
            torch_dtype=dtype,
            use_safetensors=True,
            variant=weights_variant(folder),
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder}: {kind.__name__} cannot be loaded ({cause(error)}).") from error
    if info["missing_keys"]:  # diffusers itself only warns
        raise ModelError(f"{folder}: the weights of {min(info['missing_keys'])!r} and maybe others are missing.")
    return net


def save_part(folder: Path, net: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a network as diffusers does, but for where it was loaded from, on the machine of whoever made it."""
    folder.mkdir(parents=True, exist_ok=True)
    net.save_config(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    if weights:
        save_tensors(folder / f"{WEIGHTS_STEM}.safetensors", weights)

"""Where the weights of the loss and metric networks come from.

The small tables ship in the package. The convolutions of VGG16 and AlexNet are looked for, in this order, in the
folder that the caller names, in the folder that the environment variable TUDSR_WEIGHTS names, in the user's cache
(~/.cache/tudsr) and, in a development checkout, beside it; at last torchvision's published file is downloaded, its
hash checked, and its convolutions kept in the cache.
"""

import os
import re
import sys
import tempfile
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tudsr.checkpoint import sha256_file
from tudsr.errors import WeightsError

ENV_VAR = "TUDSR_WEIGHTS"
CACHE = Path("~/.cache/tudsr")
CHECKOUT_WEIGHTS = Path(__file__).resolve().parents[4] / "shared" / "data" / "weights"


@dataclass(frozen=True, kw_only=True)
class PublishedNet:
    """One pretrained network: its file names and how its keys are translated.

    `safetensors` are the names under which our own form (keys conv0.weight, conv0.bias, ...) is looked for, the first
    being the one we write; `pth` is torchvision's file, whose name ends in the first digits of its SHA-256; `indices`
    are the positions of the convolutions in torchvision's `features`.
    """

    safetensors: tuple[str, ...]
    pth: str
    indices: tuple[int, ...]

    @property
    def url(self) -> str:
        """Address of torchvision's published file."""
        return f"https://download.pytorch.org/models/{self.pth}"

    @property
    def sha256_prefix(self) -> str:
        """First hexadecimal digits of the file's SHA-256, from its name."""
        return self.pth.removesuffix(".pth").rsplit("-", 1)[1]


NETS = {
    "vgg16": PublishedNet(
        safetensors=("vgg16_conv.safetensors", "lpips_vgg16.safetensors"),
        pth="vgg16-397923af.pth",
        indices=(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    ),
    "alexnet": PublishedNet(
        safetensors=("alexnet_conv.safetensors", "lpips_alexnet.safetensors"),
        pth="alexnet-owt-7be5be79.pth",
        indices=(0, 3, 6, 8, 10),
    ),
}


def table_path(name: str) -> Path:
    """Return the path of a table that ships in the package.

    Args:
        name: file name in tudsr/perceptual/tables.
    """
    with as_file(files("tudsr.perceptual") / "tables" / name) as path:
        return path


def load_table(name: str) -> dict[str, Tensor]:
    """Read a shipped safetensors table as float32 tensors."""
    return {key: value.float() for key, value in load_file(table_path(f"{name}.safetensors")).items()}


def find_weights(name: str, weights_dir: Path | None = None) -> Path | None:
    """Find a network's weights on this machine, without fetching anything.

    Args:
        name: a key of NETS.
        weights_dir: a folder to look into first.

    Returns:
        Path of a .safetensors or .pth file, or None when there is none.

    Raises:
        WeightsError: when a folder that was named does not exist.
    """
    for folder in _folders(weights_dir):
        for candidate in (*NETS[name].safetensors, NETS[name].pth):
            path = folder / candidate
            if path.is_file():
                return path
    return None


def load_convs(name: str, weights_dir: Path | None = None) -> dict[str, Tensor]:
    """Load a network's convolutions, fetching them when they are not on this machine.

    Args:
        name: a key of NETS.
        weights_dir: a folder to look into first.

    Returns:
        float32 tensors under conv0.weight, conv0.bias, conv1.weight, ...

    Raises:
        WeightsError: when the file is damaged, or is missing and cannot be fetched.
    """
    net = NETS[name]
    path = find_weights(name, weights_dir) or _fetch(name)
    state = _read_pth(path, net) if path.suffix == ".pth" else _read_safetensors(path)
    keys = {f"conv{i}.{kind}" for i in range(len(net.indices)) for kind in ("weight", "bias")}
    missing = sorted(keys - state.keys())
    if missing:
        raise WeightsError(f"{path}: {missing[0]!r} is missing; a file with {name}'s convolutions is expected.")
    return {key: state[key].float() for key in keys}


def _folders(weights_dir: Path | None) -> list[Path]:
    """Folders to search, those that the user named first; a named folder has to exist."""
    named = [Path(folder).expanduser() for folder in (weights_dir, os.environ.get(ENV_VAR)) if folder]
    for folder in named:
        if not folder.is_dir():
            raise WeightsError(f"{folder}: no such folder; name an existing folder of weights, or none at all.")
    return [*named, CACHE.expanduser(), CHECKOUT_WEIGHTS]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read as safetensors ({error}); delete it and try again.") from error


def _read_pth(path: Path, net: PublishedNet) -> dict[str, Tensor]:
    """Read torchvision's file (hash checked, tensors only) and translate its keys."""
    digest = sha256_file(path)
    if not digest.startswith(net.sha256_prefix):
        raise WeightsError(
            f"{path}: its SHA-256 begins with {digest[:8]}, {net.sha256_prefix} is expected; "
            f"delete it and fetch {net.url} again."
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    number_of = {index: number for number, index in enumerate(net.indices)}
    convs = {}
    for key, value in state.items():
        if match := re.fullmatch(r"features\.(\d+)\.(weight|bias)", key):
            convs[f"conv{number_of[int(match[1])]}.{match[2]}"] = value
    return convs


def _fetch(name: str) -> Path:
    """Download torchvision's file and keep its convolutions in the cache, under a name that appears only when whole."""
    net = NETS[name]
    cache = CACHE.expanduser()
    target = cache / net.safetensors[0]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            pth = Path(work) / net.pth
            torch.hub.download_url_to_file(net.url, str(pth), net.sha256_prefix, progress=sys.stderr.isatty())
            part = Path(work) / target.name
            save_file({key: value.contiguous() for key, value in _read_pth(pth, net).items()}, part)
            part.replace(target)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"the weights of {name} are not on this machine and {net.url} could not be fetched ({error}); "
            f"download that file by hand and set {ENV_VAR} to the folder that holds it."
        ) from error
    return target

"""Find model folders by name, path or hub id, and check their files. No torch."""

import contextlib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from tudsr import checkpoint
from tudsr.config import ModelConfig
from tudsr.errors import ModelError

CONFIG_NAME = "tudsr.json"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
EMBEDDED = ("tiny",)


def find_model(name: str | Path) -> Path:
    """Return the folder of a model: an embedded name, a folder, or a hub id (owner/name), which is downloaded.

    Raises:
        ModelError: when it is none of these or cannot be fetched.
    """
    path = Path(name)
    if (path / CONFIG_NAME).is_file():
        return path
    if str(name) in EMBEDDED:
        return Path(str(resources.files("tudsr"))) / "weights" / str(name)
    if path.exists():
        raise ModelError(f"{path}: not a TUDSR model, {CONFIG_NAME} is missing; `tudsr models init` makes one.")
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        if not (fetch_hub(str(name), (CONFIG_NAME,)) / CONFIG_NAME).is_file():  # before gigabytes of another model
            raise ModelError(
                f"{name}: this hub repository has no {CONFIG_NAME}; `tudsr models init` makes a TUDSR model."
            )
        return fetch_hub(str(name), ("*.json", "*.safetensors", "*.txt"))
    known = ", ".join(EMBEDDED)
    raise ModelError(f"model {str(name)!r} is not there; accepted: {known}, a TUDSR folder, or a hub id (owner/name).")


def fetch_hub(hub_id: str, patterns: tuple[str, ...]) -> Path:
    """Download the matching files of a hub repository (cached) and return their folder.

    Raises:
        ModelError: when the hub does not answer or does not have it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except _hub_errors() as error:
        raise ModelError(
            f"hub model {hub_id!r} could not be fetched ({type(error).__name__}); give a local folder instead."
        ) from error


def hub_hashes(hub_id: str, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256, in hex, of those of a hub repository's large files that it has, without fetching them.

    None where the hub does not answer: the files may be in the cache.
    """
    from huggingface_hub import HfApi

    with contextlib.suppress(*_hub_errors()):
        found: list[Any] = HfApi().get_paths_info(hub_id, list(names))  # files, and folders, which have no hash
        return {file.path: file.lfs.sha256 for file in found if getattr(file, "lfs", None) is not None}
    return {}


def _hub_errors() -> tuple[type[Exception], ...]:
    """Return what the hub's client raises: OSError, what its HTTP library does when there is no answer, ValueError."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, ValueError)


def verify_model(name: str | Path) -> list[str]:
    """Hash every weight file of a model; returns one line per difference from tudsr.json, none when all is well."""
    folder = find_model(name)
    return checkpoint.verify_hashes(folder, ModelConfig.read(folder / CONFIG_NAME).sha256)

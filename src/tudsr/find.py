"""Find model folders by name, path or hub id, and check their files. No torch."""

from importlib import resources
from pathlib import Path

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
        folder = fetch_hub(str(name), ("*.json", "*.safetensors", "*.txt"))
        if (folder / CONFIG_NAME).is_file():
            return folder
        raise ModelError(f"{name}: this hub repository has no {CONFIG_NAME}; `tudsr models init` makes a TUDSR model.")
    known = ", ".join(EMBEDDED)
    raise ModelError(f"model {str(name)!r} is not there; accepted: {known}, a TUDSR folder, or a hub id (owner/name).")


def fetch_hub(hub_id: str, patterns: tuple[str, ...]) -> Path:
    """Download the matching files of a hub repository (cached) and return their folder.

    Raises:
        ModelError: when the hub does not answer or does not have it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"hub model {hub_id!r} could not be fetched ({type(error).__name__}); give a local folder instead."
        ) from error


def verify_model(name: str | Path) -> list[str]:
    """Hash every weight file of a model; returns one line per difference from tudsr.json, none when all is well."""
    folder = find_model(name)
    return checkpoint.verify_hashes(folder, ModelConfig.read(folder / CONFIG_NAME).sha256)

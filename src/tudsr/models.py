"""Make a TUDSR model folder: from a user's SD2.1-base, or with random weights."""

from pathlib import Path

import torch

from tudsr import lora
from tudsr.backbones import Backbone, blueprint, sd21
from tudsr.backbones.parts import load_vae
from tudsr.checkpoint import FP16, find_weights, sha256_file, weights_variant
from tudsr.config import ModelConfig
from tudsr.errors import InputError, ModelError, cause
from tudsr.find import UNET_FILE, fetch_hub, hub_hashes
from tudsr.folder import Model, load_backbone, save_model

_WEIGHTS = (UNET_FILE, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
_VAE_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
_PROBE_PX = 64
_HUB_FILES = (
    *_WEIGHTS,
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/*.json",
    "tokenizer/*.txt",
)


def init_random(name: str, out: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> ModelConfig:
    """Write a model of the true shapes with random weights.

    Args:
        name: a key of backbones.BACKBONES.
        out: folder to make.
        seed: of the weights.
        dtype: of the weights, in memory and on disk.

    Returns:
        The settings as written.

    Raises:
        ConfigError: for an unknown backbone.
        InputError: when `out` holds something already.
    """
    check_free(out)
    plan = blueprint(name)
    torch.manual_seed(seed)
    backbone, scheduler = plan.build(dtype)
    config = ModelConfig.parse(plan.settings | {"base_model": "random weights"}, name)
    return _write(out, Model(config, backbone, scheduler), dtype)


def init_sd21(
    base: str | Path, out: Path, *, dtype: torch.dtype = torch.float32, vae: str | Path | None = None
) -> tuple[ModelConfig, str]:
    """Write a TUDSR folder from SD2.1-base, with fresh adapters (B = 0: the base's own output until they are trained).

    Args:
        base: a diffusers folder or a hub id.
        out: folder to make.
        dtype: of the weights in memory and on disk.
        vae: folder or hub id of an autoencoder for the same latents instead of the base's own, such as
            madebyollin/taesd, which is fast and coarse.

    Returns:
        The settings as written, and one sentence on what the UNet's hash says.

    Raises:
        ModelError: when the base cannot be found or read, is another network, or is known to be SD 2.0.
        InputError: when `out` holds something already.
    """
    check_free(out)
    folder = Path(base) if Path(base).is_dir() else _fetch_base(str(base))
    verdict = identify_unet(folder)
    embeds = empty_prompt(folder, dtype)
    backbone, scheduler = load_backbone(folder, dtype, embeds)
    plan = blueprint("sd21")
    _check_shapes(backbone.unet.config, plan.unet, folder)
    if vae is not None:
        replace_vae(backbone, vae, dtype)
    name = folder.name if Path(base).is_dir() else str(base)  # a path says nothing to whoever gets the folder
    config = ModelConfig.parse(plan.settings | {"base_model": name}, "sd21")
    return _write(out, Model(config, backbone, scheduler), dtype), verdict


def replace_vae(backbone: Backbone, name: str | Path, dtype: torch.dtype) -> None:
    """Give a backbone another autoencoder: a folder's, a diffusers folder's (in vae/), or a hub repository's.

    Raises:
        ModelError: when it cannot be found or read, or makes other latents.
    """
    folder = Path(name) if Path(name).is_dir() else fetch_hub(str(name), _VAE_FILES)
    before = _latent_shape(backbone)
    backbone.vae = load_vae(folder if (folder / "config.json").is_file() else folder / "vae", dtype)
    came = _latent_shape(backbone)
    if came != before:
        sizes = [f"{channels}x{height}x{width}" for channels, height, width in (came, before)]
        raise ModelError(
            f"{name}: this autoencoder makes latents of {sizes[0]} of {_PROBE_PX}² px; {sizes[1]} are needed."
        )


def _latent_shape(backbone: Backbone) -> tuple[int, ...]:
    side = _PROBE_PX // backbone.patch_px
    return backbone.latent_channels, side, side


def _fetch_base(hub_id: str) -> Path:
    """Fetch the files that are needed and no others; the fp16 variant of weights that the hub has in no other form."""
    for name, digest in hub_hashes(hub_id, (UNET_FILE, _fp16(UNET_FILE))).items():
        _refuse(f"{hub_id}/{name}", digest)
    folder = fetch_hub(hub_id, _HUB_FILES)
    lacking = [_fp16(name) for name in _WEIGHTS if not (folder / name).is_file()]
    return fetch_hub(hub_id, tuple(lacking)) if lacking else folder


def _fp16(name: str) -> str:
    return name.removesuffix(".safetensors") + FP16


def _refuse(name: str, digest: str) -> None:
    if digest in sd21.REFUSED_UNETS:
        raise ModelError(f"{name}: this is {sd21.REFUSED_UNETS[digest]}, not SD2.1-base, whatever the name says.")


def identify_unet(folder: Path) -> str:
    """Say what a base's UNet is by its SHA-256: known-good, or unknown (fp16, a fine-tune).

    Raises:
        ModelError: when the file is missing, or it or its fp16 variant is one that is known not to be SD2.1-base.
    """
    file = folder / UNET_FILE
    if not file.is_file() and weights_variant(file.parent):
        file = find_weights(file.parent)[0]
    if not file.is_file():
        others = sorted(path.name for path in (folder / "unet").glob("*")) if (folder / "unet").is_dir() else []
        raise ModelError(f"{file}: missing; a diffusers folder with safetensors is expected (unet/ holds: {others}).")
    digest = sha256_file(file)
    _refuse(str(file), digest)
    beside = folder / _fp16(UNET_FILE)
    if digest not in sd21.KNOWN_UNETS and beside != file and beside.is_file():
        _refuse(str(beside), sha256_file(beside))  # the float32 file of SD2.0 is not known, its partner is
    if digest in sd21.KNOWN_UNETS:
        return f"The UNet is known-good: {sd21.KNOWN_UNETS[digest]}."
    return f"Warning: the UNet's SHA-256 {digest[:12]}… is not known: fp16, a fine-tune, or another model."


def empty_prompt(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    """Return the text encoder's embedding of the empty prompt, (1, 77, width).

    Raises:
        ModelError: when text_encoder/ or tokenizer/ cannot be loaded.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder",
            dtype=torch.float32,
            use_safetensors=True,
            variant=weights_variant(folder / "text_encoder"),
            local_files_only=True,
        )
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{folder}: text_encoder/ and tokenizer/ are needed for the prompt ({cause(error)})."
        ) from error
    length = encoder.config.max_position_embeddings
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids)[0].to(dtype)


def check_free(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        InputError: saying so.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not empty; give a new folder.")


def _check_shapes(found: dict[str, object], expected: dict[str, object], folder: Path) -> None:
    for key, value in expected.items():
        came = found.get(key)
        came = tuple(came) if isinstance(came, list) else came
        if came != value:
            raise ModelError(f"{folder}/unet: {key} is {came}, SD2.1-base has {value}.")


def _write(out: Path, model: Model, dtype: torch.dtype) -> ModelConfig:
    for stage in lora.STAGES:
        lora.attach(model.backbone.unet, stage, model.config.lora)
    return save_model(out, model, dtype)

"""Model folders: load one, save one."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tudsr import checkpoint, lora
from tudsr.backbones import Backbone
from tudsr.backbones.space_to_depth import SpaceToDepth
from tudsr.checkpoint import find_weights, load_tensors, save_tensors, sha256_file, weights_variant, write_text
from tudsr.config import ModelConfig
from tudsr.errors import ModelError, cause
from tudsr.find import CONFIG_NAME, UNET_FILE, find_model

PROMPT_NAME = "prompt.safetensors"
ADAPTERS = "adapters"
WEIGHTS_STEM = "diffusion_pytorch_model"
PARTS = {
    "UNet": ("UNet2DConditionModel",),
    "autoencoder": ("AutoencoderKL", "AutoencoderTiny", SpaceToDepth.__name__),
}
"""A part of a model → what it may be."""
_CHECKED_BYTES = 64 * 2**20  # files up to here are hashed on every load; larger ones by `verify`


@dataclass
class Model:
    """A loaded model: its settings, its backbone with the adapters attached, its scheduler, and its folder."""

    config: ModelConfig
    backbone: Backbone
    scheduler: Any
    folder: Path | None = None


def load_model(name: str | Path, device: torch.device, dtype: torch.dtype) -> Model:
    """Load a model with all its adapters attached.

    Args:
        name: embedded name, folder or hub id.
        device: where its weights go.
        dtype: of the UNet and VAE; the adapters stay float32.

    Raises:
        ModelError: when files are missing, damaged, pickled, not what tudsr.json lists, or adapters of
            another base.
    """
    folder = find_model(name)
    config = ModelConfig.read(folder / CONFIG_NAME)
    _check_small_files(folder, config.sha256)
    backbone, scheduler = load_backbone(folder, dtype, _prompt(folder, dtype))
    if device.type == "cpu":  # elsewhere nothing of a file is left once the weights are there
        for part in ("unet", "vae"):
            _unmap(getattr(backbone, part), folder / part)
    for stage in lora.STAGES:
        adapter = folder / ADAPTERS / stage
        if _is_there(adapter / lora.FILE_NAME, "*"):
            _check_base(adapter, lora.load(backbone.unet, stage, adapter, config.lora), config.sha256)
        else:
            lora.attach(backbone.unet, stage, config.lora)
    if config.windows.stride_px % backbone.patch_px:
        came = f"stride of its windows is {config.windows.stride_px} px"
        raise ModelError(f"{folder}: the {came}; multiples of its autoencoder's {backbone.patch_px} px are accepted.")
    backbone.requires_grad_(False)
    backbone.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # the stub lacks it
    return Model(config, backbone.eval(), scheduler, folder)


def base_reader(model: Model) -> Callable[[str], torch.Tensor]:
    """Return what reads one of a loaded model's own UNet weights from its files, by its name there.

    Raises:
        ModelError: when the model has no files, or they lack a weight that an adapter changes.
    """
    if model.folder is None:
        raise ModelError("low_memory reads the base from its files; this model was made in memory and has none.")
    read = _reader(model.folder / "unet")
    for stage in lora.STAGES:
        for path in lora.layers(model.backbone.unet, stage):
            read(f"{path}.weight")  # now rather than after the first pass
    return read


def _reader(part: Path) -> Callable[[str], torch.Tensor]:
    """Return what reads one weight of the UNet or the autoencoder from the files that diffusers takes it from."""
    return checkpoint.tensor_reader(path for path in find_weights(part) if path.name.startswith(WEIGHTS_STEM))


def _unmap(net: nn.Module, part: Path) -> None:
    """Give weights that are views of their mapped file, as those in its own dtype are, memory of their own.

    Pages of a mapped file count as the process's memory beside every copy, and stay while one weight is a view. Each
    weight is read anew, with a mapping of its own, so that these pages are never there all together.
    """
    read = _reader(part)
    for name, weight in net.named_parameters():
        if weight.untyped_storage().resizable():  # memory that torch itself took
            continue
        own = weight.data
        with contextlib.suppress(ModelError):  # diffusers renames weights of old files
            own = read(name)
        weight.data = own.clone(memory_format=torch.channels_last if own.ndim == 4 else torch.preserve_format)


def load_backbone(folder: Path, dtype: torch.dtype, prompt: torch.Tensor | None) -> tuple[Backbone, Any]:
    """Load unet/, vae/ and scheduler/ of a diffusers folder.

    Raises:
        ModelError: when a part is missing, pickled or unreadable, or a UNet with cross-attention has no prompt.
    """
    from diffusers import DDPMScheduler, UNet2DConditionModel

    unet = _load_part(UNet2DConditionModel, folder / "unet", dtype)
    if prompt is None and any(getattr(module, "is_cross_attention", False) for module in unet.modules()):
        raise ModelError(f"{folder}: its UNet has cross-attention, but {PROMPT_NAME} is not there.")
    vae = load_vae(folder / "vae", dtype)
    try:
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'scheduler'}: not a diffusers scheduler ({cause(error)}).") from error
    return Backbone(unet, vae, scheduler.alphas_cumprod, scheduler.config.prediction_type, prompt), scheduler


def load_vae(folder: Path, dtype: torch.dtype) -> Any:
    """Load an autoencoder of a known kind.

    Raises:
        ModelError: when it is another kind, missing, pickled or unreadable.
    """
    return _load_part(part_class(folder, "autoencoder"), folder, dtype)


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


def _load_part(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
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


def _prompt(folder: Path, dtype: torch.dtype) -> torch.Tensor | None:
    path = folder / PROMPT_NAME
    return load_tensors(path)[0]["prompt_embeds"].to(dtype, copy=True) if _is_there(path, path.stem) else None


def _is_there(path: Path, stem: str) -> bool:
    """Say whether a file that a model may lack is there; a pickle of that stem in its place is not passed over."""
    if not path.is_file() and (found := checkpoint.pickles(path.parent, stem)):
        raise ModelError(f"{path.parent / found[0]}: a pickle, which can run code; {path.name} is expected.")
    return path.is_file()


def _check_small_files(folder: Path, expected: Mapping[str, str]) -> None:
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{path}: missing, though {CONFIG_NAME} lists it.")
        if path.stat().st_size <= _CHECKED_BYTES and sha256_file(path) != digest:
            raise ModelError(f"{path}: its SHA-256 is not the one in {CONFIG_NAME}; fetch or make the model again.")


def _check_base(adapter: Path, metadata: Mapping[str, Any], listed: Mapping[str, str]) -> None:
    """Refuse an adapter that says it was made for a base other than the listed one; foreign ones say nothing."""
    for key, name in (("base_unet_sha256", UNET_FILE), ("prompt_sha256", PROMPT_NAME)):
        made_for, own = metadata.get(key), listed.get(name, "")
        if made_for and listed and made_for != own:
            raise ModelError(
                f"{adapter}: this adapter was made for another base, whose {name} has the SHA-256 {made_for[:12]}…; "
                f"this model's is {own[:12] + '…' if own else 'not there'}."
            )


def save_model(folder: Path, model: Model, dtype: torch.dtype, record: Mapping[str, Any] | None = None) -> ModelConfig:
    """Write a whole model folder; tudsr.json, which makes it valid, is written last.

    Args:
        folder: made if it is not there.
        model: what to write; adapters that are attached are saved.
        dtype: of the weights on disk.
        record: one entry to append to the training record.

    Returns:
        The settings as written, with hashes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    net = model.backbone
    save_unet(folder / "unet", net.unet, dtype)
    if isinstance(net.vae, SpaceToDepth):
        (folder / "vae").mkdir(exist_ok=True)
        net.vae.save_config(folder / "vae")
    else:
        net.vae.save_pretrained(folder / "vae", safe_serialization=True)
        _forget_origin(folder / "vae")
    model.scheduler.save_pretrained(folder / "scheduler")
    if net.prompt_embeds is not None:
        save_tensors(folder / PROMPT_NAME, {"prompt_embeds": net.prompt_embeds})
    for stage in lora.STAGES:
        if lora.layers(net.unet, stage):
            save_adapter(folder, model, stage, dtype)
    return finish_folder(folder, model, record)


def _forget_origin(part: Path) -> None:
    """Take out of a part's settings where it was loaded from, on the machine of whoever made it."""
    config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    write_text(part / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_unet(folder: Path, unet: Any, dtype: torch.dtype) -> None:
    """Write a UNet as diffusers does, without the adapters that peft injected into it."""
    folder.mkdir(parents=True, exist_ok=True)
    unet.save_config(folder)
    _forget_origin(folder)
    plain = {
        key.replace(".base_layer.", "."): value.to(dtype)
        for key, value in unet.state_dict().items()
        if ".lora_A." not in key and ".lora_B." not in key
    }
    save_tensors(folder / f"{WEIGHTS_STEM}.safetensors", plain, None)


def save_adapter(folder: Path, model: Model, stage: str, dtype: torch.dtype) -> None:
    """Write one stage's adapter with what it needs to be understood alone."""
    config = model.config
    first = stage == lora.STAGES[0]
    metadata = {
        "stage": stage,
        "t": config.t1 if first else config.t2,
        "range": config.m_range if first else config.n_range,
        "lora": lora.spec(model.backbone.unet, stage).model_dump(mode="json"),
        "prompt": config.prompt,
        "prompt_sha256": _sha256_or_empty(folder / PROMPT_NAME),
        "base_unet_sha256": _sha256_or_empty(folder / UNET_FILE),
    }
    lora.save(model.backbone.unet, stage, folder / ADAPTERS / stage, metadata, dtype)


def _sha256_or_empty(path: Path) -> str:
    return sha256_file(path) if path.is_file() else ""


def finish_folder(folder: Path, model: Model, record: Mapping[str, Any] | None) -> ModelConfig:
    """Write model_index.json and tudsr.json (with fresh hashes) and return the settings."""
    net = model.backbone
    parts = {"unet": net.unet, "vae": net.vae, "scheduler": model.scheduler}
    index: dict[str, Any] = {"_class_name": "TUDSR"}
    for name, part in parts.items():
        library = "tudsr" if isinstance(part, SpaceToDepth) else "diffusers"
        index[name] = [library, type(part).__name__]
    write_text(folder / "model_index.json", json.dumps(index, indent=2) + "\n")
    training = [*model.config.training, *([dict(record)] if record else [])]
    config = model.config.model_copy(update={"sha256": checkpoint.weight_hashes(folder), "training": training})
    write_text(folder / CONFIG_NAME, config.to_json())
    return config

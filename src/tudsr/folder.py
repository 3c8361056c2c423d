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
from tudsr.backbones.parts import WEIGHTS_STEM, load_part, load_vae, save_part
from tudsr.backbones.space_to_depth import SpaceToDepth
from tudsr.checkpoint import find_weights, load_tensors, save_tensors, sha256_file, write_text
from tudsr.config import ModelConfig
from tudsr.errors import ModelError, cause
from tudsr.find import CONFIG_NAME, UNET_FILE, find_model

PROMPT_NAME = "prompt.safetensors"
ADAPTERS = "adapters"
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
    backbone, scheduler = load_backbone(folder, dtype, read_prompt(folder, dtype))
    _check_parts(folder, config, backbone)
    if device.type == "cpu":  # elsewhere nothing of a file is left once the weights are there
        for part in ("unet", "vae"):
            _unmap(getattr(backbone, part), folder / part)
    for stage in lora.STAGES:
        adapter = folder / ADAPTERS / stage
        if _is_there(adapter / lora.FILE_NAME, "*"):
            _check_base(adapter, lora.load(backbone.unet, stage, adapter, config.lora), config.sha256)
        else:
            lora.attach(backbone.unet, stage, config.lora)
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
        ModelError: when a part is missing, pickled or unreadable, or a UNet with cross-attention has no prompt or a
            wrong one.
    """
    from diffusers import DDPMScheduler, UNet2DConditionModel

    unet: Any = load_part(UNet2DConditionModel, folder / "unet", dtype)
    if any(getattr(module, "is_cross_attention", False) for module in unet.modules()):
        if prompt is None:
            raise ModelError(f"{folder}: its UNet has cross-attention, but {PROMPT_NAME} is not there.")
        came, width = prompt.shape[-1], unet.config.cross_attention_dim
        if came != width:
            raise ModelError(f"{folder}: its prompt is {came} wide; its UNet accepts {width}.")
    vae = load_vae(folder / "vae", dtype)
    try:
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'scheduler'}: not a diffusers scheduler ({cause(error)}).") from error
    return Backbone(unet, vae, scheduler.alphas_cumprod, scheduler.config.prediction_type, prompt), scheduler


def read_prompt(folder: Path, dtype: torch.dtype) -> torch.Tensor | None:
    """Return the embedding of a model's prompt, (1, tokens, width), or None where it has none.

    Raises:
        ModelError: when its file is a pickle, damaged or of something else.
    """
    path = folder / PROMPT_NAME
    if not _is_there(path, path.stem):
        return None
    tensors, _ = load_tensors(path)
    if "prompt_embeds" not in tensors:
        raise ModelError(f"{path}: holds {', '.join(tensors) or 'nothing'}; prompt_embeds is expected.")
    return tensors["prompt_embeds"].to(dtype, copy=True)


def _check_parts(folder: Path, config: ModelConfig, net: Backbone) -> None:
    """Refuse parts that do not fit together, before the first picture does in torch's words."""
    unet, steps, patch, latent = net.unet.config, len(net.alphas_cumprod), net.patch_px, net.latent_channels
    stride, t1, t2 = config.windows.stride_px, config.t1, config.t2
    for fits, sentence in (
        (stride % patch == 0, f"the stride of its windows is {stride} px; multiples of its autoencoder's {patch} px"),
        ({unet.in_channels, unet.out_channels} == {latent}, f"its UNet has {unet.in_channels} channels; {latent}"),
        (max(t1, t2) < steps, f"its timesteps are {t1} and {t2}; those of its scheduler, 0 to {steps - 1},"),
    ):
        if not fits:
            raise ModelError(f"{folder}: {sentence} are accepted.")


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
    save_part(folder / "vae", net.vae, {} if isinstance(net.vae, SpaceToDepth) else net.vae.state_dict())
    model.scheduler.save_pretrained(folder / "scheduler")
    if net.prompt_embeds is not None:
        save_tensors(folder / PROMPT_NAME, {"prompt_embeds": net.prompt_embeds})
    for stage in lora.STAGES:
        if lora.layers(net.unet, stage):
            save_adapter(folder, model, stage, dtype)
    return finish_folder(folder, model, record)


def save_unet(folder: Path, unet: Any, dtype: torch.dtype) -> None:
    """Write a UNet as diffusers does, without the adapters that peft injected into it."""
    plain = {
        key.replace(".base_layer.", "."): value.to(dtype)
        for key, value in unet.state_dict().items()
        if ".lora_A." not in key and ".lora_B." not in key
    }
    save_part(folder, unet, plain)


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

"""LoRA adapters of the two stages on one UNet: attach, apply, save, load.

peft holds the layers. Three ways to run one of them, each a context manager that puts everything back:
`switched` uses peft's own forward (cheap in memory: what a full-size model trains with); `merged` runs each layer with
W + scaling * B @ A (cheap in time: what inference uses, and what small models train with); `overwritten` does so too,
without a second copy of the weights, where they can be read again.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tudsr.checkpoint import load_tensors, save_tensors
from tudsr.config import LoraSpec
from tudsr.errors import ModelError, cause

STAGES = ("stage_1", "stage_2")
FILE_NAME = "pytorch_lora_weights.safetensors"
_PREFIX = "unet."  # diffusers' key prefix, so that its load_lora_weights reads our files


def attach(unet: nn.Module, name: str, spec: LoraSpec) -> None:
    """Add a LoRA adapter with B = 0 (the identity) in float32; no parameter of the base is made trainable.

    Args:
        unet: the backbone's network, changed in place.
        name: the adapter's name, one of STAGES.
        spec: rank, alpha, target module names.

    Raises:
        ModelError: when no layer has such a name, or peft knows no adapter for one that has.
    """
    with flags_kept(unet), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two adapters are the point
        config = LoraConfig(
            r=spec.rank, lora_alpha=spec.alpha, init_lora_weights="gaussian", target_modules=list(spec.targets)
        )
        try:
            inject_adapter_in_model(config, unet, adapter_name=name)
        except ValueError as error:
            raise ModelError(f"LoRA targets {', '.join(spec.targets)}: they do not fit ({cause(error)}).") from error
    for parameter in parameters(unet, name):
        parameter.data = parameter.data.float()
        parameter.requires_grad_(False)


def layers(unet: nn.Module, name: str) -> dict[str, LoraLayer]:
    """Return {module path: peft layer} of the layers that carry the named adapter."""
    return {
        path: module for path, module in unet.named_modules() if isinstance(module, LoraLayer) and name in module.lora_A
    }


def spec(unet: nn.Module, name: str) -> LoraSpec:
    """Return the settings that an adapter was attached with."""
    config: Any = unet.peft_config[name]  # type: ignore[index] # set by peft
    return LoraSpec(rank=config.r, alpha=config.lora_alpha, targets=tuple(sorted(config.target_modules)))


def parameters(unet: nn.Module, name: str) -> list[nn.Parameter]:
    """Return the adapter's own parameters, in module order."""
    found = layers(unet, name).values()
    return [p for layer in found for p in (*layer.lora_A[name].parameters(), *layer.lora_B[name].parameters())]


def delta_weight(layer: Any, name: str) -> Tensor:
    """Return scaling * B @ A in the shape of the layer's weight, differentiable, in the adapter's dtype."""
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    delta = b.flatten(1) @ a.flatten(1)  # (out, r) @ (r, in * kh * kw)
    return layer.scaling[name] * delta.view(b.shape[0], *a.shape[1:])


@contextlib.contextmanager
def merged(unet: nn.Module, name: str | None) -> Iterator[None]:
    """Run every layer with its base weight plus the adapter's, summed in float32 and cast once.

    With gradients enabled the sum is part of each forward, so that gradients reach A and B; otherwise it is made once
    on entry. The base weights are never written to, so leaving restores them bit for bit. With name None the bare base
    runs.
    """
    adapted = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    names = [name if name in layer.lora_A else None for layer in adapted]
    assert any(names) or name is None, f"no adapter {name!r} is attached"
    try:
        for layer, own in zip(adapted, names, strict=True):
            layer.forward = _merged_forward(layer, own)
        yield
    finally:
        for layer in adapted:
            layer.__dict__.pop("forward", None)


@contextlib.contextmanager
def overwritten(unet: nn.Module, name: str, base: Callable[[str], Tensor]) -> Iterator[None]:
    """Run as `merged` does, without gradients, the sums in the base weights' own place: no second copy of them.

    Args:
        unet: the network.
        name: the adapter.
        base: name of a weight → what it was, on any device and in a dtype that the network's own was cast from; asked
            on leaving, as nothing is subtracted: the base comes back bit for bit.
    """
    adapted = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    weights = {f"{path}.weight": layer.get_base_layer().weight for path, layer in layers(unet, name).items()}
    assert weights, f"no adapter {name!r} is attached"
    assert not any("forward" in layer.__dict__ for layer in adapted), "an adapter is written over another"
    try:
        for layer in layers(unet, name).values():
            own = layer.get_base_layer()
            own.weight.data.copy_(_summed(layer, own, name))
        for layer in adapted:
            layer.forward = layer.get_base_layer().forward
        yield
    finally:
        for layer in adapted:
            layer.__dict__.pop("forward", None)
        for key, weight in weights.items():
            weight.data.copy_(base(key))


def _merged_forward(layer: Any, name: str | None) -> Any:
    base = layer.get_base_layer()
    if name is None:
        return base.forward
    if torch.is_grad_enabled():
        return lambda x, *_, **__: _run(base, _summed(layer, base, name), x)
    weight = _summed(layer, base, name)
    return lambda x, *_, **__: _run(base, weight.to(base.weight.dtype), x)  # the base may be in float32 for a moment


def _summed(layer: Any, base: Any, name: str) -> Tensor:
    weight = base.weight
    with torch.autocast(weight.device.type, enabled=False):
        total = weight.to(torch.promote_types(weight.dtype, torch.float32)) + delta_weight(layer, name)
    is_conv = weight.dim() == 4
    return total.to(weight.dtype, memory_format=torch.channels_last if is_conv else torch.preserve_format)


def _run(base: Any, weight: Tensor, x: Tensor) -> Tensor:
    if weight.dim() == 4:
        return base._conv_forward(x, weight, base.bias)
    return F.linear(x, weight, base.bias)


@contextlib.contextmanager
def switched(unet: nn.Module, name: str | None) -> Iterator[None]:
    """Run with peft's own forward and the named adapter active; put back the active adapters and every requires_grad.

    peft's set_adapter makes the named adapter trainable and freezes the others; here the flags stay as they were.
    """
    tuners = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]
    before = [(list(t.active_adapters), t.disable_adapters) for t in tuners]
    with flags_kept(unet):
        try:
            with flags_kept(unet):
                for tuner in tuners:
                    tuner.enable_adapters(name is not None)
                    if name is not None:
                        tuner.set_adapter(name)
            yield
        finally:
            for tuner, (active, disabled) in zip(tuners, before, strict=True):
                tuner.set_adapter(active)
                tuner.enable_adapters(not disabled)


@contextlib.contextmanager
def scaled(unet: nn.Module, name: str | None, strength: float) -> Iterator[None]:
    """Run the named adapter with its weights times `strength`; 0 is the bare base. Its own scaling comes back after."""
    changed = layers(unet, name).values() if name and strength != 1 else ()
    before = [(layer, layer.scaling[name]) for layer in changed]
    try:
        for layer, own in before:
            layer.scaling[name] = own * strength
        yield
    finally:
        for layer, own in before:
            layer.scaling[name] = own


LORA_FORWARDS = {"merged": merged, "switched": switched}


@contextlib.contextmanager
def flags_kept(net: nn.Module) -> Iterator[None]:
    """Put every requires_grad flag of a net back on leaving, on errors too."""
    flags = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def state(unet: nn.Module, name: str) -> dict[str, Tensor]:
    """Return the adapter's tensors under diffusers' LoRA key names."""
    return {f"{_PREFIX}{key}": value for key, value in get_peft_model_state_dict(unet, adapter_name=name).items()}


def load_state(unet: nn.Module, name: str, tensors: dict[str, Tensor], where: str) -> None:
    """Copy tensors under diffusers' LoRA key names into an attached adapter.

    Raises:
        ModelError: when keys or shapes do not fit the adapter.
    """
    expected, plain = state(unet, name), {k: v for k, v in tensors.items() if k.startswith(_PREFIX)}
    wrong = sorted(expected.keys() ^ plain.keys()) or [k for k in expected if expected[k].shape != plain[k].shape]
    if wrong:
        raise ModelError(
            f"{where}: the LoRA does not fit this UNet; {len(wrong)} keys differ, the first is {wrong[0]!r}."
        )
    set_peft_model_state_dict(unet, {k.removeprefix(_PREFIX): v.float() for k, v in plain.items()}, adapter_name=name)


def save(unet: nn.Module, name: str, folder: Path, metadata: dict[str, Any], dtype: torch.dtype) -> None:
    """Write the adapter to folder/pytorch_lora_weights.safetensors; metadata says how it was made and what it fits."""
    tensors = {key: value.to(dtype) for key, value in state(unet, name).items()}
    save_tensors(folder / FILE_NAME, tensors, metadata)


def load(unet: nn.Module, name: str, folder: Path, fallback: LoraSpec) -> dict[str, Any]:
    """Attach the adapter that `save` or diffusers wrote and return its metadata.

    Args:
        unet: the network.
        name: adapter name to attach under.
        folder: holds pytorch_lora_weights.safetensors.
        fallback: rank, alpha and targets for a file that does not carry its own.
    """
    path = folder / FILE_NAME
    tensors, metadata = load_tensors(path)
    attach(unet, name, LoraSpec.parse(metadata["lora"], str(path)) if "lora" in metadata else fallback)
    load_state(unet, name, tensors, str(path))
    return metadata

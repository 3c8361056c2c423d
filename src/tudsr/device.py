"""Which device and which dtype to run on."""

import torch

from tudsr.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name; auto takes CUDA, then MPS, then the CPU.

    Raises:
        InputError: for a name that torch does not know or a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here; accepted: auto, cpu, cuda, mps.") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype of that name; auto takes the fastest that the device computes natively.

    Raises:
        InputError: for an unknown name.
    """
    if name == "auto":
        return _fastest(device)
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is unknown; accepted: auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def _fastest(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return torch.float32  # emulated bf16 is slower than float32 on a CPU; MPS gains little and loses range

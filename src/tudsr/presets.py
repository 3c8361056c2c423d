"""Named runs: one function per backbone and stage, returning plain training settings."""

from collections.abc import Callable
from typing import Any

from tudsr.errors import ConfigError


def sd21_stage_1() -> dict[str, Any]:
    """The paper's stage 1: R = 512, one window. Source: METHOD, «Training»."""
    return {"steps": 5100, "crop_px": 512, "scales": {"fixed": {"4": 0.5}, "uniform": [1.0, 4.0]}, "val_scale": 4.0}


def sd21_stage_2() -> dict[str, Any]:
    """The paper's stage 2 at N·R = 1024, with the exact loop. Source: METHOD, «Training» and «The looped chunks»."""
    return {
        "steps": 3500,
        "accumulate": 1,  # one step per image: its n² chunks are what accumulates
        "crop_px": 1024,
        "n": 2,
        "loop": "exact",
        "loss_crop_px": 512,
        "scales": {"fixed": {"8": 0.5, "4": 0.5}},
        "val_scale": 8.0,
    }


def _tiny() -> dict[str, Any]:
    return {
        "batch": 12,
        "accumulate": 1,
        "warmup": 100,
        "crop_px": 128,
        "base_dtype": "fp32",
        "lora_forward": "merged",
        "lr": 1e-3,
        "lr_end": 0.03,  # pictures of a rate that never came down have dots along their edges
        "lr_d": 2e-4,
        "weight_decay": 0.0,
        # DISTS without its Sobel half, which doubles the cost; LPIPS and the GAN light, as both draw patterns early on.
        "losses": {"dists": 2.5, "lpips_alex": 0.7, "mae": 0.5},
        "loss_gan": 0.1,
        "discriminator": "patch",
        "discriminator_options": {"width": 24},
        "overlap_px": 32,
        "val_crop_px": 256,
        "val_count": 16,
    }


def tiny_stage_0() -> dict[str, Any]:
    """The diffusion prior: noise prediction over all t on clean photos."""
    return _tiny() | {"train": "base", "batch": 16, "lr": 4e-4, "steps": 4000, "lr_end": 0.1}


def tiny_stage_1() -> dict[str, Any]:
    """LoRA-1 of `tiny`."""
    return _tiny() | {"steps": 8000, "scales": {"fixed": {"4": 0.5}, "uniform": [1.0, 4.0]}}


def tiny_stage_2() -> dict[str, Any]:
    """LoRA-2 of `tiny`, N = 2, exact loop.

    D and the deep losses see crops as large as a chunk, one graph at a time: memory does not grow with N.
    """
    return _tiny() | {
        "steps": 4000,
        "batch": 4,
        "crop_px": 256,
        "n": 2,
        "loop": "exact",
        "loss_crop_px": 128,
        "loss_crops": 4,
        "scales": {"fixed": {"8": 0.5, "4": 0.5}},
        "val_scale": 8.0,
        "init_adapter": "from_stage_1",
    }


TRAINING: dict[tuple[str, int], Callable[[], dict[str, Any]]] = {
    ("sd21", 1): sd21_stage_1,
    ("sd21", 2): sd21_stage_2,
    ("tiny", 0): tiny_stage_0,
    ("tiny", 1): tiny_stage_1,
    ("tiny", 2): tiny_stage_2,
}


def training_preset(backbone: str, stage: int) -> dict[str, Any]:
    """Return the default settings for a stage of a backbone.

    Raises:
        ConfigError: when there is none, with those there are.
    """
    if (backbone, stage) not in TRAINING:
        known = ", ".join(f"{name} stage {number}" for name, number in TRAINING)
        raise ConfigError(f"there is no training preset for {backbone} stage {stage}; known ones: {known}.")
    return TRAINING[backbone, stage]()

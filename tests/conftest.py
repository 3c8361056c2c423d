"""Shared fixtures: a very small random model folder, a few synthetic photos, and settings of a very short run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import of huggingface_hub: tests never reach for the network

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tudsr import lora
from tudsr.backbones.blueprint import Blueprint
from tudsr.backbones.space_to_depth import SpaceToDepth
from tudsr.config import ModelConfig
from tudsr.folder import Model, save_model
from tudsr.train.config import TrainConfig

WIDTHS = (48, 64)
CONV_TARGETS = ("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out")


def _blueprint(prediction_type: str = "epsilon") -> Blueprint:
    return Blueprint(
        unet={
            "in_channels": 48,
            "out_channels": 48,
            "down_block_types": ("DownBlock2D",) * 2,
            "mid_block_type": "UNetMidBlock2D",
            "up_block_types": ("UpBlock2D",) * 2,
            "block_out_channels": WIDTHS,
            "layers_per_block": 1,
            "norm_num_groups": 16,
            "attention_head_dim": 8,
        },
        vae=lambda: SpaceToDepth(patch_px=4, scaling_factor=2.0),
        settings={
            "name": "throw-away",
            "backbone": "tiny",
            "r_px": 64,
            "windows": {"min_px": 32, "max_px": 64, "stride_px": 8, "overlap_px": 16},
            "lora": {"rank": 4, "alpha": 4, "targets": CONV_TARGETS},
            "licence": "Apache-2.0",
        },
        schedule={"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
        | {"prediction_type": prediction_type},
    )


def _model(seed: int = 0, dtype: torch.dtype = torch.float32, prediction_type: str = "epsilon") -> Model:
    plan = _blueprint(prediction_type)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone, scheduler = plan.build(dtype)
        for stage in lora.STAGES:
            lora.attach(backbone.unet, stage, ModelConfig.parse(plan.settings, "test").lora)
            for parameter in lora.parameters(backbone.unet, stage):
                parameter.data = torch.randn_like(parameter).mul_(0.05).to(dtype)  # B too: an adapter that matters
    backbone.requires_grad_(False)
    return Model(ModelConfig.parse(plan.settings, "test"), backbone.eval(), scheduler)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Model]:
    """Return a function (seed, dtype, prediction_type) -> a random model with both adapters away from the identity."""
    return _model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved random model, shared by all tests: never write into it."""
    folder = tmp_path_factory.mktemp("models") / "small"
    save_model(folder, _model(), torch.float32)
    return folder


def synthetic_photo(height: int, width: int, seed: int) -> np.ndarray:
    """Return (H, W, 3) uint8: smooth colours, hard edges and grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16
    phase = rng.uniform(0, 6, (3, 2))
    waves = [np.sin(x * a + i) * np.cos(y * b - i) for i, (a, b) in enumerate(phase)]
    picture = np.stack(waves, axis=2) * 60 + 128 + ((x + y) % 2 < 1)[..., None] * 40
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of six photos of 140x132 px, shared by all tests: never write into it."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(6):
        Image.fromarray(synthetic_photo(132, 140, i)).save(folder / f"photo_{i}.png")
    return folder


@pytest.fixture
def make_config(model_folder: Path, photos: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Return a function (**changes) -> settings of a run of three steps that needs no pretrained weights."""

    def make(**changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "stage": 1, "model": model_folder, "data": photos, "out": tmp_path / "run", "steps": 3, "accumulate": 1,
            "warmup": 0, "lr": 1e-3, "lr_d": 1e-3, "ema": 0.9, "crop_px": 64, "overlap_px": 16, "base_dtype": "fp32",
            "precision": "no", "losses": {"mae": 1.0}, "discriminator": "patch", "discriminator_options": {"width": 4},
            "val_count": 0, "log_every": 1, "workers": 0, "lora_forward": "merged",
        }  # fmt: skip
        return TrainConfig.parse(values | changes, "test")

    return make


@pytest.fixture
def one_thread():
    """Compute on one thread, as subprocesses that are compared bit for bit do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def serve(tmp_path, monkeypatch) -> Callable[[Path], list[str]]:
    """Let a folder be what the hub has; what is fetched comes to tmp_path/cache. Returns the ids that are asked for."""

    def as_hub(folder: Path) -> list[str]:
        asked: list[str] = []

        def download(hub_id: str, allow_patterns: list[str]) -> str:
            asked.append(hub_id)
            for path in (path for path in folder.rglob("*") if path.is_file()):
                name = path.relative_to(folder).as_posix()
                if any(fnmatch(name, pattern) for pattern in allow_patterns):
                    (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, tmp_path / "cache" / name)
            return str(tmp_path / "cache")

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        return asked

    return as_hub

"""Settings for very small crops, and a base without trained adapters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tudsr import lora
from tudsr.folder import save_model
from tudsr.perceptual.dists import Dists
from tudsr.perceptual.lpips import Lpips
from tudsr.train.config import TrainConfig


@pytest.fixture
def make_config(make_config: Callable[..., TrainConfig]) -> Callable[..., TrainConfig]:
    """Return the shared fixture's function, without jitter: the discriminator takes the crops of 64 px just so."""

    def make(**changes: Any) -> TrainConfig:
        return make_config(**{"jitter_px": 0} | changes)

    return make


@pytest.fixture(scope="session")
def fresh_folder(make_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved random model whose adapters are the identity, shared by all tests: never write into it."""
    model = make_model()
    for stage in lora.STAGES:
        for layer in lora.layers(model.backbone.unet, stage).values():
            torch.nn.init.zeros_(layer.lora_B[stage].weight)
    folder = tmp_path_factory.mktemp("models") / "fresh"
    save_model(folder, model, torch.float32)
    return folder


@pytest.fixture
def random_nets(monkeypatch):
    """Let the losses and the validation build their networks with random weights."""
    torch.manual_seed(0)
    for net in (Dists, Lpips):
        monkeypatch.setattr(net, "load", lambda self, weights_dir=None: self)

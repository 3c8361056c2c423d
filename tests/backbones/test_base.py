"""The backbone's three calls."""

import types

import pytest
import torch
from torch import nn

from tudsr.backbones import BACKBONES, Backbone, blueprint
from tudsr.errors import ConfigError
from tudsr.presets import TRAINING


class Overflowing(nn.Module):
    """An autoencoder that gives inf in float16, as SD's may, and x + 1 otherwise."""

    config = types.SimpleNamespace(scaling_factor=2.0)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def _run(self, x):
        out = x + self.weight
        return torch.full_like(out, torch.inf) if out.dtype == torch.float16 else out

    def encode(self, x):
        return types.SimpleNamespace(latents=self._run(x))

    def decode(self, z):
        return types.SimpleNamespace(sample=self._run(z))


def test_float16_overflow_is_computed_again_in_float32_and_said():
    vae = Overflowing().half()
    net = Backbone(nn.Linear(1, 1), vae, torch.linspace(0.9, 0.1, 10), "epsilon", None)
    x = torch.zeros(1, 3, 4, 4)
    with pytest.warns(UserWarning, match="float16"):
        z = net.encode(x)
    assert torch.equal(z, torch.full_like(z, 2.0))
    with pytest.warns(UserWarning, match="float32"):
        assert torch.equal(net.decode(z), torch.full_like(z, 2.0))
    assert vae.weight.dtype == torch.float16


def test_an_unknown_backbone_lists_the_known_ones():
    with pytest.raises(ConfigError, match="sd21, tiny"):
        blueprint("sd3")


@pytest.mark.parametrize(("name", "stage"), [key for key in TRAINING if key[1] > 0])
def test_presets_train_at_the_models_own_resolution(name, stage):
    preset = TRAINING[name, stage]()
    assert preset["crop_px"] // preset.get("n", 1) == blueprint(name).settings["r_px"]


@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_has_presets_for_both_stages(name):
    assert {(name, 1), (name, 2)} <= TRAINING.keys()

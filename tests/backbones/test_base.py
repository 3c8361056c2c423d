"""The backbone's three calls."""

import types

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from tudsr import lora
from tudsr.backbones import BACKBONES, Backbone, blueprint
from tudsr.backbones.constants import kept
from tudsr.backbones.space_to_depth import SpaceToDepth
from tudsr.config import LoraSpec
from tudsr.presets import TRAINING
from tudsr.stage import Stage


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


def test_float16_overflow_is_computed_again_in_float32_and_said_once():
    vae = Overflowing().half()
    net = Backbone(nn.Linear(1, 1), vae, torch.linspace(0.9, 0.1, 10), "epsilon", None)
    x = torch.zeros(1, 3, 4, 4)
    with pytest.warns(UserWarning, match="the autoencoder overflowed in float16") as said:
        made = [net.encode(x), net.encode(x), net.decode(torch.full_like(x, 2.0))]
    assert len(said) == 1
    assert all(torch.equal(one, torch.full_like(one, 2.0)) for one in made)
    assert vae.weight.dtype == torch.float16


def test_of_a_batch_each_window_that_overflows_runs_again_by_itself():
    vae = Overflowing().half()
    net = Backbone(nn.Linear(1, 1), vae, torch.linspace(0.9, 0.1, 10), "epsilon", None)
    run, seen = vae._run, []

    def overflowing_above_one(x):
        seen.append((tuple(x.shape), x.dtype))
        return torch.where(x[:, :1, :1, :1] > 1, run(x), x + vae.weight)

    vae._run = overflowing_above_one
    x = torch.stack([torch.full((3, 4, 4), value) for value in (4.0, 0.1, 6.0)])
    with pytest.warns(UserWarning, match="the autoencoder overflowed in float16"):
        found = net.encode(x)
    assert seen == [((3, 3, 4, 4), torch.float16), *[((1, 3, 4, 4), torch.float32)] * 2]
    assert found.dtype == torch.float32
    assert torch.equal(found[::2], 2 * x[::2] + 2)
    assert torch.equal(found[1:2], 2 * (x[1:2].half() + 1).float())


def test_windows_with_timesteps_of_their_own_run_again_with_them():
    net, seen = loud_stage(torch.float16).backbone, []
    times = torch.tensor([200, 50])
    net.unet.register_forward_pre_hook(lambda _, args: seen.append((len(args[0]), args[1].tolist())))
    with torch.no_grad(), pytest.warns(UserWarning, match="the UNet overflowed in float16"):
        assert net.predict(torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(0)), times).isfinite().all()
    assert seen == [(2, [200, 50]), (1, [200]), (1, [50])]


class Loud(nn.Module):
    """A layer whose result is past float16's largest number."""

    def forward(self, x):
        return x * 60000.0 * 60000.0 / 60000.0 / 60000.0


def loud_stage(dtype):
    """Return a stage with a prompt and an adapter; the adapter stays in float32, as loaded ones do."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=12, out_channels=12, down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",), block_out_channels=(16,), layers_per_block=1,
        norm_num_groups=8, attention_head_dim=2, cross_attention_dim=12,
    )  # fmt: skip
    unet.conv_act = nn.Sequential(Loud(), nn.SiLU())
    net = Backbone(unet, SpaceToDepth(patch_px=2), torch.linspace(0.99, 0.1, 1000), "epsilon", torch.randn(1, 5, 12))
    lora.attach(unet, "stage_1", LoraSpec(rank=2, alpha=2))
    for parameter in lora.parameters(unet, "stage_1"):
        parameter.data = torch.randn_like(parameter) * 0.2
    own = {id(parameter) for parameter in lora.parameters(unet, "stage_1")}
    for parameter in net.parameters():
        parameter.data = parameter.half().to(torch.float32 if id(parameter) in own else dtype)
    net.prompt_embeds = net.prompt_embeds.half().to(dtype)
    return Stage(net.requires_grad_(False).eval(), 200, "stage_1")


@pytest.mark.parametrize("how", sorted(lora.LORA_FORWARDS))
def test_a_window_that_overflows_in_the_unet_is_that_of_a_float32_unet(how):
    """With the adapter merged or not, and what a run keeps of float16 left out."""
    stage, wide = loud_stage(torch.float16), loud_stage(torch.float32)
    before = {key: value.clone() for key, value in stage.state_dict().items()}
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode(), wide.active(how):
        wanted = wide(x)
    said = pytest.warns(UserWarning, match="the UNet overflowed in float16")
    with torch.inference_mode(), stage.active(how), kept(stage.backbone), said as warnings:
        found = [stage(x), stage(x)]
    assert len(warnings) == 1
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=2e-3)  # the merged weights are rounded to float16
    after = stage.state_dict()
    assert all(value.dtype == after[key].dtype and torch.equal(value, after[key]) for key, value in before.items())
    assert not any(tensor.is_inference() for tensor in (*stage.parameters(), *stage.buffers()))


@pytest.mark.parametrize(("name", "stage"), [key for key in TRAINING if key[1] > 0])
def test_presets_train_at_the_models_own_resolution(name, stage):
    preset, r_px = TRAINING[name, stage](), blueprint(name).settings["r_px"]
    assert preset["crop_px"] // preset.get("n", 1) == r_px
    if preset.get("loop") == "exact":
        assert preset["loss_crop_px"] <= r_px  # else D and the deep losses hold the graph of N²·R² px
    if stage == 2:
        assert preset["accumulate"] == 1  # METHOD, «Training»: one optimizer step per image, all its chunks


@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_has_presets_for_both_stages(name):
    assert {(name, 1), (name, 2)} <= TRAINING.keys()

"""Constants of a run: computed once, with the same values, and nothing left behind."""

import contextlib

import pytest
import torch
from diffusers import UNet2DConditionModel

from tudsr import lora
from tudsr.backbones import Backbone
from tudsr.backbones.constants import constant_layers, kept
from tudsr.backbones.space_to_depth import SpaceToDepth
from tudsr.config import LoraSpec
from tudsr.stage import Stage, inference

SPEC = LoraSpec(rank=2, alpha=2, targets=("conv1", "to_q", "to_k", "to_v", "time_emb_proj"))
SIZES = ((1, 32, 32), (3, 32, 48), (1, 48, 32), (2, 32, 32))  # windows together, height, width


@pytest.fixture
def stage() -> Stage:
    """Return a stage of a small UNet with self- and cross-attention, its adapter away from the identity."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=12, out_channels=12, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=8, attention_head_dim=(2, 4), cross_attention_dim=12,
    )  # fmt: skip
    net = Backbone(unet, SpaceToDepth(patch_px=2), torch.linspace(0.99, 0.1, 1000), "epsilon", torch.randn(1, 5, 12))
    for name in lora.STAGES:
        lora.attach(unet, name, SPEC)
        for parameter in lora.parameters(unet, name):
            parameter.data = torch.randn_like(parameter).mul_(0.2)
    return Stage(net.requires_grad_(False).eval(), 200, "stage_1")


def windows(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width)) * 2 - 1


def plainly(stage: Stage, x: torch.Tensor) -> torch.Tensor:
    """Run window by window, everything computed each time."""
    with torch.inference_mode(), stage.active("merged"):
        return torch.cat([stage(one) for one in x.split(1)])


def test_windows_of_any_size_come_out_as_without_it_bit_for_bit(stage):
    wanted = [plainly(stage, windows(1, height, width)) for _, height, width in SIZES]
    with inference(stage):
        found = [stage(windows(1, height, width)) for _, height, width in SIZES]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_windows_together_come_out_as_alone(stage):
    wanted = [plainly(stage, windows(*size)) for size in SIZES]
    with inference(stage):
        found = [stage(windows(*size)) for size in SIZES]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", lora.STAGES)
def test_each_stage_keeps_its_own(stage, name):
    """The timestep, the strength and the adapter of the run that is now, not of the one before."""
    with inference(stage):
        stage(windows(*SIZES[0]))
    other = Stage(stage.backbone, 50, name, strength=0.5)
    wanted = plainly(other, windows(*SIZES[0]))
    with inference(other):
        assert torch.equal(other(windows(*SIZES[0])), wanted)


def test_each_is_computed_once_a_run(stage, monkeypatch):
    calls = []
    unet = stage.backbone.unet
    keys = [m for path, m in unet.named_modules() if path.endswith(("attn2.to_k", "attn2.to_v"))]
    projections = [m for path, m in unet.named_modules() if path.endswith("time_emb_proj")]
    counted = [unet.time_proj, unet.time_embedding, *keys, *projections]
    assert len(keys) >= 6
    assert {id(m) for m in counted} == {id(m) for m in constant_layers(stage.backbone)}
    run = lora._run  # what every merged layer ends in
    monkeypatch.setattr(lora, "_run", lambda base, *args: (calls.append(id(base)), run(base, *args))[1])
    plain = (unet.time_proj, unet.time_embedding)
    for module in plain:
        monkeypatch.setattr(module, "forward", lambda *a, m=module, f=module.forward: (calls.append(id(m)), f(*a))[1])
    for run_number in (1, 2):
        with inference(stage):
            for size in SIZES:
                stage(windows(*size))
        found = {calls.count(id(m if m in plain else m.get_base_layer())) for m in counted}
        assert found == {run_number}


def test_layers_are_put_back_also_on_errors(stage):
    before = {id(m): m.__dict__.get("forward") for m in stage.modules()}
    with contextlib.suppress(ZeroDivisionError), inference(stage):
        assert "forward" in stage.backbone.unet.time_embedding.__dict__
        raise ZeroDivisionError
    assert {id(m): m.__dict__.get("forward") for m in stage.modules()} == before
    with torch.no_grad():
        own = stage.backbone.unet.time_embedding.forward = torch.sin
        with kept(stage.backbone):
            assert stage.backbone.unet.time_embedding.forward is not own
        assert stage.backbone.unet.time_embedding.forward is own


def test_training_keeps_nothing(stage):
    with pytest.raises(AssertionError, match="no graph"), kept(stage.backbone):
        pass
    with stage.active("merged"):
        assert "forward" not in stage.backbone.unet.time_embedding.__dict__


def test_without_a_prompt_keys_are_not_constants(stage):
    """Such attention is over the window itself."""
    stage.backbone.prompt_embeds = None
    names = {path for path, m in stage.backbone.unet.named_modules() if m in set(constant_layers(stage.backbone))}
    assert not [name for name in names if "attn" in name]

"""A stage against a plain diffusers computation."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn

from tudsr import lora
from tudsr.backbones.base import Backbone
from tudsr.backbones.blueprint import SD_SCHEDULE
from tudsr.config import LoraSpec
from tudsr.stage import Stage, inference

TYPES = ("epsilon", "v_prediction", "sample")


def kl_backbone(prediction_type: str = "epsilon", dtype: torch.dtype = torch.float64) -> Backbone:
    """Return SD's design at toy size: AutoencoderKL, cross-attention, a prompt."""
    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=12,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=0.18215,
    )
    alpha_bar = DDIMScheduler(**SD_SCHEDULE).alphas_cumprod.double()
    net = Backbone(unet, vae, alpha_bar, prediction_type, torch.randn(1, 5, 12))
    return net.to(dtype).requires_grad_(False).eval()


def picture(batch: int = 2, side: int = 16) -> torch.Tensor:
    rng = torch.Generator().manual_seed(4)
    return torch.rand(batch, 3, side, side, generator=rng, dtype=torch.float64) * 2 - 1


def by_hand(net: Backbone, x: torch.Tensor, t: int) -> torch.Tensor:
    """Compute with diffusers' calls only."""
    scheduler = DDIMScheduler(**SD_SCHEDULE | {"prediction_type": net.prediction_type})
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(1000)
    posterior = net.vae.encode(x).latent_dist
    assert posterior.std.min() > 0  # so that its mode is not any sample
    z = posterior.mean * 0.18215
    pred = net.unet(z, t, encoder_hidden_states=net.prompt_embeds.repeat(len(x), 1, 1)).sample
    z0 = scheduler.step(pred, t, z).pred_original_sample
    return net.vae.decode(z0 / 0.18215).sample


@pytest.mark.parametrize("t", [50, 200])
@pytest.mark.parametrize("prediction_type", TYPES)
def test_a_stage_is_encode_predict_step_decode(prediction_type, t):
    net = kl_backbone(prediction_type)
    out = Stage(net, t, None)(picture())
    torch.testing.assert_close(out, by_hand(net, picture(), t), rtol=1e-9, atol=1e-9)


def test_nothing_in_it_is_random():
    net = kl_backbone()
    torch.manual_seed(0)
    first = Stage(net, 200, None)(picture())
    torch.manual_seed(1)
    assert torch.equal(Stage(net, 200, None)(picture()), first)
    mode = net.vae.encode(picture()).latent_dist.mode()
    torch.testing.assert_close(net.encode(picture()), mode * 0.18215, rtol=1e-12, atol=1e-12)


def test_the_adapter_named_is_the_one_that_runs():
    net = kl_backbone()
    bare = Stage(net, 200, None)(picture())
    for seed, name in enumerate(lora.STAGES):
        lora.attach(net.unet, name, LoraSpec(rank=2, alpha=2))
        torch.manual_seed(seed)
        for p in lora.parameters(net.unet, name):
            p.data = torch.randn_like(p).mul_(0.1).double()
    outputs = {}
    for name in lora.STAGES:
        stage = Stage(net, 200, name)
        for layer in lora.layers(net.unet, name).values():
            layer.set_adapter(name)
        wanted = by_hand(net, picture(), 200)  # through peft's own forward
        with inference(stage):
            outputs[name] = stage(picture())
        torch.testing.assert_close(outputs[name], wanted, rtol=1e-9, atol=1e-9)
        assert (outputs[name] - bare).abs().max() > 1e-3
    assert (outputs["stage_1"] - outputs["stage_2"]).abs().max() > 1e-3


def test_gradients_flow_through_a_frozen_autoencoder_to_the_adapter_only():
    net = kl_backbone()
    lora.attach(net.unet, "stage_1", LoraSpec(rank=2, alpha=2))
    own = lora.parameters(net.unet, "stage_1")
    for p in own:
        p.requires_grad_(True)
    stage = Stage(net, 200, "stage_1")
    with stage.active("switched"):
        stage(picture()).square().mean().backward()
    assert all(p.grad is not None for p in own)
    assert any(p.grad.abs().max() > 0 for p in own)
    assert all(p.grad is None for p in net.parameters() if not any(p is q for q in own))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_weights_give_float32_pictures_close_to_the_truth(dtype):
    wanted = Stage(kl_backbone(), 200, None)(picture())
    out = Stage(kl_backbone(dtype=dtype), 200, None)(picture().float())
    assert out.dtype == torch.float32
    error = (out.double() - wanted).norm() / wanted.norm()
    assert error < (1e-4 if dtype == torch.float32 else 0.1)


def test_latents_alone_are_an_autoencoders_output_too():
    net = kl_backbone()

    class Plain(nn.Module):
        config = SimpleNamespace(scaling_factor=3.0)

        def encode(self, x):
            return SimpleNamespace(latents=x[:, :, ::2, ::2])

    net.vae = Plain()
    assert torch.equal(net.encode(picture()), picture()[:, :, ::2, ::2] * 3)


def test_inference_keeps_no_graph_and_puts_the_mode_back(make_model):
    stage = Stage(make_model().backbone, 200, "stage_1")
    for p in lora.parameters(stage.backbone.unet, "stage_1"):
        p.requires_grad_(True)
    stage.eval()
    stage.backbone.unet.train()  # as the trainer does
    modes = [module.training for module in stage.modules()]
    with inference(stage) as restore:
        assert restore(picture(1, 32).float()).equal(stage(picture(1, 32).float()))
        assert not any(module.training for module in stage.modules())
        assert not stage(picture(1, 32).float()).requires_grad
    assert [module.training for module in stage.modules()] == modes


def test_inference_that_is_left_half_way_leaves_gradients_on(make_model):
    """Rows are made by generators, whose callers go on between two of them."""

    def rows():
        with inference(Stage(make_model().backbone, 50, "stage_1")) as restore:
            yield restore(torch.zeros(1, 3, 32, 32, requires_grad=True))

    left = rows()
    assert not next(left).requires_grad
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_alpha_bar_of_one_and_of_a_batch_of_timesteps():
    net = kl_backbone()
    table = DDIMScheduler(**SD_SCHEDULE).alphas_cumprod.double()
    assert net.alpha_bar(200) == table[200]
    batch = net.alpha_bar(torch.tensor([3, 999]))
    assert batch.shape == (2, 1, 1, 1)
    assert torch.equal(batch.flatten(), table[[3, 999]])


def test_upsample_is_bicubic_to_the_exact_size():
    x = picture(1, 5)
    wanted = nn.functional.interpolate(x, size=(13, 9), mode="bicubic", align_corners=False)
    torch.testing.assert_close(Stage.upsample(x, 13, 9), wanted, rtol=0, atol=1e-12)

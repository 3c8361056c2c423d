"""SiLU in place: the same values, never over what is read again."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from tudsr.backbones.activations import MapSiLU, reuse_maps


def test_a_map_is_written_over_only_without_gradients():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected, kept = nn.functional.silu(x), x.clone()
    assert torch.equal(MapSiLU()(x), expected)
    assert torch.equal(x, kept)
    with torch.no_grad():
        assert MapSiLU()(x) is x
    assert torch.equal(x, expected)


def test_an_embedding_is_left_alone():
    embedding = torch.ones(2, 3)
    with torch.no_grad():
        MapSiLU()(embedding)
    assert torch.equal(embedding, torch.ones(2, 3))


@pytest.mark.parametrize("kind", ["convolutions", "attention"])
def test_a_unet_predicts_the_same(kind):
    """Bit for bit, for shared time embeddings and skip connections alike."""
    torch.manual_seed(0)
    blocks = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if kind == "attention" else ("DownBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(
        in_channels=4, out_channels=4, down_block_types=(blocks[0],) * 2, up_block_types=(blocks[1],) * 2,
        mid_block_type="UNetMidBlock2D" if kind == "convolutions" else "UNetMidBlock2DCrossAttn",
        block_out_channels=(16, 32), norm_num_groups=8, attention_head_dim=8, cross_attention_dim=12,
    ).eval()  # fmt: skip
    reused = copy.deepcopy(unet)
    reuse_maps(reused)
    assert sum(isinstance(module, MapSiLU) for module in reused.modules()) > 5
    z, prompt = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 12)
    with torch.no_grad():
        assert torch.equal(reused(z, 50, prompt).sample, unet(z, 50, prompt).sample)


def test_an_autoencoder_decodes_the_same():
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(16,), norm_num_groups=8, latent_channels=4).eval()
    reused = copy.deepcopy(vae)
    reuse_maps(reused)
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(reused(x).sample, vae(x).sample)

"""Residual blocks for inference: diffusers' values to the last bit, and what goes by another way."""

import copy

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from tudsr.backbones.blocks import MapResnetBlock, reuse_sums
from tudsr.backbones.norms import MapGroupNorm, keep_layout, layout_kept


def made(**settings):
    torch.manual_seed(0)
    plain = ResnetBlock2D(**{"in_channels": 16, "out_channels": 16, "groups": 4, "temb_channels": 8} | settings).eval()
    net = nn.Sequential(copy.deepcopy(plain))
    keep_layout(net)
    reuse_sums(net)
    return plain, net[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"out_channels": 24}, {"temb_channels": None}, {"skip_time_act": True}])
def test_the_values_are_diffusers_own_and_the_input_is_left_alone(settings, dtype):
    plain, ours = (block.to(dtype) for block in made(**settings))
    assert type(ours) is MapResnetBlock
    x = torch.randn(2, 16, 9, 7, dtype=dtype).to(memory_format=torch.channels_last)
    temb = None if settings.get("temb_channels", 8) is None else torch.randn(1, 8, dtype=dtype).expand(2, 8)
    before = x.clone()
    with torch.no_grad():
        expected, found = plain(x, temb), ours(x, temb)
    assert torch.equal(found, expected)
    assert torch.equal(x, before)


def test_with_gradients_it_is_diffusers_own():
    plain, ours = made()
    x, temb = torch.randn(1, 16, 8, 8), torch.randn(1, 8)
    for block in (plain, ours):
        block(x, temb).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))


def test_a_sum_of_two_dtypes_is_as_wide_as_torch_makes_it():
    plain, ours = made()
    x, temb = torch.randn(1, 16, 8, 8), torch.randn(1, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = plain(x, temb), ours(x, temb)
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("settings", [{"output_scale_factor": 2.0}, {"up": True}, {"down": True}])
def test_other_blocks_stay_as_they_are(settings):
    assert type(made(**settings)[1]) is ResnetBlock2D


def test_a_convolution_that_is_not_itself_keeps_its_bias(monkeypatch):
    norm, conv = MapGroupNorm(2, 4), nn.Conv2d(3, 4, 3, padding=1)
    monkeypatch.setattr(MapGroupNorm, "_suits", lambda *_: True)
    monkeypatch.setattr(MapGroupNorm, "_by_channels", lambda self, x, bias=None: (x, bias))
    x = torch.randn(1, 3, 5, 5)
    with torch.no_grad(), layout_kept():
        bare, bias = norm.after(conv, x)
        assert bias is conv.bias
        torch.testing.assert_close(bare + bias[:, None, None], conv(x))
        merged = nn.Conv2d(3, 4, 3, padding=1)
        merged.forward = lambda x: conv(x) + 1
        assert torch.equal(norm.after(merged, x)[0], conv(x) + 1)
        assert norm.after(merged, x)[1] is None

"""Group normalisation in channels_last: the values of torch's own, by CUDA's kernels or by stand-ins for them."""

import pytest
import torch
from torch import nn

from tudsr.backbones import norms
from tudsr.backbones.norms import MapGroupNorm, keep_layout, layout_kept


def statistics(x, eps):
    variance, mean = torch.var_mean(x.double(), dim=(0, 2, 3), unbiased=False)
    return mean, (variance + eps).rsqrt()


def transformed(x, weight, bias, mean, inverse, _eps, out):
    weight, bias, mean, inverse = (one[:, None, None] for one in (weight, bias, mean, inverse))
    out.copy_((x - mean) * inverse * weight + bias)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    plain = nn.GroupNorm(4, 24, eps=1e-6)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    ours = nn.GroupNorm(4, 24, eps=1e-6)
    ours.load_state_dict(plain.state_dict())
    keep_layout(ours)
    assert type(ours) is MapGroupNorm
    return plain, ours


def test_channels_make_up_the_groups_statistics(pair, monkeypatch):
    monkeypatch.setattr(torch, "batch_norm_stats", statistics, raising=False)
    monkeypatch.setattr(norms, "transform", transformed)
    plain, ours = (net.double() for net in pair)
    # channels of one group far apart: their means are part of the group's variance
    x = torch.randn(2, 24, 9, 7, dtype=torch.float64) * torch.rand(24, 1, 1) + 10 * torch.randn(2, 24, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(ours._by_channels(x), plain(x), rtol=1e-6, atol=1e-8)
        bias = 5 * torch.randn(24, dtype=torch.float64)
        wanted = plain(x + bias[:, None, None])
        torch.testing.assert_close(ours._by_channels(x, bias), wanted, rtol=1e-6, atol=1e-8)


def test_elsewhere_it_is_torchs_own(pair):
    plain, ours = pair
    x = torch.randn(2, 24, 130, 130).to(memory_format=torch.channels_last)
    with torch.no_grad(), layout_kept():
        assert torch.equal(ours(x), plain(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("batch", [1, 3])
def test_on_cuda_large_maps_keep_their_layout_and_values(pair, batch, monkeypatch):
    plain, ours = (net.cuda().to(torch.bfloat16) for net in pair)
    x = (torch.randn(batch, 24, 160, 144, device="cuda") * 3 + 1).to(torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)
    exact = nn.functional.group_norm(x.double(), 4, plain.weight.double(), plain.bias.double(), 1e-6)
    with torch.no_grad():
        other = plain(x)
        assert torch.equal(ours(x), other)
        with layout_kept():
            made = ours(x)
            monkeypatch.setattr(norms, "_LEAST_PX", x[0, 0].numel() + 1)
            assert torch.equal(ours(x), other)
        assert torch.equal(ours(x), other)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert (made - exact).abs().max() <= 1.1 * (other - exact).abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_a_convolutions_bias_goes_with_the_norm(pair):
    plain, ours = (net.cuda().to(torch.bfloat16) for net in pair)
    conv = nn.Conv2d(8, 24, 3, padding=1).cuda().to(torch.bfloat16).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 160, 144, device="cuda").to(torch.bfloat16).to(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = plain.double()(conv.double()(x.double()))
        conv.to(torch.bfloat16)
        other = plain.to(torch.bfloat16)(conv(x))
        with layout_kept():
            made = ours.after(conv, x)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert (made - exact).abs().max() <= 1.1 * (other - exact).abs().max()

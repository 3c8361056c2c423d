"""The hand-written gradients against autograd and numerical differences."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tudsr.perceptual.fused import ChannelMoments, L2Pool


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain_pool(x: Tensor) -> Tensor:
    hann = torch.hann_window(5, periodic=False, dtype=x.dtype)[1:-1]
    kernel = torch.outer(hann, hann) / hann.sum() ** 2
    return (F.conv2d(x**2, kernel.expand(x.shape[1], 1, 3, 3), stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def plain_moments(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.flatten(2), y.flatten(2)
    cov = ((x - x.mean(2, True)) * (y - y.mean(2, True))).mean(2)
    return torch.stack([x.mean(2), y.mean(2), x.var(2, correction=0), y.var(2, correction=0), cov])


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (4, 5), (7, 7), (1, 1), (1, 6), (16, 9)])
def test_l2_pool_equals_its_definition_with_gradient(size):
    x = rand(2, 3, *size).requires_grad_()
    weight = rand(2, 3, -(-size[0] // 2), -(-size[1] // 2), seed=1)
    pooled, expected = L2Pool.apply(x), plain_pool(x)
    torch.testing.assert_close(pooled, expected)
    gradients = [torch.autograd.grad((out * weight).sum(), x)[0] for out in (pooled, expected)]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert torch.autograd.gradcheck(L2Pool.apply, x)


def test_l2_pool_has_a_finite_gradient_where_all_is_zero():
    x = torch.zeros(1, 2, 6, 6, requires_grad=True)
    L2Pool.apply(x).sum().backward()
    assert x.grad.eq(0).all()


@pytest.mark.parametrize("channels_last", [True, False])
def test_moments_equal_their_definition_with_gradient(channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = rand(2, 3, 5, 4).to(memory_format=layout).requires_grad_()
    y = rand(2, 3, 5, 4, seed=1).to(memory_format=layout)
    torch.testing.assert_close(ChannelMoments.apply(x, y), plain_moments(x, y))
    assert torch.autograd.gradcheck(lambda t: ChannelMoments.apply(t, y), x)


def test_moments_do_not_cancel_in_float32():
    x = 1000 + rand(1, 1, 64, 64, dtype=torch.float32)
    y = 1000 + rand(1, 1, 64, 64, seed=1, dtype=torch.float32)
    expected = plain_moments(x.double(), y.double()).float()
    torch.testing.assert_close(ChannelMoments.apply(x, y), expected, rtol=1e-5, atol=1e-6)


def test_moments_of_bf16_maps_are_float32():
    x, y = rand(1, 4, 32, 32).bfloat16().requires_grad_(), rand(1, 4, 32, 32, seed=1).bfloat16()
    moments = ChannelMoments.apply(x, y)
    assert moments.dtype == torch.float32
    torch.testing.assert_close(moments, plain_moments(x.double(), y.double()).float(), rtol=1e-5, atol=1e-6)
    moments.sum().backward()
    assert x.grad.dtype == torch.bfloat16

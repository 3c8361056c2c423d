"""DiffAugment and BlurPool against closed forms and scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from tudsr.train.discriminators.augment import AugmentParams, DiffAugment, draw_params
from tudsr.train.discriminators.blurpool import BlurPool


def pictures(batch: int, height: int, width: int, dtype=torch.float32) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=rng(1), dtype=dtype) * 2 - 1


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10), (1, 5), (1, 1), (2, 2)])
def test_blurpool_is_scipys_convolution_subsampled(height, width):
    x = torch.randn(2, 3, height, width, generator=rng(0), dtype=torch.float64)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = [[ndimage.convolve(c, kernel, mode="nearest")[::2, ::2] for c in picture] for picture in x.numpy()]
    np.testing.assert_allclose(BlurPool()(x).numpy(), np.array(expected), atol=1e-14)


def test_blurpool_removes_what_would_alias():
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    board = ((rows + columns) % 2 * 2 - 1)[None, None]
    assert board[..., ::2, ::2].abs().min() == 1  # plain subsampling makes it a constant
    assert BlurPool()(board)[..., 1:-1, 1:-1].abs().max() < 1e-6
    fast = torch.cos(2 * torch.pi * 0.4 * columns)[None, None]  # above the new Nyquist frequency of 0.25
    gain = BlurPool()(fast)[..., 1:-1].std() / fast[..., ::2].std()
    assert gain < 0.12  # closed form: cos²(0.4 π) = 0.095


# --- DiffAugment ---


def params(**values: float) -> AugmentParams:
    neutral = {"brightness": 0.5, "saturation": 0.5, "contrast": 0.5, "shift_y": 0.5, "shift_x": 0.5}
    draws = {**neutral, "cut_y": 0.5, "cut_x": 0.5, **values}
    return AugmentParams(**{key: torch.tensor([value], dtype=torch.float64) for key, value in draws.items()})


def test_the_empty_policy_is_the_identity_and_draws_nothing():
    generator, x = rng(0), pictures(2, 16, 16)
    assert DiffAugment("")(x, generator) is x
    assert torch.equal(generator.get_state(), rng(0).get_state())
    neutral = DiffAugment("color,translation").apply(x[:1], params())
    assert torch.allclose(neutral, x[:1], atol=1e-6)


def test_equal_generators_augment_real_and_fake_equally():
    ones, twos = torch.ones(8, 3, 32, 32), torch.full((8, 3, 32, 32), 2.0)
    augment = DiffAugment("translation,cutout")
    a, b = augment(ones, rng(7)), augment(twos, rng(7))
    assert torch.equal(2 * a, b)
    assert not torch.equal(a, augment(ones, rng(8)))
    assert not torch.equal(a[0], a[1])


def test_draws_do_not_depend_on_the_batch_size():
    whole, generator = draw_params(8, rng(2)), rng(2)
    parts = [draw_params(3, generator), draw_params(5, generator)]
    for one, *cut in zip(whole, *parts, strict=True):
        assert torch.equal(one, torch.cat(cut))


def test_color_in_closed_form():
    x = pictures(1, 8, 8, dtype=torch.float64)
    y = DiffAugment("color").apply(x, params(brightness=0.9, saturation=0.2, contrast=0.8)).numpy()
    bright = x.numpy() + 0.4
    grey = bright.mean(axis=1, keepdims=True)
    saturated = grey + 0.4 * (bright - grey)
    np.testing.assert_allclose(y, saturated.mean() + 1.3 * (saturated - saturated.mean()), atol=1e-12)


@pytest.mark.parametrize(
    ("shift_y", "shift_x", "dy", "dx"), [(0.999, 0.5, 4, 0), (0.0, 0.999, -4, 5), (0.5, 0.0, 0, -5)]
)
def test_translation_moves_by_whole_pixels_and_fills_with_zeros(shift_y, shift_x, dy, dx):
    x = pictures(1, 32, 40)
    y = DiffAugment("translation").apply(x, params(shift_y=shift_y, shift_x=shift_x))
    np.testing.assert_array_equal(y[0].numpy(), ndimage.shift(x[0].numpy(), (0, dy, dx), order=0, cval=0))


def test_cutout_zeroes_half_of_each_side():
    x = torch.ones(1, 3, 32, 40)
    y = DiffAugment("cutout").apply(x, params())
    assert (y[0, 0] == 0).sum() == 16 * 20
    assert (y[0, :, 8:24, 10:30] == 0).all()
    corner = DiffAugment("cutout").apply(x, params(cut_y=0.0, cut_x=0.999))
    assert (corner[0, 0] == 0).sum() == 8 * 10  # its centre lies in a corner of the picture
    many = DiffAugment("cutout")(torch.ones(2000, 3, 8, 8), rng(0))
    hit = (many[:, 0] == 0).float().mean(0)
    assert torch.allclose(hit, hit.flip(0, 1), atol=0.05)  # no side is favoured


def test_diffaugment_is_differentiable():
    x = pictures(2, 9, 8, dtype=torch.float64).requires_grad_()
    drawn = draw_params(2, rng(4))
    assert torch.autograd.gradcheck(lambda x: DiffAugment("color,translation,cutout").apply(x, drawn), x)

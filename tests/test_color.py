import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tudsr import color
from tudsr.color import COLOR_FIXES, HALO_PX, fix_color, wavelet_rows
from tudsr.resize import part_of


def pair(height, width, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return tuple((torch.rand(1, 3, height, width, generator=rng, dtype=torch.float64) * 2 - 1).to(dtype) for _ in "ab")


def low_pass(x):
    """Five levels with the full two-dimensional 3x3 binomial kernel, spread by 2**level."""
    for level in range(5):
        d = 2**level
        kernel = np.zeros((1, 1, 2 * d + 1, 2 * d + 1))
        kernel[0, 0, ::d, ::d] = np.outer([1, 2, 1], [1, 2, 1]) / 16
        x = ndimage.correlate(x, kernel, mode="nearest")
    return x


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (2, 3), (40, 33), (90, 70)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_wavelet_against_scipy(height, width, dtype, tolerance):
    sr, ref = pair(height, width, dtype)
    high, low = sr.double().numpy(), ref.double().numpy()
    expected = high - low_pass(high) + low_pass(low)
    np.testing.assert_allclose(fix_color("wavelet", sr, ref).numpy(), expected, atol=tolerance)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 150), st.integers(1, 20), st.integers(1, 160), st.integers(1, 70), st.data())
def test_wavelet_by_strips_is_bit_equal_to_the_whole(height, width, strip_px, given_px, data):
    sr, ref = pair(height, width)
    whole = fix_color("wavelet", sr, ref)
    start = data.draw(st.integers(0, height - 1))
    above = sr[..., max(0, start - COLOR_FIXES["wavelet"].halo_px) :, :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(color, "_STRIP_PIXELS", width * strip_px)
        rows = wavelet_rows(iter(above.split(given_px, dim=-2)), part_of(ref), (height, width), start)
        assert torch.equal(torch.cat(list(rows), dim=-2), whole[..., start:, :])


def test_the_halo_is_the_reach_of_the_low_pass():
    sr, ref = torch.zeros(1, 3, 101, 101), torch.zeros(1, 3, 101, 101)
    ref[..., 50, 50] = 1
    rows = fix_color("wavelet", sr, ref)[0, 0].abs().sum(dim=1).nonzero()
    assert (50 - rows.min(), rows.max() - 50) == (HALO_PX, HALO_PX)


def test_wavelet_moves_a_colour_cast_and_keeps_the_detail():
    _, ref = pair(80, 80)
    cast = torch.tensor([0.3, -0.2, 0.1]).view(1, 3, 1, 1)
    torch.testing.assert_close(fix_color("wavelet", ref + cast, ref), ref, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", list(COLOR_FIXES))
def test_fixes_leave_both_pictures_alone(name):
    sr, ref = pair(20, 20)
    before = sr.clone(), ref.clone()
    fix_color(name, sr, ref)
    assert torch.equal(sr, before[0])
    assert torch.equal(ref, before[1])


@pytest.mark.parametrize("name", list(COLOR_FIXES))
def test_a_batch_is_fixed_picture_by_picture(name):
    sr, ref = (torch.cat(pictures) for pictures in zip(pair(40, 30, seed=1), pair(40, 30, seed=2), strict=True))
    alone = [fix_color(name, *both) for both in zip(sr.split(1), ref.split(1), strict=True)]
    torch.testing.assert_close(fix_color(name, sr, ref), torch.cat(alone), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", list(COLOR_FIXES))
def test_fixes_take_a_picture_that_is_its_own_reference(name):
    sr, _ = pair(33, 21)
    torch.testing.assert_close(fix_color(name, sr.clone(), sr), sr, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", list(COLOR_FIXES))
def test_fixes_take_views_that_are_not_contiguous(name):
    sr, ref = pair(40, 50)
    expected = fix_color(name, sr[..., :33, 3:40].clone(), ref[..., :33, 3:40].clone())
    torch.testing.assert_close(fix_color(name, sr[..., :33, 3:40], ref[..., :33, 3:40]), expected, rtol=0, atol=1e-6)
    sr, ref = (x.contiguous(memory_format=torch.channels_last) for x in pair(40, 50))
    expected = fix_color(name, sr.contiguous().clone(), ref.contiguous())
    torch.testing.assert_close(fix_color(name, sr, ref), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strip_pixels", [1, 100, 2**19])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (57, 31)])
def test_adain_against_numpy(monkeypatch, strip_pixels, height, width):
    monkeypatch.setattr(color, "_STRIP_PIXELS", strip_pixels)
    sr, ref = pair(height, width)
    a, b = sr.double().numpy(), ref.double().numpy()
    axes = {"axis": (2, 3), "keepdims": True}
    expected = (a - a.mean(**axes)) / np.maximum(a.std(**axes), 1e-5) * b.std(**axes) + b.mean(**axes)
    np.testing.assert_allclose(fix_color("adain", sr, ref).numpy(), expected, atol=1e-6)


def test_adain_statistics_are_stable_far_from_zero(monkeypatch):
    monkeypatch.setattr(color, "_STRIP_PIXELS", 500)
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, std = color._mean_std(part_of(noise + 1e8), (64, 64))
    assert mean.item() == pytest.approx(1e8 + noise.mean().item(), rel=1e-12)
    assert std.item() == pytest.approx(noise.std(correction=0).item(), rel=1e-7)


def test_adain_gives_a_flat_channel_the_mean_only():
    _, ref = pair(16, 16)
    sr = fix_color("adain", torch.full((1, 3, 16, 16), 0.25), ref)
    torch.testing.assert_close(sr, ref.mean(dim=(2, 3), keepdim=True).expand_as(sr), rtol=0, atol=1e-6)


def test_none_changes_nothing():
    sr, ref = pair(8, 8)
    assert torch.equal(fix_color("none", sr, ref), sr)


def test_names():
    assert list(COLOR_FIXES) == ["wavelet", "adain", "none"]

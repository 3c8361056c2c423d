import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tudsr import resize
from tudsr.errors import InputError
from tudsr.resize import downsample, output_size, part_of, upsample, upsampled

SIDES = st.integers(1, 40)


def cubic(x, a):
    """Keys' kernel."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def upsampling_matrix(before, after):
    """Bicubic with half-pixel centres and clamped indices, in closed form."""
    matrix = np.zeros((after, before))
    for i in range(after):
        centre = (i + 0.5) * before / after - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(j, 0), before - 1)] += cubic(centre - j, -0.75)
    return matrix


def picture(height, width, dtype=torch.float32, channels=3):
    rng = torch.Generator().manual_seed(height * 1000 + width)
    return (torch.rand(1, channels, height, width, generator=rng, dtype=torch.float64) * 2 - 1).to(dtype)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_upsample_is_bicubic(height, width, more_y, more_x):
    x = picture(height, width, torch.float64)
    y = upsample(x, height + more_y, width + more_x)
    rows, columns = upsampling_matrix(height, height + more_y), upsampling_matrix(width, width + more_x)
    expected = np.einsum("yh,bchw,xw->bcyx", rows, x.numpy(), columns)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (13, 7), (1, 1), (39, 20)])
def test_downsample_is_pillows_antialiased_bicubic(height, width):
    x = picture(40, 40)
    y = downsample(x, height, width)
    for channel in range(3):
        image = Image.fromarray(x[0, channel].numpy())
        expected = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(y[0, channel].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("function", [upsample, downsample])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_half_types_are_computed_in_float32(function, dtype):
    x = picture(9, 11, dtype)
    size = (23, 31) if function is upsample else (4, 5)
    y = function(x, *size)
    assert y.dtype == dtype
    if dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(y, function(x.float(), *size).to(dtype))
    if dtype == torch.float64:
        assert not torch.equal(y, function(x.float(), *size).double())


@pytest.mark.parametrize("function", [upsample, downsample])
def test_the_same_size_gives_an_equal_copy(function):
    x = picture(9, 11)
    y = function(x, 9, 11)
    torch.testing.assert_close(y, x, rtol=0, atol=0)
    assert y.data_ptr() != x.data_ptr()


def test_gradients_flow_through_upsample():
    x = picture(4, 5, torch.float64, channels=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: upsample(t, 7, 11), x)


@given(st.integers(1, 10**5), st.integers(1, 10**5), st.floats(1, 64))
def test_output_size_is_the_product_rounded_half_up(height, width, scale):
    for side, out in zip((height, width), output_size(height, width, scale), strict=True):
        assert out == max(1, math.floor(Fraction(side * scale) + Fraction(1, 2)))
        assert out >= side


@pytest.mark.parametrize(
    ("side", "scale", "out"), [(1, 1, 1), (1, 1.5, 2), (3, 1.5, 5), (5, 1.5, 8), (5, 1.1, 6), (7, 4, 28), (1, 1.49, 1)]
)
def test_output_size_by_hand(side, scale, out):
    assert output_size(side, side, scale) == (out, out)


@pytest.mark.parametrize("scale", [0.999, 0, -2, math.nan, math.inf])
def test_scales_that_do_not_enlarge_are_refused(scale):
    with pytest.raises(InputError, match=r"at least 1, not"):
        output_size(4, 4, scale)


def test_empty_pictures_are_refused():
    with pytest.raises(InputError, match="4x0"):
        output_size(0, 4, 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_parts_are_the_whole_pictures(data):
    height, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    after = data.draw(st.integers(height, 120)), data.draw(st.integers(width, 700))
    y0, x0 = (data.draw(st.integers(0, side - 1)) for side in after)
    y1, x1 = data.draw(st.integers(y0 + 1, after[0])), data.draw(st.integers(x0 + 1, after[1]))
    x = picture(height, width)
    asked = []

    def source(*box):
        asked.append(box)
        return part_of(x)(*box)

    part = upsampled(source, (height, width), after)(y0, y1, x0, x1)
    assert (part - upsample(x, *after)[..., y0:y1, x0:x1]).abs().max() <= 1e-6
    ((top, bottom, left, right),) = asked
    assert bottom - top <= (y1 - y0 + 126) * height / after[0] + 5, (
        "reads no more rows than the part and its blocks need"
    )
    assert right - left <= (x1 - x0) * width / after[1] + 5


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 60), st.integers(3, 200), st.floats(1, 8), st.data())
def test_rows_are_the_same_to_the_bit_whichever_are_asked_for(height, width, scale, data):
    after = output_size(height, width, scale)
    part = upsampled(part_of(picture(height, width)), (height, width), after)
    whole = part(0, after[0], 0, after[1])
    y0 = data.draw(st.integers(0, after[0] - 1))
    y1 = data.draw(st.integers(y0 + 1, after[0]))
    assert torch.equal(part(y0, y1, 0, after[1]), whole[..., y0:y1, :])


def test_positions_are_right_where_a_side_is_long():
    x = picture(1, 20_000, torch.float64)
    far = upsampled(part_of(x.float()), (1, 20_000), (1, 70_001))(0, 1, 69_000, 69_100)
    wanted = torch.nn.functional.interpolate(x, size=(1, 70_001), mode="bicubic")[..., 69_000:69_100]
    torch.testing.assert_close(far.double(), wanted, rtol=0, atol=1e-6)


def test_what_inference_left_in_the_cache_serves_training():
    resize._bicubic_matrix.cache_clear()
    x = torch.rand(1, 3, 9, 7, dtype=torch.float64)
    with torch.inference_mode():
        upsample(x, 18, 14)
    x.requires_grad_(True)
    upsample(x, 18, 14).sum().backward()
    assert x.grad is not None
    assert resize._bicubic_matrix.cache_info().hits > 0

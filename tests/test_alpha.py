"""What lies below full transparency: it must not reach what is seen, and parts must fit together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tudsr.alpha import covered, seen
from tudsr.image import Picture
from tudsr.pipeline import load
from tudsr.resize import part_of


@pytest.fixture(scope="module")
def tiny():
    return load("tiny", "cpu", "fp32")


def disc(side, radius):
    """A white disc on transparent black, uint8."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.where(np.hypot(x, y)[..., None] < radius, 255, 0).astype(np.uint8).repeat(4, -1)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_white_disc_on_transparent_black_has_no_dark_rim(tiny, scale):
    values = tiny.upscale(disc(40, 12), scale).astype(float)
    alpha = values[..., 3:] / 255
    assert (values[..., :3] * alpha + 255 * (1 - alpha)).min() > 250


def sample(height, width, seed=0):
    rng = torch.Generator().manual_seed(seed)
    alpha = (torch.rand(1, 1, height, width, generator=rng) - 0.9).clamp(0) * 10
    return torch.rand(1, 3, height, width, generator=rng) * 2 - 1, alpha


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_parts_are_the_wholes_to_the_bit(height, width, data):
    colors, alpha = sample(height, width, height * 41 + width)
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
    region = covered(part_of(colors), part_of(alpha), (height, width))
    assert torch.equal(region(y0, y1, x0, x1), region(0, height, 0, width)[..., y0:y1, x0:x1])


def test_what_is_seen_stays_and_the_rest_takes_on_its_colours():
    colors, alpha = sample(30, 30)
    found = seen(Picture(pixels=colors, alpha=alpha))
    visible = (alpha > 0).expand_as(colors)
    assert torch.equal(found[visible], colors[visible])
    assert found.min() >= colors[visible].min() - 1e-6
    assert found.max() <= colors[visible].max() + 1e-6


def test_without_alpha_and_far_from_all_that_is_seen_nothing_changes():
    colors, _ = sample(40, 40)
    assert seen(Picture(pixels=colors)) is colors
    for alpha in (torch.zeros(1, 1, 40, 40), torch.ones(1, 1, 40, 40)):
        assert torch.equal(seen(Picture(pixels=colors, alpha=alpha)), colors)
    alpha = torch.zeros(1, 1, 40, 40)
    alpha[..., 0] = 1
    found = seen(Picture(pixels=colors, alpha=alpha))
    assert torch.equal(found[..., 17:], colors[..., 17:])
    assert not torch.equal(found[..., 16], colors[..., 16])

"""Mixing adapters: the product is the weighted sum's best approximation of that rank."""

import importlib.util
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "scripts" / "interpolate.py"
spec = importlib.util.spec_from_file_location("interpolate", PATH)
assert spec is not None
assert spec.loader is not None
interpolate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interpolate)


def adapters(rank, shape=(6, 9)):
    generator = torch.Generator().manual_seed(rank)
    return [
        (torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator))
        for _ in range(2)
    ]


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_rank_that_holds_the_sum_gives_it_exactly(share):
    (a1, b1), (a2, b2) = adapters(8)
    a, b = interpolate.mixed([(a1, b1, 1 - share), (a2, b2, share)], 8)
    assert (a.shape, b.shape) == ((8, 9), (6, 8))
    assert torch.allclose(b @ a, (1 - share) * b1 @ a1 + share * b2 @ a2, atol=1e-5)


def test_a_smaller_rank_leaves_the_least_error():
    (a1, b1), (a2, b2) = adapters(2)
    target = 0.5 * b1 @ a1 + 0.5 * b2 @ a2  # of rank 4
    a, b = interpolate.mixed([(a1, b1, 0.5), (a2, b2, 0.5)], 2)
    left = torch.linalg.svdvals(target)[2:].norm()  # Eckart and Young
    assert torch.isclose((target - b @ a).norm(), left, rtol=1e-4)

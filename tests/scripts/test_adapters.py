"""Arithmetic on adapters: what is mixed, folded and split must add up to the weights that it came from."""

import importlib.util
from pathlib import Path

import pytest
import torch

from tudsr import lora

PATH = Path(__file__).parents[2] / "scripts" / "adapters.py"
spec = importlib.util.spec_from_file_location("adapters", PATH)
assert spec is not None
assert spec.loader is not None
adapters = importlib.util.module_from_spec(spec)
spec.loader.exec_module(adapters)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def changes(model, stage):
    """Return {layer: weight change of its adapter}."""
    return {key: lora.delta_weight(layer, stage) for key, layer in lora.layers(model.backbone.unet, stage).items()}


def bases(model):
    found = lora.layers(model.backbone.unet, "stage_1")
    return {key: layer.get_base_layer().weight.clone() for key, layer in found.items()}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rank", [6, 8])
def test_a_rank_that_holds_the_change_gives_it_exactly(rank):
    change = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    a, b = adapters.nearest(change, rank)
    assert (a.shape, b.shape) == ((rank, 9), (6, rank))
    assert torch.allclose(b @ a, change, atol=1e-5)


def test_a_smaller_rank_leaves_the_least_error():
    target = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    a, b = adapters.nearest(target, 2)
    left = torch.linalg.svdvals(target)[2:].norm()  # Eckart and Young
    assert torch.isclose((target - b @ a).norm(), left, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_mixture_is_the_nearest_of_its_rank_to_the_weighted_sum(make_model, share):
    model, other = make_model(seed=1), make_model(seed=2)
    ours, theirs = changes(model, "stage_2"), changes(other, "stage_2")
    adapters.mix(model, other, "stage_2", share)
    for key, found in changes(model, "stage_2").items():
        target = ((1 - share) * ours[key] + share * theirs[key]).flatten(1)
        a, b = adapters.nearest(target, 4)
        torch.testing.assert_close(found.flatten(1), b @ a, atol=1e-5, rtol=1e-4)


def test_folding_moves_the_first_adapter_into_the_base(make_model):
    model = make_model()
    wanted = {key: base + changes(model, "stage_1")[key] for key, base in bases(model).items()}
    adapters.fold(model)
    assert_equal(bases(model), wanted)
    for stage in lora.STAGES:
        assert all(not change.any() for change in changes(model, stage).values())


def test_splitting_keeps_the_sum_and_takes_the_nearest_of_the_rank(make_model):
    clean, sharp = make_model(seed=1), make_model(seed=2)
    wanted, was, second = bases(sharp), bases(clean), changes(clean, "stage_2")
    adapters.split(clean, sharp)
    first = changes(sharp, "stage_1")
    assert_equal({key: base + first[key] for key, base in bases(sharp).items()}, wanted)
    for found, targets in (
        (first, {key: wanted[key] - was[key] for key in first}),
        (changes(sharp, "stage_2"), {key: was[key] + second[key] - base for key, base in bases(sharp).items()}),
    ):
        for key, change in found.items():
            a, b = adapters.nearest(targets[key].flatten(1), 4)
            torch.testing.assert_close(change.flatten(1), b @ a, atol=1e-4, rtol=1e-3)

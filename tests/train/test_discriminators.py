"""Contract tests over every discriminator, then what is particular to one or the other."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tudsr.errors import ConfigError, WeightsError
from tudsr.train.discriminators import DISCRIMINATORS, Discriminator, build_discriminator, frozen
from tudsr.train.discriminators.heads import SpectralConv2d

VIT = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2}
DINOV2_CONFIG = {**VIT, "mlp_ratio": 2, "image_size": 56}
DINOV3_CONFIG = {**VIT, "intermediate_size": 64, "num_register_tokens": 4}
SMALL = {
    "patch": {"width": 8},
    "dinov2": {"weights": "random", "head_width": 8, "config": DINOV2_CONFIG},
    "dinov3": {"weights": "random", "head_width": 8, "config": DINOV3_CONFIG},
}
POLICY = "color,translation,cutout"
every = pytest.mark.parametrize("name", list(DISCRIMINATORS))


def small(name: str, seed: int = 0, **options) -> Discriminator:
    torch.manual_seed(seed)
    return build_discriminator(name, **{"augment": POLICY, **SMALL[name], **options})


def pictures(batch: int = 2, height: int = 64, width: int = 64, seed: int = 1, dtype=torch.float32) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=rng, dtype=dtype) * 2 - 1


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the contract, for every entry ---


def test_options_of_another_kind_are_refused():
    with pytest.raises(ConfigError, match="'patch' cannot be built of {'augment': 5}"):
        build_discriminator("patch", augment=5)


def test_every_discriminator_is_tested():
    assert SMALL.keys() == DISCRIMINATORS.keys()


@every
@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97), (127, 64)])
def test_logit_maps_for_any_size_from_64(name, height, width):
    maps = small(name)(pictures(2, height, width))
    assert len(maps) == 3
    for logits in maps:
        assert logits.shape[:2] == (2, 1)
        assert min(logits.shape[2:]) >= 2
        assert torch.isfinite(logits).all()
    for shallow, deep in pairwise(maps):
        assert shallow.shape[2] >= deep.shape[2]


@every
def test_every_level_sends_gradient_to_the_whole_picture(name):
    net = small(name)
    x = pictures(1, 65, 70).requires_grad_()
    for logits in net(x):
        (grad,) = torch.autograd.grad(logits.sum(), x, retain_graph=True)
        assert torch.isfinite(grad).all()
        assert (grad.abs().sum(1) > 0).float().mean() > 0.99


@every
def test_nothing_learnable_weighs_the_levels(name):
    net = small(name)
    of_convs = {id(p) for m in net.modules() if isinstance(m, nn.Conv2d) for p in m.parameters()}
    assert all(id(p) in of_convs for p in net.trainable_parameters())
    assert all(p.ndim == 4 or p.ndim == 1 for p in net.trainable_parameters())


@every
def test_spectral_norm_is_one_after_the_weights_moved(name):
    net = small(name)
    with torch.no_grad():
        for p in net.trainable_parameters():
            p.mul_(5).add_(torch.randn(p.shape, generator=rng(3)), alpha=0.3)
        for _ in range(60):
            net(pictures(1))
    convs = [m for m in net.modules() if isinstance(m, SpectralConv2d)]
    assert len(convs) >= 6
    for conv in convs:
        top = np.linalg.svd(conv.weight.detach().flatten(1).numpy(), compute_uv=False)[0]
        assert top == pytest.approx(1, abs=0.02)


@every
def test_frozen_takes_no_gradient_but_passes_it_on(name):
    net = small(name)
    x = pictures(1).requires_grad_()
    with frozen(net):
        sum(m.mean() for m in net(x)).backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is None for p in net.parameters())


@every
def test_frozen_puts_every_flag_back_on_errors_too(name):
    net = small(name)
    net.trainable_parameters()[1].requires_grad_(False)
    flags = [p.requires_grad for p in net.parameters()]

    def fail():
        assert not any(p.requires_grad for p in net.parameters())
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), frozen(net):
        fail()
    assert [p.requires_grad for p in net.parameters()] == flags
    assert len(set(flags)) == 2


@every
def test_trainable_parameters_do_not_depend_on_the_flags(name):
    net = small(name)
    before = [id(p) for p in net.trainable_parameters()]
    with frozen(net):
        assert [id(p) for p in net.trainable_parameters()] == before
    assert all(p.requires_grad for p in net.trainable_parameters())


@every
def test_state_round_trip(name):
    net, other = small(name, seed=0), small(name, seed=0)
    optimizer = torch.optim.SGD(net.trainable_parameters(), lr=0.5)
    sum(m.square().mean() + m.mean() for m in net(pictures())).backward()
    optimizer.step()
    net(pictures())
    assert not torch.equal(net.eval()(pictures())[0], other.eval()(pictures())[0])
    other.load_trainable_state_dict(copy.deepcopy(net.trainable_state_dict()))
    for a, b in zip(net.train()(pictures()), other.train()(pictures()), strict=True):
        assert torch.equal(a, b)


@every
def test_a_foreign_state_is_refused(name):
    net = small(name)
    state = net.trainable_state_dict()
    first = next(iter(state))
    with pytest.raises(WeightsError, match="entries differ"):
        net.load_trainable_state_dict({k: v for k, v in state.items() if k != first})
    with pytest.raises(WeightsError, match="entries differ"):
        net.load_trainable_state_dict({**state, first: torch.zeros(1, 2, 3)})


@every
def test_float64_and_bfloat16_autocast(name):
    net = small(name).eval()
    reference = net(pictures())
    with torch.autocast("cpu", torch.bfloat16):
        half = net(pictures())
    double = net.double()(pictures().double())
    for a, b, c in zip(reference, half, double, strict=True):
        assert c.dtype == torch.float64
        assert torch.allclose(a.double(), c, rtol=1e-3, atol=1e-4)
        assert (b.double() - c).abs().mean() < 0.05 * max(c.std().item(), c.abs().mean().item())


@every
def test_augmentation_only_in_training_and_only_with_a_generator(name):
    net = small(name)
    plain = net.eval()(pictures())[0]
    assert torch.equal(net(pictures(), rng(0))[0], plain)
    # Spectral norm's vectors move in training mode, so compare what reaches the levels.
    net.train().levels = lambda x: [x]
    assert torch.equal(net(pictures())[0], pictures())
    assert not torch.equal(net(pictures(), rng(0))[0], pictures())
    assert torch.equal(net(pictures(), rng(0))[0], net(pictures(), rng(0))[0])


def test_unknown_names_and_options_list_the_known_ones():
    with pytest.raises(ConfigError, match=r"'unet'.*dinov3, dinov2, patch"):
        build_discriminator("unet")
    with pytest.raises(ConfigError, match=r"'depth'.*width, augment"):
        build_discriminator("patch", depth=3)
    with pytest.raises(ConfigError, match="width is 1;"):
        build_discriminator("patch", width=1)
    with pytest.raises(ConfigError, match=r"'colour'.*color, translation, cutout"):
        build_discriminator("patch", augment="colour")


# --- patch ---


@pytest.mark.parametrize("period", [2, 4])
def test_patch_sees_the_checkerboards_of_pixel_shuffle(period):
    net = small("patch", width=16).eval()
    tile = torch.rand(period, period, generator=rng(5)) - 0.5
    if period == 2:
        tile = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # the highest frequency: any blur that comes first removes it
    board = 0.02 * ((tile - tile.mean()) / tile.std()).repeat(64 // period, 64 // period)
    flat = torch.full((1, 3, 64, 64), 0.3)
    for a, b in zip(net(flat), net(flat + board), strict=True):
        inner = slice(a.shape[2] // 2 - 1, a.shape[2] // 2 + 1)
        assert (a - b)[..., inner, inner].abs().mean() > 1e-3


@pytest.mark.slow
def test_patch_learns_to_tell_a_faint_checkerboard_within_steps():
    torch.manual_seed(0)
    net = build_discriminator("patch", width=16)
    optimizer = torch.optim.AdamW(net.trainable_parameters(), lr=2e-4, betas=(0.5, 0.99))
    board = 0.02 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(32, 32)
    for step in range(200):
        smooth = F.interpolate(pictures(8, 8, 8, seed=step), 64, mode="bicubic")
        logits = [m.chunk(2) for m in net(torch.cat([smooth[:4], smooth[4:] + board]))]
        loss = sum(F.softplus(-real).mean() + F.softplus(fake).mean() for real, fake in logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss / 6 < 0.4  # chance is log 2

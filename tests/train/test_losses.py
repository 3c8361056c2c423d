"""The losses: registry, weighted sum, gradients, labels."""

import math

import pytest
import torch
from torch import Tensor, nn

from tudsr.errors import ConfigError, WeightsError
from tudsr.perceptual.dists import EaDists
from tudsr.perceptual.weights import find_weights
from tudsr.train import losses
from tudsr.train.losses import LOSSES, WeightedLosses, adversarial_loss, discriminator_loss

FROM_TRANSFORMERS = {"ea_dists_dinov3", "ea_dists_dinov2", "ea_dists_convnext"}  # not without a network; see below


def picture(seed: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 40, 36, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_pixel_losses_in_closed_form():
    sr, gt = torch.zeros(2, 3, 4, 4), torch.tensor([0.5, -1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    total, parts = WeightedLosses({"mae": 2.0, "mse": 4.0})(sr, gt)
    assert float(parts["loss_g_mae"]) == pytest.approx(0.75)
    assert float(parts["loss_g_mse"]) == pytest.approx(0.625)
    assert float(total) == pytest.approx(2 * 0.75 + 4 * 0.625)


def test_detail_is_blind_to_ramps_and_sees_a_checkerboard():
    gt = torch.zeros(1, 3, 32, 32)
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    inside = losses.Detail()(ramp[..., 4:-4].contiguous(), gt[..., 4:-4])
    assert float(inside) < 0.02  # the border's one-sided means only
    # Of 25 pixels 13 or 12 agree with the middle one: the mean is 1/25 of it.
    assert float(losses.Detail()(board.expand(1, 3, 32, 32), gt)) == pytest.approx(24 / 25, abs=0.01)


@pytest.mark.parametrize("period_px", [4, 8])
def test_grid_sees_a_pattern_of_its_period_and_little_of_noise(period_px):
    gt = torch.zeros(1, 3, 64, 67)  # 67: what is beyond whole patches is left out
    dots = torch.zeros(64, 67)
    dots[1::period_px, 2::period_px] = 1.0
    noise = torch.randn(1, 3, 64, 67, generator=torch.Generator().manual_seed(0))
    grid, detail = losses.Grid(period_px), losses.Detail()
    pattern = dots.expand(1, 3, 64, 67)
    assert float(grid(pattern, gt)) == pytest.approx(float(detail(pattern, gt)), rel=0.15)
    assert float(grid(noise, gt)) < 0.3 * float(detail(noise, gt))


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - FROM_TRANSFORMERS))
def test_contract_of_every_loss(name, random_nets):
    net = WeightedLosses({name: 3.0})
    sr, gt = picture(0).requires_grad_(), picture(1).requires_grad_()
    total, parts = net(sr, gt)
    assert total.shape == ()
    assert total.dtype == torch.float32
    assert list(parts) == [f"loss_g_{name}"]
    assert not parts[f"loss_g_{name}"].requires_grad
    assert float(total.detach()) == pytest.approx(3 * float(parts[f"loss_g_{name}"]), rel=1e-6)
    total.backward()
    assert gt.grad is None
    assert sr.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in net.parameters())
    assert float(net(gt, gt)[0].detach()) == pytest.approx(0, abs=1e-5)


def test_weighted_sum_is_the_mean_over_the_batch(random_nets):
    net = WeightedLosses({"lpips_alex": 1.0, "mae": 0.5})
    sr, gt = picture(0), picture(1)
    singles = torch.stack([net(sr[i : i + 1], gt[i : i + 1])[0] for i in range(2)])
    torch.testing.assert_close(net(sr, gt)[0], singles.mean(), rtol=1e-5, atol=1e-6)


def test_a_weight_of_zero_builds_nothing_and_no_losses_give_zero():
    net = WeightedLosses({"ea_dists": 0.0, "mae": 1.0})
    assert list(net.losses) == ["mae"]
    total, parts = WeightedLosses({})(picture(0), picture(1))
    assert float(total) == 0
    assert parts == {}


def test_unknown_losses_are_refused_before_any_network_is_built(monkeypatch):
    monkeypatch.setitem(LOSSES, "dists", lambda *args: pytest.fail("a network was built"))
    with pytest.raises(ConfigError, match="'ssim' is not a known loss; known ones: detail, dists, ea_dists"):
        WeightedLosses({"dists": 1.0, "ssim": 1.0})


def test_transformers_backbones_go_by_the_named_folder(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(losses.FeatureDists, "load", lambda model, dtype: asked.append((model, dtype)) or nn.Identity())
    WeightedLosses({"ea_dists_dinov2": 1.0}, dtype=torch.bfloat16)
    loss = WeightedLosses({"ea_dists_convnext": 1.0}, feature_model=str(tmp_path))
    assert asked == [("facebook/dinov2-base", torch.bfloat16), (str(tmp_path), torch.float32)]
    assert isinstance(loss.losses["ea_dists_convnext"], EaDists)


def test_a_folder_without_a_backbone_is_said(tmp_path):
    with pytest.raises(WeightsError, match="cannot be loaded as a feature backbone"):
        WeightedLosses({"ea_dists_dinov3": 1.0}, feature_model=str(tmp_path))


def bce(logit: float, label: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(label * math.log(p) + (1 - label) * math.log(1 - p))


def test_adversarial_loss_weighs_levels_equally_whatever_their_size():
    logits = [torch.full((2, 1, 8, 8), 1.5), torch.full((2, 1, 2, 2), -0.5)]
    expected = (bce(1.5, 0.8) + bce(-0.5, 0.8)) / 2
    assert float(adversarial_loss(logits, 0.8)) == pytest.approx(expected, rel=1e-5)


def test_adversarial_loss_is_least_at_the_label():
    logit = torch.tensor(math.log(0.8 / 0.2), requires_grad=True)
    adversarial_loss([logit.view(1, 1, 1, 1)], 0.8).backward()
    assert abs(float(logit.grad)) < 1e-6


def test_discriminator_loss_labels_and_half():
    real, fake = [torch.full((1, 1, 3, 3), 0.7)], [torch.full((1, 1, 3, 3), -0.2)]
    expected = 0.5 * (bce(0.7, 0.8) + bce(-0.2, 0.0))
    assert float(discriminator_loss(real, fake)) == pytest.approx(expected, rel=1e-5)


def test_bf16_logits_are_measured_in_float32():
    loss = adversarial_loss([torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)], 0.8)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.weights
def test_the_papers_sum_with_true_weights():
    if find_weights("vgg16") is None:
        pytest.skip("VGG16's weights are not on this machine")
    net = WeightedLosses({"ea_dists": 5.0, "mae": 0.5})
    sr, gt = picture(0), picture(1)
    total, parts = net(sr, gt)
    expected = 5 * parts["loss_g_ea_dists"] + 0.5 * parts["loss_g_mae"]
    torch.testing.assert_close(total, expected)
    assert 0 < float(parts["loss_g_ea_dists"]) < 2

"""The one step against diffusers' own schedulers, in float64."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from tudsr.backbones.blueprint import SD_SCHEDULE
from tudsr.errors import ConfigError
from tudsr.one_step import TARGET_OF, Z0_FROM, z0_from_prediction

TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEPS = (0, 50, 200, 999)


def scheduler_of(kind: type, prediction_type: str):
    scheduler = kind(**SD_SCHEDULE | {"prediction_type": prediction_type})
    # The schedulers take square roots of this table; in float32 they would round where we do not.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(1000)
    return scheduler


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 2, 4, 8, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("t", TIMESTEPS)
@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_z0_is_the_schedulers_pred_original_sample(kind, prediction_type, t):
    scheduler = scheduler_of(kind, prediction_type)
    pred, z = noise(2)
    wanted = scheduler.step(pred, t, z, generator=torch.Generator().manual_seed(0)).pred_original_sample
    z0 = z0_from_prediction(pred, z, scheduler.alphas_cumprod[t], prediction_type)
    assert z0.dtype == torch.float64
    torch.testing.assert_close(z0, wanted, rtol=1e-12, atol=1e-12)


def test_the_schedule_is_the_papers():
    alpha_bar = DDPMScheduler(**SD_SCHEDULE).alphas_cumprod
    for t, alpha, sigma in ((200, 0.868, 0.496), (50, 0.976, 0.220)):  # METHOD, «Generator»
        assert alpha_bar[t].sqrt().item() == pytest.approx(alpha, abs=6e-4)
        assert (1 - alpha_bar[t]).sqrt().item() == pytest.approx(sigma, abs=6e-4)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_priors_target_leads_back_to_z0_at_every_timestep_of_a_batch(prediction_type):
    scheduler = scheduler_of(DDPMScheduler, prediction_type)
    t = torch.tensor([50, 999])
    z0, eps = noise(2)
    z = scheduler.add_noise(z0, eps, t)
    alpha_bar = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    target = TARGET_OF[prediction_type](z0, eps, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    if prediction_type == "v_prediction":
        torch.testing.assert_close(target, scheduler.get_velocity(z0, eps, t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(z0_from_prediction(target, z, alpha_bar, prediction_type), z0, rtol=1e-9, atol=1e-9)


def test_an_unknown_prediction_type_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'flow'.*epsilon, v_prediction, sample"):
        z0_from_prediction(*noise(2), torch.tensor(0.5), "flow")


def test_both_tables_know_the_same_types():
    assert set(Z0_FROM) == set(TARGET_OF) == set(TYPES)

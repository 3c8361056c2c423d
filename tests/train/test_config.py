"""Settings that cannot be trained with are refused when they are read."""

import pytest
import torch

from tudsr.errors import ConfigError
from tudsr.train.losses import LEAST_PX, LOSSES
from tudsr.train.objective import PIXEL_LOSSES


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"jitter_px": 1}, "the discriminator needs at least 64 px, but sees 63: a crop of 64 px less jitter_px=1"),
        ({"crop_px": 32, "loss_gan": 0, "losses": {"lpips_alex": 1}, "jitter_px": 1}, "lpips_alex needs at least 32"),
        ({"crop_px": 16, "loss_gan": 0, "losses": {"ea_dists": 1}, "jitter_px": 1}, "ea_dists needs at least 16"),
        ({"stage": 2, "n": 2, "crop_px": 64}, "the discriminator needs at least 64 px, but sees 32"),
        ({"stage": 2, "n": 2, "crop_px": 128, "loop": "exact", "loss_crop_px": 32}, "discriminator needs at least 64"),
        ({"jitter_px": 64}, "jitter_px must be below .* 64 px"),
        ({"n": 2, "crop_px": 128}, "n is for stage 2; in stage 1 it must be 1"),
        ({"stage": 0, "train": "base", "n": 2}, "n is for stage 2"),
        (
            {"stage": 0, "train": "base", "gradient_checkpointing": True},
            "gradient_checkpointing goes with stages 1 and 2",
        ),
        ({"crop_px": 64, "loss_crop_px": 65}, "loss_crop_px may be at most crop_px"),
        ({"degrade_on": "gpu"}, "degrade_on"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make_config, changes, words):
    with pytest.raises(ConfigError, match=words):
        make_config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_px": 72, "jitter_px": 8},
        {"crop_px": 32, "loss_gan": 0, "losses": {"mae": 1, "lpips_alex": 1}},
        {"crop_px": 16, "loss_gan": 0, "losses": {"mae": 1, "lpips_alex": 0}, "jitter_px": 8},
        {"stage": 2, "n": 2, "crop_px": 64, "loop": "exact"},
        {"stage": 0, "train": "base", "crop_px": 32},
    ],
)
def test_sizes_that_just_fit_are_taken(make_config, changes):
    make_config(**changes)


def test_the_least_sides_are_of_known_losses():
    assert LEAST_PX.keys() == LOSSES.keys() - set(PIXEL_LOSSES)


@pytest.mark.parametrize(
    ("native", "settled"), [(torch.bfloat16, "bf16"), (torch.float32, "no"), (torch.float16, "no")]
)
def test_precision_auto_is_settled_by_the_device(make_config, monkeypatch, native, settled):
    monkeypatch.setattr("tudsr.device._fastest", lambda device: native)
    assert make_config(precision="auto").precision == settled
    assert make_config(precision="bf16").precision == "bf16"

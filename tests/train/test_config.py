"""Settings that cannot be trained with are refused when they are read."""

import json

import pytest
import torch

from tudsr.errors import ConfigError
from tudsr.find import find_model
from tudsr.presets import sd21_stage_1
from tudsr.train.config import TrainConfig
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
        ({"crop_px": 128, "loss_crop_px": 64}, "loss_crop_px goes with loop=exact only"),
        ({"degrade_on": "gpu"}, "degrade_on"),
        ({"losses": {"mae": -1}}, r"losses\.mae: .*greater than or equal to 0"),
        ({"stage": 2, "n": 2, "crop_px": 128, "scales": {"uniform": (1.5, 8)}}, "scales and val_scale .* least n=2"),
        ({"stage": 2, "n": 2, "crop_px": 128, "val_scale": 1.5}, "scales and val_scale .* least n=2"),
        ({"scales": {"uniforms": (1, 4)}}, "'scales.uniforms' is not a setting; known ones: fixed, uniform"),
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


def test_a_run_inside_its_photos_is_refused(make_config, photos):
    for out in (photos, photos / "run", photos.parent / "a" / ".." / photos.name / "run"):
        with pytest.raises(ConfigError, match="out lies inside data"):
            make_config(out=out)
    make_config(out=photos.with_name(f"{photos.name}-run"))


def test_an_override_inside_a_mapping_leaves_what_stands_beside_it(model_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("tudsr.train.config.training_preset", lambda backbone, stage: sd21_stage_1())

    def assemble(*overrides):
        return TrainConfig.assemble(
            stage=1, model=model_folder, data=photos, out=tmp_path / "run", file=None, overrides=list(overrides)
        )

    config = assemble("losses.mae=1", "degradation.weights.heavy=0.3", "scales.fixed.4=0.25")
    assert config.losses == {"ea_dists": 5.0, "mae": 1.0}
    assert config.degradation.weights == {"light": 0.8, "heavy": 0.3}
    assert (config.scales.fixed, config.scales.uniform) == ({4.0: 0.25}, (1.0, 4.0))  # the preset's
    plain = assemble()
    assert (plain.losses["mae"], plain.degradation.weights["heavy"]) == (0.5, 0.2)
    with pytest.raises(ConfigError, match="'nonsense' is not a setting"):
        assemble("nonsense.mae=1")


def test_another_discriminator_does_not_get_the_presets_options(photos, tmp_path):
    def assemble(*overrides):
        return TrainConfig.assemble(
            stage=1, model="tiny", data=photos, out=tmp_path / "run", file=None, overrides=list(overrides)
        ).discriminator_options

    assert assemble() == {"width": 24}
    assert assemble("discriminator=dinov2") == {}
    assert assemble("discriminator=patch", "discriminator_options.width=8") == {"width": 8}


def test_a_file_says_which_stage_and_model_it_is_for(model_folder, photos, tmp_path):
    def assemble(said, stage=None, model=None):
        file, out = tmp_path / "config.json", tmp_path / "run"
        file.write_text(json.dumps(said))
        return TrainConfig.assemble(stage=stage, model=model, data=photos, out=out, file=file, overrides=[])

    found = assemble({"stage": 0, "model": str(model_folder), "steps": 7, "train": "base"})
    assert (found.stage, found.model, found.steps) == (0, model_folder, 7)
    found = assemble({"stage": 0, "model": str(model_folder), "steps": 7}, stage=2, model="tiny")  # options win
    assert (found.stage, found.model, found.steps) == (2, find_model("tiny"), 7)
    for said in ({"model": None}, {"stage": [1]}, {"stage": "2"}, {"stage": True}):
        with pytest.raises(ConfigError, match=r"config\.json: model .* and stage .* came"):
            assemble(said)
    assert (found := assemble({"steps": 7})).stage == 1
    assert found.model == find_model("tiny")


def test_the_least_sides_are_of_known_losses():
    assert LEAST_PX.keys() == LOSSES.keys() - set(PIXEL_LOSSES)


@pytest.mark.parametrize(
    ("native", "precision", "base_dtype"),
    [(torch.bfloat16, "bf16", "bf16"), (torch.float32, "no", "fp32"), (torch.float16, "no", "fp32")],
)
def test_auto_is_settled_by_the_device(make_config, monkeypatch, native, precision, base_dtype):
    monkeypatch.setattr("tudsr.device._fastest", lambda device: native)
    auto = {"precision": "auto", "base_dtype": "auto"}
    config = make_config(**auto)
    assert (config.precision, config.base_dtype) == (precision, base_dtype)
    assert TrainConfig.model_fields["base_dtype"].default == TrainConfig.model_fields["precision"].default == "auto"
    assert make_config(**auto, train="base").base_dtype == "fp32"
    given = make_config(precision="bf16", base_dtype="bf16")
    assert (given.precision, given.base_dtype) == ("bf16", "bf16")


def test_a_saved_run_keeps_what_auto_was_where_it_began(make_config, monkeypatch):
    saved = make_config(precision="bf16", base_dtype="bf16").to_json()
    monkeypatch.setattr("tudsr.device._fastest", lambda device: torch.float32)
    config = TrainConfig.parse(json.loads(saved), "saved")
    assert (config.precision, config.base_dtype) == ("bf16", "bf16")

"""Names, ratios and records of methods; a model's ways do what they are called."""

import json
import math
import shutil

import pytest
import torch

from tudsr.config import ModelConfig
from tudsr.errors import ConfigError, ModelError
from tudsr.eval.methods import ABLATION, bicubic, distinct, foreign, model_methods, trained_on
from tudsr.eval.metrics import METRICS
from tudsr.image import Picture
from tudsr.pipeline import TUDSR
from tudsr.planner import plan_passes
from tudsr.request import Request


@pytest.fixture(scope="module")
def model(model_folder):
    return TUDSR.load(model_folder, "cpu", "fp32")


def never(name):
    raise AssertionError("a model is loaded when it has something to compute, not before")


@pytest.mark.parametrize(
    ("scale", "name", "m", "n"),
    [(1, "M1", 1, None), (3, "M1.5N2", 1.5, 2), (4, "M2N2", 2, 2), (8, "M4N2", 4, 2), (16, "M4N2N2", 4, 2)],
)
def test_a_model_alone_runs_its_own_plan(model_folder, scale, name, m, n):
    (method,) = model_methods(str(model_folder), scale, never)
    assert (method.name, method.m, method.n, method.scale) == (f"throw-away {name}", m, n, scale)
    record = json.loads(json.dumps(method.record()))
    assert (record["kind"], record["path"], record["scale"]) == ("model", str(model_folder), scale)
    assert {"tudsr.json", "unet/diffusion_pytorch_model.safetensors"} <= record["sha256"].keys()


def test_the_ablation_is_the_papers_six_ways(model_folder):
    methods = model_methods(str(model_folder), 4, never, ways=tuple(ABLATION))
    names = ["M4", "N4", "M2N2", "M8", "N8", "M4N2"]
    assert [method.name for method in methods] == [f"throw-away {name}" for name in names]
    assert [(m.m, m.n, m.scale) for m in methods] == [
        (4, None, 4), (None, 4, 4), (2, 2, 4), (8, None, 8), (None, 8, 8), (4, 2, 8),
    ]  # fmt: skip
    for name, request in ABLATION.items():
        plan = plan_passes(10, 12, scale=request.scale, m=request.m, n=request.n, stage=request.stage)
        ways = "".join(f"{'MN'[step.stage - 1]}{step.ratio:g}" for step in plan.passes)
        assert ways == name


def test_every_way_runs_with_every_fidelity(model_folder, model):
    methods = model_methods(str(model_folder), 4, lambda name: model, ways=("M4", "M2N2"), fidelity=(0, 0.5))
    assert [method.name.removeprefix("throw-away ") for method in methods] == [
        "M4", "M4 fidelity 0.5", "M2N2", "M2N2 fidelity 0.5",
    ]  # fmt: skip
    lq = torch.rand(1, 3, 10, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = model.upscale(lq.add(1).div(2), 4, stage=1, fidelity=0.5) * 2 - 1
    torch.testing.assert_close(methods[1].open()(lq), expected, atol=2e-5, rtol=0)
    assert (methods[0].open()(lq) - expected).abs().max() > 0.01


def test_a_way_runs_the_stages_that_it_names(model_folder, model):
    lq = torch.rand(1, 3, 10, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    outs = {}
    for method in model_methods(str(model_folder), 4, lambda name: model, ways=tuple(ABLATION))[:3]:
        outs[method.name.split()[1]] = method.open()(lq)
    picture = lq.add(1).div(2)
    for name, options in {"M4": {"stage": 1}, "N4": {"stage": 2}, "M2N2": {}}.items():
        expected = model.upscale(picture, 4, **options) * 2 - 1
        torch.testing.assert_close(outs[name], expected, atol=2e-5, rtol=0)
    assert (outs["M4"] - outs["N4"]).abs().max() > 0.01
    assert (outs["M4"] - outs["M2N2"]).abs().max() > 0.01


def test_seams_come_from_two_runs_with_windows_elsewhere(model_folder, model):
    (method,) = model_methods(str(model_folder), 2, lambda name: model)
    lq = torch.rand(1, 3, 40, 44, generator=torch.Generator().manual_seed(0)) * 2 - 1
    run = method.shifted(lq)
    assert run.plain.shape == run.shifted.shape == (1, 3, 80, 88)
    assert run.grid.shift_px == 0 < run.shifted_grid.shift_px
    again = model.upscale_picture(Picture(pixels=lq), Request(scale=2, shift_px=run.shifted_grid.shift_px)).pixels
    assert torch.equal(run.shifted, again)
    assert METRICS["seams"].load(None)(run.plain, run) > 0
    assert math.isnan(METRICS["seam_step"].load(None)(run.plain, run))  # the low-pass has no room


@pytest.mark.parametrize("text", ["[1]", '{"a": "2"}', '{"a": 0}', '{"a": true}', '{"a": Infinity}', "{"])
def test_times_of_foreign_outputs_that_are_none(tmp_path, text):
    assert foreign("peer", tmp_path, 4).seconds == {}
    (tmp_path / "seconds.json").write_text(text)
    with pytest.raises(ConfigError, match=r"seconds\.json: "):
        foreign("peer", tmp_path, 4)


def test_bicubic_makes_the_rounded_size():
    assert bicubic(1.5).open()(torch.zeros(1, 3, 5, 7)).shape == (1, 3, 8, 11)


def test_names_are_numbered_apart(tmp_path):
    methods = [foreign(name, tmp_path, 4) for name in ("a", "b", "a", "a (2)", "a")]
    names = [method.name for method in distinct(methods)]
    assert names == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]


def test_a_models_name_cannot_leave_the_folder(model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "tudsr.json").read_text())
    (folder / "tudsr.json").write_text(json.dumps(config | {"name": "../../a b"}))
    (method,) = model_methods(str(folder), 4, never)
    assert "/" not in method.name
    assert not method.name.startswith(".")


def test_a_model_that_is_not_there():
    with pytest.raises(ModelError, match="nowhere"):
        model_methods("nowhere", 4, never)


def test_trained_on_names_the_losses_with_weight_and_not_those_of_the_prior(model_folder):
    config = ModelConfig.read(model_folder / "tudsr.json")

    def of(*records):
        return trained_on(config.model_copy(update={"training": list(records)}))

    def record(stage, **losses):
        return {"stage": stage, "config": {"losses": losses}}

    assert of() == ()
    assert of(record(0, ea_dists=5.0, lpips_alex=1.0)) == ()
    assert of(record(1, ea_dists=5.0, mae=1.0, mse=1.0, lpips_vgg=0)) == ("dists",)
    assert of(record(1, lpips_alex=0.1), record(2, dists=1.0, lpips_vgg=1.0)) == ("dists", "lpips", "lpips_vgg")
    assert of({"stage": 1}, {"stage": 1, "config": "lost"}) == ()
    mixed = {"stage": 1, "interpolated": {"share": 0.9, "with": [record(1, dists=1.0), record(1, lpips_alex=1.0)]}}
    assert of(mixed) == ("dists", "lpips")
    for mixture in ({"share": 0.9}, {"with": None}, {"with": {"stage": 1}}, {"with": ["lost"]}, [], None):
        assert of({"stage": 1, "interpolated": mixture}, record(1, dists=1.0)) == ("dists",)

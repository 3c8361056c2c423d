"""The ablations: arms that differ in one thing, honest verdicts, and runs that go on where they stopped."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tudsr.checkpoint import load_tensors
from tudsr.config import ModelConfig
from tudsr.errors import ConfigError
from tudsr.eval.methods import ABLATION
from tudsr.find import CONFIG_NAME, UNET_FILE
from tudsr.folder import load_model, save_model
from tudsr.pipeline import TUDSR
from tudsr.request import Request
from tudsr.train.state import LOCAL
from tudsr.windows import chunk_grid

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = ("twice", "loop", "discriminator", "losses", "degradation", "adapters", "prior")

# What the arms of one group may differ in, phase by phase; «start» is the model that the first phase begins with.
CLAIMED = {
    ("twice", ""): [
        {"scales"},
        # the stage itself, with what only a second stage has: n and the start of its adapter; what it learns
        {"stage", "scales", "n", "init_adapter", "val_scale"},
    ],
    ("loop", ""): [set(), {"loop", "loss_crop_px"}],  # in the paper's loop, losses see the chunks
    ("discriminator", ""): [{"d_in_g_step"}],
    ("losses", ""): [{"losses"}],
    ("degradation", ""): [{"degradation"}],
    ("adapters", "rank"): [{"start"}],
    ("adapters", "LoRA-2"): [set(), {"init_adapter"}],
    ("prior", "lora"): [{"start"}],
    ("prior", "whole"): [{"start"}],
}


@pytest.fixture
def place(parts, model_folder, photos, tmp_path):
    return parts.Place(runs=tmp_path / "runs", base=model_folder, photos=photos, test=photos.parent)


@pytest.fixture
def toy(parts, plan, photos, monkeypatch):
    """Register an ablation of two arms, of two steps each, that needs no pretrained weights."""

    def build(steps=2):
        shared = {
            "steps": steps, "warmup": 0, "batch": 1, "crop_px": 64, "jitter_px": 0, "losses": {"mae": 1.0},
            "loss_gan": 0, "val_count": 0, "val_crop_px": 64, "workers": 0, "precision": "no",
        }  # fmt: skip
        eval_set = parts.EvalSet(
            name="toys", folder=photos.name, scale=4, metrics=("psnr", "seams", "seam_step"), tiles=True
        )
        fast = parts.Phase(name="fast", stage=1, start=plan.START, settings=shared | {"lr": 1e-2})
        slow = parts.Phase(name="slow", stage=1, start=plan.START, settings=shared | {"lr": 1e-4})
        arms = [
            parts.Arm(name="fast", phase=fast, ways=[(eval_set, "M4")]),
            parts.Arm(name="slow", phase=slow, ways=[(eval_set, "M4")]),
        ]
        return parts.Ablation(title="a toy", question="Does it run?", arms=arms, steps=steps)

    monkeypatch.setitem(plan.ABLATIONS, "toy", build)
    return build


def _settings(script, phase, place):
    values = script.config_of(phase, place, place.base).model_dump(mode="json", exclude=set(LOCAL))
    return values | {"start": phase.start.name if phase.start.name.startswith("start") else "a phase"}


def test_all_seven_are_there(plan):
    assert tuple(plan.ABLATIONS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_arms_of_a_group_differ_in_what_they_claim_and_in_nothing_else(plan, script, place, name):
    ablation = plan.ABLATIONS[name]()
    for group in {arm.group for arm in ablation.arms}:
        chains = [arm.phase.chain() for arm in ablation.arms if arm.group == group]
        assert len(chains) > 1
        found = []
        for alternatives in zip(*chains, strict=True):
            settings = [_settings(script, phase, place) for phase in alternatives]
            found.append({key for key in settings[0] if any(one[key] != settings[0][key] for one in settings)})
            assert {(one["steps"], one["batch"], one["crop_px"], one["seed"]) for one in settings} == {
                (settings[0]["steps"], settings[0]["batch"], settings[0]["crop_px"], plan.SEED)
            }
        assert found == CLAIMED[name, group]


def test_budgets(plan):
    steps = {
        name: {sum(phase.steps for phase in arm.phase.chain()) for arm in make().arms}
        for name, make in plan.ABLATIONS.items()
    }
    assert steps == {
        "twice": {600}, "loop": {600}, "discriminator": {100}, "losses": {100}, "degradation": {100},
        "adapters": {100, 500}, "prior": {100},
    }  # fmt: skip


def test_rivals_learn_their_own_ratio_only(plan, script, place):
    arms = {arm.name: arm for arm in plan.ABLATIONS["twice"](10).arms}
    for ratio in (4, 8):
        for phase in arms[f"once_x{ratio}"].phase.chain():
            config = script.config_of(phase, place, place.base)
            assert (config.stage, config.scales.fixed, config.scales.uniform) == (1, {ratio: 1.0}, None)


@pytest.mark.parametrize("steps", [2, 3, 300, 3000])
def test_phases_of_one_name_are_one_phase(plan, steps):
    named = {}
    for make in plan.ABLATIONS.values():
        for phase in itertools.chain.from_iterable(arm.phase.chain() for arm in make(steps).arms):
            assert named.setdefault(phase.name, phase) == phase


def test_ablations_share_their_stage_1(plan):
    def names(name):
        return {phase.name for arm in plan.ABLATIONS[name]().arms for phase in arm.phase.chain()}

    assert names("twice") & names("loop") == {"stage_1-400"}
    assert "stage_1-400" in names("adapters")


def test_deep_losses_see_as_much_in_either_loop(plan, script, place):
    arms = {arm.name: arm for arm in plan.ABLATIONS["loop"](3).arms}
    paper, exact = (script.config_of(arms[name].phase, place, place.base) for name in ("paper", "exact"))
    assert exact.loss_crops == len(chunk_grid(paper.crop_px, paper.n).windows) == 4
    assert exact.deep_crop_px == paper.deep_crop_px == 128


def test_sample_photos_are_those_of_the_training_script(plan):
    listed = re.search(r"exclude=(\[.*?\])", (SCRIPTS / "train_tiny.sh").read_text(encoding="utf-8"))
    assert json.loads(listed[1]) == plan.SAMPLE_PHOTOS


@pytest.mark.parametrize("way", ["M4", "M2N2", "M8", "M4N2"])
def test_a_view_is_planned_the_asked_way(parts, plan, script, place, monkeypatch, tmp_path, way):
    monkeypatch.setattr(parts.Place, "model", lambda self, phase: self.base)
    phase = parts.Phase(name="p", stage=1, start=plan.START, settings={"steps": 1})
    wide = parts.EvalSet(name="wide", folder="x", scale=4)
    tiles = parts.EvalSet(name="tiles", folder="x", scale=4, tiles=True)
    arm = parts.Arm(name="arm", phase=phase, ways=[])
    request = ABLATION[way]
    scale = request.scale if request.scale is not None else request.m * request.n
    for eval_set in (wide, tiles):
        model = TUDSR.load(script.make_view(arm, way, eval_set, place, tmp_path / "view"), "cpu", "fp32")
        assert model.plan(20, 30, Request(scale=scale)) == model.plan(20, 30, request)
        assert model.config.name == "arm"
        assert model.config.windows.max_px == (model.config.r_px if eval_set.tiles else 64)


def test_starts_have_the_prior_or_not_and_fresh_adapters_of_their_rank(
    parts, plan, script, place, make_model, tmp_path
):
    base_folder, prior_folder = tmp_path / "base", tmp_path / "prior"
    save_model(base_folder, make_model(seed=1), torch.float32)
    save_model(prior_folder, make_model(seed=2), torch.float32)
    place = replace(place, base=base_folder, prior=prior_folder)
    starts = [
        plan.START,
        parts.Start(name="start-rank_2", rank=2),
        parts.Start(name="start-random", random=True),
        parts.Start(name="start-prior", prior=True),
    ]
    unets = []
    for start in starts:
        script.ensure(start, place, "")
        model = load_model(place.model(start), torch.device("cpu"), torch.float32)
        rank = start.rank or ModelConfig.read(base_folder / CONFIG_NAME).lora.rank
        for layer in (m for m in model.backbone.unet.modules() if hasattr(m, "lora_B")):
            for stage in ("stage_1", "stage_2"):
                assert layer.r[stage] == rank
                assert layer.scaling[stage] == 1
                assert not layer.lora_B[stage].weight.any()
        unets.append(load_tensors(place.model(start) / UNET_FILE)[0])
    base = load_tensors(base_folder / UNET_FILE)[0]
    assert all(torch.equal(unets[0][key], base[key]) and torch.equal(unets[1][key], base[key]) for key in base)
    assert base.keys() == unets[2].keys()
    prior = load_tensors(place.prior / UNET_FILE)[0]
    assert all(torch.equal(unets[3][key], prior[key]) for key in prior)
    for other in (base, prior):
        assert not torch.equal(unets[2]["conv_in.weight"], other["conv_in.weight"])
    assert not torch.equal(prior["conv_in.weight"], base["conv_in.weight"])


@pytest.mark.parametrize(
    ("option", "changes", "message"),
    [
        ("base", {"backbone": "sd21"}, "made for tiny"),
        ("prior", {"backbone": "sd21"}, "made for tiny"),
        ("prior", {"training": [{"stage": 0}, {"stage": 1, "config": {"train": "base"}}]}, "trained beyond the prior"),
        ("prior", {"training": [{"stage": 1, "config": {"train": "adapter"}}]}, "trained beyond the prior"),
    ],
)
def test_a_start_from_the_wrong_model_is_refused(
    parts, script, place, model_folder, tmp_path, option, changes, message
):
    found = shutil.copytree(model_folder, tmp_path / "found")
    config = ModelConfig.read(found / CONFIG_NAME).model_copy(update=changes)
    (found / CONFIG_NAME).write_text(config.to_json(), encoding="utf-8")
    start = parts.Start(name="start", prior=option == "prior")
    with pytest.raises(ConfigError, match=f"--{option} .*{message}"):
        script.ensure(start, replace(place, **{option: found}), "")
    assert not script.is_finished(start, place)


def test_a_start_keeps_the_record_of_what_taught_its_base(parts, plan, script, place, model_folder, tmp_path):
    base = shutil.copytree(model_folder, tmp_path / "base")
    taught = {"stage": 1, "config": {"train": "base"}}
    apart = [{"stage": 1, "notes": [parts.FOLDED]}, taught, {"stage": 1, "notes": [parts.SPLIT]}]
    records = [{"stage": 0}, taught, {"stage": 1, "config": {"train": "adapter"}}, *apart]
    config = ModelConfig.read(base / CONFIG_NAME).model_copy(update={"training": records})
    (base / CONFIG_NAME).write_text(config.to_json(), encoding="utf-8")
    script.ensure(plan.START, replace(place, base=base), "")
    assert ModelConfig.read(place.model(plan.START) / CONFIG_NAME).training == records[:2]


def test_a_run_is_written_down_and_is_not_repeated(script, toy, model_folder, photos, tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    call = [str(runs), "--only", "toy", "--base", str(model_folder), "--photos", str(photos)]
    call += ["--test", str(photos.parent)]
    assert script.main(call) == 0, capsys.readouterr().err
    found = json.loads((runs / "toy" / "results.json").read_text(encoding="utf-8"))
    assert [phase["name"] for phase in found["phases"]] == ["fast", "slow"]
    assert [phase["differs_in"] for phase in found["phases"]] == [["lr"], ["lr"]]
    methods = found["sets"]["toys"]["methods"]
    assert [method["name"] for method in methods] == ["bicubic", "fast M4", "slow M4"]
    assert methods[1]["means"]["psnr"]["count"] == methods[1]["means"]["seams"]["count"] == 6
    assert methods[1]["means"]["psnr"]["mean"] != methods[2]["means"]["psnr"]["mean"]
    assert len(found["verdict"]) == 1
    text = (runs / "toy" / "page.md").read_text(encoding="utf-8")
    assert "[ablation-toy.json](data/ablation-toy.json)" in text
    assert "(../images/ablation-toy.webp)" in text
    with Image.open(runs / "toy" / "ablation-toy.webp") as picture:
        assert picture.size == (4 * 176, 2 * (176 + 18))  # truth, bicubic and two arms, of two photos
    assert found["verdict"][0] in text
    assert (runs / found["sets"]["toys"]["report"] / "index.html").is_file()

    def refuse(*args, **kwargs):
        raise AssertionError("this was finished")

    monkeypatch.setattr(script, "run_training", refuse)
    monkeypatch.setattr(script, "run_eval", refuse)
    assert script.main(call) == 0
    again = json.loads((runs / "toy" / "results.json").read_text(encoding="utf-8"))
    assert (again["verdict"], again["sets"]) == (found["verdict"], found["sets"])

    assert script.main([*call, "--steps", "3"]) == 2
    assert "was made with another settings" in capsys.readouterr().err

    monkeypatch.setattr(script, "run_degrade", lambda *args: [])
    next(runs.glob("sets/*/lq/photo_0.png")).write_bytes(b"")
    with pytest.raises(AssertionError, match="this was finished"):  # of another picture
        script.main(call)


def test_an_unfinished_phase_is_taken_up(script, plan, toy, place, monkeypatch):
    phase = toy().arms[0].phase
    calls = []
    monkeypatch.setattr(script, "run_training", lambda config, *, resume: calls.append((config.out, resume)))
    script.ensure(phase, place, "photos")
    script.ensure(phase, place, "photos")  # nothing came of the first
    assert calls == [(place.folder(phase), True)] * 2
    with pytest.raises(ConfigError, match="another photos"):
        script.ensure(phase, place, "other photos")


def test_dry_run_says_what_it_would_do_and_does_nothing(script, model_folder, tmp_path, capsys):
    model = str(model_folder)
    assert script.main([str(tmp_path / "runs"), "--base", model, "--prior", model, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for name in NAMES:
        assert f"\n{name}: " in f"\n{said}"
    assert "stage_1-400: stage 1 from start, 400 steps x 6 of 128 px, about 8 min" in said
    assert "stage_1-400: stage 1 from start, 400 steps x 6 of 128 px, counted above" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--only", "rank"], "known ones: twice, loop"),
        (["--steps", "1"], "at least 2"),
        (["--base", "x"], "not there"),
        (["--prior", "x"], "not there"),
        (["--only", "prior"], "a model of stage 0, and none was given"),
    ],
)
def test_wrong_wishes_are_one_sentence(script, tmp_path, capsys, changes, message):
    assert script.main([str(tmp_path), "--dry-run", *changes]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1

"""The training loop: what changes, what is written, what is refused, and what survives a kill."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from tudsr.checkpoint import load_tensors
from tudsr.errors import ConfigError, DataError, ModelError, StoppedError, TudsrError
from tudsr.find import verify_model
from tudsr.folder import load_model
from tudsr.train import loop
from tudsr.train.config import TrainConfig
from tudsr.train.ema import Ema
from tudsr.train.loop import Trainer, train
from tudsr.train.photos import RunPhotos, select_photos
from tudsr.train.state import identity, load_state, save_state
from tudsr.train.validate import Validation

STAGE_2 = {"stage": 2, "crop_px": 64, "n": 2, "overlap_px": 16, "scales": {"fixed": {"8": 0.5, "4": 0.5}}}


def lines(config: TrainConfig) -> list[dict]:
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def changed(trainer: Trainer, before: dict[str, torch.Tensor]) -> set[str]:
    """Return which groups of weights are not what they were: stage_1, stage_2 or base."""
    now = trainer.model.backbone.state_dict()
    names = {name for name, value in now.items() if not torch.equal(value, before[name])}
    return {next((s for s in ("stage_1", "stage_2") if f".{s}." in name), "base") for name in names}


def on(folder: Path, changes: dict) -> dict:
    """Add the model with fresh adapters where the base is to learn."""
    return changes | ({"model": folder} if changes.get("train") == "base" else {})


@pytest.mark.parametrize(
    ("changes", "learns"),
    [
        ({"stage": 0, "train": "base", "crop_px": 32}, {"base"}),
        ({}, {"stage_1"}),
        ({"train": "base"}, {"base"}),
        ({"loop": "exact", "lora_forward": "switched", "accumulate": 2, "batch": 2}, {"stage_1"}),
        (STAGE_2 | {"loss_gan": 0.0}, {"stage_2"}),
        (STAGE_2 | {"loss_gan": 0.0, "loop": "exact", "loss_crop_px": 32, "init_adapter": "from_stage_1"}, {"stage_2"}),
        (STAGE_2 | {"crop_px": 128, "loop": "exact", "loss_crop_px": 64, "loss_crops": 2}, {"stage_2"}),
    ],
)
def test_each_stage_trains_its_own_weights(make_config, fresh_folder, changes, learns):
    config = make_config(**on(fresh_folder, changes))
    trainer = Trainer(config, resume=False)
    before = {name: value.clone() for name, value in trainer.model.backbone.state_dict().items()}
    if changes.get("init_adapter"):
        before = load_model(config.model, torch.device("cpu"), torch.float32).backbone.state_dict()
    net_d = trainer.task.net_d
    first_d = None if net_d is None else [p.detach().clone() for p in net_d.trainable_parameters()]
    figures = trainer.run(lambda *_: None)
    assert changed(trainer, before) == learns
    assert all(value == value for value in figures.values())  # no NaN
    if net_d is not None:
        assert all(not torch.equal(a, b) for a, b in zip(first_d, net_d.trainable_parameters(), strict=True))
    assert [line["step"] for line in lines(config)] == [1, 2, 3]
    assert verify_model(config.out / "model") == []


def test_the_exported_model_is_the_average_and_carries_its_record(make_config):
    config = make_config()
    trainer = Trainer(config, resume=False)
    trainer.run(lambda *_: None)
    loaded = load_model(config.out / "model", torch.device("cpu"), torch.float32)
    (record,) = loaded.config.training
    assert (record["stage"], record["step"], record["photos"]) == (1, 3, 6)
    assert len(record["photos_sha256"]) == 64
    assert record["config"]["lr"] == 1e-3
    assert not {"model", "data", "out"} & record["config"].keys()
    with trainer.ema.applied():
        wanted = {k: v.clone() for k, v in trainer.model.backbone.state_dict().items()}
    for name, value in loaded.backbone.state_dict().items():
        assert torch.equal(value, wanted[name].bfloat16().float()), name
    assert json.loads((config.out / "config.json").read_text())["steps"] == 3
    assert "torch" in json.loads((config.out / "environment.json").read_text())


def test_the_best_model_stays_loadable_and_its_discriminator_starts_a_next_run(make_config, tmp_path, monkeypatch):
    class Improving:
        def __init__(self, *_) -> None:
            self.score = 1.0

        def run(self, _):
            self.score -= 0.1
            return {"val_score": self.score}, torch.zeros(3, 8, 8)

    monkeypatch.setattr(loop, "Validation", Improving)  # the true one needs pretrained weights
    config = make_config(val_count=1, val_every=1)
    train(config)
    assert verify_model(config.out / "best") == verify_model(config.out / "model") == []
    (record,) = load_model(config.out / "best", torch.device("cpu"), torch.float32).config.training
    assert record["figures"] == {"val_score": 0.7}
    assert (config.out / "samples" / "step_000003.png").is_file()
    saved = config.out / "best_discriminator.safetensors"
    other = Trainer(make_config(out=tmp_path / "next", init_discriminator=saved), resume=False)
    state = load_state(config.out / "state.pt")["discriminator"]
    assert all(torch.equal(value, state[name]) for name, value in other.task.net_d.trainable_state_dict().items())


def test_the_priors_validation_needs_no_pretrained_weights(make_config):
    config = make_config(stage=0, train="base", crop_px=32, val_count=2, val_every=2, val_crop_px=70)
    figures = train(config)
    assert figures["val_prior"] == figures["val_score"] > 0
    assert [line["step"] for line in lines(config) if "val_score" in line] == [2, 3]
    assert (config.out / "best" / "tudsr.json").is_file()


def test_learning_rate_warms_up_and_falls_to_its_end(make_config):
    trainer = Trainer(make_config(warmup=4, steps=24, lr_end=0.1), resume=False)
    factors = []
    for trainer.step in range(24):
        factors.append(trainer._schedule())
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[14] == pytest.approx(1 - 0.9 * 10 / 20)
    assert factors[23] == pytest.approx(0.1 + 0.9 / 20)
    trainer.config = make_config(warmup=0, steps=24)
    assert trainer._schedule() == 1.0


def test_each_net_steps_by_its_own_rate_on_the_schedule_and_the_log_says_so(make_config):
    config = make_config(lr=8e-4, lr_d=2e-4, warmup=2, steps=6, lr_end=0.2)
    trainer = Trainer(config, resume=False)
    used: dict[str, list[float]] = {"g": [], "d": []}
    for name, optimizer in trainer.optimizers.items():
        optimizer.register_step_pre_hook(
            lambda optimizer, *_, name=name: used[name].extend(group["lr"] for group in optimizer.param_groups)
        )
    trainer.run(lambda *_: None)
    factors = [0.5, 1.0, 1.0, 0.8, 0.6, 0.4]
    for name, rate in (("g", 8e-4), ("d", 2e-4)):
        assert used[name] == pytest.approx([rate * factor for factor in factors])
        assert [line[f"lr_{name}"] for line in lines(config)] == used[name]


def test_ema_by_hand():
    p = nn.Parameter(torch.tensor([1.0]))
    ema = Ema([p], decay=0.25)
    wanted = 1.0
    for step, value in enumerate((2.0, 3.0, 5.0, 7.0), start=1):
        p.data.fill_(value)
        ema.update()
        decay = min(0.25, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * value
    assert decay == 0.25  # the cap, reached at the third step
    assert ema.average[0].item() == pytest.approx(wanted)
    with ema.applied():
        assert p.item() == pytest.approx(wanted)
    assert p.item() == 7.0
    other = Ema([nn.Parameter(torch.zeros(1))], decay=0.25)
    other.load_state_dict(ema.state_dict())
    assert (other.step, other.average[0].item()) == (4, ema.average[0].item())


def test_a_broken_photo_met_on_the_way_is_skipped_and_counted(make_config, photos, tmp_path):
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    whole = tmp_path / "whole.jpg"
    with Image.open(data / "photo_0.png") as photo:
        photo.save(whole)
    (data / "broken.jpg").write_bytes(whole.read_bytes()[:-900])  # its header is good
    (data / "junk.png").write_bytes(b"no photo")
    config = make_config(data=data, steps=14, stage=0, train="base", crop_px=32)
    with pytest.warns(UserWarning, match=r"broken\.jpg.*skipped"):
        figures = train(config)
    assert figures["photos_skipped"] == 2  # two epochs of seven
    left_out = json.loads((config.out / "photos.json").read_text())
    assert left_out == {"training": 7, "validation": [], "unreadable": ["junk.png"], "too_small": []}
    assert not any("photos_left_out" in line for line in lines(config))


@pytest.mark.filterwarnings("ignore:.*skipped")
@pytest.mark.parametrize("workers", [0, 1])
def test_photos_of_which_none_decodes_are_one_sentence(make_config, photos, tmp_path, workers):
    (tmp_path / "data").mkdir()
    for path in sorted(photos.iterdir())[:2]:
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes()[:60])  # the header is good
    with pytest.raises(DataError) as error:
        train(make_config(data=tmp_path / "data", workers=workers))
    assert str(error.value) == "none of 2 photos can be decoded."


def test_a_damaged_state_is_one_sentence(make_config):
    config = make_config(steps=2)
    train(config)
    (config.out / "state.pt").write_bytes((config.out / "state.pt").read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"state\.pt: not the state of a run, or damaged"):
        train(config, resume=True)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"data": "nowhere"}, DataError, "a folder of photos is expected"),
        ({"crop_px": 160}, DataError, r"none of 6 photos can be used.*below 160 px"),
        ({"val_count": 6}, DataError, r"6 usable photos, but val_count=6"),
        ({"model": "nowhere"}, ModelError, "'nowhere' is not there"),
        ({"losses": {"psnr": 1.0}}, ConfigError, "not a known loss"),
        ({"discriminator": "vgg"}, ConfigError, "Unknown discriminator"),
        ({"train": "base"}, ConfigError, "adapters stage_1 and stage_2 were trained on the base"),
        ({"val_count": 1, "val_crop_px": 63}, ConfigError, "val_crop_px is 63; at least 64 px"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(make_config, changes, error, words):
    config = make_config(**changes)
    with pytest.raises(error, match=words):
        train(config)
    assert not config.out.exists()


def test_a_finished_run_is_not_overwritten_and_settings_must_agree(make_config, fresh_folder):
    config = make_config(steps=1)
    train(config)
    with pytest.raises(ConfigError, match="holds a run already; add --resume"):
        train(config)
    for changes, words in (
        ({"seed": 5}, "seed is 5, but the run to resume was made with 0"),
        ({"losses": {"mae": 2.0}}, "losses is {'mae': 2.0}, but the run to resume was made with {'mae': 1.0}"),
        ({"lr": 1.0}, "lr is 1.0"),
        ({"base_dtype": "bf16"}, "base_dtype is 'bf16', but the run to resume was made with 'fp32'"),
        ({"val_scale": 8.0}, "val_scale is 8.0, but the run to resume was made with 4.0; what may change is steps, "),
        ({"val_crop_px": 100}, "val_crop_px is 100"),
        ({"model": fresh_folder}, "model: its weights are not those"),
    ):
        with pytest.raises(ConfigError, match=words):
            train(make_config(**{"steps": 2} | changes), resume=True)
    state = load_state(config.out / "state.pt")
    state["identity"]["processes"] = 2
    save_state(config.out / "state.pt", state)
    with pytest.raises(ConfigError, match="the number of processes is 1, but .* with 2"):
        train(make_config(steps=2), resume=True)


def test_other_photos_are_another_run(make_config, photos, tmp_path):
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    config = make_config(data=data, steps=1)
    train(config)
    shutil.copy(data / "photo_0.png", data / "photo_6.png")
    with pytest.raises(ConfigError, match="data: its photos are not those that the run to resume was made with"):
        train(make_config(data=data, steps=2), resume=True)
    state = load_state(config.out / "state.pt")
    del state["identity"]["photos"]  # as earlier versions saved it
    save_state(config.out / "state.pt", state)
    train(make_config(data=data, steps=2), resume=True)
    assert load_state(config.out / "state.pt")["identity"]["photos"]


def test_photos_that_pairs_stand_in_for_are_not_of_the_run(make_config, photos, tmp_path):
    for name in ("gt", "lq"):
        shutil.copytree(photos, tmp_path / "pairs" / name)
    paths = sorted(photos.iterdir())
    few, all_ = (RunPhotos(training=paths[2:n], validation=paths[:2], report=None) for n in (4, 6))
    same = {
        pairs: identity(config, few, {}, 1) == identity(config, all_, {}, 1)
        for pairs, config in ((True, make_config(pairs=tmp_path / "pairs")), (False, make_config()))
    }
    assert same == {True: True, False: False}


def test_other_steps_are_told_where_the_learning_rate_depends_on_them(make_config, tmp_path):
    for lr_end, notes in ((1.0, []), (0.1, ["steps is 2, and was 1: the learning rate now falls to lr_end=0.1 by "])):
        changes = {"lr_end": lr_end, "out": tmp_path / str(lr_end)}
        train(make_config(steps=1, **changes))
        told: list[str] = []
        train(make_config(steps=1, **changes), resume=True, notes=told.append)
        assert len(told) == 1  # on the photos
        train(make_config(steps=2, **changes), resume=True, notes=told.append)
        assert [line[: len(note)] for line, note in zip(told[2:], notes, strict=True)] == notes


def test_photos_are_left_out_by_their_names_below_the_folder(make_config, photos, tmp_path):
    data = Path(shutil.copytree(photos, tmp_path / "budgie"))
    assert len(select_photos(make_config(data=data, exclude=["budgie"])).training) == 6
    assert len(select_photos(make_config(data=data, exclude=["photo_1", "photo_2"])).training) == 4


def test_a_process_keeps_its_precision(make_config, tmp_path):
    train(make_config(steps=1))
    with pytest.raises(ConfigError, match="precision is 'bf16', but this process has trained with 'no' before"):
        train(make_config(precision="bf16", out=tmp_path / "other"))


def test_resuming_a_finished_run_leaves_its_model_alone_until_there_is_more_to_do(make_config):
    changes = {"stage": 0, "train": "base", "crop_px": 32, "val_count": 1, "val_crop_px": 70}
    config = make_config(steps=1, **changes)
    figures = train(config)
    record = config.out / "model" / "tudsr.json"
    first = record.read_bytes()
    assert train(config, resume=True)["val_score"] == figures["val_score"]
    assert record.read_bytes() == first
    record.unlink()  # killed between the last checkpoint and the export
    train(config, resume=True)
    (entry,) = json.loads(record.read_text())["training"]
    assert entry["figures"]["val_score"] == pytest.approx(figures["val_score"], abs=1e-6)
    assert entry["notes"][0].startswith("adapter stage_1 reset")
    more = make_config(steps=2, log_every=5, workers=0, **changes)
    train(more, resume=True)
    assert json.loads(record.read_text())["training"][-1]["step"] == 2
    assert verify_model(config.out / "model") == []


def test_the_device_degrades_as_the_workers_do(make_config, tmp_path):
    pictures = []
    for place in ("workers", "device"):
        trainer = Trainer(make_config(degrade_on=place, batch=2, out=tmp_path / place), resume=False)
        batch = next(trainer.batches.from_step(1))
        assert ("lq" in batch) is (place == "workers")
        pictures.append(trainer.batches.on_device(batch)["lq"])
    # A last bit of float32 that turns a tie moves some levels.
    assert (pictures[0] - pictures[1]).abs().mean() < 1 / 127.5


def test_a_signal_to_the_runs_group_does_not_reach_its_workers(make_config):
    others = set(multiprocessing.active_children())
    batches = Trainer(make_config(workers=1, steps=4), resume=False).batches.from_step(0)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    assert os.getpgid(worker.pid) == worker.pid != os.getpgrp()
    os.kill(worker.pid, signal.SIGINT)  # what a terminal's Ctrl-C sends
    assert sum(1 for _ in batches) == 3


def test_a_ruined_model_is_not_exported_as_if_nothing_were(make_config, monkeypatch):
    monkeypatch.setattr(Validation, "_prior_figures", lambda *_: {"prior": float("nan"), "score": float("nan")})
    config = make_config(stage=0, train="base", crop_px=32, val_count=2, val_every=2, val_crop_px=70)
    with pytest.raises(TudsrError, match="validation score is not finite"):
        train(config)
    assert not (config.out / "model").exists()
    assert not any("val_score" in line for line in lines(config))


def test_figures_are_floats_renewed_every_log_every_steps(make_config):
    seen = []
    train(make_config(steps=3, log_every=2), progress=lambda step, _, figures: seen.append(dict(figures)))
    assert seen[0] == {}
    assert all(type(value) is float for figures in seen for value in figures.values())
    assert {"loss_g", "loss_d", "grad_g"} <= seen[1].keys()
    assert seen[1]["loss_g"] == pytest.approx(seen[1]["loss_g_mae"] + 0.5 * seen[1]["loss_g_gan"])
    assert seen[2] != seen[1]  # the last step too


@pytest.mark.parametrize("way", ["paper", "exact"])
def test_processes_average_once_a_step_and_net_after_the_last_chunk(make_config, way):
    trainer = Trainer(make_config(**STAGE_2 | {"crop_px": 128, "loop": way, "accumulate": 2}), resume=False)
    events: list[str | int] = []

    def reduce(flat: torch.Tensor, reduction: str) -> torch.Tensor:
        events.append(flat.numel())
        assert reduction == "mean"
        return torch.full_like(flat, 2.0 ** len(events))  # as if the other processes had found much

    def chunk(*_) -> None:
        if torch.is_grad_enabled():  # the exact loop's first pass has no gradients
            events.append("chunk")

    trainer.task.stage.register_forward_hook(chunk)
    trainer.accelerator = SimpleNamespace(num_processes=2, device=torch.device("cpu"), reduce=reduce)
    batches = trainer.batches.from_step(0)
    sizes = [sum(p.numel() for p in net) for net in trainer.task.nets.values()]
    for _ in range(2):
        events.clear()
        parts = trainer._one_step(batches)
        assert events == ["chunk"] * 8 + sizes  # two micro-batches of 2 x 2 chunks
        for name, size, at in zip(("g", "d"), sizes, (9, 10), strict=True):
            assert parts[f"grad_{name}"].item() == pytest.approx(2.0**at * size**0.5)


def test_clipping_scales_each_nets_gradients_to_the_norm_and_leaves_small_ones_alone(make_config, tmp_path):
    used, norms = {}, {}
    for clip in (1e-3, 1e6):
        trainer = Trainer(make_config(steps=1, clip=clip, out=tmp_path / str(clip)), resume=False)
        for name, optimizer in trainer.optimizers.items():
            optimizer.register_step_pre_hook(
                lambda *_, key=(clip, name), net=trainer.task.nets[name]: used.update(
                    {key: torch.cat([p.grad.flatten() for p in net])}
                )
            )
        figures = trainer.run(lambda *_: None)
        norms[clip] = {name: figures[f"grad_{name}"] for name in ("g", "d")}
    assert norms[1e-3] == norms[1e6]  # what is logged is the norm before
    for name, norm in norms[1e6].items():
        assert norm > 2e-3
        assert used[1e6, name].norm().item() == pytest.approx(norm, rel=1e-5)
        assert used[1e-3, name].norm().item() <= 1e-3 * (1 + 1e-5)
        torch.testing.assert_close(used[1e-3, name], used[1e6, name] * 1e-3 / norm, rtol=1e-3, atol=0)


def test_gradients_that_are_not_finite_stop_the_run_before_they_are_used(make_config):
    config = make_config(steps=5, checkpoint_every=2, log_every=5)
    trainer = Trainer(config, resume=False)
    accumulate = trainer.task.accumulate

    def poisoned(*arguments):
        parts = accumulate(*arguments)
        if trainer.step == 2:
            trainer.task.nets["g"][0].grad[0] = float("nan")
        return parts

    trainer.task.accumulate = poisoned
    with pytest.raises(TudsrError, match="step 3: the gradients are not finite.*last checkpoint, of step 2, is intact"):
        trainer.run(lambda *_: None)
    assert all(p.isfinite().all() for p in trainer.task.nets["g"])
    assert load_state(config.out / "state.pt")["step"] == 2
    assert not (config.out / "model").exists()


def test_the_left_out_are_told_and_listed_once(make_config, photos, tmp_path):
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    Image.new("RGB", (40, 80)).save(data / "small.png")
    told: list[str] = []
    train(make_config(data=data, steps=1), notes=told.append)
    assert told == ["6 photos usable, 0 unreadable, 1 too small"]
    (data / "small.png").unlink()
    train(make_config(data=data, steps=2), resume=True)
    assert json.loads((tmp_path / "run" / "photos.json").read_text())["too_small"] == ["small.png"]


class HaltError(Exception):
    """Raised in the middle of a run."""


def halt_at(step: int):
    def progress(now: int, *_) -> None:
        if now == step:
            raise HaltError

    return progress


def assert_same_end(a: Path, b: Path) -> None:
    """Compare everything but times, bit for bit."""
    first, second = (load_state(folder / "state.pt") for folder in (a, b))
    for state in (first, second):
        del state["seconds"]
    assert first.pop("identity") == second.pop("identity")
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for path in sorted(a.rglob("*.safetensors")):
        ours, theirs = load_tensors(path), load_tensors(b / path.relative_to(a))
        torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0)
        assert ours[1] == theirs[1]


def assert_no_duplicates(config: TrainConfig) -> None:
    logged, validated = (
        [line["step"] for line in lines(config) if ("val_score" in line) is which] for which in (False, True)
    )
    assert logged == list(range(1, config.steps + 1))
    assert validated == (list(range(config.val_every, config.steps + 1, config.val_every)) if config.val_count else [])


def board(config: TrainConfig) -> dict[str, list[tuple[int, float]]]:
    """Return all scalars of a run's TensorBoard, (step, value), as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(config.out / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_the_figures_and_no_step_twice(make_config):
    pytest.importorskip("tensorboard")
    changes = {"steps": 5, "checkpoint_every": 2}
    with pytest.raises(HaltError):
        train(make_config(**changes), progress=halt_at(3))
    assert [step for step, _ in board(make_config(**changes))["loss_g"]] == [1, 2, 3]
    config = make_config(**changes)
    train(config, resume=True)
    found, logged = board(config), lines(config)
    assert found.keys() == logged[0].keys() - {"step", "time"}
    for tag, values in found.items():
        assert [step for step, _ in values] == [1, 2, 3, 4, 5], tag
        assert [value for _, value in values] == pytest.approx([line[tag] for line in logged], rel=1e-6, abs=1e-6), tag


@pytest.mark.parametrize("changes", [{"batch": 2}, {"loop": "exact", "accumulate": 2}])
def test_a_run_that_fails_and_resumes_ends_the_same(make_config, tmp_path, one_thread, changes):
    changes = changes | {"steps": 7, "checkpoint_every": 2}
    whole = make_config(out=tmp_path / "whole", **changes)
    train(whole)
    for step in (3, 6):
        with pytest.raises(HaltError):
            train(make_config(**changes), resume=True, progress=halt_at(step))
    config = make_config(**changes)
    with (config.out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # half a line, cut off by a kill
    train(config, resume=True)
    assert_same_end(whole.out, config.out)
    assert_no_duplicates(config)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_is_stopped_leaves_a_model_and_resumes_to_the_same_end(make_config, tmp_path, one_thread, workers):
    changes = {"steps": 6, "checkpoint_every": 4, "workers": workers}
    whole = make_config(out=tmp_path / "whole", **changes)
    train(whole)
    config = make_config(**changes)
    told = []
    with pytest.raises(StoppedError, match=rf"Stopped after step 3 of 6; {config.out / 'model'} is its"):
        train(config, progress=lambda step, *_: told.append(step), stop=lambda: told[-1] == 3)
    assert told == [1, 2, 3]
    assert load_state(config.out / "state.pt")["step"] == 3
    assert load_model(config.out / "model", torch.device("cpu"), torch.float32).config.training[-1]["step"] == 3
    train(config, resume=True)
    assert_same_end(whole.out, config.out)
    assert_no_duplicates(config)


def test_a_run_is_not_stopped_with_weights_that_are_not_finite(make_config):
    trainer = Trainer(make_config(steps=6, checkpoint_every=2), resume=False)

    def stop() -> bool:  # as if a GPU had not been asked yet
        if trainer.step == 3:
            trainer.finite = torch.zeros((), dtype=torch.bool)
        return trainer.step == 3

    with pytest.raises(TudsrError, match="not finite any more.*of step 2, is intact"):
        trainer.run(lambda *_: None, stop)
    assert load_state(trainer.config.out / "state.pt")["step"] == 2
    assert not (trainer.config.out / "model").exists()


SCRIPT = """
import sys, torch
from pathlib import Path
from tudsr.perceptual.dists import Dists
from tudsr.perceptual.lpips import Lpips
from tudsr.train.config import TrainConfig
from tudsr.train.loop import train
torch.set_num_threads(1)
Dists.load = Lpips.load = lambda self, weights_dir=None: self  # as `random_nets` does
train(TrainConfig.read(Path(sys.argv[1])), resume=True)
"""


def kill_at_random(settings: Path, sign: Path, rng: random.Random) -> None:
    """Start the run in a process of its own and SIGKILL it somewhere after it has written a file (again)."""
    before = sign.stat().st_mtime_ns if sign.exists() else 0
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(settings)])
    while process.poll() is None and (not sign.exists() or sign.stat().st_mtime_ns == before):
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed: give it more steps"


VALIDATED = STAGE_2 | {"crop_px": 128, "loop": "exact", "loss_crop_px": 64, "loss_crops": 1, "val_scale": 8.0}
VALIDATED |= {"val_count": 1, "val_crop_px": 64, "val_every": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 40, "batch": 2, "workers": 0},
        {"steps": 40, "batch": 2, "workers": 1},
        VALIDATED | {"steps": 20},
    ],
)
def test_a_run_killed_at_any_moment_and_resumed_ends_the_same(make_config, random_nets, tmp_path, one_thread, changes):
    changes = changes | {"checkpoint_every": 2}
    whole = make_config(out=tmp_path / "whole", **changes)
    train(whole)
    assert (whole.out / "best").exists() is (whole.val_count > 0)
    config = make_config(**changes)
    settings = tmp_path / "settings.json"
    settings.write_text(config.to_json())
    rng = random.Random(config.workers)
    for _ in range(2):
        kill_at_random(settings, config.out / "state.pt", rng)
    assert 0 < load_state(config.out / "state.pt")["step"] < config.steps
    train(config, resume=True)
    assert_same_end(whole.out, config.out)
    assert_no_duplicates(config)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_begins_anew(make_config, random_nets, tmp_path, one_thread):
    changes = VALIDATED | {"steps": 20, "checkpoint_every": 20}
    whole = make_config(out=tmp_path / "whole", **changes)
    train(whole)
    config = make_config(**changes)
    settings = tmp_path / "settings.json"
    settings.write_text(config.to_json())
    rng = random.Random(0)
    for sign in ("config.json", "samples/step_000002.png"):  # as it begins, and once it has a best model
        kill_at_random(settings, config.out / sign, rng)
        assert not (config.out / "state.pt").exists()
    train(config)
    assert_same_end(whole.out, config.out)
    assert_no_duplicates(config)

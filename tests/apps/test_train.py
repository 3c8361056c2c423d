import os
import signal
from pathlib import Path

import pytest
import torch

from tudsr import models
from tudsr.apps import train as app
from tudsr.errors import StoppedError
from tudsr.train.estimate_t import Estimate


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "model"
    models.init_random("tiny", folder)
    return folder


@pytest.fixture
def calls(monkeypatch):
    """Replace the loop and the estimator by recorders."""
    seen = []

    def train(config, *, resume, progress, notes, stop):
        notes("6 photos usable, 0 unreadable, 2 too small")
        for step in (1, 2):
            progress(step, 2, {"loss_g": 0.5, "other": 1.0})
        seen.append((config, resume))
        return {}

    def estimate(*arguments, progress, **options):
        progress(0, 4)
        seen.append((arguments, options))
        plotted = options["degradation"] == "heavy"
        return Estimate(t=123, snr_db=10.0, spread_db=1.0, curve_db=torch.zeros(3), count=4), plotted

    monkeypatch.setattr(app, "train", train)
    monkeypatch.setattr(app, "estimate", estimate)
    return seen


def test_settings_come_from_preset_file_and_overrides_in_that_order(model, calls, call, tmp_path):
    file = tmp_path / "c.json"
    file.write_text('{"steps": 7, "lr": 0.5, "batch": 3}')
    out = tmp_path / "run"
    places = ["--model", model, "--data", tmp_path / "photos", "--out", out]
    options = ["--stage", 2, *places, "--config", file, "--resume"]
    code, said, err = call("train", *options, "--set", "lr=0.25", "batch=5", "--set", "losses.mae=2")
    assert code == 0
    ((config, resume),) = calls
    assert (config.stage, config.model, config.out, resume) == (2, model, out, True)
    assert (config.steps, config.lr, config.batch, config.losses["mae"]) == (7, 0.25, 5, 2)
    assert config.n == 2  # from the preset
    assert said == f"{out / 'model'}\n"
    assert "6 photos usable, 0 unreadable, 2 too small" in err


@pytest.mark.parametrize(
    "wish", ["nonsense=1", "steps", "steps=-1", "stage=3x", "model=sd21", "data=x", "out=x", "stage=2"]
)
def test_a_wrong_setting_stops_before_any_work(wish, model, calls, call, tmp_path):
    options = ["--stage", 1, "--model", model, "--data", tmp_path / "photos", "--out", tmp_path / "run", "--set", wish]
    if wish == "stage=3x":
        options[1] = "3"
    assert call("train", *options)[0] == 2
    assert calls == []


def test_estimate_t_passes_its_settings_on(model, calls, call, tmp_path):
    wishes = ["--set", "scale=8", "count=5", "degradation=heavy"]
    code, out, _ = call("train", "--estimate-t", "--model", model, "--data", tmp_path, "--out", tmp_path / "t", *wishes)
    assert code == 0
    ((arguments, options),) = calls
    assert arguments == (str(model), Path(tmp_path), tmp_path / "t")
    assert options == {"scale": 8.0, "count": 5, "degradation": "heavy"}
    said = out.splitlines()
    assert said[0] == "t = 123: the LQ latents' SNR is 10.00 ± 1.00 dB over 4 pictures"
    assert said[1] == (
        "Before stage 1 learns, set t1 in the model's tudsr.json to it; `tudsr upscale --t1 123` tries it."
    )
    assert said[2:] == [str(tmp_path / "t" / f"estimate_t.{suffix}") for suffix in ("json", "png")]


@pytest.mark.parametrize("wish", [["--stage", 2], ["--stage", 0], ["--resume"]])
def test_estimate_t_takes_nothing_that_it_would_not_heed(wish, model, calls, call, tmp_path):
    code, _, err = call("train", "--estimate-t", "--model", model, "--data", tmp_path, "--out", tmp_path / "t", *wish)
    assert code == 2
    assert "--estimate-t is for stage 1" in err
    assert calls == []


def test_a_plot_that_was_not_drawn_is_said_and_an_old_one_is_not_shown(model, calls, call, tmp_path):
    (tmp_path / "estimate_t.png").touch()
    options = ["--estimate-t", "--model", model, "--data", tmp_path, "--out", tmp_path, "--set", "degradation=light"]
    code, out, _ = call("train", *options)
    assert code == 0
    assert out.splitlines()[2:] == [
        str(tmp_path / "estimate_t.json"),
        "No estimate_t.png was drawn: matplotlib is missing, which the extra [train] brings.",
    ]


@pytest.fixture(autouse=True)
def heard():
    """Let Ctrl-C be heard: a shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (None, 0)])
def test_a_signal_ends_the_run_after_its_step(model, monkeypatch, call, tmp_path, number, expected):
    def train(config, *, resume, progress, notes, stop):
        for step in range(1, config.steps + 1):
            if number and step == 2:
                os.kill(os.getpid(), number)
            progress(step, config.steps, {})
            if stop():
                raise StoppedError(f"Stopped after step {step}")
        return {}

    monkeypatch.setattr(app, "train", train)
    places = ["--data", tmp_path / "photos", "--out", tmp_path / "run"]
    options = ["--stage", 1, "--model", model, *places, "--set", "steps=5"]
    code, _, err = call("train", *options)
    assert (code, "Stopped after step 2\n" in err) == (expected, number is not None)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_later_signal_does_not_wait_for_the_step(model, monkeypatch, call, tmp_path):
    heard = []

    def train(config, *, resume, progress, notes, stop):
        for _ in range(3):  # the second one comes so soon that it may be the first one once more
            heard.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            if len(heard) == 2:
                monkeypatch.setattr(app, "_TWICE_S", 0.0)
        raise AssertionError("the last one was not heard")

    monkeypatch.setattr(app, "train", train)
    options = ["--stage", 1, "--model", model, "--data", tmp_path / "photos", "--out", tmp_path / "run"]
    assert call("train", *options)[0] == 130
    assert len(heard) == 3


def test_what_was_ignored_still_is(model, monkeypatch, call, tmp_path):
    def train(config, *, resume, progress, notes, stop):
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop()
        return {}

    monkeypatch.setattr(app, "train", train)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    options = ["--stage", 1, "--model", model, "--data", tmp_path / "photos", "--out", tmp_path / "run"]
    try:
        assert call("train", *options)[0] == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

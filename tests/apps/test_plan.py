"""`tudsr plan` from the command line."""

import json
import subprocess
import sys
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from tudsr import machine, memory
from tudsr.apps import plan as module
from tudsr.errors import InputError
from tudsr.folder import save_model
from tudsr.pipeline import load
from tudsr.request import Request

HAS_TINY = (Path(str(resources.files("tudsr"))) / "weights/tiny/tudsr.json").is_file()


@pytest.fixture
def call(call, model_folder):
    """Return a function that runs `tudsr plan` here on the small model: (exit code, stdout, stderr)."""
    return partial(call, "plan", "--model", model_folder, "--device", "cpu", "--dtype", "fp32")


def test_json_says_all(call, model_folder):
    code, out, err = call(40, 30, "--scale", 4, "--rate", 0.5, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["model"], found["device"], found["dtype"]) == (str(model_folder), "cpu", "float32")
    assert (found["in_size"], found["out_size"], found["m"], found["n"]) == ([40, 30], [160, 120], 2, 2)
    assert [(one["stage"], one["ratio"], one["out_size"]) for one in found["passes"]] == [
        (1, 2, [80, 60]), (2, 2, [160, 120]),
    ]  # fmt: skip
    for one in found["passes"]:
        across, down = one["overlap_px"]
        (width, height), (window_w, window_h) = one["out_size"], one["window_px"]
        assert min(across, down) >= 16 or one["columns"] == 1 or one["rows"] == 1
        assert one["columns"] * window_w - (one["columns"] - 1) * across >= width
        assert one["rows"] * window_h - (one["rows"] - 1) * down >= height
        work = one["columns"] * one["rows"] * window_w * window_h
        assert one["useful_tflop"] / one["tflop"] == pytest.approx(width * height / work)
    assert found["tflop"] == pytest.approx(sum(one["tflop"] for one in found["passes"]))
    assert found["useful_tflop"] == pytest.approx(sum(one["useful_tflop"] for one in found["passes"]))
    assert (found["rate"], found["seconds"]) == (0.5, pytest.approx(found["tflop"] / 0.5))
    assert set(found["memory_mb"]) == {"base", "merged weights", "pictures", "rows", "windows", "slack"}
    assert found["peak_mb"] == pytest.approx(sum(found["memory_mb"].values()), abs=0.5)
    assert found["memory_mb"]["pictures"] == pytest.approx((1200 * 12 + 19200 * (12 + 4 + 3 + 4)) / 1e6, abs=0.06)
    assert (found["on_disk"], found["disk_mb"], found["most_px"]) == (False, 0, None)


def test_a_budget_changes_the_plan(call):
    found = json.loads(call(3000, 2000, "--scale", 4, "--rate", 0.5, "--json")[1])
    less = int(found["peak_mb"] - 100)
    code, out, _ = call(3000, 2000, "--scale", 4, "--rate", 0.5, "--memory", f"{less}MB", "--json")
    spooled = json.loads(out)
    assert (code, spooled["on_disk"], spooled["most_px"]) == (0, True, None)
    assert spooled["canvases"] == "disk"
    assert spooled["disk_mb"] == pytest.approx((2 * 6 * 16 * 3 + 6 * 3 + 6 * 4 * 12), rel=0.01)
    assert spooled["peak_mb"] <= less
    lines = call(3000, 2000, "--scale", 4, "--rate", 0.5, "--memory", f"{less}MB")[1]
    assert "the pictures do not fit into the memory" in lines
    code, _, err = call(3000, 2000, "--scale", 4, "--memory", "10MB")
    assert code == 2
    assert "MB is the least" in err


def test_people_get_lines(call):
    code, out, _ = call(40, 30, "--scale", 4, "--rate", 0.5)
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["pass", "pass", "work", "memory", "seconds"]
    assert "40x30 → 160x120 (M 2, N 2), float32 on cpu" in lines[0]
    assert "stage 2, x2 to 160x120: " in lines[2]
    planned = json.loads(call(40, 30, "--scale", 4, "--rate", 0.5, "--json")[1])
    beside_gpu = "pictures in the machine's memory: the GPU's has no room for them"
    assert beside_gpu in module.plan_lines(planned | {"device": "cuda"})
    assert beside_gpu not in module.plan_lines(planned)


def test_seconds_follow_from_a_measured_share(call, monkeypatch):
    monkeypatch.setattr(module, "matmul_rate", lambda device, dtype: {"tflops": 2.0})
    monkeypatch.setattr(module, "SHARES", {("tiny", "cpu"): 0.25})
    found = json.loads(call(40, 30, "--json")[1])
    assert found["out_size"] == [320, 240]
    assert (found["rate"], found["seconds"]) == (0.5, pytest.approx(found["tflop"] / 0.5))


def test_seconds_are_not_made_up(call, monkeypatch):
    monkeypatch.setattr(module, "SHARES", {})
    found = json.loads(call(40, 30, "--json")[1])
    assert found["rate"] is found["seconds"] is None
    assert "not known here" in call(40, 30)[1]


@pytest.mark.parametrize(
    "mistake",
    [
        (40, 30, "--scale", 0.5), (40, 30, "--scale", 1e9), (0, 30), ("a", 30), (40,), (40, 30, "--rate", 0),
        (40, 30, "--rate", "nan"), (40, 30, "--dtype", "int8"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(call, mistake):
    code, out, err = call(*mistake)
    assert (code, out) == (2, "")
    assert "Error: " in err
    assert "Traceback" not in err


def test_a_rate_is_named(model_folder):
    with pytest.raises(InputError, match="--rate -1: a number above 0"):
        module.make_plan(40, 30, None, model=str(model_folder), rate=-1.0)


@pytest.mark.parametrize("shortages", [None, 0, 1, 2, 3])
def test_it_says_what_an_enlargement_does(call, model_folder, monkeypatch, shortages):
    """With what is free, with enough, and with a byte too little for what was chosen before, again and again."""
    model = load(model_folder, "cpu", "fp32")
    request = model.settled(Request(scale=4))
    size, held = (500, 700), module.weights_bytes(model.shapes, merged=False) + module.LOADING_BYTES
    monkeypatch.setattr(module, "peak_rss_mb", lambda: 500.0)
    monkeypatch.setattr(machine, "held_bytes", lambda _: 500 * 10**6 + held)
    found, memory = model.fit(size, model.plan(*size, request), request, 10**12), None
    if shortages is None:
        assert model.fit(size, model.plan(*size, request), request) is None, "all of it has room here"
    for _ in range(shortages or 0):
        memory = found.peak_bytes - 1
        found = model.fit(size, model.plan(*size, request), request, memory)
    assert (found.most_px == 32) == (shortages == 3)
    options = [] if memory is None else ["--memory", memory]
    planned = json.loads(call(700, 500, "--scale", 4, "--rate", 1, "--json", *options)[1])
    said = ("on_disk", "batch", "low_memory", "most_px")
    assert {name: planned[name] for name in said} == {name: getattr(found, name) for name in said}
    assert planned["peak_mb"] == pytest.approx(found.peak_bytes / 1e6, abs=0.1)


def test_what_is_free_has_to_hold_the_weights_too(call, monkeypatch):
    """They are not loaded here, unlike where `held_bytes` counts them."""
    libraries, free = 500 * 10**6, 10**12
    for name in (module, memory):
        monkeypatch.setattr(name, "free_bytes", lambda _: free)
    monkeypatch.setattr(module, "peak_rss_mb", lambda: libraries / 1e6)
    wanted = [3000, 2000, "--scale", 4, "--rate", 1, "--json"]
    roomy = json.loads(call(*wanted)[1])
    free = round(roomy["peak_mb"] * 1e6) - libraries
    assert json.loads(call(*wanted)[1]) == roomy
    free -= 1
    assert json.loads(call(*wanted)[1])["on_disk"]


@pytest.mark.slow
def test_the_base_is_what_a_process_with_the_model_holds(make_model, tmp_path):
    """With 100 MB of weights in the dtype that they run in, which were views of their file beside copies of them."""
    model = make_model()
    settings = dict(model.backbone.unet.config) | {"block_out_channels": (320, 640)}
    model.backbone.unet = UNet2DConditionModel.from_config(settings)
    save_model(tmp_path / "m", model, torch.float32)
    script = f"""
import json, torch
from tudsr.apps.plan import make_plan
from tudsr.folder import load_model
from tudsr.machine import status_bytes
from tudsr.machine import held_bytes
plan = make_plan(64, 64, 4, model={str(tmp_path / "m")!r}, rate=1, device="cpu", dtype="fp32")
model = load_model({str(tmp_path / "m")!r}, torch.device("cpu"), torch.float32)
weights = sum(weight.nbytes for weight in model.backbone.parameters())
print(json.dumps([1e6 * plan["memory_mb"]["base"], held_bytes(torch.device("cpu")), status_bytes("VmHWM"), weights]))
"""
    planned, held, peak, weights = json.loads(subprocess.check_output([sys.executable, "-c", script]))
    assert weights > 10**8
    assert held == pytest.approx(planned, abs=0.2 * weights)
    assert peak is None or peak < planned + 0.3 * weights


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TINY, reason="the embedded model is not there")
def test_it_names_the_least_that_an_enlargement_does(tmp_path):
    """In processes of their own; no two hold the same to begin with."""
    Image.fromarray(np.zeros((100, 150, 3), np.uint8)).save(tmp_path / "a.png")
    least = []
    for words in ["plan", "150", "100"], ["upscale", "a.png", "-o", "x.png"]:
        command = [sys.executable, "-m", "tudsr", *words, "--device", "cpu", "--dtype", "fp32", "--memory", "1MB"]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stderr
        least.append(int(said.split(" MB is the least")[0].split()[-1]))
    assert least[0] == pytest.approx(least[1], abs=12)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TINY, reason="the embedded model is not there")
def test_the_peak_is_an_upper_bound_near_a_real_one(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    # One thread alone takes a tenth less than the two or more that are planned for.
    commands = ["plan", "256", "256", "--rate", "1"], ["upscale", "a.png", "-o", "x.png", "--threads", "2"]
    planned, done = (
        json.loads(subprocess.check_output([sys.executable, "-m", "tudsr", *words, "--json"], cwd=tmp_path))
        for words in commands
    )
    assert planned["out_size"] == done["out_size"] == [2048, 2048]
    assert 0.95 * done["peak_rss_mb"] <= planned["peak_mb"] <= 1.4 * done["peak_rss_mb"]  # budgets are kept to by it

"""`tudsr bench` from the command line, on a very small model."""

import json
from functools import partial

import pytest
import torch

from tudsr import machine, memory, pipeline
from tudsr.apps import bench as module
from tudsr.apps.plan import make_plan
from tudsr.request import Request

MATMUL = {"tflops": 0.5, "side": 8, "runs": 1}


@pytest.fixture
def call(call, monkeypatch, model_folder):
    """Return a function that runs `tudsr bench` here on the small model: (exit code, stdout, stderr)."""
    monkeypatch.setattr(module, "matmul_rate", lambda device, dtype: MATMUL)
    return partial(call, "bench", "--model", model_folder, "--device", "cpu", "--dtype", "fp32")


def test_json_says_all(call, model_folder):
    code, out, err = call("--sizes", "40x30,16x16", "--scale", 4, "--repeat", 3, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["model"], found["scale"], found["matmul"]) == (str(model_folder), 4, MATMUL)
    assert (found["machine"]["device"], found["machine"]["dtype"]) == ("cpu", "float32")
    assert found["commit"]
    assert [one["in_size"] for one in found["sizes"]] == [[40, 30], [16, 16]]
    assert [one["out_size"] for one in found["sizes"]] == [[160, 120], [64, 64]]
    for one in found["sizes"]:
        spread = one["seconds"]
        low, high = spread["quartiles"]
        assert 0 < low <= spread["median"] <= high
        assert spread["runs"] == 3
        assert one["tflops"] == pytest.approx(one["tflop"] / spread["median"])
        assert one["share_of_matmul"] == pytest.approx(one["tflops"] / 0.5)
        assert one["peak_mb"] > 50
        planned = make_plan(*one["in_size"], 4, model=str(model_folder), rate=1, device="cpu", dtype="fp32")
        assert (one["tflop"], one["useful_tflop"]) == (planned["tflop"], planned["useful_tflop"])


def test_people_get_lines(call):
    code, out, _ = call("--sizes", "16x12", "--scale", 2, "--repeat", 1)
    assert code == 0
    lines = out.splitlines()
    assert lines[1] == "matrix product of 8x8: 0.5 TFLOP/s"
    assert lines[2].startswith("16x12 → 32x24: ")
    assert "1 runs" in lines[2]


def test_the_warm_up_does_not_count(call, monkeypatch):
    clock = iter([0, 100, 200, 201, 300, 303, 400, 402])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(module.tudsr.pipeline.TUDSR, "upscale_picture", lambda self, picture, request: picture)
    found = json.loads(call("--sizes", "16x12", "--scale", 2, "--repeat", 3, "--json")[1])
    assert found["sizes"][0]["seconds"] == {"median": 2, "quartiles": [1.5, 2.5], "runs": 3}


def test_a_size_that_does_not_fit_is_refused_before_any_measuring(call, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda _: 10**9)
    monkeypatch.setattr(module, "matmul_rate", lambda *_: pytest.fail("it was measured"))
    code, out, err = call("--sizes", "16x12,40000x40000", "--scale", 1)
    assert (code, out) == (2, "")
    assert "40000x40000 → 40000x40000 px does not fit into " in err
    assert err.count("\n") == 1


def test_windows_that_had_to_shrink_are_said(call, monkeypatch, model_folder):
    model = pipeline.load(model_folder, "cpu", "fp32")
    request = model.settled(Request(scale=4))
    size = (60, 60)
    monkeypatch.setattr(machine, "held_bytes", lambda _: 500 * 10**6)
    frugal = model.fit(size, model.plan(*size, request), request, 10**12, spool=False)
    while frugal.most_px is None:
        enough = frugal.peak_bytes
        frugal = model.fit(size, model.plan(*size, request), request, enough - 1, spool=False)
    monkeypatch.setattr(memory, "free_bytes", lambda _: enough - 500 * 10**6 - 1)
    words = ("--sizes", "60x60", "--scale", 4, "--repeat", 1)
    (one,) = json.loads(call(*words, "--json")[1])["sizes"]
    assert one["most_px"] == frugal.most_px
    assert one["tflop"] == pytest.approx(sum(step.flop for step in frugal.passes) / 1e12)
    assert f"; windows shrunk to {frugal.most_px} px to fit" in call(*words)[1]


def test_a_gpus_peak_begins_without_what_was_reserved_before(monkeypatch):
    called = []
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: called.append(name))
    module._reset_peak(torch.device("cuda"))
    assert called == ["empty_cache", "reset_peak_memory_stats"]


@pytest.mark.parametrize(
    "mistake",
    [
        ("--sizes", "40"), ("--sizes", "40x30,"), ("--sizes", "0x30"), ("--sizes", "40x-3"), ("--scale", 0.5),
        ("--repeat", 0), ("--sizes", "900000x900000"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(call, mistake):
    code, out, err = call(*mistake)
    assert (code, out) == (2, "")
    assert "Error: " in err
    assert "--size " not in err
    assert "Traceback" not in err

"""CUDA graphs: refused where there are none, and the same picture where there are."""

import contextlib
from functools import partial

import numpy as np
import pytest
import torch

from tudsr import lora
from tudsr.errors import ConfigError
from tudsr.folder import load_model
from tudsr.graphs import MOST_RECORDINGS, Graphs
from tudsr.pipeline import TUDSR, load
from tudsr.request import Request
from tudsr.stage import Stage, inference

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_they_are_refused_off_cuda_and_beside_what_they_cannot_go_with(model_folder):
    model = load(model_folder, device="cpu", dtype="fp32")
    with pytest.raises(ConfigError, match=r"graphs are CUDA's own.* runs on cpu"):
        model.upscale(PICTURE, scale=2, graphs=True)
    for more in ({"low_memory": True}, {"vae": "whole"}):
        with pytest.raises(ConfigError, match="graphs keep merged weights"):
            Request.of({"scale": 2, "graphs": True, **more})
    plan = model.plan(40, 56, Request(scale=2))
    with pytest.raises(ConfigError, match="memory cannot be kept to with graphs"):
        model.fit((40, 56), plan, Request(scale=2, graphs=True), memory=10**9)


def test_a_shape_is_recorded_once_and_the_stage_is_entered_only_for_that(make_model, monkeypatch):
    net, entered, recorded = make_model().backbone, [], []

    class Plain:
        def __enter__(self):
            entered.append(1)
            return lambda windows: windows + 1

        def __exit__(self, *_):
            return None

    class Replay:
        held = {}  # noqa: RUF012 - what a recording has

        def replay(self, windows):
            return windows + 1

    def record(_, restore, stage, windows):
        recorded.append(tuple(windows.shape))
        return Replay()

    monkeypatch.setattr(Graphs, "_record", record)
    graphs, shapes = Graphs(), [(1, 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8)]
    for stage in (Stage(net, 1, "stage_1"), Stage(net, 1, "stage_1")):
        with graphs.running(stage, Plain) as restore:
            for shape in shapes:
                assert torch.equal(restore(torch.zeros(shape)), torch.ones(shape))
    assert (entered, recorded) == ([1], shapes[1:])
    with graphs.running(Stage(net, 1, "stage_1", strength=0.5), Plain) as restore:
        restore(torch.zeros(shapes[0]))
    assert len(recorded) == 3


class Stream:
    """What CUDA has, on its device."""

    def __init__(self, device):
        self.device = device

    def wait_stream(self, other):
        assert other is not self


class Recorded:
    """A graph that makes nothing anew: what was made when it was recorded stays."""

    def pool(self):
        return "pool"

    def replay(self):
        pass


@pytest.fixture
def recorded(monkeypatch):
    """Let recording be running, without CUDA; returns the (pool, stream) of each."""
    asked = []

    def graph(_, pool, stream):
        asked.append((pool, stream))
        return contextlib.nullcontext()

    fakes = {"Stream": Stream, "current_stream": Stream, "CUDAGraph": Recorded, "graph": graph}
    for name, fake in {**fakes, "stream": contextlib.nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return asked


def test_a_new_shape_merges_nothing_again(make_model, recorded, monkeypatch):
    net, summed = make_model().backbone, []
    merge = lora._summed
    monkeypatch.setattr(lora, "_summed", lambda layer, base, name: summed.append(name) or merge(layer, base, name))
    graphs, windows = Graphs(), [torch.rand(count, 3, 32, 32) for count in (1, 2, 3)]
    for x in windows:
        for name in lora.STAGES:
            stage = Stage(net, 200, name)
            with graphs.running(stage, partial(inference, stage)) as restore:
                found = restore(x)
            assert not any("forward" in part.__dict__ for part in net.modules())
            before = len(summed)
            with inference(stage) as plain:
                assert torch.equal(found, plain(x))
            del summed[before:]
    once = {name: len(lora.layers(net.unet, name)) for name in lora.STAGES}
    assert {name: summed.count(name) for name in lora.STAGES} == once
    weaker = Stage(net, 200, "stage_1", 0.5)
    with graphs.running(weaker, partial(inference, weaker)) as restore:
        restore(windows[0])
    assert summed.count("stage_1") == 2 * once["stage_1"]


def test_recordings_are_made_beside_on_the_models_own_device(make_model, recorded):
    """By itself `torch.cuda.graph` takes a stream of the current device, on which nothing is to be recorded."""
    net, graphs = make_model().backbone, Graphs()
    for count in (1, 2):
        stage = Stage(net, 200, "stage_1")
        with graphs.running(stage, partial(inference, stage)) as restore:
            restore(torch.rand(count, 3, 32, 32))
    (_, beside), (_, again) = recorded
    assert (beside.device, again) == (net.device, beside)
    assert [pool for pool, _ in recorded] == [None, "pool"]


def test_the_last_ones_stay_and_none_when_memory_runs_out(make_model, recorded):
    stage, graphs = Stage(make_model().backbone, 200, "stage_1"), Graphs()

    def shapes(counts):
        with graphs.running(stage, partial(inference, stage)) as restore:
            for count in counts:
                restore(torch.zeros(count, 3, 32, 32))
        return [shape[0] for _, shape in graphs._recordings]

    most = list(range(1, MOST_RECORDINGS + 1))
    assert shapes(most) == most
    assert shapes([1]) == [*most[1:], 1]
    assert shapes([MOST_RECORDINGS + 1]) == [*most[2:], 1, MOST_RECORDINGS + 1]
    begun = len(recorded)
    assert shapes([1]) == [*most[2:], MOST_RECORDINGS + 1, 1]
    assert len(recorded) == begun
    with pytest.raises(torch.OutOfMemoryError), graphs.running(stage, partial(inference, stage)):
        raise torch.OutOfMemoryError
    assert shapes([]) == []
    assert shapes([2]) == [2]
    assert recorded[-1][0] is None, "the pool ended with its last recording"


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_another_device_than_the_current_one(model_folder):
    plain, graphs = (TUDSR(load_model(model_folder, torch.device("cuda:1"), torch.float32)) for _ in range(2))
    expected, found = plain.upscale(PICTURE, scale=2), graphs.upscale(PICTURE, scale=2, graphs=True)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_picture_is_the_same(model_folder):
    plain, graphs = (load(model_folder, device="cuda", dtype="fp32") for _ in range(2))
    for scale in (2, 8, 8):
        expected = plain.upscale(PICTURE, scale=scale)
        found = graphs.upscale(PICTURE, scale=scale, graphs=True)
        assert np.abs(found.astype(int) - expected).max() <= 1

"""CUDA graphs: refused where there are none, and the same picture where there are."""

import numpy as np
import pytest
import torch

from tudsr.errors import ConfigError
from tudsr.graphs import Graphs
from tudsr.pipeline import load
from tudsr.request import Request
from tudsr.stage import Stage

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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_picture_is_the_same(model_folder):
    plain, graphs = (load(model_folder, device="cuda", dtype="fp32") for _ in range(2))
    for scale in (2, 8, 8):
        expected = plain.upscale(PICTURE, scale=scale)
        found = graphs.upscale(PICTURE, scale=scale, graphs=True)
        assert np.abs(found.astype(int) - expected).max() <= 1

"""The plain way of benchmarks/plain.py: the same pictures as ours, by windows and layers that are not ours."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tudsr import lora
from tudsr.pipeline import TUDSR


@pytest.fixture
def plain(monkeypatch):
    """Return the module, which finds its neighbours in its own folder."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return pytest.importorskip("plain")


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (21, 30, 3), dtype=np.uint8)


def test_it_makes_the_same_picture_with_the_adapter_beside_its_layers(plain, make_model, picture, monkeypatch):
    model = make_model()
    wanted = TUDSR(model).upscale(picture, scale=4)

    def never(*_):
        raise AssertionError("merged")

    monkeypatch.setattr(lora, "_merged_forward", never)
    found = plain.Plain(TUDSR(model)).upscale(picture, scale=4)
    assert found.shape == wanted.shape == (84, 120, 3)
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_windows_of_512_px_where_those_are_the_models_own_resolution(plain, make_model, picture, monkeypatch):
    model = make_model()
    model.config = model.config.model_copy(update={"r_px": 512})
    pipeline, grids = TUDSR(model), []
    grid = pipeline.grid
    monkeypatch.setattr(pipeline, "grid", lambda *asked: (grids.append(grid(*asked)), grids[-1])[1])
    monkeypatch.setattr("tudsr.stage.whole_picture", lambda stage, x, grid: x)
    out = plain.Plain(pipeline).upscale(np.tile(picture, (7, 5, 1)), scale=8)
    assert out.shape[:2] == (1176, 1200)
    sides = [(one.window_h, one.window_w) for one in grids]
    assert sides == [(512, 512)] * 2
    starts = grids[1].ys
    assert len(starts) == 3
    assert all(b - a <= 512 - 64 for a, b in zip(starts, starts[1:], strict=False))


def test_a_loaded_model_is_the_pipelines(plain, monkeypatch):
    monkeypatch.setattr("tudsr.load", lambda model, dtype: SimpleNamespace(model=(model, dtype)))
    assert plain.load("tiny", "fp32").model == ("tiny", "fp32")

"""An honest stand-in for a model: real planning, bicubic enlargement."""

import contextlib
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import tudsr
from tudsr.apps.cli import main
from tudsr.config import WindowRange
from tudsr.image import Picture
from tudsr.planner import Plan
from tudsr.request import Request
from tudsr.resize import upsample


class BicubicModel:
    """Does what TUDSR does, with bicubic interpolation for a generator."""

    device, lock = "cpu", contextlib.nullcontext()

    config = SimpleNamespace(
        name="bicubic", windows=WindowRange(min_px=64, max_px=128, stride_px=16, overlap_px=32), m_range=(1.0, 4.0),
        n_range=(1.0, 2.0), once_up_to=1.0,
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def plan(self, height: int, width: int, r: Request) -> Plan:
        return r.passes(height, width, self.config)

    def settled(self, request: Request) -> Request:
        return request

    def fit(self, *_: object, **__: object) -> None:
        return None

    def lessened(self, *_: object) -> None:
        return None

    def upscale_picture(self, picture: Picture, request: Request, progress=None) -> Picture:
        self.requests.append(request)
        plan = self.plan(picture.height, picture.width, request)
        if progress is not None:
            progress(1, 2)
            progress(2, 2)
        alpha = None if picture.alpha is None else upsample(picture.alpha, plan.height, plan.width)
        return replace(picture, pixels=upsample(picture.pixels, plan.height, plan.width), alpha=alpha)


@pytest.fixture
def bicubic(monkeypatch):
    """Replace `tudsr.load`; the fixture is the model, with the load's arguments in `.loaded`."""
    model = BicubicModel()

    def load(*arguments):
        model.loaded = arguments
        return model

    monkeypatch.setattr(tudsr, "load", load)
    return model


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Return a function that runs `main` here, in an empty folder: (exit code, stdout, stderr).

    A process of its own would spend seconds on importing torch.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tudsr", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def photo():
    """Return a function that writes a small noisy picture and returns its path."""

    def write(path, width=12, height=8):
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(values).save(path)
        return path

    return write

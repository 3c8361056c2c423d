"""The progress bars as a terminal shows them, by a clock that only the tests move."""

import re
from functools import partial
from types import SimpleNamespace

import pytest
from rich.console import Console

from tudsr.apps import report
from tudsr.apps import train as app


@pytest.fixture
def clock(monkeypatch):
    """Let stderr be a terminal without colours; returns the clock, `.seconds`, that its bars go by."""
    clock = SimpleNamespace(seconds=0)
    forced = {"force_terminal": True, "color_system": None, "width": 120, "get_time": lambda: clock.seconds}
    monkeypatch.setattr(report, "Console", partial(Console, **forced))
    monkeypatch.setenv("TERM", "xterm")  # rich draws no bar on a dumb one
    return clock


def test_the_bar_of_upscale_names_the_picture_and_the_time_left(clock, bicubic, call, photo, tmp_path, monkeypatch):
    def enlarge(picture, request, progress):
        for done in (1, 2, 3):
            clock.seconds += 40
            progress(done, 12)
        raise KeyboardInterrupt  # the bar is drawn once more where it ends

    monkeypatch.setattr(bicubic, "upscale_picture", enlarge)
    for name in "ab":
        photo(tmp_path / f"in/{name}.png")
    code, _, err = call("upscale", "in", "-o", "out")
    assert code == 130
    # 3 of 24 windows, 40 s each
    assert re.search(r"1/2 a\.png \S+ +12 % 0:02:00 left 0:14:00", err)


def test_the_bar_of_train_names_the_stage_and_the_time_left(clock, call, model_folder, tmp_path, monkeypatch):
    def train(config, *, progress, **_):
        for step in (1, 2, 3):
            clock.seconds += 50
            progress(step, config.steps, {"loss_g": 0.5})
        return {}

    monkeypatch.setattr(app, "train", train)
    places = ["--data", tmp_path / "photos", "--out", tmp_path / "run"]
    code, _, err = call("train", "--stage", 1, "--model", model_folder, *places, "--set", "steps=27", "crop_px=128")
    assert code == 0, err
    assert re.search(r"stage 1 \S+ +3/27 0:02:30 left 0:20:00 loss_g 0\.5", err)

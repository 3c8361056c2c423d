"""Python's `memory=`: kept to by a real process, and nothing is chosen without a word."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from tudsr import machine, pipeline
from tudsr import memory as memory_module
from tudsr.errors import InputError
from tudsr.machine import status_bytes
from tudsr.pipeline import TUDSR, load
from tudsr.request import Request


@pytest.fixture(scope="module")
def tudsr(model_folder) -> TUDSR:
    return load(model_folder, device="cpu", dtype="fp32")


@pytest.fixture
def steady(monkeypatch):
    """Let the process hold the same number of bytes whenever it is asked."""
    monkeypatch.setattr(machine, "held_bytes", lambda _: 500 * 10**6)


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def least_without_smaller_windows(tudsr):
    request = tudsr.settled(Request(scale=4, low_memory=True))
    return tudsr.fit((60, 60), tudsr.plan(60, 60, request), request, 10**12, spool=False).peak_bytes


def test_windows_that_shrink_are_warned_of(tudsr, steady):
    enough = least_without_smaller_windows(tudsr)
    with pytest.warns(UserWarning, match="windows of at most 32 px, to keep to the memory") as caught:
        made = tudsr.upscale(noise(60), 4, memory=enough - 1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(made, tudsr.upscale(noise(60), 4, most_px=32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = tudsr.upscale(noise(60), 4, memory=enough)
        frugal = tudsr.upscale(noise(60), 4, memory=enough + 1, most_px=64)
    np.testing.assert_array_equal(whole, tudsr.upscale(noise(60), 4))
    np.testing.assert_array_equal(frugal, whole)
    with pytest.raises(InputError, match="MB is the least"):
        tudsr.upscale(noise(60), 4, memory="10MB")


def test_without_a_number_what_is_free_is_the_budget(tudsr, steady, monkeypatch):
    enough = least_without_smaller_windows(tudsr)
    monkeypatch.setattr(memory_module, "free_bytes", lambda _: enough - 500 * 10**6 - 1)
    with pytest.warns(UserWarning, match="windows of at most 32 px"):
        tudsr.upscale(noise(60), 4)


def test_nothing_is_counted_where_there_is_plenty(tudsr, monkeypatch):
    monkeypatch.setattr(memory_module, "free_bytes", lambda _: 10**12)
    monkeypatch.setattr(pipeline, "fit_here", lambda *_: pytest.fail("windows were counted"))
    tudsr.upscale(noise(9), 4)


IN_MEMORY = """
import json, sys
import numpy as np
import tudsr
from tudsr.machine import status_bytes
model = tudsr.load(sys.argv[1], "cpu", "fp32")
picture = np.random.default_rng(0).integers(0, 256, (200, 240, 3), dtype=np.uint8)
made = model.upscale(picture, 4, memory=int(sys.argv[2]))
print(json.dumps({"peak": status_bytes("VmHWM"), "to": made.shape}))
"""


@pytest.mark.skipif(status_bytes("VmHWM") is None, reason="the system keeps no peak")
def test_a_real_process_stays_below_the_number(model_folder, tudsr):
    """Refused with what is too little, it names the least, with which it is done."""
    call = [sys.executable, "-c", IN_MEMORY, str(model_folder)]
    refused = subprocess.run([*call, "100000000"], capture_output=True, text=True, check=False)
    least = int(refused.stderr.split(" MB is the least")[0].split()[-1]) * 10**6
    done = json.loads(subprocess.check_output([*call, str(least)], text=True).splitlines()[-1])
    assert done["to"] == [800, 960, 3]
    assert 0.5 * least < done["peak"] <= least

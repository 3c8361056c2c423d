"""`--memory` of the real command, each time in a process of its own: kept to, and what it costs is said."""

import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tudsr.machine import status_bytes

pytest.importorskip("pyvips", reason="the extra [huge] is not installed")

HAS_TINY = (Path(str(resources.files("tudsr"))) / "weights/tiny/tudsr.json").is_file()
SIDE_PX = 400
MB = 10**6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_TINY, reason="the embedded model is not there"),
    pytest.mark.skipif(status_bytes("VmHWM") is None, reason="the system keeps no peak"),
]


def tudsr(folder, command, memory, *words):
    call = [sys.executable, "-m", "tudsr", command, *words, "--scale", "4", "--device", "cpu", "--dtype", "fp32"]
    call += ["--memory", f"{memory / MB:.0f}MB", "--json"]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)


def planned(folder, memory):
    made = tudsr(folder, "plan", memory, str(SIDE_PX), str(SIDE_PX), "--rate", "1")
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def upscaled(folder, memory, name):
    return tudsr(folder, "upscale", memory, "a.png", "-o", name)


def peak(made):
    """Return the peak of a process that did it, in bytes."""
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)["peak_rss_mb"] * MB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    values = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / "a.png")
    return folder


@pytest.fixture(scope="module")
def plenty(folder):
    return planned(folder, 10**12)


def test_where_pictures_do_not_fit_they_go_to_disk_and_come_out_the_same(folder, plenty):
    assert not plenty["on_disk"]
    most, pictures = plenty["peak_mb"] * MB, plenty["memory_mb"]["pictures"] * MB
    roomy, tight = most + pictures / 2, most - pictures / 2
    whole, spooled = upscaled(folder, roomy, "whole.png"), upscaled(folder, tight, "spooled.png")
    assert peak(whole) <= roomy
    assert "on disk" not in whole.stderr
    assert peak(spooled) <= tight
    assert spooled.stderr.count("a.png: works on disk, in up to ") == 1
    assert "windows of at most" not in spooled.stderr
    one, other = (Image.open(folder / name) for name in ("whole.png", "spooled.png"))  # compressed by two libraries
    assert one.mode == other.mode == "RGB"
    assert one.tobytes() == other.tobytes()


def test_windows_that_shrink_are_said_once_and_the_peak_stays_below(folder, plenty):
    parts = plenty["memory_mb"]
    enough = (plenty["peak_mb"] - parts["pictures"] - parts["merged weights"]) * MB
    less = planned(folder, enough - 10 * MB)  # what a process begins with differs by some MB each time
    assert less["most_px"] is not None
    budget = (enough + less["peak_mb"] * MB) / 2
    made = upscaled(folder, budget, "shrunk.png")
    assert peak(made) <= budget
    said = f"a.png: windows of at most {less['most_px']} px, to keep to the memory; the result is a little different."
    assert made.stderr.count(said) == made.stderr.count("windows of at most") == 1


def test_less_than_the_least_is_refused_and_the_least_named(folder):
    refused = r"Error: (?:a\.png: )?400x400 → 1600x1600 px does not fit into (\d+) MB of memory; "
    refused += r"(\d+) MB is the least it can be done in\.\n"
    foretold = tudsr(folder, "plan", 10 * MB, str(SIDE_PX), str(SIDE_PX), "--rate", "1")
    least = int(re.fullmatch(refused, foretold.stderr)[2])
    for budget in (10, int(0.9 * least)):
        made = upscaled(folder, budget * MB, "never.png")
        assert (made.returncode, made.stdout) == (2, "")
        said = re.fullmatch(refused, made.stderr)
        assert int(said[1]) == budget
        assert int(said[2]) == pytest.approx(least, rel=0.05)
    assert not (folder / "never.png").exists()


def test_what_is_enough_for_one_picture_is_enough_for_a_folder(folder):
    """What the first picture leaves in memory does not count on top of what the next one takes."""
    (folder / "several").mkdir()
    for name in "abc":
        Image.open(folder / "a.png").resize((100, 100)).save(folder / "several" / f"{name}.png")
    refused = tudsr(folder, "upscale", MB, "several/a.png", "-o", "small.png")
    least = int(re.search(r"(\d+) MB is the least", refused.stderr)[1]) * MB
    made = tudsr(folder, "upscale", least, "several", "-o", "made")
    assert made.returncode == 0, made.stderr
    peaks = [json.loads(line)["peak_rss_mb"] * MB for line in made.stdout.splitlines()]
    assert len(peaks) == 3
    assert max(peaks) <= least

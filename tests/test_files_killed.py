"""A process killed by SIGKILL at any point of work on disk, and started again: the same bytes in the end."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tudsr.spooled import work_folder

pytest.importorskip("pyvips", reason="the extra [huge] is not installed")

# Kills itself after the COUNT-th time that it has done what PLACE names.
ENLARGE = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import tudsr
from tudsr import canvas, files, spooled
from tudsr.image_raw import RawFile
from tudsr.request import Request

folder, source, target, killed_after, count = *map(Path, sys.argv[1:4]), sys.argv[4], int(sys.argv[5])
times = 0

def watch(owner, name, place):
    own = getattr(owner, name)
    def call(*args, **more):
        global times
        made = own(*args, **more)
        times += place(*args) == killed_after
        if times == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return made
    setattr(owner, name, call)

watch(RawFile, "write", lambda raw, *_: "written " + raw.path.stem)
watch(RawFile, "read", lambda raw, *_: "read " + raw.path.stem)
watch(canvas.DiskStore, "_write_journal", lambda store: "noted " + " ".join(store._journal["rows"]))
watch(spooled, "spool_input", lambda *_: "decoded")
watch(spooled, "encode_spooled", lambda *_: "encoded")
watch(Path, "replace", lambda path, to: "renamed to " + to.name)
watch(Path, "unlink", lambda path: "removed " + path.name)
model = tudsr.load(folder, "cpu", "fp32")
own = type(model).fit
type(model).fit = lambda self, *args, **more: replace(own(self, *args[:3], 10**12, *args[4:], **more), on_disk=True)
files.upscale_file(model, source, target, Request(scale=8), say=lambda line: print(line, flush=True))
"""
GOING_ON = "going on with what an earlier run left"
PLACES = {  # one run after the other, each from what the one before left
    "decoded": (1, False),  # of a picture whose header was not written
    "written pass_1": (2, False),  # rows that the journal does not count
    "noted pass_1": (2, True),
    "written output": (2, True),
    "noted pass_1 output": (3, True),
    "read output": (1, True),  # while it is encoded
    "encoded": (1, True),
    "renamed to out.png": (1, True),  # there is an output, and all the work too
    "removed journal.json": (1, True),  # half of the work is cleared away
}


@pytest.mark.slow
def test_killed_wherever_it_was_it_ends_with_the_same_bytes(model_folder, tmp_path):
    values = np.kron(np.random.default_rng(1).random((38, 23, 3)), np.ones((4, 4, 1)))[:150, :90]
    Image.fromarray((values * 255).astype(np.uint8)).save(tmp_path / "in.png")

    def start(name, place="nowhere", count=1):
        files = [str(model_folder), str(tmp_path / "in.png"), str(tmp_path / name)]
        call = [sys.executable, "-c", ENLARGE, *files, place, str(count)]
        return subprocess.run(call, capture_output=True, text=True, check=False, timeout=300)

    assert start("whole.png").returncode == 0
    target, wanted = tmp_path / "out.png", (tmp_path / "whole.png").read_bytes()
    for place, (count, goes_on) in PLACES.items():
        ran = start("out.png", place, count)
        assert ran.returncode == -signal.SIGKILL, (place, ran.stdout, ran.stderr)
        assert (GOING_ON in ran.stdout) == goes_on, (place, ran.stdout)
        assert not target.exists() or target.read_bytes() == wanted, place
        assert target.exists() == (place in ("renamed to out.png", "removed journal.json")), place
    target.unlink()
    last = start("out.png")
    assert last.returncode == 0, last.stderr
    assert "anew" not in last.stdout
    assert target.read_bytes() == wanted
    assert not work_folder(target).exists()

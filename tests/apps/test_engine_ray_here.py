"""The engine of many machines with all its actors in this process, so that no Ray is needed."""

import contextlib
import json
import sys
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import tudsr
from tudsr import pipeline, spooled
from tudsr.apps import engine_ray
from tudsr.apps.cli import app
from tudsr.memory import Fit, Need
from tudsr.pipeline import TUDSR
from tudsr.spooled import begun, work_folder

ERRORS = (
    "RayError", "RayTaskError", "RayActorError", "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError",
    "ObjectLostError",
)  # fmt: skip


class Actor:
    """Has calls of its worker's methods noted, as Ray's actors do."""

    def __init__(self, ray, worker):
        self._ray, self._worker = ray, worker

    def __getattr__(self, name):
        return SimpleNamespace(remote=partial(self._ray.ask, self, getattr(self._worker, name)))


class RayHere:
    """A cluster of one machine with two CPUs; calls are made when somebody wants their results."""

    exceptions = SimpleNamespace(**{name: type(name, (Exception,), {}) for name in ERRORS})

    def __init__(self):
        self.calls, self.made = {}, Counter()

    def is_initialized(self):
        return True

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def remote(self, kind):
        hire = SimpleNamespace(remote=lambda *args: Actor(self, kind(*args)))
        return SimpleNamespace(options=lambda **_: hire)

    def ask(self, actor, method, *args):
        ref = object()
        self.calls[ref] = actor, method, args
        return ref

    def wait(self, refs, num_returns):
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref):
        actor, method, args = self.calls.pop(ref)
        self.made[method.__name__, id(actor)] += 1
        return method(*args)

    def kill(self, actor, no_restart):
        pass


@pytest.fixture
def ray(monkeypatch, one_thread):
    found = RayHere()
    monkeypatch.setitem(sys.modules, "ray", found)
    monkeypatch.setattr(engine_ray, "sharing_memory", lambda *_: contextlib.nullcontext())  # it is of one process here
    return found


@pytest.fixture
def run(model_folder):
    """Return a function that enlarges with the small model on one thread."""

    def call(source, out, *options):
        words = ["upscale", source, "-o", out, "--model", model_folder, "--device", "cpu", "--dtype", "fp32"]
        return CliRunner().invoke(app, [*map(str, [*words, "--threads", 1, "--scale", 4, "--json", *options])])

    return call


def test_each_worker_loads_its_model_once(ray, run, photo, tmp_path, monkeypatch):
    for name in "abcde":
        photo(tmp_path / f"in/{name}.png")
    loads, load = [], tudsr.load
    monkeypatch.setattr(tudsr, "load", lambda *args: loads.append(args) or load(*args))
    result = run(tmp_path / "in", tmp_path / "out", "--engine", "ray", "--workers", 2)
    assert result.exit_code == 0, result.output
    assert len({json.loads(line)["output"] for line in result.stdout.splitlines()}) == 5
    assert len(loads) == 2
    assert sorted(count for (name, _), count in ray.made.items() if name == "enlarge") == [2, 3]


def test_a_split_picture_counts_the_windows_that_wait_here(ray, run, photo, tmp_path, monkeypatch):
    needs = []
    monkeypatch.setattr(pipeline, "Need", lambda **fields: needs.append(Need(**fields)) or needs[-1])
    source = photo(tmp_path / "a.png")
    result = run(source, tmp_path / "x.png", "--engine", "ray", "--workers", 2, "--memory", "9GB")
    assert result.exit_code == 0, result.output
    assert [need.waiting for need in needs] == [2 * 4 + 4]  # two calls each; in order, and in Ray's memory once more


@pytest.mark.parametrize("engines", [("ray", "local"), ("local", "ray")])
def test_a_run_on_disk_that_one_engine_began_is_finished_by_the_other(ray, run, photo, tmp_path, monkeypatch, engines):
    pytest.importorskip("pyvips", reason="the extra [huge] is not installed")
    source, target = photo(tmp_path / "a.png", 30, 50), tmp_path / "x.png"
    on_disk = Fit(on_disk=True, most_px=None, parts={}, disk_bytes=0, passes=())
    monkeypatch.setattr(TUDSR, "fit", lambda *_, **__: on_disk)
    assert run(source, tmp_path / "whole.png").exit_code == 0
    with monkeypatch.context() as patch:
        strips = iter([spooled.values_of])
        patch.setattr(spooled, "values_of", lambda *args: next(strips, interrupt)(*args))
        stopped = run(source, target, "--engine", engines[0])
    assert stopped.exit_code != 0
    assert begun(work_folder(target))
    windows = Counter(ray.made)
    finished = run(source, target, "--engine", engines[1])
    assert finished.exit_code == 0, finished.output
    assert "going on with what an earlier run left" in finished.stderr
    assert (ray.made == windows) == (engines[1] == "local")
    assert target.read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert not work_folder(target).exists()


def interrupt(*_):
    raise KeyboardInterrupt

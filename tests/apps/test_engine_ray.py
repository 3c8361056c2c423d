"""Ray's workers on a cluster of two nodes: the same bytes, and nothing lost or doubled when workers die."""

import json
import os
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import tudsr
from tudsr.apps import engine_ray
from tudsr.apps.cli import app
from tudsr.apps.engine_ray import Worker, _model_anywhere
from tudsr.memory import Fit
from tudsr.pipeline import TUDSR
from tudsr.request import Request

ray = pytest.importorskip("ray", reason="needs the extra [ray]")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.slow


def test_a_folder_that_is_called_as_the_embedded_model_is_does_not_hide_it(tmp_path, monkeypatch, model_folder):
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    Path("mine").symlink_to(model_folder)
    assert [_model_anywhere(name) for name in ("tiny", "mine", "me/hub")] == ["tiny", str(tmp_path / "mine"), "me/hub"]


class Fragile(Worker):
    """Dies by names of pictures, as real ones die by their content; tells where it ran."""

    def enlarge(self, task):
        name, folder = Path(task.source).name, Path(task.source).parent
        (folder / f".node-{ray.get_runtime_context().get_node_id()}").touch()
        if name.startswith("a"):
            self._wait_for_the_other_node(folder)
        if name.startswith("once"):
            self._die_once(folder / f".{name}.died")
        outcome = super().enlarge(task)
        if name.startswith("late"):  # the output is there, and nobody heard of it
            self._die_once(folder / f".{name}.died")
        if name.startswith("bad"):
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome

    def _wait_for_the_other_node(self, folder):
        until = time.monotonic() + 90
        while len(list(folder.glob(".node-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)

    def _die_once(self, mark):
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class FragileBefore(Fragile):
    """Leaves no output of bad pictures."""

    def enlarge(self, task):
        if Path(task.source).name.startswith("bad"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().enlarge(task)


class Overflowing(Worker):
    """Warns of overflow, as a model in float16 does."""

    def load(self):
        name, backbone = super().load(), self._model.model.backbone
        predict = backbone.predict

        def warned(*args):
            warnings.warn("the UNet overflowed", stacklevel=1)
            return predict(*args)

        backbone.predict = warned
        return name


@pytest.fixture(scope="module")
def cluster():
    """Return a Ray cluster of two nodes with one CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        nodes = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        yield nodes
        nodes.shutdown()


@pytest.fixture
def pictures(tmp_path):
    """Return a function that writes small pictures of the given names to a folder and returns it."""

    def write(*names):
        folder = tmp_path / "in"
        folder.mkdir()
        for seed, name in enumerate(names):
            values = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
            Image.fromarray(values).save(folder / f"{name}.png")
        return folder

    return write


def run(source, out, *options):
    call = ["upscale", source, "-o", out, "--threads", 1, "--device", "cpu", "--scale", 4, "--json", *options]
    return CliRunner().invoke(app, [*map(str, call)])


def outputs(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.png") if not path.name.startswith(".")}


def events(folder):
    lines = (folder / ".tudsr-journal.jsonl").read_text(encoding="utf-8").splitlines()
    return Counter((event["event"], event["output"]) for event in map(json.loads, lines))


def done(result):
    return sorted(Path(json.loads(line)["output"]).name for line in result.stdout.splitlines())


def test_deaths_lose_and_double_nothing_and_bytes_are_the_local_ones(
    cluster, pictures, tmp_path, monkeypatch, one_thread
):
    monkeypatch.setattr(engine_ray, "Worker", FragileBefore)
    folder = pictures("a", "bad", "b", "once", "late", "c", "d")
    result = run(folder, tmp_path / "ray", "--engine", "ray", "--address", cluster.address)
    assert result.exit_code == 1, result.output
    good = ["a.png", "b.png", "c.png", "d.png", "late.png", "once.png"]
    assert done(result) == good
    assert result.stderr.count("bad.png: 2 attempts at it began and never ended") == 1
    assert "1 of 7 pictures could not be enlarged" in result.stderr
    assert len(list(folder.glob(".node-*"))) == 2  # by default, as many workers as there is room for

    found = events(tmp_path / "ray")
    assert {name: found["began", name] for name in (*good, "bad.png")} == dict.fromkeys(good, 1) | {
        "once.png": 2, "late.png": 2, "bad.png": 2,
    }  # fmt: skip
    assert all(found["done", name] == 1 for name in good)
    assert (found["lost", "bad.png"], found["done", "bad.png"]) == (2, 0)

    assert run(folder, tmp_path / "local").exit_code == 0
    local = outputs(tmp_path / "local")
    local.pop("bad.png")
    assert outputs(tmp_path / "ray") == local


def test_either_engine_goes_on_where_the_other_stopped(cluster, pictures, tmp_path, one_thread, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative paths, as workers elsewhere would not know them
    folder = pictures("first", "bad")
    monkeypatch.setattr(engine_ray, "Worker", FragileBefore)
    address = ("--engine", "ray", "--address", cluster.address, "--workers", 1)
    assert run(folder.name, "out", *address).exit_code == 1
    after = run(folder.name, "out")
    assert (after.exit_code, after.stdout) == (1, "")
    assert "bad.png: 2 attempts" in after.stderr
    Image.open(folder / "first.png").save(folder / "new.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    final = run(folder.name, "out", *address)
    assert [json.loads(line)["input"] for line in final.stdout.splitlines()] == ["in/new.png"]
    assert "Error: in/broken.png" in final.stderr
    assert (tmp_path / "out/new.png").read_bytes() == (tmp_path / "out/first.png").read_bytes()


def test_what_workers_refuse_is_said_once(cluster, pictures, tmp_path):
    address = ("--engine", "ray", "--address", cluster.address)
    folder = pictures("a", "b")
    said = run(folder, tmp_path / "out", *address, "--model", "nope").exception
    assert type(said).__name__ == "ModelError"
    assert str(said).startswith("model 'nope' is not there")
    said = run(folder, tmp_path / "out", *address, "--workers", 3).exception
    assert "has room for 2" in str(said)
    result = run(f"file://{folder}", f"file://{tmp_path}/out/", *address)
    assert result.exit_code == 0, result.output
    assert set(outputs(tmp_path / "out")) == {"a.png", "b.png"}


def dying(folder, calls):
    """Return workers that die at the calls of those numbers, counted over all of them, each once the call is made."""

    class Dying(Worker):
        def restore(self, number, request, windows):
            made = len(list(folder.glob("call-*")))
            (folder / f"call-{made}-{ray.get_runtime_context().get_node_id()}").touch()
            if made in calls:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.05)  # so that the other worker gets windows too
            return super().restore(number, request, windows)

    return Dying


@pytest.mark.parametrize("spooled", [False, True])
def test_one_picture_is_split_over_workers_and_survives_a_death(
    spooled, cluster, pictures, tmp_path, monkeypatch, one_thread
):
    calls = tmp_path / "calls"
    calls.mkdir()
    monkeypatch.setattr(engine_ray, "Worker", dying(calls, {4}))
    if spooled:
        on_disk = Fit(on_disk=True, most_px=None, parts={}, disk_bytes=0, passes=())
        monkeypatch.setattr(TUDSR, "fit", lambda *_, **__: on_disk)
    picture = pictures("a") / "a.png"
    windows = ("--tile-px", 32, "--overlap-px", 8, "--color", "adain")
    result = run(picture, tmp_path / "ray.png", "--engine", "ray", "--address", cluster.address, *windows)
    assert result.exit_code == 0, result.output
    assert ("works on disk" in result.stderr) == spooled
    made = len(list(calls.iterdir()))
    assert len({path.name.split("-")[2] for path in calls.iterdir()}) == 2
    assert run(picture, tmp_path / "local.png", *windows).exit_code == 0
    assert (tmp_path / "ray.png").read_bytes() == (tmp_path / "local.png").read_bytes()
    request = Request(scale=4, tile_px=32, overlap_px=8)
    model = tudsr.load()
    needed = sum(len(model.grid(step, request).windows) for step in model.plan(12, 16, request).passes)
    assert needed < made <= needed + 2 * 2  # the dead worker's calls were made anew, and no other one


def test_what_workers_warn_of_is_heard(cluster, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_ray, "Worker", Overflowing)
    picture = pictures("a") / "a.png"
    address = ("--engine", "ray", "--address", cluster.address)
    result = run(picture, tmp_path / "x.png", *address, "--no-split")
    assert result.stderr.count(f"{picture}: the UNet overflowed") == 1
    with pytest.warns(UserWarning, match="the UNet overflowed"):
        assert run(picture, tmp_path / "y.png", *address, "--split").exit_code == 0


def test_windows_that_kill_every_worker_are_said(cluster, pictures, tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    calls.mkdir()
    monkeypatch.setattr(engine_ray, "Worker", dying(calls, range(1000)))
    picture = pictures("a") / "a.png"
    error = run(picture, tmp_path / "x.png", "--engine", "ray", "--address", cluster.address).exception
    assert str(error) == f"{picture}: 2 workers died of the same windows of it."
    assert not (tmp_path / "x.png").exists()

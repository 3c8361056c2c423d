"""The local engine with its journal, pictures behind URLs, and what --engine ray refuses before it starts."""

import json
import os
import re
import sys
import tempfile
import threading
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tudsr import files, machine
from tudsr.apps import engine_local
from tudsr.apps import work as work_module
from tudsr.apps.cli import app
from tudsr.apps.engine_ray import Worker
from tudsr.apps.journal import Journal
from tudsr.apps.ray_cluster import Share, share_out
from tudsr.apps.remote import Task, joined, local_job, plan_tasks, work_place
from tudsr.apps.report import Reporter
from tudsr.apps.upscale import Run
from tudsr.canvas import JOURNAL_NAME
from tudsr.checkpoint import write_text
from tudsr.errors import InputError
from tudsr.memory import Fit
from tudsr.pipeline import TUDSR
from tudsr.request import Request
from tudsr.spooled import alone, work_folder

JOURNAL = ".tudsr-journal.jsonl"


def run(*arguments):
    return CliRunner().invoke(app, ["upscale", *map(str, arguments)])


def events(folder):
    lines = (folder / JOURNAL).read_text(encoding="utf-8").splitlines()
    return [(event["event"], event["output"]) for event in map(json.loads, lines)]


def task(folder, name="a.png"):
    return Task(source=f"in/{name}", target=f"{folder}/{name}")


@pytest.fixture
def memory():
    """Return an empty memory:// filesystem."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


def put(fs, path, photo, tmp_path):
    photo(tmp_path / "upload" / Path(path).name)
    fs.pipe_file(path, (tmp_path / "upload" / Path(path).name).read_bytes())


def test_a_folder_run_journals_beginnings_and_ends(bicubic, photo, tmp_path):
    photo(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"not a picture")
    photo(tmp_path / "in/deep/c.png")
    run(tmp_path / "in", "-o", tmp_path / "out")
    found = events(tmp_path / "out")
    ends = {"a.png": "done", "b.png": "failed", "deep/c.png": "done"}
    for name, end in ends.items():
        assert [event for event, key in found if key == name] == ["began", end]
    assert [name for event, name in found if event == "began"] == list(ends)
    assert [name for event, name in found if event != "began"] == list(ends)


@pytest.fixture
def slow_writing(bicubic, photo, tmp_path, monkeypatch):
    """Two pictures; the first is not written before the second is enlarged, or for a while if that never comes."""
    second_made, made, overlapped = threading.Event(), [], []
    write, enlarge = files.write_picture, bicubic.upscale_picture
    for name in "ab":
        photo(tmp_path / f"in/{name}.png")

    def enlarged(*arguments):
        made.append(None)
        if len(made) == 2:
            second_made.set()
        return enlarge(*arguments)

    def go(*more, timeout=20):
        def slowly(target, picture):
            if target.name == "a.png":
                overlapped.append(second_made.wait(timeout))
            return write(target, picture)

        monkeypatch.setattr(files, "write_picture", slowly)
        monkeypatch.setattr(bicubic, "upscale_picture", enlarged)
        return run(tmp_path / "in", "-o", tmp_path / "out", *more), overlapped

    return go


def test_a_picture_is_written_while_the_next_one_is_made(slow_writing, tmp_path):
    result, overlapped = slow_writing()
    assert result.exit_code == 0
    assert overlapped == [True]
    assert events(tmp_path / "out")[:2] == [("began", "a.png"), ("began", "b.png")]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "b.png", JOURNAL}


def test_the_next_picture_is_read_while_one_is_made(bicubic, photo, tmp_path, monkeypatch):
    b_read, waited, enlarge = threading.Event(), [], bicubic.upscale_picture
    for name in "abc":
        photo(tmp_path / f"in/{name}.png")
    (tmp_path / "in/c.png").write_bytes(b"no picture")

    def read(path, own=engine_local.read_picture):
        picture = own(path)
        if path.name == "b.png":
            b_read.set()
        return picture

    def enlarged(*arguments):
        waited.append(b_read.wait(20))
        return enlarge(*arguments)

    monkeypatch.setattr(engine_local, "read_picture", read)
    monkeypatch.setattr(bicubic, "upscale_picture", enlarged)
    result = run(tmp_path / "in", "-o", tmp_path / "out")
    assert waited == [True, True]
    assert result.exit_code == 1
    assert result.stderr.count("c.png: ") == 1, "what could not be read ahead is said in its turn, once"
    assert [name for event, name in events(tmp_path / "out") if event == "began"] == ["a.png", "b.png", "c.png"]


def test_with_a_memory_budget_pictures_are_done_one_after_another(slow_writing):
    result, overlapped = slow_writing("--memory", "8GB", timeout=0.3)
    assert result.exit_code == 0
    assert overlapped == [False]


@pytest.mark.parametrize("suspect", ["a.png", "b.png"])
def test_one_that_may_have_killed_an_earlier_run_is_in_work_alone(slow_writing, tmp_path, suspect):
    Journal(str(tmp_path / "out")).begin(task(tmp_path / "out", suspect))
    result, overlapped = slow_writing(timeout=0.3)
    assert result.exit_code == 0
    assert overlapped == [False]
    begun_and_done = [("began", "a.png"), ("done", "a.png"), ("began", "b.png"), ("done", "b.png")]
    assert events(tmp_path / "out")[1:] == begun_and_done


def test_what_fails_to_be_written_is_reported_and_the_next_one_is_done(bicubic, photo, tmp_path, monkeypatch):
    def full(target, picture, write=files.write_picture):
        if target.name == "a.png":
            raise InputError(f"{target}: cannot be written (no space left).")
        return write(target, picture)

    monkeypatch.setattr(files, "write_picture", full)
    for name in "ab":
        photo(tmp_path / f"in/{name}.png")
    result = run(tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "a.png: cannot be written (no space left)." in result.stderr
    assert "1 of 2 pictures could not be enlarged" in result.stderr
    assert ("failed", "a.png") in events(tmp_path / "out")
    assert (tmp_path / "out/b.png").is_file()


def test_what_was_made_is_written_when_the_next_one_is_stopped(bicubic, photo, tmp_path, monkeypatch):
    enlarge, calls = bicubic.upscale_picture, []

    def stopped(*arguments):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return enlarge(*arguments)

    monkeypatch.setattr(bicubic, "upscale_picture", stopped)
    for name in "ab":
        photo(tmp_path / f"in/{name}.png")
    assert run(tmp_path / "in", "-o", tmp_path / "out").exit_code != 0
    assert (tmp_path / "out/a.png").is_file()
    assert set(events(tmp_path / "out")) == {
        ("began", "a.png"), ("done", "a.png"), ("began", "b.png"), ("stopped", "b.png"),
    }  # fmt: skip


def test_a_single_file_leaves_no_journal(bicubic, photo, tmp_path):
    assert run(photo(tmp_path / "a.png"), "-o", tmp_path / "x.png").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "x.png"]


def test_the_beginning_is_on_disk_before_the_work(bicubic, photo, tmp_path, monkeypatch):
    seen = []
    enlarge = bicubic.upscale_picture
    monkeypatch.setattr(bicubic, "upscale_picture", lambda *a: (seen.append(events(tmp_path / "out")), enlarge(*a))[1])
    photo(tmp_path / "in/a.png")
    run(tmp_path / "in", "-o", tmp_path / "out")
    assert seen == [[("began", "a.png")]]


def test_two_attempts_without_an_end_leave_a_picture_until_overwrite(bicubic, photo, tmp_path):
    for name in "ab":
        photo(tmp_path / f"in/{name}.png")
    for _ in range(2):  # as two processes that were killed would
        Journal(str(tmp_path / "out")).begin(task(tmp_path / "out"))
    result = run(tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "a.png: 2 attempts at it began and never ended" in result.stderr
    assert "1 of 2 pictures could not be enlarged" in result.stderr
    assert not (tmp_path / "out/a.png").exists()
    assert (tmp_path / "out/b.png").exists()
    assert run(tmp_path / "in", "-o", tmp_path / "out", "--overwrite").exit_code == 0
    assert (tmp_path / "out/a.png").exists()
    (tmp_path / "out/a.png").unlink()
    assert run(tmp_path / "in", "-o", tmp_path / "out").exit_code == 0


def test_one_attempt_without_an_end_is_followed_by_another(bicubic, photo, tmp_path):
    photo(tmp_path / "in/a.png")
    Journal(str(tmp_path / "out")).begin(task(tmp_path / "out"))
    assert run(tmp_path / "in", "-o", tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("rows", [1, 0])
def test_a_picture_that_is_half_done_on_disk_goes_on_after_all_others(bicubic, photo, tmp_path, monkeypatch, rows):
    """However often it was killed; one of which there is no row yet is left like any other."""
    photo(tmp_path / "in/a.png")
    for _ in range(3):
        Journal(str(tmp_path / "out")).begin(task(tmp_path / "out"))
    photo(tmp_path / "in/b.png")
    work = work_folder(tmp_path / "out/a.png")
    work.mkdir()
    write_text(work / "journal.json", json.dumps({"key": {}, "how": {}, "rows": {"output": rows}, "made": {}}))
    monkeypatch.setattr(files._FileJob, "_begun", lambda *_: None)  # the stand-in works in memory only
    result = run(tmp_path / "in", "-o", tmp_path / "out")
    assert (result.exit_code, (tmp_path / "out/a.png").exists()) == ((0, True) if rows else (1, False))
    assert [name for event, name in events(tmp_path / "out")[3:] if event == "began"] == ["b.png", "a.png"][: 1 + rows]


@pytest.fixture
def finished(photo, tmp_path):
    """Return an output that is there, and the folder of its work with a journal, by default of the same time."""
    photo(tmp_path / "in/a.png")
    target = photo(tmp_path / "out/a.png")
    work = work_folder(target)
    work.mkdir()
    (work / "output.raw").write_bytes(b"rows")
    write_text(work / "journal.json", json.dumps({"key": {}, "how": {}, "rows": {"output": 1}, "made": {}}))
    os.utime(work / "journal.json", ns=(10**18, 10**18))
    os.utime(target, ns=(10**18, 10**18))
    return target, work


@pytest.mark.parametrize(("later_ns", "left"), [(-1000, True), (0, True), (1000, False)])
def test_what_a_kill_left_of_a_finished_picture_is_removed(bicubic, finished, tmp_path, later_ns, left):
    """An output that is no younger than the journal may be one that --overwrite was about to replace."""
    target, work = finished
    os.utime(target, ns=(10**18, 10**18 + later_ns))
    run(tmp_path / "in", "-o", tmp_path / "out")
    assert work.exists() == left
    assert {path.name for path in target.parent.iterdir()} <= {"a.png", work.name}


def test_what_a_kill_left_without_a_journal_is_removed(bicubic, finished, tmp_path):
    target, work = finished
    (work / "journal.json").unlink()
    with alone(work.with_suffix(".lock"), target):
        run(tmp_path / "in", "-o", tmp_path / "out")
        assert work.exists(), "a run is at it"
    run(tmp_path / "in", "-o", tmp_path / "out")
    assert not work.exists()


def test_what_is_known_of_a_picture_is_said_at_once_and_once(bicubic, photo, memory, tmp_path, monkeypatch):
    told = []
    for name in "ab":
        put(memory, f"/in/{name}.png", photo, tmp_path)

    def speaking(model, source, *_, say, **__):
        say(f"{source}: works on disk.")
        told.append("work")
        raise InputError(f"{source}: no.")

    monkeypatch.setattr(work_module, "upscale_file", speaking)
    monkeypatch.setattr(Reporter, "note", lambda _, line: told.append(line))
    monkeypatch.setattr(Reporter, "error", lambda _, line: told.append(line))
    run("memory://in", "-o", tmp_path / "out")
    assert told[:2] == ["memory://in/a.png: works on disk.", "work"]
    lines = [f"memory://in/{name}.png: {line}." for name in "ab" for line in ("no", "works on disk")]
    assert sorted(told) == ["2 of 2 pictures could not be enlarged.", *lines, "work", "work"]


def test_a_worker_sends_what_it_says_and_warns_of_also_when_it_fails(bicubic, photo, tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(machine, "_sharing", None)
    task = Task(source=str(photo(tmp_path / "a.png")), target=str(tmp_path / "x.png"))

    def speaking(model, source, *_, say, **__):
        say(f"{source}: works on disk.")
        warnings.warn("overflowed", stacklevel=1)
        raise InputError(f"{source}: no.")

    monkeypatch.setattr(work_module, "upscale_file", speaking)
    worker = Worker(Run(threads=1), Request(scale=4), 1)
    worker.load()
    shown = warnings.showwarning
    outcome = worker.enlarge(task)
    assert (outcome.result, outcome.error) == (None, f"{task.source}: no.")
    assert outcome.notes == (f"{task.source}: works on disk.", f"{task.source}: overflowed")
    assert warnings.showwarning is shown


def test_what_ends_the_work_when_some_is_done_is_reported_and_ends_with_1(bicubic, photo, tmp_path, monkeypatch):
    for name in "abc":
        photo(tmp_path / f"in/{name}.png")
    begin = Journal.begin

    def full(self, task, **facts):
        if task.source.endswith("b.png"):
            raise InputError("the journal cannot be written.")
        begin(self, task, **facts)

    monkeypatch.setattr(Journal, "begin", full)
    result = run(tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "the journal cannot be written." in result.stderr
    assert "2 of 3 pictures could not be enlarged" in result.stderr
    assert (tmp_path / "out/a.png").is_file()


def test_a_picture_read_ahead_that_nobody_came_for_is_let_go(photo, tmp_path):
    one = Task(source=str(photo(tmp_path / "a.png")), target="x.png")
    with engine_local._Reader() as reader:
        reader.begin(one)
        assert list(reader._ahead) == [Path(one.source)]
        reader.forget(one)
        assert not reader._ahead
        reader.forget(one)


def test_work_on_disk_for_a_url_has_a_place_that_the_next_attempt_finds(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    far = Task(source="a.png", target="memory://out/a.png")
    place = work_place(far)
    assert place == work_place(far) != work_place(replace(far, target="memory://out/b.png"))
    assert place.parent.stat().st_mode & 0o777 == 0o700
    assert work_place(Task(source="a.png", target="out/a.png")) is None
    monkeypatch.setattr(os, "getuid", lambda: 12345, raising=False)
    (tmp_path / "tudsr-work-12345").mkdir()
    with pytest.raises(InputError, match="belongs to another user"):
        work_place(far)


@pytest.mark.parametrize("journal", [False, True])
def test_what_a_kill_left_of_an_uploaded_picture_is_removed(journal, bicubic, photo, memory, monkeypatch, tmp_path):
    """The journal goes first: a folder without one is of no use to anybody."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = photo(tmp_path / "a.png")
    assert run(source, "-o", "memory://out/a.png").exit_code == 0
    place = work_place(Task(source=str(source), target="memory://out/a.png"))
    place.mkdir()
    (place / "output.raw").write_bytes(b"rows")
    if journal:
        (place / JOURNAL_NAME).write_text('{"key": {}, "rows": {}, "how": {}, "made": {}}')
    assert "exists already" in run(source, "-o", "memory://out/a.png").stderr
    assert place.exists() == journal


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("shapes")])
def test_what_the_user_or_an_error_stops_is_no_death(error, bicubic, photo, tmp_path, monkeypatch):
    def broken(*_):
        raise error

    monkeypatch.setattr(bicubic, "upscale_picture", broken)
    photo(tmp_path / "in/a.png")
    photo(tmp_path / "in/b.png")
    for _ in range(3):
        run(tmp_path / "in", "-o", tmp_path / "out")
    assert events(tmp_path / "out") == [("began", "a.png"), ("stopped", "a.png")] * 3


@pytest.mark.parametrize("folder", ["{tmp}/out", "{tmp}", "memory://out/deep/", "memory://out"])
def test_the_journal_counts_attempts(folder, memory, tmp_path):
    folder = folder.format(tmp=tmp_path)
    a, b = task(folder.rstrip("/"), "a.png"), task(folder.rstrip("/"), "b/c.png")
    first = Journal(folder)
    first.begin(a)
    first.begin(b)
    first.lost(a)
    first.begin(a)
    first.end(b, "done")
    again = Journal(folder)
    assert [again.attempts(a), again.attempts(b)] == [2, 0]
    again.end(a, "failed")
    again.begin(b)
    assert [Journal(folder).attempts(a), Journal(folder).attempts(b)] == [0, 1]
    assert Journal(folder, fresh=True).attempts(b) == 0


def test_a_line_that_a_kill_cut_off_costs_itself_only(tmp_path):
    a, b = task(tmp_path, "a.png"), task(tmp_path, "b.png")
    Journal(str(tmp_path)).begin(a)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"event": "beg')
    Journal(str(tmp_path)).begin(b)
    assert [Journal(str(tmp_path)).attempts(t) for t in (a, b)] == [1, 1]


def test_many_lines_behind_a_url_become_parts_and_none_is_lost(memory):
    journal = Journal("memory://out")
    names = [task("memory://out", f"{i}.png") for i in range(250)]
    for one in names:
        journal.begin(one)
    assert len(memory.glob("/out/.tudsr-journal-*.jsonl")) == 3
    assert [Journal("memory://out").attempts(one) for one in names] == [1] * 250


def test_folders_behind_urls_keep_structure_and_resume(bicubic, photo, memory, tmp_path):
    for name in ("a.png", "deep/b.gif", "deep/.hidden/c.png", "note.txt"):
        put(memory, f"/in/{name}", photo, tmp_path) if not name.endswith("txt") else memory.pipe_file(
            f"/in/{name}", b""
        )
    result = run("memory://in", "-o", "memory://in/out", "--json", "--scale", 2)
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    pairs = [("memory://in/a.png", "memory://in/out/a.png"), ("memory://in/deep/b.gif", "memory://in/out/deep/b.png")]
    assert [(one["input"], one["output"]) for one in found] == pairs
    names = {Path(name).name for name in memory.find("/in/out")}
    journals = {name for name in names if re.fullmatch(r"\.tudsr-journal-00001-\w{8}\.jsonl", name)}
    assert len(journals) == 1
    assert names == {"a.png", "b.png"} | journals  # and no temporary one
    with memory.open("/in/out/deep/b.png") as file, Image.open(file) as picture:
        assert picture.size == (24, 16)
    again = run("memory://in", "-o", "memory://in/out", "--json", "--scale", 2)
    assert again.stdout == ""
    assert "exists already" in again.stderr


def test_a_url_gives_the_bytes_that_a_path_gives(bicubic, photo, memory, tmp_path):
    source = photo(tmp_path / "a.png")
    run(source, "-o", tmp_path / "x.png")
    put(memory, "/a.png", photo, tmp_path)
    for one, other in (("memory://a.png", tmp_path / "y.png"), (source, f"file://{tmp_path}/z.png")):
        assert run(one, "-o", other).exit_code == 0
    contents = {(tmp_path / name).read_bytes() for name in ("x.png", "y.png", "z.png")}
    assert len(contents) == 1


@pytest.mark.parametrize("before", ["", "simplecache::", "filecache::"])
@pytest.mark.parametrize(
    ("folder", "found"), [("in", ["a.png", "deep/b.png"]), ("", ["c.png", "in/a.png", "in/deep/b.png"])]
)
def test_pictures_in_archives(bicubic, photo, tmp_path, before, folder, found):
    file = photo(tmp_path / "p.png")
    archives = [tmp_path / "x.zip", tmp_path / "y.zip"]
    for archive in archives:
        with zipfile.ZipFile(archive, "w") as packed:
            for name in ("c.png", "in/a.png", "in/deep/b.png"):
                packed.write(file, name)
    urls = [f"{before}zip://{folder}::file://{archive}" for archive in archives]
    result = run(urls[0], "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")) == found
    tasks = plan_tasks(urls[:1], str(tmp_path / "out"))[0]
    assert tasks[0].source.endswith(f"/{found[0]}::file://{archives[0]}")
    with local_job(tasks[0]) as (job, _):
        assert job.source.suffix == ".png"
    with pytest.raises(InputError, match="would both become"):  # the same name in two archives is two pictures
        plan_tasks(urls, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("folder", "url"),
    [
        ("memory://in/", "memory://in/a.png"),
        ("memory://", "memory:///a.png"),
        ("zip://in::file:///x/z.zip", "zip://in/a.png::file:///x/z.zip"),
        ("zip::file:///x/z.zip", "zip:///a.png::file:///x/z.zip"),
        ("simplecache::s3://x/in/", "simplecache::s3://x/in/a.png"),
    ],
)
def test_a_name_in_a_folder_behind_a_url(folder, url):
    assert joined(folder, "a.png") == url


@pytest.mark.parametrize("folder", ["out [x4]", "out*", "out?1", "[o]ut"])
@pytest.mark.parametrize("root", ["memory://bucket", "file://{tmp}"])
def test_folders_behind_urls_may_have_names_like_patterns(bicubic, photo, memory, tmp_path, root, folder):
    source, output = photo(tmp_path / "in/p.png"), f"{root.format(tmp=tmp_path)}/{folder}"
    put(memory, "/bucket/out/p.png", photo, tmp_path)
    result = run(source, source.parent, "-o", output)
    assert result.exit_code == 0, result.output
    fs, path = fsspec.url_to_fs(output)
    found = {Path(name).name for name in fs.find(path)} - {"p.png"}
    assert fs.isfile(f"{path}/p.png")
    assert all(name.startswith(".tudsr-journal") for name in found)


def test_a_filesystem_that_cannot_copy_renames(bicubic, photo, memory, tmp_path, monkeypatch):
    def no(*_):
        raise NotImplementedError

    monkeypatch.setattr(type(memory), "cp_file", no)
    monkeypatch.setattr(type(memory), "mv", lambda fs, one, other: fs.store.update({other: fs.store.pop(one)}))
    assert run(photo(tmp_path / "p.png"), "-o", "memory://out/p.png").exit_code == 0
    assert list(memory.store) == ["/out/p.png"]


def test_what_could_not_be_uploaded_is_not_made_again(model_folder, photo, memory, tmp_path, monkeypatch):
    pytest.importorskip("pyvips", reason="the extra [huge] is not installed")
    on_disk = Fit(on_disk=True, most_px=None, parts={}, disk_bytes=0, passes=())
    monkeypatch.setattr(TUDSR, "fit", lambda *_, **__: on_disk)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    call = [photo(tmp_path / "a.png"), "-o", "memory://out/a.png", "--model", model_folder, "--scale", 2]

    def broken(*_, **__):
        raise OSError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "put_file", broken)
        error = run(*call).exception
    assert str(error) == "memory://out/a.png: cannot be used (the network is gone)."
    place = work_place(Task(source=str(call[0]), target="memory://out/a.png"))
    assert (place / "output.raw").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(TUDSR, "run_passes", lambda *_: lambda start: pytest.fail("rows were made again"))
        result = run(*call)
    assert result.exit_code == 0, result.output
    assert "going on with what an earlier run left" in result.stderr
    assert list(memory.store) == ["/out/a.png"]
    assert list(place.parent.iterdir()) == []


def test_errors_name_the_url_not_the_copy(bicubic, photo, memory, tmp_path):
    memory.pipe_file("/in/bad.png", b"not a picture")
    put(memory, "/in/good.png", photo, tmp_path)
    result = run("memory://in", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "memory://in/bad.png" in result.stderr
    assert "tudsr-" not in result.stderr


@pytest.mark.parametrize(
    ("inputs", "output", "says"),
    [
        (["memory://none"], "out", "no such file or folder"),
        (["nope://x/a.png"], "out", "cannot be used (Protocol not known: nope"),
        (["memory://in"], "x.png", "several pictures need a folder"),
        (["memory://in"], "memory://in", "is an input too"),
        (["memory://in/a.png"], "memory://x.gif", "cannot be written with the suffix"),
        (["memory://in", "memory://other"], "memory://out", "would both become"),
        (["memory://empty"], "out", "holds no picture"),
    ],
)
def test_urls_that_cannot_be_used_are_said(inputs, output, says, photo, memory, tmp_path):
    put(memory, "/in/a.png", photo, tmp_path)
    put(memory, "/other/a.png", photo, tmp_path)
    memory.pipe_file("/empty/x.txt", b"")
    with pytest.raises(InputError) as caught:
        plan_tasks(inputs, output)
    assert says in str(caught.value)


def test_ray_that_is_missing_says_which_extra(photo, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    photo(tmp_path / "in/a.png")
    error = run(tmp_path / "in", "-o", tmp_path / "out", "--engine", "ray").exception
    assert isinstance(error, InputError)
    assert "pip install tudsr[ray]" in str(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere", "ray://127.0.0.1:9", "127.0.0.1:x"])
def test_an_address_without_a_cluster_is_said(address, photo, tmp_path):
    pytest.importorskip("ray")
    photo(tmp_path / "in/a.png")
    error = run(tmp_path / "in", "-o", tmp_path / "out", "--engine", "ray", "--address", address).exception
    assert isinstance(error, InputError)
    assert f"--address {address}: no Ray cluster is reached there" in str(error)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--workers", 2], "belong to --engine ray"),
        (["--address", "auto"], "belong to --engine ray"),
        (["--split"], "belong to --engine ray"),
        (["--engine", "ray", "--split", "--vae", "whole"], "--vae whole works on the whole picture"),
        (["--engine", "ray", "--compare", "both.png"], "only --engine local"),
    ],
)
def test_options_of_the_other_engine_are_refused(options, says, photo, tmp_path):
    assert says in str(run(photo(tmp_path / "a.png"), "-o", tmp_path / "x.png", *options).exception)


def test_memory_urls_are_refused_for_ray(photo, memory, tmp_path):
    pytest.importorskip("ray")
    put(memory, "/a.png", photo, tmp_path)
    assert "other" in str(run("memory://a.png", "-o", tmp_path / "x.png", "--engine", "ray").exception)


CPU_NODES = [{"CPU": 8.0}, {"CPU": 4.0}, {"memory": 1.0}]
GPU_NODES = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 32.0, "GPU": 8.0}, {"CPU": 64.0}]


@pytest.mark.parametrize(
    ("nodes", "options", "share"),
    [
        (CPU_NODES, {"threads": 3}, Share(threads=3, gpus=0, workers=3, together=2, device="cpu")),
        (CPU_NODES, {"threads": 8}, Share(threads=8, gpus=0, workers=1, together=1, device="cpu")),
        (CPU_NODES, {"threads": 1, "workers": 5}, Share(threads=1, gpus=0, workers=5, together=5, device="cpu")),
        (GPU_NODES, {}, Share(threads=4, gpus=1, workers=10, together=8, device="cuda")),
        (GPU_NODES, {"device": "cpu", "threads": 16}, Share(threads=16, gpus=0, workers=7, together=4, device="cpu")),
        (GPU_NODES, {"device": "cuda", "threads": 16}, Share(threads=16, gpus=1, workers=3, together=2, device="cuda")),
    ],
)
def test_a_cluster_is_shared_out_machine_by_machine(nodes, options, share):
    assert share_out(nodes, Run(**options)) == share


def test_without_wishes_workers_compute_as_this_process_does(one_thread):
    assert share_out(CPU_NODES, Run()) == Share(threads=1, gpus=0, workers=12, together=8, device="cpu")


def test_a_worker_has_its_own_threads_and_its_part_of_the_memory(one_thread, monkeypatch):
    monkeypatch.setattr(machine, "_container_bytes", lambda: 8000)
    monkeypatch.setattr(machine, "_private_bytes", lambda process: 0)
    monkeypatch.setattr(machine, "_sharing", None)
    worker = Worker(Run(threads=2), Request(scale=4), 4)
    assert (torch.get_num_threads(), machine.free_bytes(torch.device("cpu"))) == (2, 8000 * 85 // 100 // 4)
    del worker
    assert machine.free_bytes(torch.device("cpu")) == 8000 * 85 // 100


@pytest.mark.parametrize(
    ("nodes", "options", "says"),
    [
        (CPU_NODES, {"threads": 9}, "1 workers of 9 threads were asked for, and the Ray cluster has room for 0"),
        (CPU_NODES, {"threads": 4, "workers": 4}, "has room for 3"),
        (CPU_NODES, {"device": "cuda"}, "no machine with a GPU"),
    ],
)
def test_a_cluster_without_room_is_said(nodes, options, says):
    with pytest.raises(InputError) as caught:
        share_out(nodes, Run(**options))
    assert says in str(caught.value)

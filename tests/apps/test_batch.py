from pathlib import Path

import pytest

from tudsr.apps.batch import plan_jobs
from tudsr.errors import InputError


def pairs(inputs, output):
    return [(str(job.source), str(job.target)) for job in plan_jobs([Path(i) for i in inputs], output)]


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")


def test_a_file_goes_to_a_file():
    make("a.png")
    assert pairs(["a.png"], "b.jpg") == [("a.png", "b.jpg")]


@pytest.mark.parametrize("output", ["out", "out/", "new.d/"])
def test_a_file_goes_into_a_folder(output):
    make("a.png")
    assert pairs(["a.png"], output) == [("a.png", str(Path(output) / "a.png"))]


def test_an_existing_folder_with_a_dot_is_a_folder():
    make("a.png")
    Path("v1.2").mkdir()
    assert pairs(["a.png"], "v1.2") == [("a.png", "v1.2/a.png")]


def test_folders_keep_their_structure_spaces_case_and_unicode():
    make("in/b.JPG", "in/sub dir/Straße 日本.png", "in/a.webp", "in/notes.txt", "in/.hidden.png", "in/.cache/c.png")
    assert pairs(["in"], "out") == [
        ("in/a.webp", "out/a.webp"),
        ("in/b.JPG", "out/b.JPG"),
        ("in/sub dir/Straße 日本.png", "out/sub dir/Straße 日本.png"),
    ]


def test_files_and_folders_mix_and_a_file_named_twice_comes_once():
    make("in/a.png", "z.png")
    assert pairs(["z.png", "in", "in/a.png"], "out") == [("z.png", "out/z.png"), ("in/a.png", "out/a.png")]


def test_an_output_folder_inside_the_input_is_not_read_again():
    make("a.png", "out/a.png")
    assert pairs(["."], "out") == [("a.png", "out/a.png")]


def test_an_output_folder_above_the_input_leaves_nothing_out():
    make("in/deep/a.png")
    assert pairs(["in"], ".") == [("in/deep/a.png", "deep/a.png")]


def test_what_cannot_be_written_becomes_png():
    make("in/a.gif", "in/b.tiff")
    assert pairs(["in"], "out") == [("in/a.gif", "out/a.png"), ("in/b.tiff", "out/b.tiff")]
    make("in/a.png")  # which would be the GIF's output too
    assert pairs(["in"], "out")[:2] == [("in/a.gif", "out/a.gif.png"), ("in/a.png", "out/a.png")]


def test_a_link_to_an_input_is_an_input_too():
    make("a.png")
    Path("b.png").symlink_to("a.png")
    with pytest.raises(InputError, match="input too"):
        pairs(["a.png"], "b.png")


@pytest.mark.parametrize(
    ("inputs", "output", "says"),
    [
        (["gone.png"], "out", "no such file or folder"),
        (["empty"], "out", "holds no picture"),
        (["a.png"], "a.png", "input too"),
        (["in"], "in", "input too"),
        (["a.png", "in/b.png"], ".", "input too"),
        (["in", "in2"], "out", "both become"),
        (["c.gif", "c.png"], "out", "both become"),
        (["a.png"], "b.xyz", "accepted are"),
        (["a.png", "c.png"], "out.png", "several pictures need a folder"),
        (["in"], "file", "several pictures need a folder"),
        (["a.png"], "blocked", "in the way"),
    ],
)
def test_refused_before_any_work(inputs, output, says):
    make("a.png", "c.gif", "c.png", "in/b.png", "in2/b.png", "file", "blocked/a.png/x")
    Path("empty").mkdir()
    with pytest.raises(InputError, match=says):
        pairs(inputs, output)

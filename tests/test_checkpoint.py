"""Atomic writes, hashes and safetensors with metadata."""

import errno
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tudsr import checkpoint
from tudsr.checkpoint import (
    atomic_path,
    load_tensors,
    replaced_folder,
    save_tensors,
    sha256_file,
    sweep_temporary,
    verify_hashes,
    weight_hashes,
    write_text,
)
from tudsr.errors import ModelError


def test_a_file_appears_whole_in_a_new_folder(tmp_path: Path):
    target = tmp_path / "a" / "b.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.suffix == ".txt"
    assert target.read_text() == "half"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_the_old_file_and_no_litter(tmp_path: Path):
    target = tmp_path / "b.txt"
    write_text(target, "old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("new, but")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


KILLED = """
import os, signal, sys
from pathlib import Path
from tudsr.checkpoint import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    sys.stdin.read()
"""


def test_what_a_kill_left_goes_with_the_next_run_and_what_is_being_written_does_not(tmp_path: Path, monkeypatch):
    pytest.importorskip("fcntl")
    target, others = tmp_path / "b.png", [tmp_path / name for name in (".tudsr-mine.png", f".{'0' * 32}.png")]
    for other in others:
        other.touch()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", KILLED, target], stdin=pipe, stdout=pipe, text=True) as process:
        temporary = tmp_path / process.stdout.readline().strip()
        assert temporary.read_text() == "half"
        assert temporary.suffix == ".png"
        write_text(target, "of another process")
        assert temporary.exists()
        process.kill()
    write_text(target, "again")
    assert temporary.exists()  # a process looks once
    monkeypatch.setattr(checkpoint, "_tidied", set())
    write_text(tmp_path / "c.png", "another target")
    write_text(target, "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"b.png", "c.png", *(other.name for other in others)}
    assert target.read_text() == "whole"


def test_without_locks_files_are_written_and_nothing_is_removed(tmp_path: Path, monkeypatch):
    """Of a filesystem that knows none, of one that lets nobody write what is locked, and of a system without them."""
    fcntl, target = pytest.importorskip("fcntl"), tmp_path / "b.png"

    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    def denied(*_):
        raise PermissionError

    with atomic_path(target) as held:
        for owner, name, value in (
            (fcntl, "flock", unknown),
            (Path, "write_bytes", denied),
            (checkpoint, "fcntl", None),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, value)
                write_text(target, name)
            assert target.read_text() == name
            assert {path.name for path in tmp_path.iterdir()} == {"b.png", held.name}
        held.write_text("held")
    assert target.read_text() == "held"


def test_what_kills_left_is_swept_and_nothing_else(tmp_path: Path):
    for name in (f".{'0a' * 16}.pt", f".tudsr-{'0a' * 16}.pt", f".{'b' * 32}", ".tmpAb1xYz", ".hidden.pt", "state.pt"):
        (tmp_path / name).write_text("x")
    sweep_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden.pt", "state.pt"]
    sweep_temporary(tmp_path / "not there")


def test_what_is_written_is_for_those_the_umask_says(tmp_path: Path):
    """safetensors writes a file of its own, for nobody but its owner."""
    (tmp_path / "plain").touch()
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    write_text(tmp_path / "b.txt", "b")
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "plain").stat().st_mode}
    assert len(list(tmp_path.iterdir())) == 3


def test_tensors_and_metadata_come_back(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    turned = torch.arange(6.0).view(2, 3).t()  # not contiguous: safetensors itself would refuse it
    tensors = {"a": turned, "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.ones(1, requires_grad=True)}
    metadata = {"t": 200, "range": (1.0, 4.0), "lora": {"rank": 4}, "prompt": "", "flag": True}
    save_tensors(path, tensors, metadata)
    loaded, read = load_tensors(path)
    assert read == metadata | {"range": [1.0, 4.0]}
    assert loaded.keys() == tensors.keys()
    for key, value in tensors.items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], value)


def test_files_of_other_writers_keep_their_plain_text_metadata(tmp_path: Path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", {"format": "pt", "step": "7"})
    assert load_tensors(tmp_path / "x.safetensors")[1] == {"format": "pt", "step": "7"}
    save_file({"a": torch.ones(1)}, tmp_path / "y.safetensors")
    assert load_tensors(tmp_path / "y.safetensors")[1] == {}


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.ckpt"])
def test_a_pickle_is_refused_unread(tmp_path: Path, name: str):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "boom",))

    torch.save(Bomb(), tmp_path / name)
    with pytest.raises(ModelError, match=r"only \.safetensors"):
        load_tensors(tmp_path / name)
    assert not (tmp_path / "boom").exists()


def test_missing_truncated_and_disguised_files_are_model_errors(tmp_path: Path):
    good = tmp_path / "good.safetensors"
    save_tensors(good, {"a": torch.ones(100)})
    (tmp_path / "short.safetensors").write_bytes(good.read_bytes()[:-20])
    torch.save({"a": torch.ones(1)}, tmp_path / "disguised.safetensors")
    with pytest.raises(ModelError, match="none.safetensors: no such file"):
        load_tensors(tmp_path / "none.safetensors")
    for name in ("short", "disguised"):
        with pytest.raises(ModelError, match=f"{name}.safetensors: not a readable"):
            load_tensors(tmp_path / f"{name}.safetensors")


def test_hashes_and_their_verification(tmp_path: Path):
    for name in ("a.safetensors", "unet/b.safetensors", "unet/c.safetensors"):
        save_tensors(tmp_path / name, {"w": torch.full((3,), float(len(name)))})
    (tmp_path / ".d.1234.safetensors").write_bytes(b"left by a kill")
    (tmp_path / "notes.txt").write_text("not a weight")
    hashes = weight_hashes(tmp_path)
    assert set(hashes) == {"a.safetensors", "unet/b.safetensors", "unet/c.safetensors"}
    for name, digest in hashes.items():
        assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256_file(tmp_path / name)
    assert verify_hashes(tmp_path, hashes) == []
    save_tensors(tmp_path / "unet/b.safetensors", {"w": torch.zeros(3)})
    (tmp_path / "a.safetensors").unlink()
    del hashes["unet/c.safetensors"]
    lines = verify_hashes(tmp_path, hashes)
    assert len(lines) == 3
    assert lines[0] == "a.safetensors: missing"
    assert lines[1] == "unet/c.safetensors: not listed in tudsr.json"
    assert lines[2].startswith("unet/b.safetensors: SHA-256 is ")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "model"
    for text in ("first", "second"):
        with replaced_folder(target) as folder:
            (folder / text).write_text(text)

    def fail() -> None:
        with replaced_folder(target) as folder:
            (folder / "third").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in target.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

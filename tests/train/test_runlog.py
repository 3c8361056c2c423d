"""A run's record: its commit is this package's own, its figures are on disk when they are logged."""

import shutil
import subprocess

import pytest

from tudsr.machine import commit
from tudsr.train.runlog import RunLog


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_only_the_packages_own_checkout_gives_a_commit(tmp_path):
    own, foreign = tmp_path / "src" / "tudsr", tmp_path / "venv" / "tudsr"
    for package in (own, foreign):
        package.mkdir(parents=True)
    assert commit(own) == "unknown"
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    assert len(commit(own)) == 12
    assert commit(foreign) == "unknown"


def test_a_kill_takes_no_figures_from_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path, {}, 0)
    for step in range(1, 31):
        log.scalars(step, {"loss_g": 1.0, "loss_d": 2.0})
    (events,) = (tmp_path / "tensorboard").iterdir()
    at_the_kill = events.read_bytes()
    log._board.close()
    assert events.read_bytes() == at_the_kill
    assert at_the_kill.count(b"loss_g") == at_the_kill.count(b"loss_d") == 30

"""The commit of a run's record is this package's own."""

import shutil
import subprocess

import pytest

from tudsr.machine import commit


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

"""The scripts for a GPU machine: where figures say that they come from, and a model that was left half made."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "scripts" / "gpu"


@pytest.fixture
def bash(tmp_path):
    """Return a function that runs a line of bash beside the scripts, whose store is set up: its output's lines."""
    (tmp_path / "store/site").mkdir(parents=True)
    (tmp_path / "store/commit").write_text("packed")
    shutil.copytree(GPU, tmp_path / "scripts/gpu")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/timeout").write_text('#!/bin/sh\necho "$@" >> calls\n')
    (tmp_path / "bin/timeout").chmod(0o755)
    own = {name: value for name, value in os.environ.items() if name != "TUDSR_COMMIT"}
    own |= {"TUDSR_STORE": str(tmp_path / "store"), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def run(line: str) -> list[str]:
        return subprocess.check_output(["bash", "-c", line], cwd=tmp_path, env=own, text=True).splitlines()

    return run


def test_the_commit_is_the_one_that_is_given_else_the_packed_one(bash):
    said = "source scripts/gpu/setup.sh; python3 -c 'import os; print(os.environ[\"TUDSR_COMMIT\"])'"
    assert bash(said) == ["packed"]
    assert bash(f"export TUDSR_COMMIT=given; {said}") == ["given"]


def test_a_half_made_model_is_made_anew_and_a_whole_one_kept(bash, tmp_path):
    model, calls = tmp_path / "store/sd21", tmp_path / "calls"
    (model / "unet").mkdir(parents=True)
    bash("bash scripts/gpu/bench.sh out")
    assert not model.exists()
    first = calls.read_text().splitlines()[0]
    assert first == f"240 python3 -m tudsr models init sd21 --random-weights --out {model}"
    model.mkdir()
    (model / "tudsr.json").touch()
    calls.unlink()
    bash("bash scripts/gpu/bench.sh out")
    assert model.exists()
    assert "init" not in calls.read_text()
    assert calls.read_text().startswith("200 python3 benchmarks/warm.py")
    assert "benchmarks/memory.py" in calls.read_text()
    calls.unlink()
    bash("MEMORY=no bash scripts/gpu/bench.sh out")
    assert "benchmarks/memory.py" not in calls.read_text()


def test_what_memory_counts_for_fails_where_a_step_does(bash, tmp_path):
    (tmp_path / "store/sd21").mkdir(parents=True)
    (tmp_path / "store/sd21/tudsr.json").touch()
    (tmp_path / "tests").mkdir()
    assert bash("bash scripts/gpu/bench_memory.sh out; echo $?")[-1] == "0"
    (tmp_path / "bin/timeout").write_text("#!/bin/sh\nfalse\n")
    assert bash("bash scripts/gpu/bench_memory.sh out; echo $?")[-1] == "1"

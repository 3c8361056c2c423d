"""The rate of matrix products from times that are known; where the code comes from."""

import re

import pytest
import torch

from tudsr import machine


@pytest.mark.parametrize(
    ("seconds", "runs", "median"), [([9.0] + [0.01, 0.02, 0.03] * 3, 9, 0.02), ([9.0, 0.6, 0.6], 2, 0.6)]
)
def test_the_rate_is_the_medians_and_the_warm_up_does_not_count(monkeypatch, seconds, runs, median):
    times = iter(seconds)
    monkeypatch.setattr(machine, "_MATMUL_SIDE_ELSEWHERE", 100)
    monkeypatch.setattr(machine, "_timed_matmul", lambda a, b: next(times))
    found = machine.matmul_rate(torch.device("cpu"), torch.float32)
    assert (found["side"], found["runs"]) == (100, runs)
    assert found["tflops"] == pytest.approx(2e6 / median / 1e12)


def test_matrices_are_multiplied_in_the_dtype(monkeypatch):
    seen = []
    monkeypatch.setattr(machine, "_MATMUL_SIDE_ELSEWHERE", 16)
    real = machine._timed_matmul
    monkeypatch.setattr(machine, "_timed_matmul", lambda a, b: seen.append((a.dtype, b.shape)) or real(a, b))
    assert machine.matmul_rate(torch.device("cpu"), torch.bfloat16)["tflops"] > 0
    assert set(seen) == {(torch.bfloat16, (16, 16))}


def test_a_machine_says_what_figures_depend_on():
    found = machine.machine(torch.device("cpu"), "bf16")
    assert (found["device"], found["dtype"], found["threads"]) == ("cpu", "bfloat16", torch.get_num_threads())
    assert re.fullmatch(r"unknown|[0-9a-f]{12}\+?|.*-g[0-9a-f]{12}\+?", machine.commit())


def test_a_copy_without_its_repository_is_told_its_commit(monkeypatch):
    monkeypatch.setenv("TUDSR_COMMIT", "0123456789ab")
    assert machine.commit() == "0123456789ab"

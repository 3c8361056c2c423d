"""The scripts of the ablations as modules."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def _load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the scripts import each other by these names
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def modules():
    """Return (adapters, parts, plan, results, script): each imports those before it."""
    names = ("adapters", "ablation_parts", "ablation_plan", "ablation_results", "ablations")
    before = {name: sys.modules.get(name) for name in names}
    yield tuple(_load(name) for name in before)
    for name, module in before.items():
        sys.modules.pop(name)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture(scope="module")
def make_pairs():
    """Return the script that makes pairs."""
    yield _load("make_pairs")
    del sys.modules["make_pairs"]


@pytest.fixture
def parts(modules):
    return modules[1]


@pytest.fixture
def plan(modules):
    return modules[2]


@pytest.fixture
def results(modules):
    return modules[3]


@pytest.fixture
def script(modules):
    return modules[4]

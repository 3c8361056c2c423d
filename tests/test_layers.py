"""The house: imports go one way, downward; files and functions stay short; what needs no torch imports none."""

import ast
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "tudsr"

# From the top down. A module may import those of lower rows, and its own: modules of one group, such as the files of
# a folder, belong together; groups of one row do not know each other.
LAYERS = [
    ["__main__"],
    ["apps"],
    ["train", "eval", "files"],
    ["spooled"],
    ["pipeline", "models"],
    ["memory", "spread"],
    ["cost", "graphs", "request", "whole"],
    ["stage", "folder", "presets"],
    ["backbones", "lora", "one_step", "tiling", "color", "alpha", "canvas", "perceptual", "data", "planner", "machine"],
    ["windows", "resize", "image", "device"],
    ["find"],
    ["config", "checkpoint"],
    ["errors"],
]
RANKS = {group: len(LAYERS) - number for number, row in enumerate(LAYERS) for group in row}
NO_TORCH = [
    "errors",
    "config",
    "windows",
    "planner",
    "find",
    "image_decode",
    "image_encode",
    "presets",
    "apps/cli",
    "apps/batch",
]
OPEN_NAMES = {"__version__"}  # of the package itself
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_EXAMPLE_LINES = 300, 60, 40

MODULES = sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")
OURS = sorted(
    path for folder in ("src", "tests", "benchmarks", "scripts", "examples") for path in (ROOT / folder).rglob("*.py")
)


def group_of(module: str) -> str:
    """Give the group of «tudsr.data.kernels» or «data.kernels»; image.py and its image_….py are one."""
    first = module.removeprefix("tudsr.").split(".")[0]
    return "image" if first.startswith("image_") else first


def imported(path: Path) -> Iterator[str]:
    """Yield the full names of all modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "tudsr":
                yield from (f"tudsr.{alias.name}" for alias in node.names if alias.name not in OPEN_NAMES)
            else:
                yield node.module or ""


def name_of(path: Path) -> str:
    return path.relative_to(SRC).with_suffix("").as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downward(path):
    own = group_of(name_of(path).replace("/", "."))
    assert own in RANKS, f"{own} has no place in LAYERS yet"
    for module in imported(path):
        if module == "tudsr":
            assert own == "apps", f"{name_of(path)} imports the package's public names from below"
        elif module.startswith("tudsr."):
            other = group_of(module)
            assert other in RANKS, f"{other} has no place in LAYERS yet"
            assert other == own or RANKS[other] < RANKS[own], f"{name_of(path)} imports {module}, which is not below it"


@pytest.mark.parametrize("name", NO_TORCH)
def test_what_needs_no_torch_imports_none(name):
    path = SRC / f"{name}.py"
    top = ast.parse(path.read_text(encoding="utf-8")).body
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
    assert not {n for n in names if n.split(".")[0] in ("torch", "diffusers", "peft", "transformers")}


def test_there_is_no_torchvision_timm_or_pyiqa_in_the_core():
    for path in MODULES:
        assert not {m for m in imported(path) if m.split(".")[0] in ("torchvision", "timm", "pyiqa", "cv2")}, path


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    top = path.relative_to(ROOT).parts[0]
    limits = {"examples": MAX_EXAMPLE_LINES, "tests": math.inf}  # a test file mirrors its module, however much there is
    assert len(text.splitlines()) <= limits.get(top, MAX_FILE_LINES)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


def test_only_apps_print():
    for path in MODULES:
        if group_of(name_of(path).replace("/", ".")) == "apps":
            continue
        calls = [
            node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ]
        assert not [c for c in calls if isinstance(c, ast.Name) and c.id == "print"], path

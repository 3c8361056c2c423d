"""The wheel holds and declares what the package needs; the README's commands exist."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

from tudsr.apps.cli import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tudsr"
BUILD_NEEDS = ("pyproject.toml", "README.md", "LICENSE")


def names_below(folder: Path, root: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix() for path in files}


def test_the_embedded_weights_stay_small():
    assert sum((PACKAGE / name).stat().st_size for name in names_below(PACKAGE / "weights", PACKAGE)) <= 24_000_000


@pytest.mark.slow
def test_a_wheel_works_from_anywhere(tmp_path):
    """Built, installed into an environment of its own, and used outside the clone: it enlarges a picture."""
    pytest.importorskip("setuptools", minversion="77")
    wheel = _build_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
    wanted = {"tudsr/py.typed"}
    for data in ("perceptual/tables", "eval/page", "weights/tiny"):
        wanted |= names_below(PACKAGE / data, PACKAGE.parent)
    wanted |= {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py")}
    assert wanted - held == set()

    bin_folder = _environment_with(wheel, tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = [bin_folder / "python", "-c", "import tudsr; print(tudsr.__file__)"]
    found = subprocess.check_output(where, cwd=tmp_path, env=environment, text=True)
    assert Path(found.strip()).is_relative_to(tmp_path)
    Image.new("RGB", (24, 16), (40, 120, 200)).save(tmp_path / "photo.png")
    call = [bin_folder / "tudsr", "upscale", "photo.png", "-o", "large.png", "--scale", "8", "--json"]
    result = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["out_size"] == [192, 128]
    with Image.open(tmp_path / "large.png") as large:
        assert large.size == (192, 128)


def _build_wheel(folder: Path) -> Path:
    checkout = folder / "checkout"  # a copy: the build leaves folders behind, and takes what older builds left
    shutil.copytree(PACKAGE, checkout / "src" / "tudsr", ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILD_NEEDS:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(checkout)]
    made = subprocess.run(build, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("tudsr-*.whl")
    return wheel


def _environment_with(wheel: Path, folder: Path) -> Path:
    """Make a virtual environment that holds the wheel, and finds all else where these tests do; return its bin."""
    venv.create(folder / "venv", with_pip=True)
    bin_folder = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = [bin_folder / "python", "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index"]
    made = subprocess.run([*pip, wheel], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    # A plain line of a .pth file adds a folder without reading the .pth files in it: an editable tudsr stays unseen.
    paths = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([bin_folder / "python", "-c", paths], text=True).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return bin_folder


def normalised(name: str) -> str:
    """Return a distribution's name as indexes compare it. Source: PyPA, «Names and normalization»."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    """Return the distributions that pyproject.toml names, for the core or for an extra that users may want."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [lines for extra, lines in project["optional-dependencies"].items() if extra != "dev"]
    lines = [line for group in (project["dependencies"], *extras) for line in group]
    return {normalised(re.match(r"[\w.-]+", line)[0]) for line in lines}


@cache
def installed() -> Mapping[str, list[str]]:
    """Return {first name of a module: the distributions that have it}."""
    return packages_distributions()


def imported(source: str) -> Iterator[str]:
    """Yield the first names of all modules that a source imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def undeclared(source: str) -> set[str]:
    """Return the modules a source imports that belong to no declared distribution."""
    foreign = set(imported(source)) - sys.stdlib_module_names - {"tudsr"}
    # One that is not installed here, such as an extra's, is taken to be called as its distribution.
    owners = {name: {normalised(owner) for owner in installed().get(name, [name])} for name in foreign}
    return {name for name in foreign if not owners[name] & declared()}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_what_the_package_imports_is_declared(path):
    assert undeclared(path.read_text(encoding="utf-8")) == set()


def test_an_import_that_is_not_declared_is_found():
    source = (
        "import os, scipy.ndimage\nfrom PIL import Image\ndef f():\n    from skimage import io\n    import nowhere.x"
    )
    assert undeclared(source) == {"scipy", "skimage", "nowhere"}


def readme_commands() -> list[str]:
    """Return the lines of README's sh blocks that call tudsr, and the calls in its running text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [line for line in [*lines, *re.findall(r"`([^`]+)`", prose)] if line.startswith("tudsr ")]


def unknown_words(line: str) -> list[str]:
    """Return the words of a call that are no command, and the options that the command does not have."""
    command: Any = get_command(app)
    words = shlex.split(line, comments=True)[1:]
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            return words[:1]
        command = command.commands[words.pop(0)]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
    return [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]


def test_the_readme_has_commands():
    assert {shlex.split(line, comments=True)[1] for line in readme_commands()} >= {"upscale", "models", "info", "train"}


@pytest.mark.parametrize("line", readme_commands())
def test_the_readmes_commands_exist(line):
    assert unknown_words(line) == []


@pytest.mark.parametrize("line", ["tudsr enlarge a.png", "tudsr upscale a.png --sclae 4", "tudsr models make tiny"])
def test_a_command_that_does_not_exist_is_found(line):
    assert len(unknown_words(line)) == 1

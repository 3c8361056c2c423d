"""The command as a process: start-up time, exit codes, signals, streams."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from tudsr.apps.report import peak_rss_mb

PHOTOS = Path(__file__).parents[1] / "photos"
EMBEDDED = Path(str(resources.files("tudsr"))) / "weights/tiny/tudsr.json"
needs_tiny = pytest.mark.skipif(not EMBEDDED.is_file(), reason="the embedded model is not there")


def tudsr(*arguments, **options):
    command = [sys.executable, "-m", "tudsr", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300, **options)


def test_help_imports_nothing_heavy():
    heavy = "torch", "diffusers", "transformers", "pydantic", "numpy", "rich", "PIL"
    code = f"import sys, tudsr.apps.cli; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_help_is_quick():
    def seconds():
        begun = time.perf_counter()
        assert tudsr("--help").returncode == 0
        return time.perf_counter() - begun

    assert statistics.median(seconds() for _ in range(5)) < 1.0  # 0.3 s on an idle machine; tests may share theirs


@pytest.mark.parametrize("command", [[], ["upscale"], ["info"], ["train"], ["models"], ["models", "init"]])
def test_every_command_has_help(command):
    result = tudsr(*command, "--help")
    assert result.returncode == 0
    assert "Usage:" in result.stdout


def test_version():
    import tudsr as package

    assert tudsr("--version").stdout.strip() == f"tudsr {package.__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["upscale", "gone.png", "-o", "x.png"],
        ["upscale"],
        ["upscale", "--color", "pink"],
        ["info", "nowhere"],
        ["models", "init", "sd22", "--out", "x"],
        ["models", "init", "tiny", "--out", "x"],
        ["models", "verify", "nowhere"],
        ["train", "--data", "nowhere", "--out", "x", "--model", "nowhere"],
        ["train", "--data", "d", "--out", "x", "--estimate-t", "--set", "lr=1"],
        ["nonsense"],
    ],
)
def test_mistakes_are_sentences_and_exit_code_2(arguments, tmp_path):
    result = tudsr(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x").exists()


def test_control_c_exits_130(tmp_path):
    (tmp_path / "a.png").write_bytes((PHOTOS / "lake.webp").read_bytes())
    code = (
        "import os, signal, sys, tudsr\n"
        "from tudsr.apps.cli import main\n"
        "tudsr.load = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.argv = ['tudsr', 'upscale', 'a.png', '-o', 'x.png']\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in result.stderr


def test_peak_memory_is_this_process_own():
    code = "from tudsr.apps.report import peak_rss_mb; print(peak_rss_mb())"
    ballast = bytearray(os.urandom(1)) * 300_000_000  # resident in the parent while the child starts
    child = float(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert peak_rss_mb() >= len(ballast) / 1e6
    assert 5 < child < 200


@pytest.fixture(scope="module")
def random_tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny random"
    result = tudsr("models", "init", "tiny", "--random-weights", "--out", folder)
    assert result.returncode == 0, result.stderr
    assert str(folder) in result.stdout
    return folder


@pytest.mark.slow
def test_a_model_is_made_told_and_verified(random_tiny, tmp_path):
    facts = json.loads(tudsr("info", random_tiny, "--json").stdout)
    assert facts["name"] == "tiny"
    assert facts["parameters"]["unet/diffusion_pytorch_model.safetensors"] > 1e5
    assert "windows" in tudsr("info", random_tiny).stdout
    assert tudsr("models", "verify", random_tiny).returncode == 0
    assert tudsr("models", "init", "tiny", "--random-weights", "--out", random_tiny).returncode == 2
    copy = shutil.copytree(random_tiny, tmp_path / "copy")
    weights = next(copy.rglob("*.safetensors"))
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    damaged = tudsr("models", "verify", copy)
    assert damaged.returncode == 2
    assert weights.relative_to(copy).as_posix() in damaged.stderr


@pytest.mark.slow
def test_upscale_end_to_end_with_random_weights(random_tiny, tmp_path):
    with Image.open(PHOTOS / "lake.webp") as photo:
        photo.resize((33, 21)).save(tmp_path / "Größe 1.PNG")
    result = tudsr("upscale", "Größe 1.PNG", "-o", "out/", "--model", random_tiny, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["out_size"] == [264, 168]
    with Image.open(tmp_path / "out/Größe 1.PNG") as picture:
        assert picture.size == (264, 168)


@needs_tiny
@pytest.mark.slow
def test_the_embedded_model_enlarges_a_photo(tmp_path):
    with Image.open(PHOTOS / "budgie.webp") as photo:
        photo.crop((150, 100, 246, 180)).save(tmp_path / "a.png")
    result = tudsr("upscale", "a.png", "-o", "x.png", "--compare", "both.jpg", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["out_size"] == [768, 640]
    with Image.open(tmp_path / "both.jpg") as both:
        assert both.width > 2 * 768

"""The command as a process: start-up time, exit codes, signals, streams."""

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
from functools import partial
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

import tudsr as package
from tudsr.apps import cli
from tudsr.apps.cli import main
from tudsr.apps.report import peak_rss_mb

PHOTOS = Path(__file__).parents[1] / "photos"
EMBEDDED = Path(str(resources.files("tudsr"))) / "weights/tiny/tudsr.json"
RANDOM_SAID = "tiny with random weights (seed 0): its pictures mean nothing until it is trained.\nmy model\n"
needs_tiny = pytest.mark.skipif(not EMBEDDED.is_file(), reason="the embedded model is not there")


def tudsr(*arguments, **options):
    command = [sys.executable, "-m", "tudsr", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300, **options)


def test_help_imports_nothing_heavy():
    heavy = "torch", "diffusers", "transformers", "pydantic", "numpy", "rich", "PIL"
    code = f"import sys, tudsr.apps.cli; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_help_is_quick():
    def cpu_seconds():  # not wall time, which grows when the machine has other work
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert tudsr("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert statistics.median(cpu_seconds() for _ in range(5)) < 0.3


@pytest.mark.parametrize(
    "command", [[], ["upscale"], ["info"], ["train"], ["models"], ["models", "init"], ["eval"], ["degrade"]]
)
def test_every_command_has_help(command):
    result = tudsr(*command, "--help")
    assert result.returncode == 0
    assert "Usage:" in result.stdout


def test_version():
    assert tudsr("--version").stdout.strip() == f"tudsr {package.__version__}"


MISTAKES = [
    ["upscale", "gone.png", "-o", "x.png"],
    ["upscale"],
    ["upscale", "--color", "pink"],
    ["info", "nowhere"],
    ["models", "init", "sd22", "--out", "x"],
    ["models", "init", "tiny", "--out", "x"],
    ["models", "verify", "nowhere"],
    ["train", "--data", "nowhere", "--out", "x", "--model", "nowhere"],
    ["train", "--data", "d", "--out", "x", "--estimate-t", "--set", "lr=1"],
    ["train", "--data", "d", "--out", "x", "--estimate-t", "--resume"],
    ["train", "--data", "d", "--out", "x", "--set", f"seed={2**64}"],
    ["train", "--data", "d", "--out", "a file/x"],
    ["train", "--data", "d", "--out", "a file/x", "--estimate-t"],
    ["upscale", "photo.png", "-o", "a file/x.png"],
    ["upscale", "photo.png", "-o", "x.png", "--compare", "a file/c.png"],
    ["upscale", "photo.png", "-o", "x.png", "--tile-px", "1000000000"],
    ["upscale", "n" * 300 + ".png", "-o", "x.png"],
    ["upscale", "zip://a.png::photo.png", "-o", "x.png"],
    ["models", "init", "tiny", "--random-weights", "--out", "a file/x"],
    ["nonsense"],
]


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_sentences_and_exit_code_2(arguments, call, tmp_path):
    (tmp_path / "a file").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    code, out, err = call(*arguments)
    assert code == 2
    assert out == ""
    assert err.splitlines()[-1].startswith("Error: "), "more than one line"
    assert "Traceback" not in err
    assert not (tmp_path / "x").exists()


def test_ending_it_from_outside_unwinds_it_like_an_exception(monkeypatch):
    """So that the journal says «stopped» of what was in work."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "app", lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.value.code == 143


def test_a_process_that_it_made_ends_as_it_would_without():
    """A loader's worker, say, inherits the handler, and has nothing to unwind."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, partial(cli._stop, os.getppid()))
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM


def test_settings_that_do_not_go_together_are_named_and_the_others_are_not(call):
    _, _, err = call("train", "--data", "d", "--out", "x", "--set", "stage_1=1", "--set", "loss_crop_px=1000")
    assert "'stage_1' is not a setting" in err
    _, _, err = call("train", "--data", "d", "--out", "x", "--set", "loss_crop_px=1000")
    assert err == "Error: training settings: loss_crop_px may be at most crop_px.\n"


def test_a_file_name_that_is_no_text_is_no_mistake(tmp_path):
    name = os.fsdecode(b"p\xff.png")
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    call = ("upscale", str(tmp_path), "-o", str(tmp_path / "out"), "--json")
    result = tudsr(*call)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["output"] == str(tmp_path / "out" / name)
    assert (tmp_path / "out" / name).is_file()
    assert "exists already" in tudsr(*call).stderr


def test_a_mistake_in_a_real_process(tmp_path):
    result = tudsr("upscale", "gone.png", "-o", "x.png", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "Error: gone.png: no such file or folder.\n"


@pytest.fixture
def python_sigint():
    """Python's own handler: a job started in the background inherits an ignored SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_sigint")
def test_control_c_exits_130(call, monkeypatch, tmp_path):
    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(package, "load", interrupted)
    (tmp_path / "a.webp").write_bytes((PHOTOS / "lake.webp").read_bytes())
    code, _, err = call("upscale", "a.webp", "-o", "x.png")
    assert code == 130
    assert "Traceback" not in err
    assert not (tmp_path / "x.png").exists()


def test_peak_memory_is_this_process_own():
    code = "from tudsr.apps.report import peak_rss_mb; print(peak_rss_mb())"
    ballast = bytearray(os.urandom(1)) * 800_000_000  # held by the parent while the child, with torch, starts
    child = float(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert peak_rss_mb() >= len(ballast) / 1e6
    assert 5 < child < len(ballast) / 2e6


def test_a_model_is_made_told_verified_and_used(call, tmp_path):
    assert call("models", "init", "tiny", "--random-weights", "--out", "my model")[:2] == (0, RANDOM_SAID)
    assert call("models", "init", "tiny", "--random-weights", "--out", "my model")[0] == 2
    both = call("models", "init", "tiny", "--random-weights", "--vae", "some/vae", "--out", "another")
    assert both == (2, "", "Error: --vae and --random-weights were both given; one of them is accepted.\n")
    facts = json.loads(call("info", "my model", "--json")[1])
    assert facts["name"] == "tiny"
    assert facts["parameters"]["unet/diffusion_pytorch_model.safetensors"] > 1e5
    assert "windows" in call("info", "my model")[1]
    assert call("models", "verify", "my model")[0] == 0

    with Image.open(PHOTOS / "lake.webp") as photo:
        photo.resize((33, 21)).save("Größe 1.PNG")
    code, out, err = call("upscale", "Größe 1.PNG", "-o", "out/", "--model", "my model", "--json")
    assert code == 0, err
    assert json.loads(out)["out_size"] == [264, 168]
    with Image.open("out/Größe 1.PNG") as picture:
        assert picture.size == (264, 168)

    weights = Path("my model/unet/diffusion_pytorch_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, _, err = call("models", "verify", "my model")
    assert code == 2
    assert "unet/diffusion_pytorch_model.safetensors: SHA-256" in err


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

"""Picture files in little memory: the same bytes as in much, and a killed run goes on where it was."""

import errno
import json
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, PngImagePlugin

from tudsr import files, spooled
from tudsr.canvas import MemoryStore
from tudsr.errors import InputError
from tudsr.files import upscale_file
from tudsr.image import read_picture
from tudsr.image_decode import decode_file
from tudsr.image_encode import write_png
from tudsr.image_spool import encode_spooled, read_header, spool_input
from tudsr.memory import Fit
from tudsr.pipeline import TUDSR, load
from tudsr.request import Request
from tudsr.resize import part_of
from tudsr.spooled import work_folder

pyvips = pytest.importorskip("pyvips", reason="the extra [huge] is not installed")

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def model(model_folder):
    return load(model_folder, "cpu", "fp32")


@pytest.fixture
def on_disk(monkeypatch):
    """Make every enlargement work on disk, whatever memory there is."""
    own = TUDSR.fit

    def fit(self, size, plan, request, memory=None, pixel_bytes=3, **more):
        found = own(self, size, plan, request, 10**12, pixel_bytes, **more)
        return Fit(on_disk=True, most_px=None, parts=found.parts, disk_bytes=1000, passes=found.passes)

    monkeypatch.setattr(TUDSR, "fit", fit)


def noise(height, width, channels, dtype=np.uint8):
    top = np.iinfo(dtype).max
    small = np.random.default_rng(channels).random((height // 4 + 1, width // 4 + 1, channels))
    values = np.kron(small, np.ones((4, 4, 1)))[:height, :width]
    return (values * top).astype(dtype)


def save(path, kind):
    if kind == "rgb16":
        tifffile.imwrite(path, noise(45, 61, 3, np.uint16), photometric="rgb")
    elif kind == "la16":
        values = noise(45, 61, 2, np.uint16)
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    elif kind == "rgb16 png":
        write_png(path, noise(45, 61, 3, np.uint16), None, None)
    elif kind == "turned tiff":
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(noise(45, 61, 3)).save(path, exif=exif)
    elif kind == "P":
        Image.fromarray(noise(45, 61, 3)).quantize(16).save(path, transparency=3)
    elif kind == "CMYK":
        Image.fromarray(noise(45, 61, 4), "CMYK").save(path)
    elif kind == "large turned":
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(noise(700, 900, 3)).save(path, exif=exif)
    elif kind == "turned":
        exif = Image.Exif()
        exif[274], exif[271] = 6, "a camera"
        Image.fromarray(noise(45, 61, 3)).save(path, exif=exif, icc_profile=ICC, quality=90)
    else:
        channels = {"1": 1, "L": 1, "I;16": 1, "LA": 2, "RGB": 3, "RGBA": 4}[kind]
        values = noise(45, 61, channels, np.uint16 if kind == "I;16" else np.uint8)
        image = Image.fromarray(values[..., 0] if channels == 1 else values)
        (image.convert("1") if kind == "1" else image).save(path)


@pytest.mark.parametrize(
    ("kind", "suffix", "to"),
    [
        ("RGB", ".png", ".png"),
        ("L", ".png", ".png"),
        ("LA", ".png", ".png"),
        ("RGBA", ".png", ".tif"),
        ("rgb16", ".tif", ".tif"),
        ("rgb16", ".tif", ".png"),
        ("turned", ".jpg", ".png"),
        ("la16", ".tif", ".tif"),
        ("rgb16 png", ".png", ".png"),
        ("turned tiff", ".tif", ".png"),
        ("P", ".png", ".png"),
        ("P", ".gif", ".png"),
        ("CMYK", ".jpg", ".png"),
        ("RGBA", ".png", ".jpg"),
        ("turned", ".jpg", ".jpg"),
        *((kind, ".png", to) for kind in ("L", "LA", "I;16", "1") for to in (".tif", ".jpg")),
    ],
)
@pytest.mark.parametrize("color", ["wavelet", "adain"])
def test_from_disk_comes_what_comes_from_memory(model, tmp_path, monkeypatch, request, kind, suffix, to, color):
    source = tmp_path / f"in{suffix}"
    save(source, kind)
    wish = Request(scale=4.3, color=color, fidelity=0.3)
    upscale_file(model, source, tmp_path / f"memory{to}", wish)
    request.getfixturevalue("on_disk")
    said = []
    found = upscale_file(model, source, tmp_path / f"disk{to}", wish, say=said.append)
    a, b = (read_picture(tmp_path / f"{name}{to}") for name in ("memory", "disk"))
    assert (a.pixels == b.pixels).all()
    assert (a.alpha is None and b.alpha is None) or (a.alpha == b.alpha).all()
    assert (a.info.bits, a.info.grey, a.info.icc) == (b.info.bits, b.info.grey, b.info.icc)
    assert (a.height, a.width) == (found.plan.height, found.plan.width)
    assert "works on disk" in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, f"memory{to}", f"disk{to}"])


def test_passes_of_one_stage_and_size_have_pictures_of_their_own(model, tmp_path, request):
    """Just above the most that two passes make, the third enlarges by nothing; AdaIN keeps a picture of each."""
    save(tmp_path / "in.png", "RGB")
    wish = Request(scale=1.001 * model.config.m_range[1] * model.config.n_range[1], color="adain")
    steps = [(step.stage, step.height, step.width) for step in model.plan(45, 61, wish).passes]
    assert len(set(steps)) < len(steps)
    upscale_file(model, tmp_path / "in.png", tmp_path / "memory.png", wish)
    request.getfixturevalue("on_disk")
    upscale_file(model, tmp_path / "in.png", tmp_path / "disk.png", wish)
    a, b = (read_picture(tmp_path / f"{where}.png").pixels for where in ("memory", "disk"))
    assert (a == b).all()


@pytest.mark.parametrize("kind", ["large turned", "turned"])
def test_a_turned_picture_is_spooled_upright(tmp_path, kind):
    save(tmp_path / "in.jpg", kind)
    header = read_header(tmp_path / "in.jpg")
    assert header.streams
    found = spool_input(tmp_path / "in.jpg", header, tmp_path / "raw")
    upright = decode_file(tmp_path / "in.jpg").values
    np.testing.assert_array_equal(np.fromfile(tmp_path / "raw", np.uint8).reshape(found.shape), upright)


def test_exif_comes_along_without_its_orientation(model, tmp_path, on_disk):
    save(tmp_path / "in.jpg", "turned")
    upscale_file(model, tmp_path / "in.jpg", tmp_path / "out.jpg", Request(scale=2))
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.size == (90, 122)
        assert image.getexif()[271] == "a camera"
        assert image.getexif().get(274, 1) == 1


@pytest.mark.parametrize("maker_note_bytes", [None, 100, 70_000])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_from_disk_says_of_itself_what_one_from_memory_does(model, tmp_path, request, mode, maker_note_bytes):
    """No EXIF that libvips made up, a profile whose colours are not the picture's, and what JPEG has no room for."""
    exif = Image.Exif()
    if maker_note_bytes is not None:
        exif[271], exif[282], exif[296] = "a camera", 300.0, 2
        exif.get_ifd(34665).update({37500: bytes(maker_note_bytes), 40962: 61, 40963: 45})
    source, wish = tmp_path / "in.png", Request(scale=2)
    Image.fromarray(noise(45, 61, 3)).convert(mode).save(source, exif=exif, icc_profile=ICC + bytes(70_000))
    heard, said = [], []
    upscale_file(model, source, tmp_path / "memory.jpg", wish, say=heard.append)
    request.getfixturevalue("on_disk")
    upscale_file(model, source, tmp_path / "disk.jpg", wish, say=said.append)
    with Image.open(tmp_path / "memory.jpg") as a, Image.open(tmp_path / "disk.jpg") as b:
        assert a.info == b.info
        assert a.applist == b.applist
        assert ("exif" in b.info) == (maker_note_bytes == 100)
        assert len(b.info["icc_profile"]) > 70_000
    assert said[1:] == heard
    assert any("is more than JPEG holds and was left out" in line for line in said) == (maker_note_bytes == 70_000)


def test_transparency_is_laid_on_white_for_jpeg(model, tmp_path, on_disk):
    save(tmp_path / "in.png", "RGBA")
    said = []
    upscale_file(model, tmp_path / "in.png", tmp_path / "out.jpg", Request(scale=2), say=said.append)
    assert any("laid on white" in line for line in said)
    assert read_picture(tmp_path / "out.jpg").alpha is None


def test_what_an_earlier_run_left_of_another_picture_is_not_used(model, tmp_path, on_disk):
    """The same target, another source of the same size."""
    save(tmp_path / "a.png", "RGB")
    Image.fromarray(255 - noise(45, 61, 3)).save(tmp_path / "b.png")
    target = tmp_path / "out.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spooled, "encode_spooled", interrupt)
        with pytest.raises(KeyboardInterrupt):
            upscale_file(model, tmp_path / "a.png", target, Request(scale=2))
    assert (work_folder(target) / "output.raw").exists()
    upscale_file(model, tmp_path / "b.png", target, Request(scale=2))
    upscale_file(model, tmp_path / "b.png", tmp_path / "wanted.png", Request(scale=2))
    assert target.read_bytes() == (tmp_path / "wanted.png").read_bytes()


def interrupt(*_):
    raise KeyboardInterrupt


def test_what_an_earlier_run_left_decides_where_it_goes_on(model, tmp_path, monkeypatch, request):
    save(tmp_path / "in.png", "RGB")
    target, said = tmp_path / "out.png", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spooled, "encode_spooled", interrupt)
        patch.setattr(TUDSR, "fit", lambda *_, **__: Fit(on_disk=True, most_px=32, parts={}, disk_bytes=0, passes=()))
        with pytest.raises(KeyboardInterrupt):
            upscale_file(model, tmp_path / "in.png", target, Request(scale=2))
    monkeypatch.setattr(TUDSR, "run_passes", lambda *_: lambda start: pytest.fail("rows were made again"))
    upscale_file(model, tmp_path / "in.png", target, Request(scale=2), say=said.append)
    assert any("going on with what an earlier run left" in line for line in said)
    assert target.exists()
    assert not work_folder(target).exists()


def leave(model, source, target, wish, fit=None, at=2, error=KeyboardInterrupt):
    """Enlarge on disk until the `at`-th strip of the output; return the journal that is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spooled, "values_of", failing(spooled.values_of, at, error))
        if fit is not None:
            patch.setattr(TUDSR, "fit", lambda *_, **__: fit)
        with pytest.raises(error):
            upscale_file(model, source, target, wish)
    return json.loads((work_folder(target) / "journal.json").read_text())


def failing(function, at, error):
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) == at:
            raise error
        return function(*args)

    return call


def fitted(**changes):
    return Fit(**{"on_disk": True, "most_px": None, "parts": {}, "disk_bytes": 0, "passes": ()} | changes)


def with_pass_1_of(model, source, wish, most_px):
    """Return the numbers of a picture whose last pass alone has windows of at most most_px."""
    picture = read_picture(source)
    size, kept = (picture.height, picture.width), {}

    class Keeping(MemoryStore):
        def fill(self, name, height, width, rows_from):
            return kept.setdefault(name, kept.get(name) or super().fill(name, height, width, rows_from))

    for request in (wish, wish.model_copy(update={"most_px": most_px})):
        rows = model.run_passes(part_of(picture.pixels), size, model.plan(*size, request), request, Keeping())
    assert list(kept) == ["pass_1"]
    return spooled.values_of(torch.cat(list(rows(0)), dim=-2), None, False, np.uint8)


@pytest.mark.parametrize("memory", [None, 10**12])
@pytest.mark.parametrize("options", [{}, {"low_memory": True}, {"batch": 5}])
def test_what_fits_now_does_not_throw_away_what_was_done(model, tmp_path, monkeypatch, memory, options):
    """The earlier run had smaller windows; the later one, asked in another way that changes nothing, goes on so."""
    source, target, said = tmp_path / "in.png", tmp_path / "out.png", []
    save(source, "RGB")
    wish = Request(scale=4)
    left = leave(model, source, target, wish, fitted(most_px=32, batch=3))
    assert left["made"]["output"] == {"most_px": 32, "batch": 3}
    begun = []
    rest = spooled.numbers

    def numbers(store, out, *more):
        begun.append((store.done("output", out), store._journal["how"]))
        return rest(store, out, *more)

    monkeypatch.setattr(spooled, "numbers", numbers)
    upscale_file(model, source, target, wish.model_copy(update=options), memory=memory, say=said.append)
    assert begun == [(left["rows"]["output"], {"most_px": 32, "batch": 3})]
    assert begun[0][0] >= 64
    assert not any("anew" in line or "not used" in line for line in said)
    upscale_file(model, source, tmp_path / "wanted.png", wish.model_copy(update={"most_px": 32, "batch": 3}))
    np.testing.assert_array_equal(decode_file(target).values, decode_file(tmp_path / "wanted.png").values)


def test_fewer_windows_run_together_where_the_user_says_so(model, tmp_path):
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    save(source, "RGB")
    leave(model, source, target, Request(scale=4), fitted(batch=3))
    for wish, batch, wanted in ((Request(scale=4, batch=2), 2, 2), (Request(scale=4), None, 3)):
        job = files._FileJob(model, source, target, work_folder(target), model.settled(wish), print)
        assert job._begun(batch).batch == wanted


def test_with_too_little_for_the_earlier_windows_finished_passes_are_kept(model, tmp_path):
    source, target, said = tmp_path / "in.png", tmp_path / "out.png", []
    save(source, "RGB")
    wish = model.settled(Request(scale=4))
    leave(model, source, target, wish, fitted())
    size, own = (45, 61), TUDSR.fit
    shrunk = replace(own(model, size, model.plan(*size, wish), wish, 10**12, begun=wish), most_px=32)
    assert shrunk.on_disk
    with pytest.MonkeyPatch.context() as patch:  # what this process holds is not the same twice
        patch.setattr(TUDSR, "fit", lambda *_, **__: shrunk)
        upscale_file(model, source, target, wish, say=said.append)
    assert any("windows do not fit into the memory; what it had not finished is begun anew" in line for line in said)
    np.testing.assert_array_equal(decode_file(target).values, with_pass_1_of(model, source, wish, 32))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_where_memory_runs_out_in_the_last_pass_the_first_one_is_kept(model, tmp_path, monkeypatch, on_disk, error):
    source, target, said, journals = tmp_path / "in.png", tmp_path / "out.png", [], []
    save(source, "RGB")
    wish = Request(scale=4)
    wanted = with_pass_1_of(model, source, wish, 32)

    def encode(*args):
        journals.append(json.loads((work_folder(target) / "journal.json").read_text()))
        return encode_spooled(*args)

    monkeypatch.setattr(spooled, "encode_spooled", encode)
    monkeypatch.setattr(spooled, "values_of", failing(spooled.values_of, 2, error))
    upscale_file(model, source, target, wish, say=said.append)
    assert sum("memory ran out" in line for line in said) == 1
    made = journals[0]["made"]
    assert {name: how["most_px"] for name, how in made.items()} == {"pass_1": None, "output": 32}
    np.testing.assert_array_equal(decode_file(target).values, wanted)


def test_work_that_cannot_be_used_is_said(model, tmp_path, monkeypatch, on_disk):
    source, target, said = tmp_path / "in.png", tmp_path / "out.png", []
    save(source, "RGB")
    leave(model, source, target, Request(scale=4))
    monkeypatch.setattr(spooled.torch, "get_num_threads", lambda: 99)
    upscale_file(model, source, target, Request(scale=4, color="none"), say=said.append)
    assert f"{source}: what an earlier run left on disk is not used, because of another request and threads." in said


def test_what_other_code_made_is_not_used(model, tmp_path, monkeypatch, on_disk):
    source, target, said = tmp_path / "in.png", tmp_path / "out.png", []
    save(source, "RGB")
    leave(model, source, target, Request(scale=4))
    monkeypatch.setattr(spooled, "_commit", lambda: "later")
    upscale_file(model, source, target, Request(scale=4), say=said.append)
    assert f"{source}: what an earlier run left on disk is not used, because of another commit." in said


def test_work_on_disk_goes_when_the_picture_is_made_in_memory_unless_a_run_is_at_it(model, tmp_path):
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    save(source, "RGB")
    leave(model, source, target, Request(scale=4), fitted())
    work = work_folder(target)
    with spooled.alone(work.with_suffix(".lock"), target):
        upscale_file(model, source, target, Request(scale=2))
        assert (work / "output.raw").exists()
    upscale_file(model, source, target, Request(scale=2))
    assert {path.name for path in tmp_path.iterdir()} == {"in.png", "out.png"}


def test_what_other_settings_of_the_model_made_is_not_used(model, tmp_path, on_disk):
    source, target, said = tmp_path / "in.png", tmp_path / "out.png", []
    save(source, "RGB")
    leave(model, source, target, Request(scale=4))
    settings = model.config.model_copy(update={"t1": model.config.t1 + 1})
    upscale_file(TUDSR(replace(model.model, config=settings)), source, target, Request(scale=4), say=said.append)
    assert f"{source}: what an earlier run left on disk is not used, because of another model." in said


def test_a_kill_while_the_input_is_kept_leaves_what_can_go_on(model, tmp_path, on_disk):
    source, target = tmp_path / "in.jpg", tmp_path / "out.png"
    save(source, "turned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spooled, "write_text", interrupt)
        with pytest.raises(KeyboardInterrupt):
            upscale_file(model, source, target, Request(scale=2))
    (work_folder(target) / ".half-written.png").touch()
    upscale_file(model, source, target, Request(scale=2))
    assert read_picture(target).info.icc == ICC
    assert {path.name for path in tmp_path.iterdir()} == {"in.jpg", "out.png"}


DECODED = """
import os, sys
from pathlib import Path
import pyvips, tifffile
from PIL import Image
from tudsr.image_spool import read_header, spool_input

def kept(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))

Image.init()
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        header = read_header(Path(name))
        Path("/proc/self/clear_refs").write_text("5")
        before = kept("VmRSS")
        spool_input(Path(name), header, Path(name + ".raw"))
        print(Path(name).name, header.decode_bytes, kept("VmHWM") - before, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure")
def test_decoding_takes_what_the_header_says(tmp_path):
    """Real processes' peaks; each of these kinds is in memory as a whole, or nearly."""
    side = 2048
    grain = np.random.default_rng(0).integers(0, 9, (side, side, 4), np.uint8)
    picture = Image.fromarray(np.kron(noise(side // 8, side // 8, 4), np.ones((8, 8, 1), np.uint8)) // 2 + grain)
    colours, exif = picture.convert("RGB"), Image.Exif()
    exif[274] = 6
    colours.save(tmp_path / "plain.jpg")
    colours.save(tmp_path / "progressive.jpg", progressive=True, subsampling=0)
    colours.save(tmp_path / "turned.jpg", exif=exif)
    colours.save(tmp_path / "both.jpg", exif=exif, progressive=True, subsampling=0)
    colours.convert("CMYK").save(tmp_path / "cmyk.jpg")
    colours.quantize(64).save(tmp_path / "palette.png", compress_level=1)
    picture.save(tmp_path / "alpha.webp", method=0)
    colours.save(tmp_path / "plain.tif", exif=exif)
    values = np.asarray(colours)
    tifffile.imwrite(tmp_path / "strip.tif", values, photometric="rgb", compression="zlib", rowsperstrip=side)
    wide = values.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "wide.tif", wide, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    pyvips.Image.new_from_array(values).pngsave(str(tmp_path / "interlaced.png"), interlace=True, compression=1)
    names = sorted(str(path) for path in tmp_path.iterdir())
    out = subprocess.check_output([sys.executable, "-c", DECODED, *names], text=True)
    found = {name: (int(said), int(took)) for name, said, took in (line.split() for line in out.splitlines())}
    assert len(found) == 11
    for name, (said, took) in found.items():
        assert took <= said + 24 * 10**6, (name, said, took)  # rows, tables, the C library: of the slack
        assert said <= 2 * took, (name, said, took)
    assert found["plain.jpg"][0] == 0
    assert min(said for name, (said, _) in found.items() if name != "plain.jpg") >= side**2 * 2


def test_a_second_run_at_the_same_output_is_refused(model, tmp_path, on_disk):
    save(tmp_path / "in.png", "RGB")
    target = tmp_path / "out.png"
    with (
        spooled.alone(work_folder(target).with_suffix(".lock"), target),
        pytest.raises(InputError, match="another run"),
    ):
        upscale_file(model, tmp_path / "in.png", target, Request(scale=2))


def test_a_disk_without_locks_stops_nobody(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with spooled.alone(tmp_path / "x.lock", tmp_path / "out.png"):
        pass


def test_a_damaged_picture_leaves_no_work_behind(model, tmp_path, on_disk):
    save(tmp_path / "in.png", "RGB")
    data = (tmp_path / "in.png").read_bytes()
    (tmp_path / "in.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError):
        upscale_file(model, tmp_path / "in.png", tmp_path / "out.png", Request(scale=2))
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_work_lies_where_the_caller_says(model, tmp_path, on_disk):
    save(tmp_path / "in.png", "RGB")
    (tmp_path / "place").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spooled, "encode_spooled", interrupt)
        with pytest.raises(KeyboardInterrupt):
            upscale_file(model, tmp_path / "in.png", tmp_path / "a.png", Request(scale=2), work=tmp_path / "place/w")
    assert (tmp_path / "place/w/output.raw").exists()
    said = []
    upscale_file(
        model, tmp_path / "in.png", tmp_path / "a.png", Request(scale=2), work=tmp_path / "place/w", say=said.append
    )
    assert any("going on with what an earlier run left" in line for line in said)
    assert not any((tmp_path / "place").iterdir())


def test_work_on_another_disk_than_the_output_is_copied_there(model, tmp_path, on_disk, monkeypatch):
    save(tmp_path / "in.png", "RGB")
    (tmp_path / "place").mkdir()
    upscale_file(model, tmp_path / "in.png", tmp_path / "a.png", Request(scale=2))
    rename = Path.replace

    def within_a_disk(self, target):
        if Path(target).parent == tmp_path:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", within_a_disk)
    upscale_file(model, tmp_path / "in.png", tmp_path / "b.png", Request(scale=2), work=tmp_path / "place/w")
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "b.png", "in.png", "place"]


def with_orientation(path, where, orientation=6):
    """Write noise of 45x61 px that says how it lies, in a place that few look at."""
    exif, colours = Image.Exif(), Image.fromarray(noise(45, 61, 3))
    exif[274], exif[271] = orientation, "a camera"
    xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'
    words = PngImagePlugin.PngInfo()
    if where == "profile":  # ImageMagick's
        data = exif.tobytes()
        words.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
    if where == "xmp":
        words.add_itxt("XML:com.adobe.xmp", xmp)
    colours.save(path, **{"pnginfo": words} if path.suffix == ".png" else {"xmp": xmp.encode()})
    if where == "behind":
        chunk, whole = b"eXIf" + exif.tobytes()[6:], path.read_bytes()
        crc = zlib.crc32(chunk).to_bytes(4, "big")
        path.write_bytes(whole[:-12] + (len(chunk) - 4).to_bytes(4, "big") + chunk + crc + whole[-12:])


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize(("name", "where"), [
    ("in.png", "profile"), ("in.png", "xmp"), ("in.png", "behind"), ("in.jpg", "xmp"),
])  # fmt: skip
def test_wherever_a_picture_says_how_it_lies_disk_and_memory_agree(tmp_path, name, where, orientation):
    with_orientation(tmp_path / name, where, orientation)
    header, upright = read_header(tmp_path / name), decode_file(tmp_path / name)
    assert header.streams
    assert header.shape == upright.values.shape == ((61, 45, 3) if orientation >= 5 else (45, 61, 3))
    assert header.exif == upright.exif
    assert (header.exif is None) == (where == "xmp")
    found = spool_input(tmp_path / name, header, tmp_path / "raw")
    spooled_values = np.fromfile(tmp_path / "raw", np.uint8).reshape(found.shape)
    np.testing.assert_array_equal(spooled_values, upright.values)


@pytest.mark.parametrize("cut", [40, 1])
def test_a_png_that_ends_early_has_a_header_all_the_same(tmp_path, cut):
    with_orientation(tmp_path / "in.png", "behind")
    whole = (tmp_path / "in.png").read_bytes()
    (tmp_path / "in.png").write_bytes(whole[: -12 - cut])
    assert sorted(read_header(tmp_path / "in.png").shape) == [3, 45, 61]


def test_a_fourth_band_without_a_name_is_decoded_in_memory_and_counted(tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", noise(45, 61, 4), photometric="rgb", extrasamples=["unspecified"])
    header = read_header(tmp_path / "in.tif")
    assert not header.streams
    assert header.decode_bytes >= 45 * 61 * 8
    found = spool_input(tmp_path / "in.tif", header, tmp_path / "raw")
    assert (tmp_path / "raw").stat().st_size == np.prod(found.shape)


def test_what_libvips_finds_otherwise_is_decoded_in_memory(tmp_path):
    save(tmp_path / "in.png", "RGBA")
    said = replace(read_header(tmp_path / "in.png"), channels=3)
    assert spool_input(tmp_path / "in.png", said, tmp_path / "raw").channels == 4
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in.png", "raw"]


@pytest.mark.parametrize("suffix", [".bmp", ".webp"])
def test_formats_that_are_not_written_by_strips_stay_in_memory_or_are_refused(model, tmp_path, suffix):
    """Whatever else saves memory is tried, and the least that is named is that without the disk."""
    source, target = tmp_path / "in.png", tmp_path / f"out{suffix}"
    save(source, "RGB")
    with pytest.raises(InputError, match=r"; from disk \(PNG, TIFF, JPEG; not side by side with the input\)") as caught:
        upscale_file(model, source, target, Request(scale=2), memory=1)
    assert str(caught.value).count(". ") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]
    least = int(re.search(r"(\d+) MB is the least", str(caught.value))[1])
    upscale_file(model, source, target, Request(scale=2), memory=2 * least * 10**6)  # held memory is not the same twice
    assert target.is_file()


def test_an_output_that_cannot_be_made_is_one_sentence(model, tmp_path, on_disk):
    save(tmp_path / "in.png", "RGB")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: a folder to write to is expected"):
        upscale_file(model, tmp_path / "in.png", tmp_path / "file" / "out.png", Request(scale=2))


def test_too_little_disk_is_said_before_any_work(model, tmp_path, on_disk, monkeypatch):
    save(tmp_path / "in.png", "RGB")
    monkeypatch.setattr(spooled.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    monkeypatch.setattr(TUDSR, "run_passes", lambda *_: pytest.fail("work was done"))
    with pytest.raises(InputError, match="MB of disk are needed beside .*out.png"):
        upscale_file(model, tmp_path / "in.png", tmp_path / "out.png", Request(scale=2))


def test_a_missing_libvips_names_the_extra(model, tmp_path, on_disk, monkeypatch):
    save(tmp_path / "in.png", "RGB")
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(InputError, match=r"pip install 'tudsr\[huge\]'"):
        upscale_file(model, tmp_path / "in.png", tmp_path / "out.png", Request(scale=2))
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]

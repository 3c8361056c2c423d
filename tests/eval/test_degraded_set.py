"""Paired test sets: pinned pixels, agreement with the degradation itself, resuming."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from tudsr.data.degradation import degrade
from tudsr.errors import ConfigError, DataError, InputError
from tudsr.eval import degraded_set
from tudsr.eval.degraded_set import SetConfig, make_set
from tudsr.image import read_picture

ROOT = Path(__file__).parents[2]
PHOTOS, CONSTRAINTS = ROOT / "tests" / "photos", ROOT / "constraints.txt"
TEST_PHOTOS = ROOT.parent / "shared" / "data" / "test"
# SHA-256 of the decoded pixels of lq/budgie.png and lq/lake.png, x4, seed 0
PINNED = {
    "light": (
        "10c73f68bfaf7726e8f9017cfc6bd079a79696d56bb797ac3b7529cf0fde0c8e",
        "a50dca5650e381908bb974c5e5f97260ef10f92d6cbae5197c9dfb0a407a5251",
    ),
    "heavy": (
        "4a34dce74572b38a4442ec0ec20600cfda017bc95afe55c66dfd7fc9969ab1eb",
        "7c1f423eda4cf292b447920696ad3b453febe0c8605d17102098efa4948edde6",
    ),
    "camera": (
        "42ed51289cbc1acbe1b49a2287d9ba7bfdb553d387173c6b26b4738b77fbea2f",
        "a93ad1bdf2d4c4a0ec6a5dc683e209fae373c8b97bd73c14d7b91da4ad962946",
    ),
}

# SHA-256 of all of its files, under constraints.txt
PINNED_FILES = {
    "light": {
        "gt/budgie.png": "98944bfa39d689a16f79ca0e173f15a111658921887944db72b3daadde22b8c7",
        "gt/lake.png": "1da0c6e236d3cd30f6b36e98c2ec3d5e902cc07b14cfe700b340755ec3c6853e",
        "lq/budgie.png": "39febdd4a8144315513ea656fb00f9870b469f88cf8e24c71949a8f25d3ba8bf",
        "lq/lake.png": "12e43f481cfdb4699a2607cb0a465232321475577c9dc194f35df3ba08fe345e",
    },
    "heavy": {
        "gt/budgie.png": "98944bfa39d689a16f79ca0e173f15a111658921887944db72b3daadde22b8c7",
        "gt/lake.png": "1da0c6e236d3cd30f6b36e98c2ec3d5e902cc07b14cfe700b340755ec3c6853e",
        "lq/budgie.png": "fd378166a52b726361c8758d244b977f0f4babc84e949c1b4de93ec0cf6104a0",
        "lq/lake.png": "e65ba5fbeb6dd791d0587a03932310c9b35c87e91bcdff0f3f4ac6dfe56c71fc",
    },
    "camera": {
        "gt/budgie.png": "98944bfa39d689a16f79ca0e173f15a111658921887944db72b3daadde22b8c7",
        "gt/lake.png": "1da0c6e236d3cd30f6b36e98c2ec3d5e902cc07b14cfe700b340755ec3c6853e",
        "lq/budgie.png": "d3ee6823a7b20617ae1838408883642145df77a892472e77d61eac64143896d2",
        "lq/lake.png": "9003907db2737e06f25d3708d8b1ce66793c13ef5e8ab5f5e494beea6d851933",
    },
}


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def sharp(tmp_path):
    folder = tmp_path / "sharp"
    folder.mkdir()
    for name in ("lake", "budgie"):
        with Image.open(PHOTOS / f"{name}.webp") as photo:
            photo.crop((100, 100, 100 + 67, 100 + 61)).save(folder / f"{name}.png")
    return folder


def make(source, out, preset="light", scale=4, seed=0):
    return make_set(source, out, SetConfig(preset=preset, scale=scale, seed=seed), lambda done, total: None)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("preset", PINNED)
def test_the_pixels_are_the_same_every_time(sharp, tmp_path, preset):
    make(sharp, tmp_path / "set", preset)
    found = [pixels(tmp_path / "set" / "lq" / f"{name}.png") for name in ("budgie", "lake")]
    assert [picture.shape for picture in found] == [(15, 16, 3)] * 2
    assert tuple(hashlib.sha256(picture.tobytes()).hexdigest() for picture in found) == PINNED[preset]


def constrained():
    """Skip where a library that decides the bytes is not the one in constraints.txt."""
    pins = dict(re.findall(r"^(torch|numpy|pillow)==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE))
    found = {"torch": torch.__version__.partition("+")[0], "numpy": np.__version__, "pillow": PIL.__version__}
    if found != pins:
        pytest.skip(f"{found} are here, and the hashes are of constraints.txt's {pins}")


def listed(text):
    """Read what sha256sum writes: {name: digest}."""
    return {name: digest for digest, name in (line.split("  ") for line in text.splitlines())}


@pytest.mark.parametrize("preset", PINNED_FILES)
def test_the_files_are_the_same_every_time(sharp, tmp_path, preset):
    constrained()
    make(sharp, tmp_path / "set", preset)
    files = [path for path in (tmp_path / "set").rglob("*.png")]
    found = {path.relative_to(tmp_path / "set").as_posix(): digest_of(path) for path in files}
    assert found == PINNED_FILES[preset]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), [("kodak", 4), ("clic", 8)])
def test_the_sets_of_the_readme_are_the_same_every_time(tmp_path, name, scale):
    """Check one with `cd SET && sha256sum -c kodak-light-x4-seed0.sha256`."""
    photos = TEST_PHOTOS / name
    if not photos.is_dir():
        pytest.skip(f"{photos} is not on this machine")
    constrained()
    record = make(photos, tmp_path / "set", scale=scale)
    assert record["files"] == listed(Path(__file__).with_name(f"{name}-light-x{scale}-seed0.sha256").read_text())


# What the libraries choose by the processor, chosen by hand: MKL's kernels, ATen's, oneDNN's, NumPy's; and threads.
PROCESSORS = (
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "3", "MKL_CBWR": "COMPATIBLE"},
    {"OMP_NUM_THREADS": "1", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2",
     "ONEDNN_MAX_CPU_ISA": "AVX2", "NPY_DISABLE_CPU_FEATURES": "AVX512_SKX"},
)  # fmt: skip
MAKE = """
import hashlib, sys
from pathlib import Path
from tudsr.eval.degraded_set import SetConfig, make_pair
for preset in ("light", "heavy", "camera"):
    lq = make_pair(Path(sys.argv[1]), SetConfig(preset=preset, scale=2, seed=0), 0)[1].pixels
    print(hashlib.sha256(lq.numpy().tobytes()).hexdigest())
"""


def test_the_pixels_do_not_depend_on_the_processor_or_the_threads():
    """In float32 another order of sums is other last bits, which JPEG turned into differences of up to 12 levels."""
    command = [sys.executable, "-c", MAKE, str(PHOTOS / "lake.webp")]
    plain = {name: value for name, value in os.environ.items() if not any(name in one for one in PROCESSORS)}
    found = [subprocess.run(command, env=plain | one, check=True, capture_output=True).stdout for one in PROCESSORS]
    assert len(set(found)) == 1
    assert len(found[0].split()) == 3


def test_a_pair_is_the_crop_and_its_degradation_by_place(sharp, tmp_path):
    record = make(sharp, tmp_path / "set", "heavy", 4, 5)
    for index, name in enumerate(("budgie", "lake")):
        np.testing.assert_array_equal(
            pixels(tmp_path / "set/gt" / f"{name}.png"), pixels(sharp / f"{name}.png")[:60, :64]
        )
        gt = read_picture(sharp / f"{name}.png").pixels[0, :, :60, :64].double()
        lq = degrade(gt, 15, 16, preset="heavy", seed=5, index=index)
        ours = read_picture(tmp_path / "set/lq" / f"{name}.png").pixels[0]
        np.testing.assert_allclose(ours, lq, atol=1e-6)
    assert (record["preset"], record["scale"], record["seed"]) == ("heavy", 4, 5)
    assert record == json.loads((tmp_path / "set/degraded.json").read_text())
    assert {"torch", "numpy", "pillow"} <= record["versions"].keys()
    for name, digest in record["files"].items():
        assert hashlib.sha256((tmp_path / "set" / name).read_bytes()).hexdigest() == digest
    assert sorted(record["files"]) == ["gt/budgie.png", "gt/lake.png", "lq/budgie.png", "lq/lake.png"]


@pytest.fixture
def count(monkeypatch):
    made = []
    real = degraded_set.make_pair

    def counted(path, *rest):
        made.append(path.stem)
        return real(path, *rest)

    monkeypatch.setattr(degraded_set, "make_pair", counted)
    return made


def test_finished_files_are_not_redone(sharp, tmp_path, count):
    first = make(sharp, tmp_path / "set")
    assert count == ["budgie", "lake"]
    assert make(sharp, tmp_path / "set") == first
    assert count == ["budgie", "lake"]
    (tmp_path / "set/lq/lake.png").write_bytes(b"damaged")
    assert make(sharp, tmp_path / "set") == first
    assert count == ["budgie", "lake", "lake"]


def test_other_versions_redo_all(sharp, tmp_path, count):
    make(sharp, tmp_path / "set")
    file = tmp_path / "set/degraded.json"
    file.write_text(file.read_text().replace('"pillow": "', '"pillow": "0'))
    make(sharp, tmp_path / "set")
    assert count == ["budgie", "lake"] * 2


def test_another_degradation_redoes_all(sharp, tmp_path, count, monkeypatch):
    assert make(sharp, tmp_path / "set")["versions"]["degradation"] == degraded_set.DEGRADATION
    monkeypatch.setattr(degraded_set, "DEGRADATION", degraded_set.DEGRADATION + 1)
    make(sharp, tmp_path / "set")
    assert count == ["budgie", "lake"] * 2


def test_a_photo_that_went_away_takes_its_files_along(sharp, tmp_path, count):
    make(sharp, tmp_path / "set")
    (sharp / "budgie.png").unlink()
    record = make(sharp, tmp_path / "set")
    assert count[2:] == ["lake"]  # its place among the photos is another now
    assert sorted(record["files"]) == ["gt/lake.png", "lq/lake.png"]
    assert not (tmp_path / "set/gt/budgie.png").exists()


def test_a_killed_run_leaves_a_record_that_can_be_gone_on_with(sharp, tmp_path, count, monkeypatch):
    def killed(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_set(sharp, tmp_path / "set", SetConfig(preset="light", scale=4, seed=0), killed)
    make(sharp, tmp_path / "set")
    assert count == ["budgie", "lake"]


def test_an_unreadable_photo_is_skipped_and_keeps_its_place(sharp, tmp_path):
    make(sharp, tmp_path / "whole")
    (sharp / "budgie.png").write_bytes(b"no picture")
    record = make(sharp, tmp_path / "set")
    assert [one["file"] for one in record["skipped"]] == [str(sharp / "budgie.png")]
    assert (tmp_path / "set/lq/lake.png").read_bytes() == (tmp_path / "whole/lq/lake.png").read_bytes()


def test_mistakes_are_said(sharp, tmp_path):
    with pytest.raises(ConfigError, match="'mild' is not a degradation; known ones: camera, heavy, light"):
        make(sharp, tmp_path / "x", "mild")
    with pytest.raises(InputError, match="--scale 0"):
        make(sharp, tmp_path / "x", scale=0)
    with pytest.raises(InputError, match="among the photos"):
        make(sharp, sharp / "set")
    with pytest.raises(DataError, match="not a folder"):
        make(tmp_path / "gone", tmp_path / "x")
    with pytest.raises(InputError, match="no photo can be used"):
        make(sharp, tmp_path / "x", scale=100)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("place", ["gt", "lq", "gt/deep"])
def test_a_set_over_its_own_photos_is_refused(sharp, tmp_path, place):
    photos = tmp_path / "set" / place
    photos.parent.mkdir(parents=True)
    sharp.rename(photos)
    before = {path.name: digest_of(path) for path in photos.iterdir()}
    with pytest.raises(InputError, match=f"its {place[:2]} would be written over the photos of"):
        make(photos, tmp_path / "set")
    assert {path.name: digest_of(path) for path in photos.iterdir()} == before


def test_another_set_in_the_same_folder_is_refused(sharp, tmp_path):
    make(sharp, tmp_path / "set")
    with pytest.raises(InputError, match="holds a set whose seed is 0, not 1"):
        make(sharp, tmp_path / "set", seed=1)


def test_two_photos_of_one_name_are_refused(sharp, tmp_path):
    (sharp / "lake.bmp").write_bytes((sharp / "lake.png").read_bytes())
    with pytest.raises(InputError, match=r"lake\.bmp and .*lake\.png would both become lake\.png"):
        make(sharp, tmp_path / "set")

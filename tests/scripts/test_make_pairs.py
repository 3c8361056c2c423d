"""Pairs to train on: which crops, which of them with their photo too, and what the files hold."""

import numpy as np
import pytest
import torch
from PIL import Image

from tudsr.data.dataset import Scales
from tudsr.data.degradation import DegradationMix
from tudsr.data.given_pairs import PairDataset


@pytest.fixture
def crops(make_pairs, tmp_path):
    paths = []
    for number in range(2):
        values = np.random.default_rng(number).integers(0, 256, (530, 520, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(values).save(paths[-1])
    paths[1].write_bytes(b"no picture")
    return make_pairs.Crops(paths, 2, 4, DegradationMix(weights={"light": 1.0}), 7)


def test_crops_follow_from_the_seed_and_are_of_whole_levels(crops):
    first, second = crops[0]
    assert (first["index"], second["index"]) == (0, 1)
    assert first["gt"].shape == (3, 512, 512)
    assert not torch.equal(first["gt"], second["gt"])
    levels = (first["lq"] + 1) * 127.5
    assert levels.shape == (3, 128, 128)
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    assert torch.equal(crops[0][1]["lq"], second["lq"])
    with pytest.warns(UserWarning, match="skipped"):
        assert crops[1] == []


def test_a_sample_is_written_with_the_teachers_picture_and_the_photo(make_pairs, crops, tmp_path):
    out, (sample, other) = tmp_path / "pairs", crops[0]
    for kind in ("lq", "gt"):
        (out / kind).mkdir(parents=True)
    make_pairs.write(out, sample, -sample["gt"], None, True)
    make_pairs.write(out, other, -other["gt"], 8.0, False)
    assert sorted(path.name for path in (out / "gt").iterdir()) == ["00000.png", "00000t.png", "00001.png"]
    taught, photo = (np.asarray(Image.open(out / "gt" / name)).astype(int) for name in ("00000.png", "00000t.png"))
    assert np.abs(taught + photo - 255).max() <= 1
    low = np.asarray(Image.open(out / "gt" / "00001.png")).astype(float).mean((0, 1))
    wanted = ((other["gt"].mean((1, 2)) + 1) * 127.5).numpy()  # its tones are the photo's
    np.testing.assert_allclose(low, wanted, atol=2)
    pairs = PairDataset(out, crop_px=192, seed=0, length=2, scales=Scales(fixed={4.0: 1.0}))
    assert pairs[0]["lq"].shape == (3, 48, 48)


def test_without_a_teacher_the_photo_has_the_samples_own_name(make_pairs, crops, tmp_path):
    for kind in ("lq", "gt"):
        (tmp_path / kind).mkdir()
    make_pairs.write(tmp_path, crops[0][0], None, None, True)
    assert [path.name for path in (tmp_path / "gt").iterdir()] == ["00000.png"]

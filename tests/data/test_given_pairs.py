"""Given pairs: partners stay aligned at every ratio, and what does not fit is said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tudsr.data.dataset import Scales
from tudsr.data.given_pairs import PairDataset
from tudsr.errors import DataError

CROP_PX, RATIO = 32, 4


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pairs whose LQ pixels tell picture, row and column; the ground truth repeats each 4 by 4."""
    for number in range(2):
        rows, columns = np.mgrid[:40, :60]
        lq = np.stack((np.full_like(rows, 100 * number), 5 * rows, 4 * columns), axis=-1).astype(np.uint8)
        for name, pixels in (("lq", lq), ("gt", lq.repeat(RATIO, 0).repeat(RATIO, 1))):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


def _dataset(root: Path, ratio: float = RATIO, length: int = 16) -> PairDataset:
    return PairDataset(root, crop_px=CROP_PX, seed=5, length=length, scales=Scales(fixed={ratio: 1.0}), group=4)


def test_a_crop_is_its_partners_at_the_pairs_own_ratio(root: Path) -> None:
    """Turned and mirrored alike, too."""
    places = set()
    for sample in (data := _dataset(root)):
        assert sample["gt"].shape == (3, CROP_PX, CROP_PX)
        repeated = sample["lq"].repeat_interleave(RATIO, 1).repeat_interleave(RATIO, 2)
        assert torch.equal(sample["gt"], repeated)
        places.add(tuple(sample["lq"][:, 0, 0].tolist()))
    assert len(places) > len(data) // 2  # random places, not one


@pytest.mark.parametrize("ratio", [1.0, 2.0, 8.0])
def test_other_ratios_reduce_one_partner(root: Path, ratio: float) -> None:
    """The ramps of both agree to a few grey levels once the ground truth is averaged down to LQ pixels."""
    for sample in _dataset(root, ratio, length=8):
        side = round(CROP_PX / ratio)
        assert sample["lq"].shape == (3, side, side)
        small = torch.nn.functional.adaptive_avg_pool2d(sample["gt"][None], side)[0]
        inner = slice(1, -1) if side > 4 else slice(None)
        assert (small - sample["lq"])[:, inner, inner].abs().max() < 12 / 127.5


def test_a_partner_that_lies_on_its_side_is_taken_as_it_is_seen(root: Path) -> None:
    """Sizes and crops are those of the upright picture, as EXIF says."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for path in (root / "lq").iterdir():
        Image.fromarray(np.rot90(np.asarray(Image.open(path))).copy()).save(path, exif=exif)
    for sample in _dataset(root):
        assert torch.equal(sample["gt"], sample["lq"].repeat_interleave(RATIO, 1).repeat_interleave(RATIO, 2))


def test_damaged_exif_costs_no_pair(root: Path) -> None:
    pixels = Image.open(root / "lq" / "0.png").copy()
    pixels.save(root / "lq" / "0.png", exif=b"Exif\0\0MM\0\x2a\0")
    assert {sample["photo"] for sample in _dataset(root)} == {0, 1}


def test_samples_follow_from_seed_and_index(root: Path) -> None:
    """Whatever was asked for before."""
    one, other = _dataset(root), _dataset(root)
    backwards = [other[i] for i in reversed(range(16))][::-1]
    assert all(torch.equal(one[i]["lq"], backwards[i]["lq"]) for i in range(16))


def test_a_broken_partner_is_skipped_and_counted(root: Path) -> None:
    """The other pair stands in."""
    path = root / "lq" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.warns(UserWarning, match="skipped"):
        samples = list(_dataset(root))
    assert {sample["photo"] for sample in samples} == {1}
    assert sum(sample["skipped"] for sample in samples) == 8


def test_what_does_not_fit_is_said(root: Path) -> None:
    """A missing partner, a size that is no multiple, a picture too small for the crop, no picture."""
    (root / "gt" / "2.png").write_bytes((root / "gt" / "1.png").read_bytes())
    with pytest.raises(DataError, match="'2' is in one of gt and lq only"):
        _dataset(root)
    Image.new("RGB", (30, 30)).save(root / "lq" / "2.png")
    with pytest.raises(DataError, match="240x160, and its partner 30x30; 120x120 is expected"):
        _dataset(root)
    (root / "gt" / "2.png").unlink()
    (root / "lq" / "2.png").unlink()
    with pytest.raises(DataError, match="60x40; this run's crops and ratios need 64 px"):
        PairDataset(root, crop_px=256, seed=0, length=1, scales=Scales(fixed={4.0: 1.0}))
    (root / "lq" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png: not a picture that can be read"):
        _dataset(root)

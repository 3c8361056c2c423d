"""Photo data sets: reproducibility, crops, sizes, broken photos."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tudsr.config import Settings
from tudsr.data.dataset import PhotoDataset, Scales, ValidationSet
from tudsr.data.degradation import DegradationMix, degrade
from tudsr.errors import ConfigError, DataError

CROP_PX = 32
HALF_4 = Scales(fixed={4.0: 0.5}, uniform=(1.0, 4.0))
HALF_8 = Scales(fixed={8.0: 0.5, 4.0: 0.5})


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Five photos of different size whose pixels tell photo, row and column: (10 * photo, row, column)."""
    return [_coordinates(tmp_path / f"{i}.png", i, 70 + 10 * i, 60 + 7 * i) for i in range(5)]


def _coordinates(path: Path, number: int, height: int, width: int) -> Path:
    rows, columns = np.mgrid[:height, :width]
    Image.fromarray(np.stack((np.full_like(rows, 10 * number), rows, columns), axis=-1).astype(np.uint8)).save(path)
    return path


def _break(path: Path) -> None:
    """Damage the pixels and leave the header."""
    path.write_bytes(path.read_bytes()[:60])


def _dataset(paths: list[Path], **changes: Any) -> PhotoDataset:
    settings: dict[str, Any] = {
        "crop_px": CROP_PX,
        "seed": 3,
        "length": 24,
        "scales": HALF_4,
        "degradation": DegradationMix(),
        "group": 4,
    }
    return PhotoDataset(paths, **(settings | changes))


def _pixels(gt: torch.Tensor) -> np.ndarray:
    return ((gt + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def test_samples_follow_from_seed_and_index(photos: list[Path]) -> None:
    """Whatever was asked for before, and with or without a cache."""
    one, other = _dataset(photos), _dataset(photos, cache_mb=0, length=30)
    forwards = [one[i] for i in range(24)]
    for i in reversed(range(24)):
        for key, value in other[i].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(forwards[i][key])), key
    assert not torch.equal(_dataset(photos, seed=4)[0]["gt"], forwards[0]["gt"])


def test_worker_count_changes_nothing(photos: list[Path]) -> None:
    batches = {
        workers: list(DataLoader(_dataset(photos), batch_size=4, num_workers=workers, multiprocessing_context=context))
        for workers, context in ((0, None), (1, "fork"), (2, "fork"))
    }
    for workers in (1, 2):
        for here, there in zip(batches[0], batches[workers], strict=True):
            assert here.keys() == there.keys()
            assert all(torch.equal(here[key], there[key]) for key in here)


def test_shapes_and_range(photos: list[Path]) -> None:
    sample = _dataset(photos)[5]
    assert sample["gt"].shape == (3, CROP_PX, CROP_PX)
    assert sample["gt"].dtype == sample["lq"].dtype == torch.float32
    assert sample["gt"].is_contiguous()
    assert -1 <= sample["gt"].min() < sample["gt"].max() <= 1
    assert (sample["index"], sample["skipped"]) == (5, 0)


def test_lq_is_the_degraded_crop(photos: list[Path]) -> None:
    sample = _dataset(photos, scales=Scales(fixed={4.0: 1.0}))[6]
    assert torch.equal(sample["lq"], degrade(sample["gt"], 8, 8, preset=DegradationMix(), seed=3, index=6))


def test_without_a_degradation_there_is_only_ground_truth(photos: list[Path]) -> None:
    clean, degraded = _dataset(photos, degradation=None)[1], _dataset(photos)[1]
    assert clean.keys() == {"gt", "index", "photo", "skipped"}
    assert torch.equal(clean["gt"], degraded["gt"])


def test_each_photo_is_seen_once_an_epoch_in_changing_order(photos: list[Path]) -> None:
    data = _dataset(photos, length=25)
    seen = [data[i]["photo"] for i in range(25)]
    epochs = [tuple(seen[i : i + 5]) for i in range(0, 25, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len(set(epochs)) > 1


def test_crops_are_cut_from_the_photo_at_all_places_and_turns(photos: list[Path]) -> None:
    """The pixels tell where they were; without reduction, a crop is an exact part, turned or mirrored."""
    data = _dataset(photos, length=400, degradation=None, p_down=0.0)
    turns: Counter[tuple[int, ...]] = Counter()
    corners = set()
    for i in range(400):
        sample = data[i]
        pixels = _pixels(sample["gt"]).astype(int)
        assert (pixels[..., 0] == 10 * sample["photo"]).all()
        down, right = pixels[1, 0] - pixels[0, 0], pixels[0, 1] - pixels[0, 0]
        turns[(*down[1:], *right[1:])] += 1
        assert {tuple(np.abs(down)), tuple(np.abs(right))} == {(0, 1, 0), (0, 0, 1)}
        if sample["photo"] == 0:
            corners.add((int(pixels[..., 1].min()), int(pixels[..., 2].min())))
    assert len(turns) == 8
    assert min(turns.values()) > 20
    tops, lefts = {top for top, _ in corners}, {left for _, left in corners}
    assert min(tops) < 5
    assert max(tops) > 70 - CROP_PX - 5
    assert min(lefts) < 5
    assert max(lefts) > 60 - CROP_PX - 5


def test_a_crop_as_large_as_the_photo_is_the_photo(tmp_path: Path) -> None:
    path = _coordinates(tmp_path / "a.png", 1, CROP_PX, CROP_PX)
    data = _dataset([path], p_down=1.0, degradation=None)
    values = np.sort(_pixels(data[0]["gt"]).reshape(-1, 3), axis=0)
    np.testing.assert_array_equal(values, np.sort(np.asarray(Image.open(path)).reshape(-1, 3), axis=0))


def test_reduction_shows_more_of_the_photo_but_at_most_twice(photos: list[Path]) -> None:
    data = _dataset(photos, length=200, degradation=None, p_down=1.0)
    spans = np.array([np.ptp(_pixels(data[i]["gt"])[..., 1].astype(int)) for i in range(200)])
    assert spans.min() >= CROP_PX - 2
    assert spans.max() <= 2 * CROP_PX
    assert spans.max() > 1.7 * CROP_PX
    plain = _dataset(photos, length=200, degradation=None, p_down=0.25)
    share = np.mean([np.ptp(_pixels(plain[i]["gt"])[..., 1].astype(int)) > CROP_PX for i in range(200)])
    assert 0.12 < share < 0.36


def test_a_group_shares_one_lq_size(photos: list[Path]) -> None:
    data = _dataset(photos, length=400, group=4)
    sides = [data.lq_side_px(i) for i in range(400)]
    groups = [set(sides[i : i + 4]) for i in range(0, 400, 4)]
    assert all(len(group) == 1 for group in groups)
    assert {data[i]["lq"].shape[-1] for i in range(8, 12)} == groups[2]
    first = [sides[i] for i in range(0, 400, 4)]
    assert 0.3 < np.mean([side == CROP_PX // 4 for side in first]) < 0.75
    assert max(first) > 0.8 * CROP_PX


def test_scales_draw_by_their_probabilities() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([HALF_4.draw(rng) for _ in range(4000)])
    assert abs((drawn == 4.0).mean() - 0.5) < 0.04
    rest = drawn[drawn != 4.0]
    assert 1 <= rest.min() < 1.05
    assert 3.95 < rest.max() < 4
    assert abs(rest.mean() - 2.5) < 0.1
    drawn = np.array([HALF_8.draw(rng) for _ in range(4000)])
    assert set(drawn) == {4.0, 8.0}
    assert abs((drawn == 8.0).mean() - 0.5) < 0.04


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"fixed": {4.0: 0.5}},
        {"fixed": {4.0: 1.5}, "uniform": (1, 4)},
        {"fixed": {0.5: 1.0}},
        {"uniform": (4, 1)},
        {"uniform": (0.5, 2)},
        {"fixed": {4.0: 1.0}, "spread": 2},
    ],
)
def test_bad_scales_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Scales.parse(values, "test")


def test_scales_survive_json(tmp_path: Path) -> None:
    for scales in (HALF_4, HALF_8):
        (tmp_path / "scales.json").write_text(scales.to_json())
        assert Scales.read(tmp_path / "scales.json") == scales
    assert issubclass(Scales, Settings)


def test_broken_photo_is_skipped_and_counted(photos: list[Path]) -> None:
    _break(photos[2])
    data = _dataset(photos, length=25)
    with pytest.warns(UserWarning, match=r"2\.png: damaged or cut short.* skipped") as caught:
        samples = [data[i] for i in range(25)]
    assert len(caught) == 1
    assert [sample["photo"] for sample in samples].count(2) == 0
    assert sum(sample["skipped"] for sample in samples) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = _dataset(photos, length=25)
        assert [again[i]["photo"] for i in reversed(range(25))] == [sample["photo"] for sample in reversed(samples)]


def test_only_broken_photos_are_an_error(photos: list[Path]) -> None:
    for path in photos:
        _break(path)
    data = _dataset(photos)
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(DataError, match="none of 5 photos"):
        data[0]


def test_index_out_of_range(photos: list[Path]) -> None:
    data = _dataset(photos)
    assert len(data) == 24
    with pytest.raises(IndexError):
        data[24]


def test_validation_crops_are_fixed(photos: list[Path]) -> None:
    one, other = (ValidationSet(photos, crop_px=CROP_PX, scale=4, degradation="light", seed=1) for _ in range(2))
    assert (len(one), one.paths) == (5, photos)
    assert one[3]["lq"].shape == (3, 8, 8)
    assert all(torch.equal(one[3][key], other[3][key]) for key in ("gt", "lq"))


def test_validation_finds_the_most_detailed_crop(tmp_path: Path) -> None:
    pixels = np.full((100, 120, 3), 128, dtype=np.uint8)
    pixels[60:92, 15:47] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = ValidationSet([tmp_path / "a.png"], crop_px=34, scale=2, degradation="light", seed=1)
    # Only a crop that holds the whole patch with its border sees all of its gradients.
    np.testing.assert_array_equal(np.sort(_pixels(data[0]["gt"]), axis=None), np.sort(pixels[59:93, 14:48], axis=None))


def test_validation_leaves_broken_photos_out(photos: list[Path]) -> None:
    _break(photos[0])
    with pytest.warns(UserWarning, match=r"0\.png"):
        data = ValidationSet(photos, crop_px=CROP_PX, scale=4, degradation="light", seed=1)
    assert [path.name for path in data.paths] == ["1.png", "2.png", "3.png", "4.png"]

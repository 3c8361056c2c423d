"""Finding, checking, splitting and decoding photos."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tudsr.data.photos import (
    PhotoStore,
    check_photos,
    decode_photo,
    find_photos,
    manifest_hash,
    split_photos,
)
from tudsr.errors import DataError, InputError
from tudsr.image_encode import encode_file
from tudsr.image_raster import Raster


def _save(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_find_is_recursive_sorted_and_picks_photos(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/c.webp", "d.tif", "e.bmp"):
        _save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "folder.png").mkdir()
    names = [path.relative_to(tmp_path).as_posix() for path in find_photos(tmp_path)]
    assert names == ["a/c.webp", "a/z.JPG", "b.png", "d.tif", "e.bmp"]


def test_find_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        find_photos(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no photo found"):
        find_photos(tmp_path)


def test_check_sorts_out_broken_and_small(tmp_path: Path) -> None:
    good = _save(tmp_path / "good.png", (40, 32))
    small = _save(tmp_path / "small.png", (100, 31))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"this is not a JPEG")
    empty = tmp_path / "empty.png"
    empty.touch()
    usable, report = check_photos([broken, empty, good, small], min_side_px=32)
    assert usable == [good]
    assert report.broken == (broken, empty)
    assert report.too_small == (small,)
    assert report.summary() == "1 photos usable, 2 unreadable, 1 too small"
    with pytest.raises(DataError, match=r"none of 4 photos can be used: 2 unreadable, 2 with a short side below 33 px"):
        check_photos([broken, empty, good, small], min_side_px=33)


def test_split_is_a_partition_that_only_names_and_seed_decide(tmp_path: Path) -> None:
    paths = [tmp_path / "x" / f"{i}.png" for i in range(40)]
    train, val = split_photos(paths, 7, seed=1, root=tmp_path)
    assert len(val) == 7
    assert sorted(train + val) == sorted(paths)
    assert set(split_photos(paths[::-1], 7, seed=1, root=tmp_path)[1]) == set(val)
    elsewhere = [Path("/other") / path.relative_to(tmp_path) for path in paths]
    moved = split_photos(elsewhere, 7, seed=1, root=Path("/other"))[1]
    assert [path.name for path in moved] == [path.name for path in val]
    assert set(split_photos(paths, 7, seed=2, root=tmp_path)[1]) != set(val)


def test_split_is_stable_when_photos_are_added(tmp_path: Path) -> None:
    """An old photo never becomes a validation photo because new ones came."""
    old = [tmp_path / f"{i}.png" for i in range(40)]
    new = [tmp_path / "new" / f"{i}.png" for i in range(20)]
    before = set(split_photos(old, 7, seed=1, root=tmp_path)[1])
    after = set(split_photos(old + new, 7, seed=1, root=tmp_path)[1])
    assert after & set(old) <= before
    assert len(after & before) >= 2


@pytest.mark.parametrize("val_count", [-1, 3, 4])
def test_split_leaves_a_photo_to_train_on(tmp_path: Path, val_count: int) -> None:
    with pytest.raises(DataError):
        split_photos([tmp_path / f"{i}.png" for i in range(3)], val_count, seed=0, root=tmp_path)


def test_manifest_hash_sees_names_and_contents_but_not_order_or_place(tmp_path: Path) -> None:
    def make(folder: str, names: tuple[str, str], seed: int) -> tuple[Path, list[Path]]:
        root = tmp_path / folder
        return root, [_save(root / name, seed=seed + i) for i, name in enumerate(names)]

    root, paths = make("one", ("a.png", "b/c.png"), 0)
    original = manifest_hash(paths, root)
    assert original == manifest_hash(paths[::-1], root)
    root, paths = make("two", ("a.png", "b/c.png"), 0)
    assert original == manifest_hash(paths, root)
    root, paths = make("three", ("a.png", "b/d.png"), 0)
    assert original != manifest_hash(paths, root)
    root, paths = make("four", ("a.png", "b/c.png"), 5)
    assert original != manifest_hash(paths, root)


def test_manifest_hash_without_contents_sees_names_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    original = manifest_hash([path], tmp_path, contents=False)
    path.write_bytes(b"two")
    assert original == manifest_hash([path], tmp_path, contents=False)
    assert original != manifest_hash([path], tmp_path.parent, contents=False)
    path.write_bytes(b"three")
    assert original != manifest_hash([path], tmp_path, contents=False)


def test_decode_turns_upright_and_drops_alpha(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:10] = 255  # white above black, stored lying on its side
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(decode_photo(tmp_path / "turned.png"), pixels)
    Image.fromarray(np.full((8, 8, 4), 99, dtype=np.uint8)).save(tmp_path / "alpha.png")
    assert decode_photo(tmp_path / "alpha.png").shape == (8, 8, 3)
    Image.fromarray(np.full((8, 8), 99, dtype=np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(decode_photo(tmp_path / "grey.png"), np.full((8, 8, 3), 99))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_truncated_files_raise(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError):
        decode_photo(_truncate(_save(tmp_path / f"half.{suffix}", (120, 90))))


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("exif", [b"II\x2b\0\x08\0\0\0", b"MM\0\x2a\0"], ids=["BigTIFF", "short"])
def test_damaged_exif_costs_no_photo(tmp_path: Path, suffix: str, exif: bytes) -> None:
    path = tmp_path / f"damaged.{suffix}"
    Image.new("RGB", (40, 40), "white").save(path, exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(decode_photo(path), np.full((40, 40, 3), 255))


def test_what_cannot_be_decoded_is_not_called_usable(tmp_path: Path) -> None:
    good = _save(tmp_path / "good.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "p.bmp", format="PPM")
    usable, report = check_photos([good, tmp_path / "p.bmp"], min_side_px=8)
    assert (usable, report.broken) == ([good], (tmp_path / "p.bmp",))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_the_same_photo_as_8(tmp_path: Path, suffix: str, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (30, 40, channels), dtype=np.uint16)
    encode_file(tmp_path / f"wide.{suffix}", Raster(values=values))
    expected = np.broadcast_to(values >> 8, (30, 40, 3))
    np.testing.assert_array_equal(decode_photo(tmp_path / f"wide.{suffix}"), expected)


def test_store_keeps_within_its_memory(tmp_path: Path) -> None:
    paths = [_save(tmp_path / f"{i}.png", (700, 600), seed=i) for i in range(3)]  # 1.26 MB each
    store = PhotoStore(paths, 32, cache_mb=2)
    first, second = store.get(0), store.get(1)
    assert store.get(0) is first
    assert store.get(1) is not second
    np.testing.assert_array_equal(store.get(1), second)


def test_store_warns_once_of_a_broken_photo(tmp_path: Path) -> None:
    path = _truncate(_save(tmp_path / "half.png", (90, 90)))
    store = PhotoStore([path], 32, cache_mb=1)
    with pytest.warns(UserWarning, match=r"half\.png: damaged or cut short .* skipped"):
        assert store.get(0) is None
    assert store.get(0) is None
    assert store.broken == {path}

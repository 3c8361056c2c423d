"""Pictures made row by row: the same from memory and disk, and from any row on."""

import json

import numpy as np
import pytest
import torch

from tudsr.canvas import JOURNAL_NAME, DiskStore, MemoryStore, RawFile, discard


def rows_of(x, step, asked=None):
    def rows_from(start):
        if asked is not None:
            asked.append(start)
        for y in range(start, x.shape[-2], step):
            yield x[..., y : y + step, :]

    return rows_from


@pytest.fixture
def picture():
    return torch.rand(1, 3, 50, 7, generator=torch.Generator().manual_seed(0))


def test_raw_files_give_back_what_was_written(tmp_path):
    values = np.random.default_rng(0).integers(0, 65535, (9, 8, 4), dtype=np.uint16)
    raw = RawFile(tmp_path / "a", values.shape, np.uint16)
    raw.write(5, values[5:])
    raw.write(0, values[:5])
    np.testing.assert_array_equal(raw.read(0, 9, 0, 8), values)
    np.testing.assert_array_equal(raw.read(2, 7, 3, 5), values[2:7, 3:5])
    np.testing.assert_array_equal(np.fromfile(raw.path, np.uint16), values.ravel())
    with pytest.raises(OSError, match="shorter than its picture"):
        RawFile(tmp_path / "a", (10, 8, 4), np.uint16).read(9, 10, 0, 8)


def test_both_stores_keep_the_same_picture(tmp_path, picture):
    for store in (MemoryStore(), DiskStore(tmp_path, {}, rows_at_once=8)):
        part = store.fill("a", 50, 7, rows_of(picture, 3))
        assert torch.equal(part(0, 50, 0, 7), picture)
        assert torch.equal(part(11, 40, 2, 5), picture[..., 11:40, 2:5])


def test_a_killed_picture_goes_on_where_the_journal_says(tmp_path, picture):
    def dying(start):
        for number, rows in enumerate(rows_of(picture, 5)(start)):
            if number == 6:
                raise KeyboardInterrupt
            yield rows

    with pytest.raises(KeyboardInterrupt):
        DiskStore(tmp_path, {"a": (1, 2)}, rows_at_once=10).fill("x", 50, 7, dying)
    asked = []
    again = DiskStore(tmp_path, {"a": (1, 2)}, rows_at_once=10)
    raw = RawFile(tmp_path / "x.f32", (50, 7, 3), np.float32)
    assert again.done("x", raw) == 30
    assert torch.equal(again.fill("x", 50, 7, rows_of(picture, 5, asked))(0, 50, 0, 7), picture)
    assert asked == [30]
    again.fill("x", 50, 7, rows_of(picture, 5, asked))
    assert asked == [30], "a finished picture is not made again"


def test_another_key_begins_anew_in_an_empty_folder(tmp_path, picture):
    DiskStore(tmp_path, {"a": 1}).fill("x", 50, 7, rows_of(picture, 5))
    (tmp_path / "input.raw").write_bytes(b"of another picture")
    asked = []
    other = DiskStore(tmp_path, {"a": 2})
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL_NAME]
    other.fill("x", 50, 7, rows_of(picture, 5, asked))
    assert asked == [0]
    assert json.loads((tmp_path / JOURNAL_NAME).read_text())["key"] == {"a": 2}


def dying_after(x, rows):
    """Give rows of a picture, ten at a time, and then no more."""

    def rows_from(start):
        for y in range(start, rows, 10):
            yield x[..., y : y + 10, :]
        raise KeyboardInterrupt

    return rows_from


def begun(folder, picture, how):
    """Finish one picture and begin another."""
    store = DiskStore(folder, {"a": 1}, how, rows_at_once=10)
    store.fill("one", 50, 7, rows_of(picture, 5))
    with pytest.raises(KeyboardInterrupt):
        store.fill("two", 50, 7, dying_after(picture, 30))


def test_with_other_windows_the_finished_picture_serves_and_the_other_one_is_begun_anew(tmp_path, picture):
    begun(tmp_path, picture, {"most_px": None, "batch": 1})
    asked = []
    other = DiskStore(tmp_path, {"a": 1}, {"most_px": 32, "batch": 1})
    other.fill("one", 50, 7, rows_of(picture, 5, asked))
    assert asked == []
    part = other.fill("two", 50, 7, rows_of(1 - picture, 5, asked))
    assert asked == [0]
    assert torch.equal(part(0, 50, 0, 7), 1 - picture)
    journal = json.loads((tmp_path / JOURNAL_NAME).read_text())
    assert {name: how["most_px"] for name, how in journal["made"].items()} == {"one": None, "two": 32}


def test_rows_of_other_windows_are_disowned_before_the_first_new_row(tmp_path, picture, monkeypatch):
    """Killed after a new row was written and before the journal counts it, no run may go on with both kinds."""
    begun(tmp_path, picture, {"most_px": None})
    write = RawFile.write

    def killed(*args):
        write(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RawFile, "write", killed)
        other = DiskStore(tmp_path, {"a": 1}, {"most_px": 32})
        with pytest.raises(KeyboardInterrupt):
            other.fill("two", 50, 7, rows_of(1 - picture, 5))
    asked = []
    again = DiskStore(tmp_path, {"a": 1}, {"most_px": None})
    assert torch.equal(again.fill("two", 50, 7, rows_of(picture, 5, asked))(0, 50, 0, 7), picture)
    assert asked == [0]


def test_with_another_batch_it_goes_on_and_the_journal_says_which(tmp_path, picture):
    begun(tmp_path, picture, {"most_px": 64, "batch": 4})
    asked = []
    DiskStore(tmp_path, {"a": 1}, {"most_px": 64, "batch": 2}).fill("two", 50, 7, rows_of(picture, 5, asked))
    assert asked == [30]
    journal = json.loads((tmp_path / JOURNAL_NAME).read_text())
    assert journal["how"] == journal["made"]["two"] == {"most_px": 64, "batch": 2}
    assert journal["made"]["one"]["batch"] == 4


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": 1, "rows": {}}', '{"key": {}, "rows": {}}', "null"])
def test_a_damaged_journal_is_none(tmp_path, picture, text):
    DiskStore(tmp_path, {"a": 1}).fill("x", 50, 7, rows_of(picture, 5))
    (tmp_path / JOURNAL_NAME).write_text(text)
    asked = []
    part = DiskStore(tmp_path, {"a": 1}).fill("x", 50, 7, rows_of(picture, 5, asked))
    assert asked == [0]
    assert torch.equal(part(0, 50, 0, 7), picture)


def test_rows_that_the_file_lost_are_made_again(tmp_path, picture):
    DiskStore(tmp_path, {"a": 1}).fill("x", 50, 7, rows_of(picture, 5))
    with (tmp_path / "x.f32").open("r+b") as file:
        file.truncate(20 * 7 * 3 * 4 + 5)
    asked = []
    part = DiskStore(tmp_path, {"a": 1}).fill("x", 50, 7, rows_of(picture, 5, asked))
    assert asked == [20]
    assert torch.equal(part(0, 50, 0, 7), picture)


def test_a_discarded_folder_leaves_nothing(tmp_path, picture):
    DiskStore(tmp_path / "work", {"a": 1}).fill("x", 50, 7, rows_of(picture, 5))
    discard(tmp_path / "work")
    assert not (tmp_path / "work").exists()

"""Pairing by stem; what has no partner, another size or cannot be read is said and left out."""

import numpy as np
import pytest
from PIL import Image

from tudsr.errors import DataError, InputError
from tudsr.eval.pairs import Pair, find_pairs, read_output, read_pair, readable


def save(path, width=8, height=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(values).save(path)
    return path


def test_files_are_paired_by_stem_whatever_their_suffix_and_folder(tmp_path):
    for name in ("b", "a"):
        save(tmp_path / "lq" / f"{name}.png")
        save(tmp_path / "gt" / "deep" / f"{name}.bmp")
        save(tmp_path / "peer" / f"{name}.webp")
    pairs, skipped = find_pairs(tmp_path / "lq", tmp_path / "gt", {"peer": tmp_path / "peer"})
    assert [pair.name for pair in pairs] == ["a", "b"]
    assert pairs[0].gt == tmp_path / "gt" / "deep" / "a.bmp"
    assert pairs[1].outputs == {"peer": tmp_path / "peer" / "b.webp"}
    assert skipped == []


def test_what_lacks_a_partner_is_said(tmp_path):
    for name in ("both", "no_gt", "no_peer"):
        save(tmp_path / "lq" / f"{name}.png")
    for name in ("both", "no_peer", "lonely_gt"):
        save(tmp_path / "gt" / f"{name}.png")
    for name in ("both", "lonely_peer"):
        save(tmp_path / "peer" / f"{name}.png")
    pairs, skipped = find_pairs(tmp_path / "lq", tmp_path / "gt", {"peer": tmp_path / "peer"})
    assert [(pair.name, sorted(pair.outputs)) for pair in pairs] == [("both", ["peer"]), ("no_peer", [])]
    said = {one.file.rsplit("/", 1)[1]: one.reason for one in skipped}
    assert sorted(said) == ["lonely_gt.png", "lonely_peer.png", "no_gt.png", "no_peer.png"]
    assert "no true picture" in said["no_gt.png"]
    assert "no output of peer" in said["no_peer.png"]
    assert "no input" in said["lonely_gt.png"]


def test_a_link_to_nothing_is_said(tmp_path):
    save(tmp_path / "lq" / "a.png")
    (tmp_path / "lq" / "b.png").symlink_to(tmp_path / "gone.png")
    pairs, skipped = find_pairs(tmp_path / "lq", None, {})
    assert [pair.name for pair in pairs] == ["a"]
    assert [(one.file, one.reason) for one in skipped] == [(str(tmp_path / "lq" / "b.png"), "a link to nothing")]


def test_a_file_of_another_kind_is_said(tmp_path):
    save(tmp_path / "lq" / "a.png")
    save(tmp_path / "lq" / "b.gif")
    save(tmp_path / "peer" / "a.png")
    for name in ("seconds.json", ".done.json"):
        (tmp_path / "peer" / name).write_text("{}")
    pairs, skipped = find_pairs(tmp_path / "lq", None, {"peer": tmp_path / "peer"})
    assert [pair.name for pair in pairs] == ["a"]
    assert [one.file for one in skipped] == [str(tmp_path / "lq" / "b.gif")]
    assert skipped[0].reason.startswith("not of a kind that is measured (.bmp, ")


def test_a_limit_does_not_make_partners_lonely(tmp_path):
    for name in "abc":
        save(tmp_path / "lq" / f"{name}.png")
        save(tmp_path / "gt" / f"{name}.png")
    pairs, skipped = find_pairs(tmp_path / "lq", tmp_path / "gt", {}, limit=2)
    assert [pair.name for pair in pairs] == ["a", "b"]
    assert skipped == []


def test_the_first_of_two_files_of_one_name_is_taken(tmp_path):
    first = save(tmp_path / "lq" / "a.bmp")
    second = save(tmp_path / "lq" / "a.png")
    pairs, skipped = find_pairs(tmp_path / "lq", None, {})
    assert [pair.lq for pair in pairs] == [first]
    assert [one.file for one in skipped] == [str(second)]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    save(tmp_path / "lq" / "a.png")
    with pytest.raises(DataError, match="gone"):
        find_pairs(tmp_path / "lq", tmp_path / "gone", {})


@pytest.mark.parametrize(("size", "fits"), [((32, 24), True), ((35, 27), True), ((36, 24), False), ((32, 23), False)])
def test_a_true_picture_may_be_larger_by_less_than_the_scale(tmp_path, size, fits):
    pair = Pair(name="a", lq=save(tmp_path / "lq" / "a.png"), gt=save(tmp_path / "gt" / "a.png", *size), outputs={})
    kept, skipped = readable([pair], 4)
    assert bool(kept) is fits
    if not fits:
        assert "differs in size" in skipped[0].reason
        assert f"{size[0]}x{size[1]}" in skipped[0].reason
        return
    gt = read_pair(pair, 4).gt
    with Image.open(pair.gt) as image:
        expected = np.asarray(image)[:24, :32]  # the top left part
    np.testing.assert_array_equal(((gt[0].permute(1, 2, 0).numpy() + 1) * 127.5).round(), expected)


def test_a_file_that_cannot_be_read_is_skipped_and_the_rest_kept(tmp_path):
    good, bad = save(tmp_path / "good.png"), save(tmp_path / "bad.png")
    bad.write_bytes(bad.read_bytes()[:40])
    kept, skipped = readable([Pair(name=p.stem, lq=p, gt=None, outputs={}) for p in (bad, good)], 2)
    assert [pair.name for pair in kept] == ["good"]
    assert [one.file for one in skipped] == [str(bad)]


def test_an_output_of_another_size_is_refused(tmp_path):
    path = save(tmp_path / "a.png", 8, 6)
    assert read_output(path, 6, 8).shape == (1, 3, 6, 8)
    with pytest.raises(InputError, match="8x6 px came, 9x6 is expected"):
        read_output(path, 6, 9)

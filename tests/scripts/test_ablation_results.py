"""What figures are said to mean: sentences that follow from made-up ones."""

import re

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter


def report(directions, figures, trained_on=None):
    """Build what `tudsr eval` reports: figures is method → metric → values of the pictures."""
    count = max(len(values) for metrics in figures.values() for values in metrics.values())
    return {
        "metrics": {metric: {"direction": direction} for metric, direction in directions.items()},
        "methods": [{"name": name, "trained_on": (trained_on or {}).get(name, [])} for name in figures],
        "pictures": [
            {"figures": {name: {m: values[i] for m, values in of.items()} for name, of in figures.items()}}
            for i in range(count)
        ],
    }


def test_verdict_names_the_better_arm_by_each_metric_own_direction(results):
    found = report(
        {"psnr": "higher", "dists": "lower", "niqe": "lower"},
        {
            # far apart from picture to picture, and b always a little above a
            "a": {
                "psnr": [20, 30, 25, 35, 22, 28],
                "dists": [0.1, 0.5, 0.3, 0.2, 0.4, 0.6],
                "niqe": [4, 5, 6, 4, 5, 6],
            },
            "b": {
                "psnr": [21, 31, 26.5, 36, 23, 29],
                "dists": [0.2, 0.6, 0.5, 0.3, 0.5, 0.7],
                "niqe": [5, 4, 5, 5, 6, 5],
            },
        },
        {"a": ["dists"]},
    )
    (sentence,) = results.verdict("kodak", found, [["a", "b"]])
    assert sentence.startswith("kodak: a is better than b in dists° (0.35 against 0.4667; -0.117 [")
    won, lost, unclear = sentence.split("; b is better")[0], *sentence.split("b is better than a in ")[1].split("; no ")
    assert "psnr" not in won
    assert lost.startswith("psnr (27.75 against 26.67; +1.08 [")
    assert unclear.startswith("clear difference between a and b in niqe (5 against 5; +0 [")


def test_verdict_gives_intervals_of_the_winner_less_the_other(results):
    found = report({"psnr": "higher"}, {"a": {"psnr": [3, 4, 5, 6, 7]}, "b": {"psnr": [1, 2, 3, 4, 5]}})
    assert results.verdict("x", found, [["a", "b"]]) == [
        "x: a is better than b in psnr (5 against 3; +2 [+2, +2])."
    ]  # fmt: skip
    assert results.verdict("x", found, [["b", "a"]]) == [
        "x: a is better than b in psnr (5 against 3; +2 [+2, +2])."
    ]  # fmt: skip


def test_verdict_of_equal_arms_few_pictures_and_nothing_measured(results):
    same = report({"psnr": "higher"}, {"a": {"psnr": [1, 2, 3, 4, 5]}, "b": {"psnr": [1, 2, 3, 4, 5]}})
    assert "no clear difference between a and b in psnr (3 against 3; +0 [+0, +0])" in results.verdict(
        "x", same, [["a", "b"]]
    )[0]  # fmt: skip
    few = report({"psnr": "higher"}, {"a": {"psnr": [1, 2, 3, None, 5]}, "b": {"psnr": [9, 9, 9, 9, 9]}})
    assert results.verdict("x", few, [["a", "b"]]) == ["x: too few pictures to compare a with b in psnr."]
    none = report({"psnr": "higher"}, {"a": {"psnr": [None]}, "b": {"psnr": [2]}})
    assert results.verdict("x", none, [["a", "b"]]) == ["x: no metric was measured for both a and b."]


def test_verdict_compares_within_groups_only(results):
    found = report({"psnr": "higher"}, {name: {"psnr": [1, 2, 3, 4, 5]} for name in "abcd"})
    sentences = results.verdict("x", found, [["a", "b", "c"], ["d"]])
    assert [re.findall(r"between (\w) and (\w)", s) for s in sentences] == [[("a", "b")], [("a", "c")], [("b", "c")]]


def test_the_budget_tells_what_arms_share_from_what_they_do_not(parts):
    def arm(group, *phases):
        return {"group": group, "phases": [f"{name}-{steps}" for name, steps in phases]}

    phases = [{"name": f"{name}-{n}", "settings": {"steps": n}} for name in "abcd" for n in (50, 100, 2000)]
    alone = [arm("", ("a", 100)), arm("", ("b", 100))]
    assert parts.budget(alone, phases) == "100 steps an arm"
    assert parts.budget([*alone, arm("z", ("c", 100)), arm("z", ("d", 100))], phases) == "100 steps an arm"
    after = [arm("x", ("a", 2000), ("b", 50)), arm("x", ("a", 2000), ("c", 50))]
    assert parts.budget(after, phases) == "2,000 steps that the arms share, then 50 an arm"
    apart = [arm("y", ("a", 100), ("b", 50)), arm("y", ("c", 100), ("d", 50))]
    assert parts.budget([*apart, *after], phases) == (
        "150 steps an arm (y); 2,000 steps that the arms share, then 50 an arm (x)"
    )


def test_a_figure_without_an_interval_is_shown_alone(results):
    mean = {"mean": 12.5, "low": None, "high": None}
    method = {"name": "a", "trained_on": ["fid"], "seconds_per_mp": None, "means": {"fid": mean}}
    assert results._method_row(method, ["fid", "psnr"]) == "| a | 12.5° | – | – |"


def test_the_montage_shows_where_the_arms_differ_most(results, tmp_path):
    """Grey photos but for a coloured square in one arm; of three photos, the two with the most colourful ones."""
    squares = {"faint": (300, 20, 130), "strong": (10, 200, 255), "second": (200, 260, 200)}
    entries = []
    for name, (y, x, level) in squares.items():
        entry = {"name": name, "outputs": {}, "lq": {"path": "unused"}, "gt": {"path": f"{name}-gt.png"}}
        for method, shade in {"gt": 90, "bicubic": 110, "arm a": 128, "arm b": 128}.items():
            pixels = np.full((480, 512, 3), shade, np.uint8)
            if method == "arm b":
                pixels[y : y + 60, x : x + 60] = (level, 128, 128)
            Image.fromarray(pixels).save(tmp_path / f"{name}-{method}.png")
            if method != "gt":
                entry["outputs"][method] = f"{name}-{method}.png"
        entries.append(entry)
    kinds = {"bicubic": "bicubic", "arm a": "model", "arm b": "model"}
    methods = [{"name": name, "kind": kind} for name, kind in kinds.items()]
    results.write_montage(tmp_path / "x.webp", {tmp_path: {"methods": methods, "pictures": entries}})
    with Image.open(tmp_path / "x.webp") as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)
    assert sheet.shape == (2 * 194, 4 * 176, 3)
    for row, level in enumerate((255, 200)):
        cells = [sheet[row * 194 + 18 : (row + 1) * 194, column * 176 : (column + 1) * 176] for column in range(4)]
        for cell, shade in zip(cells[:3], (90, 110, 128), strict=True):
            assert abs(cell - shade).max() <= 6
        reds = cells[3][..., 0][cells[3][..., 0] > 128 + (level - 128) / 2]
        assert 0.9 * 60**2 < len(reds) < 1.1 * 60**2  # the whole square
        assert abs(np.median(reds) - level) < 12
        assert (sheet[row * 194 : row * 194 + 18] < 100).any()  # a label


def test_the_montage_of_busy_pictures_stays_small(results, tmp_path):
    noise = np.random.default_rng(0).normal(0, 200, (3, 200, 200, 3))
    noise = np.clip(gaussian_filter(noise, (0, 1, 1, 1)) + 128, 0, 255).astype(np.uint8)
    names = ["bicubic", *"abcd"]
    for index, name in enumerate(("gt", *names)):
        Image.fromarray(noise[index % 3]).save(tmp_path / f"{name}.png")
    entry = {"name": "n", "outputs": {name: f"{name}.png" for name in names}, "gt": {"path": "gt.png"}}
    methods = [{"name": name, "kind": "bicubic" if name == "bicubic" else "model"} for name in names]
    results.write_montage(tmp_path / "x.webp", {tmp_path: {"methods": methods, "pictures": [entry, entry]}})
    assert 20_000 < (tmp_path / "x.webp").stat().st_size <= 60_000

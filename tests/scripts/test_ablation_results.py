"""What figures are said to mean: sentences that follow from made-up ones."""

import re


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

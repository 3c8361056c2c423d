#!/usr/bin/env python
"""How two methods of a report differ, photo by photo, as the rows of docs/experiments say it.

Run: python scripts/differences.py REPORT/results.json A B

Prints A less B in every metric: the mean and its 95 % bootstrap interval, bold where that leaves 0 out. Figures below a
metric's floor (seams: 1) differ by nothing; of a single picture there is no interval.
"""

import argparse
from pathlib import Path

from ablation_results import Difference, compare

from tudsr.config import read_object

FORMS = {"psnr": "+.2f", "niqe": "+.2f", "lr_consistency": "+.2f"}


def cell(difference: Difference) -> str:
    """Return «**-0.017** [-0.036, -0.001]»; of one picture the mean alone."""
    form, i = FORMS.get(difference.metric, "+.3f"), difference.interval
    mean = f"{i.mean:{form}}"
    interval = "" if i.low is None or i.high is None else f" [{i.low:{form}}, {i.high:{form}}]"
    return f"{mean if difference.better is None else f'**{mean}**'}{interval}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("a")
    parser.add_argument("b")
    wishes = parser.parse_args()
    found = list(compare(read_object(wishes.report), wishes.b, wishes.a))
    print(f"| | {' | '.join(one.metric for one in found)} |")
    print(f"|{'---|' * (len(found) + 1)}")
    print(f"| {wishes.a} less {wishes.b} | {' | '.join(map(cell, found))} |")


if __name__ == "__main__":
    main()

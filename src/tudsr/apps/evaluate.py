"""`tudsr eval`: settings from the command line, a progress bar, the table."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from tudsr.apps.report import steps_bar
from tudsr.errors import ConfigError, InputError
from tudsr.eval.metrics import as_counted
from tudsr.eval.report import EvalConfig, evaluate


def make_config(outputs: Iterable[str], metrics: str | None, options: Mapping[str, Any]) -> EvalConfig:
    """Build the settings of a report.

    Args:
        outputs: «NAME=DIR» each.
        metrics: names with commas between, or None for those that the data allows.
        options: the other fields of `EvalConfig`.

    Raises:
        InputError: for outputs that are not NAME=DIR, or a name that comes twice.
        ConfigError: for an option out of range.
    """
    folders: dict[str, Path] = {}
    for text in outputs:
        name, equals, folder = (part.strip() for part in text.partition("="))
        if not (name and equals and folder):
            raise InputError(f"--outputs {text!r}: NAME=DIR is expected, for example --outputs x4plus=out/x4plus.")
        if name in folders:
            raise InputError(f"--outputs {text!r}: {name!r} names {folders[name]} already.")
        folders[name] = Path(folder)
    for share in options.get("fidelity", ()):
        if not _is_share(share):
            raise ConfigError(
                f"--fidelity {share!r}: a number from 0 to 1, or several with commas between, are accepted."
            )
    names = None if metrics is None else tuple(name.strip() for name in metrics.split(",") if name.strip())
    return EvalConfig.parse({**options, "outputs": folders, "metrics": names}, "eval")


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def run_eval(config: EvalConfig) -> dict[str, Any]:
    """Evaluate under a progress bar; what was left out is said on stderr.

    Args:
        config: the report.

    Returns:
        What results.json holds.

    Raises:
        TudsrError: before any work, when something cannot be used.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with steps_bar("eval", enabled=True) as bar:
        return evaluate(config, notes=lambda line: _say(bar, line), progress=_Tasks(bar).update)


def _say(bar: Progress, line: str) -> None:
    bar.console.print(line, markup=False, soft_wrap=True)


class _Tasks:
    """One line of the bar for each method, and one for the measuring."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._tasks: dict[str, Any] = {}

    def update(self, done: int, total: int, what: str) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task("", total=total, figures=what)
        self._bar.update(self._tasks[what], completed=done)


def table_lines(results: Mapping[str, Any]) -> list[str]:
    """Return the means as aligned text: a row for each method.

    * is beside the best figure of each scale, ° where it was a loss, and in brackets how many pictures have it where
    not all do.
    """
    names = list(results["metrics"])
    rows = [["method", *names, "s/MP"]]
    for method in results["methods"]:
        cells = [_cell(results, method, name) for name in names]
        seconds = method["seconds_per_mp"]
        rows.append([method["name"], *cells, "–" if seconds is None else f"{seconds:.3g}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(results: Mapping[str, Any], method: Mapping[str, Any], metric: str) -> str:
    mean = method["means"].get(metric)
    if mean is None:
        return "–"
    peers = [other["means"] for other in results["methods"] if other["scale"] == method["scale"]]
    others = [means[metric] for means in peers if metric in means]
    most = max(other["count"] for other in others)  # means over fewer pictures are of other ones: none of them is best
    about = results["metrics"][metric]
    rivals = [as_counted(about, other["mean"]) for other in others if other["count"] == most]
    best = max(rivals) if about["direction"] == "higher" else min(rivals)
    marks = "*" if mean["count"] == most and as_counted(about, mean["mean"]) == best else ""
    marks += "°" if metric in method["trained_on"] else ""
    return f"{mean['mean']:.4f}{marks}" + (f" ({mean['count']})" if mean["count"] < len(results["pictures"]) else "")

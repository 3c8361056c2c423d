"""What a user sees of the work: a progress bar and lines on stderr, JSON on stdout."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tudsr.apps.remote import Task
from tudsr.machine import status_bytes

_BYTES_PER_MB = 1_000_000
_PACE_S = 600
"""Of what the time left is estimated from; a window or a step may take minutes."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished picture; sizes are (width, height) in pixels, seconds include reading and writing."""

    input: str
    output: str
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    seconds: float
    peak_rss_mb: float
    model: str
    m: float
    n: float
    peak_gpu_mb: float | None = None

    def to_json(self) -> str:
        """Return one line of JSON; a GPU's memory is in it where there is a GPU."""
        fields = {name: value for name, value in asdict(self).items() if name != "peak_gpu_mb" or value is not None}
        return json.dumps(fields, ensure_ascii=False)

    def to_line(self) -> str:
        """Return one line for people."""
        (w, h), (out_w, out_h) = self.in_size, self.out_size
        size = f"{w}x{h} → {out_w}x{out_h} (M {self.m:g}, N {self.n:g})"
        return f"{self.input} → {self.output}: {size}, {self.seconds:.2f} s, peak {self.peak_rss_mb:.0f} MB"


def peak_rss_mb() -> float:
    """Return the largest resident memory of this process so far, in MB of 10^6 bytes."""
    found = status_bytes("VmHWM")
    if found is not None:  # getrusage would also count what the parent process held when it started this one
        return found / _BYTES_PER_MB
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / _BYTES_PER_MB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / _BYTES_PER_MB


def peak_gpu_mb() -> float | None:
    """Return the largest memory that this process has held of a GPU so far, in MB of 10^6 bytes; None without CUDA."""
    return torch.cuda.max_memory_reserved() / _BYTES_PER_MB if torch.cuda.is_available() else None


class Reporter:
    """Reports on a batch; a context manager that draws the progress bar.

    Args:
        tasks: all that will be worked on.
        as_json: results go to stdout as JSON, one object a line, and nothing else does.
        quiet: neither bar nor lines, only errors.
    """

    def __init__(self, tasks: list[Task], *, as_json: bool, quiet: bool) -> None:
        self._as_json, self._quiet = as_json, quiet
        self._out = sys.stdout  # what an engine's libraries print to a later one is not ours
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        crowded = as_json and sys.stdout.isatty()  # the bar would be drawn over the objects
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False,
            disable=quiet or crowded or not self._console.is_terminal, speed_estimate_period=_PACE_S,
        )  # fmt: skip
        # A file's size foretells its share of the work, without opening it.
        self._weights = {task: task.size_bytes for task in tasks}
        self._task = self._bar.add_task("", total=sum(self._weights.values()))
        self._made: dict[Task, float] = {}
        self._number, self._count = 0, len(tasks)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, task: Task) -> None:
        """Show that a picture is being worked on."""
        self._number += 1
        self._bar.update(self._task, description=f"{self._number}/{self._count} {PurePath(task.source).name}")

    def windows(self, task: Task, done: int, total: int) -> None:
        """Advance by windows of one picture."""
        self._advance(task, done / max(1, total))

    def end(self, task: Task) -> None:
        """Count a picture as dealt with, well or not."""
        self._advance(task, 1.0)

    def _advance(self, task: Task, share: float) -> None:
        before, self._made[task] = self._made.get(task, 0.0), share
        self._bar.advance(self._task, self._weights[task] * (share - before))

    def done(self, result: Result) -> None:
        """Report a finished picture."""
        if self._as_json:
            self._out.write(result.to_json() + "\n")
            self._out.flush()
        self.note(result.to_line())

    def note(self, line: str) -> None:
        """Say something that is no error."""
        if not self._quiet:
            self._console.print(line)

    def error(self, line: str) -> None:
        """Say what went wrong with one picture, also when quiet."""
        self._console.print(f"Error: {line}")


@contextmanager
def steps_bar(label: str, *, enabled: bool) -> Iterator[Progress]:
    """Yield a started rich progress bar on stderr, with counts and ETA, for work of known length."""
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn(label, markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("{task.fields[figures]}", markup=False),
    )  # fmt: skip
    shown = enabled and console.is_terminal
    with Progress(*columns, console=console, disable=not shown, speed_estimate_period=_PACE_S) as bar:
        yield bar

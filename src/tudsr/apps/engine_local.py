"""The engine of one machine: one picture after another, with one model, in this process."""

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

import torch

import tudsr
from tudsr.apps.remote import Task, is_url
from tudsr.apps.work import Attempt, Outcome, Work, probe
from tudsr.files import Read
from tudsr.image import Picture, read_picture
from tudsr.image_spool import read_header
from tudsr.pipeline import TUDSR

_AHEAD_PX = 4_000_000  # a picture of up to so many pixels, 48 MB, may wait in memory for its turn


def run_local(work: Work) -> None:
    """Enlarge all pictures; meanwhile the one before is encoded and written, and the next one read.

    Raises:
        TudsrError: before any picture, or when the only one cannot be done.
    """
    run = work.run
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    model = tudsr.load(run.model, run.device, run.dtype)
    probe(model, work.request)
    with _Writer(work) as writer, _Reader() as reader:
        for task, following in zip_longest(work.tasks, work.tasks[1:]):
            # One that an earlier run died of, maybe, is alone in the air: its neighbours must not be blamed.
            apart = run.memory is not None or work.lost_before(task)
            if apart:
                writer.wait()
            elif following is not None and not work.lost_before(following):
                reader.begin(following)
            enlarge_here(work, model, task, None if apart else writer, reader.read)
            reader.forget(task)


def enlarge_here(
    work: Work, model: TUDSR, task: Task, writer: "_Writer | None" = None, read: Read = read_picture
) -> None:
    """Enlarge one picture in this process; a writer, if any, writes it later; `read` may have read it already."""
    work.begin(task)

    def windows(done: int, total: int) -> None:
        work.reporter.windows(task, done, total)
        if writer is not None:
            writer.look()

    attempt = Attempt(model, task, work.request, work.run, work.reporter.note, windows, read)
    attempt.enlarge(write=writer is None)
    if writer is None:
        work.settle(task, attempt.finish())
    else:
        writer.take(attempt)


class _Reader:
    """Reads small pictures ahead, on a thread of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._ahead: dict[Path, Future[Picture | None]] = {}

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, task: Task) -> None:
        """Begin to read a picture, unless it lies behind a URL."""
        if not is_url(task.source):
            self._ahead[Path(task.source)] = self._pool.submit(_read_small, Path(task.source))

    def read(self, path: Path) -> Picture:
        """Return a picture; whatever its reading raised comes from here."""
        ahead = self._ahead.pop(path, None)
        picture = None if ahead is None else ahead.result()
        return read_picture(path) if picture is None else picture

    def forget(self, task: Task) -> None:
        """Let go of a picture that nobody came for: it was enlarged from disk, or refused."""
        self._ahead.pop(Path(task.source), None)


def _read_small(path: Path) -> Picture | None:
    header = read_header(path)
    return read_picture(path) if header.height * header.width <= _AHEAD_PX else None


class _Writer:
    """Finishes attempts on a thread of its own, one at a time; they are settled on the engine's thread."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(1)
        self._task: Task | None = None
        self._outcome: Future[Outcome] | None = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def take(self, attempt: Attempt) -> None:
        """Finish an attempt, after the one before."""
        self.wait()
        self._task, self._outcome = attempt.task, self._pool.submit(attempt.finish)

    def look(self) -> None:
        """Settle the attempt before, if it is finished."""
        if self._outcome is not None and self._outcome.done():
            self.wait()

    def wait(self) -> None:
        """Settle the attempt before."""
        task, outcome = self._task, self._outcome
        self._task = self._outcome = None
        if task is not None and outcome is not None:
            self._work.settle(task, outcome.result())

"""What engines share: one command's pictures with their journal and report, and one picture done in words."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from tudsr.apps.batch import Job
from tudsr.apps.compare import comparison_bytes, comparison_size, write_comparison
from tudsr.apps.journal import MOST_ATTEMPTS, Journal
from tudsr.apps.remote import Task, is_url, local_job
from tudsr.apps.report import Reporter, Result, peak_gpu_mb, peak_rss_mb
from tudsr.apps.upscale import Run, memory_in_words
from tudsr.checkpoint import check_folder
from tudsr.config import ModelConfig
from tudsr.errors import InputError
from tudsr.files import Read, upscale_file
from tudsr.image import read_picture
from tudsr.image_encode import check_size
from tudsr.image_spool import read_header
from tudsr.pipeline import TUDSR
from tudsr.planner import check_by_hand
from tudsr.request import Request, parse_memory
from tudsr.spooled import Deliver, Say
from tudsr.tiling import Progress

_PROBE_PX = 1  # the smallest picture: what is too large for it is too large for all


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one attempt at a picture ended: with a result, or an error in words; notes are what was not said yet."""

    result: Result | None = None
    error: str = ""
    notes: tuple[str, ...] = ()

    def renamed(self, names: dict[str, str]) -> "Outcome":
        """Return it with other names of files in its sentences."""
        return replace(self, error=_renamed(self.error, names), notes=tuple(_renamed(n, names) for n in self.notes))


class Work:
    """The pictures of one command on their way through an engine.

    Args:
        tasks: what is to be done.
        request: what is asked of every picture.
        run: the rest.
        reporter: tells the user.
        journal: remembers for the next run.
        alone: whether the command is about one picture; an error of it is raised.
    """

    def __init__(
        self, tasks: list[Task], request: Request, run: Run, reporter: Reporter, journal: Journal, *, alone: bool
    ) -> None:
        self.tasks, self.request, self.run, self.reporter = tasks, request, run, reporter
        self.done = self.failed = 0
        self._journal, self._alone = journal, alone
        self._begun: list[Task] = []
        self._shown: set[Task] = set()

    def begin(self, task: Task, worker: str | None = None) -> None:
        """Note, before an attempt at a picture, that it begins."""
        self._journal.begin(task, **_named(worker))
        self._begun.append(task)
        if task not in self._shown:
            self._shown.add(task)
            self.reporter.begin(task)

    def settle(self, task: Task, outcome: Outcome, worker: str | None = None) -> None:
        """Report and note how an attempt ended.

        Raises:
            InputError: when the only picture of the command could not be done.
        """
        self._begun.remove(task)
        for note in outcome.notes:
            self.reporter.note(note)
        if outcome.result is not None:
            self.done += 1
            self._journal.end(task, "done", seconds=outcome.result.seconds, **_named(worker))
            self.reporter.done(outcome.result)
        else:
            self._journal.end(task, "failed", error=outcome.error, **_named(worker))
            self.give_up(outcome.error)
        self.reporter.end(task)

    def lose(self, task: Task, worker: str | None = None) -> bool:
        """Note that a worker died of or during a picture; return whether there is another attempt.

        Raises:
            InputError: when there is none, and it is the only picture of the command.
        """
        self._begun.remove(task)
        self._journal.lost(task, **_named(worker))
        if self._journal.attempts(task) < MOST_ATTEMPTS:
            self.reporter.note(f"{task.source}: its worker died; it gets another attempt.")
            return True
        self.give_up(left_sentence(task))
        self.reporter.end(task)
        return False

    def lost_before(self, task: Task) -> bool:
        """Whether an attempt at a picture began in an earlier run, or on another worker, and never ended."""
        return self._journal.attempts(task) > 0

    def give_up(self, sentence: str) -> None:
        """Count and report a picture that cannot be done.

        Raises:
            InputError: when it is the only one of the command.
        """
        if self._alone:
            raise InputError(sentence)
        self.reporter.error(sentence)
        self.failed += 1

    def stop(self) -> None:
        """Note that attempts which still run are over: the user, or an error, ended the command."""
        while self._begun:
            self._journal.end(self._begun.pop(), "stopped")


def left_sentence(task: Task) -> str:
    """Say why a picture is left."""
    return (
        f"{task.source}: {MOST_ATTEMPTS} attempts at it began and never ended, so it probably kills its worker; it is "
        "left (--overwrite tries it again)."
    )


def probe(model: TUDSR, request: Request) -> None:
    """Refuse what a loaded model cannot do for any picture; raises what `check_wishes` does."""
    check_wishes(model.config, request)
    if request.vae == "whole" and request.size is None:
        model.plan(_PROBE_PX, _PROBE_PX, request)


def check_wishes(config: ModelConfig, request: Request) -> None:
    """Refuse what a model cannot do for any picture, as far as its settings say.

    Raises:
        InputError, ConfigError: where wishes contradict each other or the model.
    """
    request.windows(config.windows)
    if request.size is None:
        request.passes(_PROBE_PX, _PROBE_PX, config)
    else:  # the ratio is each picture's own
        check_by_hand(request.m, request.n, request.stage)


class Attempt:
    """One attempt at a picture from and to anywhere, in two parts, so that one is written while the next is made.

    What the user can mend is an outcome, not an exception.

    Args:
        model: loaded.
        task: the picture.
        request: what is asked of it.
        run: the rest.
        note: called with a sentence for whatever the user should know, as soon as it is known; on any thread.
        windows: called with (windows done, windows in all).
        read: reads a picture file.
    """

    def __init__(
        self,
        model: TUDSR,
        task: Task,
        request: Request,
        run: Run,
        note: Say,
        windows: Progress | None = None,
        read: Read = read_picture,
    ) -> None:
        self.task, self._note, self._windows, self._read = task, note, windows, read
        self._model, self._request, self._run = model, request, run
        self._names: dict[str, str] = {}
        self._result: Result | None = None
        self._error = ""
        self._writes: list[Callable[[], None]] = []

    def enlarge(self, *, write: bool = True) -> Self:
        """Read and enlarge; without `write` a file that is local may be written by `finish` only."""
        with self._in_words(), local_job(self.task) as (job, deliver):
            self._names = {str(job.source): self.task.source, str(job.target): self.task.target}
            with memory_in_words(job):
                self._result = self._enlarged(job, deliver, write=write)
        return self

    def _enlarged(self, job: Job, deliver: Deliver | None, *, write: bool) -> Result:
        begun, run, model = time.perf_counter(), self._run, self._model
        now = write or run.compare is not None or is_url(self.task.target)
        done = upscale_file(
            model, job.source, job.target, self._request,
            memory=None if run.memory is None else parse_memory(run.memory),
            beside=0 if run.compare is None else _check_compare(model, job, self._request, run.compare),
            work=job.work, progress=self._windows, say=self._say, later=None if now else self._writes.append,
            read=self._read, deliver=deliver,
        )  # fmt: skip
        seconds, plan = time.perf_counter() - begun, done.plan
        if run.compare is not None:
            assert done.before is not None, "asked for in memory"
            assert done.after is not None, "asked for in memory"
            write_comparison(run.compare, done.before, done.after, model.config.name)
        return Result(
            input=self.task.source, output=self.task.target, in_size=done.in_size, out_size=(plan.width, plan.height),
            seconds=seconds, peak_rss_mb=round(peak_rss_mb(), 1),
            peak_gpu_mb=peak_gpu_mb() if model.device == "cuda" else None, model=run.model, m=plan.m, n=plan.n,
        )  # fmt: skip

    def finish(self) -> Outcome:
        """Write what is not yet written; on any thread."""
        begun = time.perf_counter()
        job = Job(source=Path(self.task.source), target=Path(self.task.target))
        with self._in_words(), memory_in_words(job):
            for write in self._writes:
                write()
        if self._error or self._result is None:
            return Outcome(error=_renamed(self._error, self._names))
        seconds = round(self._result.seconds + time.perf_counter() - begun, 3)
        return Outcome(result=replace(self._result, seconds=seconds))

    def _say(self, line: str) -> None:
        self._note(_renamed(line, self._names))

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            self._error = str(error)


def _check_compare(model: TUDSR, job: Job, request: Request, path: Path) -> int:
    """Refuse a comparison that could not be written; return the memory that it takes."""
    header = read_header(job.source)
    plan = model.plan(header.height, header.width, request)
    check_size(path, *comparison_size(plan.height, plan.width))
    check_folder(path.parent)
    return comparison_bytes(plan.height, plan.width)


def _renamed(text: str, names: dict[str, str]) -> str:
    for name, shown in names.items():
        text = text.replace(name, shown) if name != shown else text
    return text


def _named(worker: str | None) -> dict[str, str]:
    return {} if worker is None else {"worker": worker}

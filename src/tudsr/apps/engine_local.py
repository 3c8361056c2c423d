"""The engine of one machine: one picture after another, with one model, in this process."""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

import tudsr
from tudsr.apps.remote import Task
from tudsr.apps.work import Attempt, Outcome, Work, probe
from tudsr.pipeline import TUDSR


def run_local(work: Work) -> None:
    """Enlarge all pictures; one is encoded and written while the next is read and enlarged.

    Raises:
        TudsrError: before any picture, or when the only one cannot be done.
    """
    run = work.run
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    model = tudsr.load(run.model, run.device, run.dtype)
    probe(model, work.request)
    with _Writer(work) as writer:
        for task in work.tasks:
            # One that an earlier run died of, maybe, is alone in the air: its neighbours must not be blamed.
            apart = run.memory is not None or work.lost_before(task)
            if apart:
                writer.wait()
            enlarge_here(work, model, task, None if apart else writer)


def enlarge_here(work: Work, model: TUDSR, task: Task, writer: "_Writer | None" = None) -> None:
    """Enlarge one picture in this process; a writer, if any, writes it later."""
    work.begin(task)

    def windows(done: int, total: int) -> None:
        work.reporter.windows(task, done, total)
        if writer is not None:
            writer.look()

    attempt = Attempt(model, task, work.request, work.run, windows).enlarge(write=writer is None)
    if writer is None:
        work.settle(task, attempt.finish())
    else:
        writer.take(attempt)


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

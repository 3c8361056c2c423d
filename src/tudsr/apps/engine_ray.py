"""The engine of many machines: Ray actors with one model each; this process hands out and journals the work."""

import contextlib
import os
import socket
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

import tudsr
from tudsr.apps.engine_local import enlarge_here
from tudsr.apps.journal import MOST_ATTEMPTS
from tudsr.apps.ray_cluster import connected, import_ray, in_words, share_out
from tudsr.apps.ray_crew import LOST, Crew, Member, in_order
from tudsr.apps.remote import Task, is_url
from tudsr.apps.upscale import Run
from tudsr.apps.work import Attempt, Outcome, Work, probe
from tudsr.device import DTYPES, pick_device, pick_dtype
from tudsr.errors import InputError
from tudsr.find import CONFIG_NAME
from tudsr.machine import sharing_memory
from tudsr.request import Request
from tudsr.spread import Spread

_SPLIT_DEPTH = 2  # a worker that has done a window finds the next one there, and does not wait for this process


class Worker:
    """What runs as an actor: a model, and pictures or windows of pictures one after another.

    Args:
        run: with the number of threads.
        request: what is asked of every picture.
        together: workers that share a machine, and its memory.
    """

    def __init__(self, run: Run, request: Request, together: int) -> None:
        assert run.threads is not None, "Ray's default of one would change results"
        torch.set_num_threads(run.threads)
        self._run, self._request = run, request
        self._stage: tuple[int, Request] | None = None
        self._ready, self._life = contextlib.ExitStack(), contextlib.ExitStack()
        self._life.enter_context(sharing_memory(together, lambda: _workers_below(psutil.Process().parent())))

    def load(self) -> str:
        """Load the model; return this process's machine and number."""
        self._model = tudsr.load(self._run.model, self._run.device, self._run.dtype)
        probe(self._model, self._request)
        return f"{socket.gethostname()}:{os.getpid()}"

    def enlarge(self, task: Task) -> Outcome:
        """Enlarge one picture; what there is to say, warnings too, comes with the outcome."""
        notes: list[str] = []
        with _warnings_to(lambda line: notes.append(f"{task.source}: {line}")):
            outcome = Attempt(self._model, task, self._request, self._run, notes.append).enlarge().finish()
        return replace(outcome, notes=tuple(notes))

    def restore(self, number: int, request: Request, windows: NDArray) -> tuple[NDArray, list[str]]:
        """Return what a stage makes of windows, both (b, 3, h, w), float32, and warnings; it stays ready for more."""
        said: list[str] = []
        with _warnings_to(said.append):
            if self._stage != (number, request):
                self._ready.close()
                self._restore = self._ready.enter_context(self._model.running(number, request))
                self._stage = number, request
            return self._restore(torch.from_numpy(windows.copy())).float().numpy(), said


@contextlib.contextmanager
def _warnings_to(say: Callable[[str], None]) -> Iterator[None]:
    """Have Python's warnings said: nobody reads a worker's stderr. A worker does one thing at a time."""
    before, warnings.showwarning = warnings.showwarning, lambda message, *_, **__: say(str(message))
    try:
        yield
    finally:
        warnings.showwarning = before


def _dtype_here(run: Run) -> str:
    picked = pick_dtype(run.dtype, pick_device(run.device))
    return next(name for name, dtype in DTYPES.items() if dtype == picked)


def _workers_below(process: psutil.Process | None) -> list[psutil.Process]:
    """Return the workers that a process has started, by the titles that Ray gives them, without the one that asks."""
    found = []
    for one in [] if process is None else process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if one.pid != os.getpid() and "".join(one.cmdline()).startswith(f"ray::{Worker.__name__}"):
                found.append(one)
    return found


def run_ray(work: Work) -> None:
    """Enlarge all pictures.

    Raises:
        TudsrError: before any picture, or when the only one cannot be done.
    """
    ray = import_ray()
    for task in work.tasks:
        for place in (task.source, task.target):
            if place.startswith("memory:"):
                raise InputError(f"{place}: memory:// ends with this process, and Ray's workers are others.")
    split = _is_split(work)
    # Ray tells of dead workers on stdout, where only results belong; the work tells of them itself.
    with (
        Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), connected(ray, work.run),
        in_words(ray),
    ):  # fmt: skip
        share = share_out([node["Resources"] for node in ray.nodes() if node["Alive"]], work.run)
        run = replace(work.run, model=_model_anywhere(work.run.model), threads=share.threads, device=share.device)
        if not share.gpus:  # of a GPU only a worker knows
            run = replace(run, dtype=_dtype_here(run))
        actor = ray.remote(Worker).options(
            num_cpus=share.threads,
            num_gpus=share.gpus,
            max_restarts=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(share.threads)}},
        )
        hire = partial(actor.remote, run, work.request, share.together)
        with Crew(ray, hire, share.workers, _SPLIT_DEPTH if split else 1) as crew:
            if split:
                with sharing_memory(1 + share.together, lambda: _workers_below(psutil.Process())):
                    _picture_by_window(work, run, crew)
            else:
                _picture_by_picture(work, crew)


def _model_anywhere(model: str) -> str:
    """Return a name of the model that holds in other folders too, where workers may stand."""
    # A folder alone does not make it one: outputs may go to a folder that is called as the embedded model is.
    return str(Path(model).absolute()) if (Path(model) / CONFIG_NAME).is_file() else model


def _is_split(work: Work) -> bool:
    """Return whether workers share each picture: as asked, else where there is one picture that has windows."""
    by_windows = work.request.vae == "windows"
    if work.run.split and not by_windows:
        raise InputError("--split divides windows, and --vae whole works on the whole picture; leave one of them out.")
    return by_windows and len(work.tasks) == 1 if work.run.split is None else work.run.split


def _picture_by_picture(work: Work, crew: Crew) -> None:
    def start(member: Member, task: Task) -> Any:
        work.begin(task, member.name)
        return member.actor.enlarge.remote(_absolute(task))

    queue = deque(work.tasks)
    for task, member, outcome in crew.work_off(queue, start):
        if outcome is not LOST:
            work.settle(task, _as_asked(outcome, task, work.run), member.name)
        elif work.lose(task, member.name):
            queue.append(task)


def _picture_by_window(work: Work, run: Run, crew: Crew) -> None:
    """Do here what is done with whole pictures, row by row, and have the workers do what the model does."""
    assert run.threads is not None, "bytes depend on it"
    torch.set_num_threads(run.threads)
    model = tudsr.load(run.model, "cpu", run.dtype)

    def spread(task: Task, number: int, request: Request, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        def start(member: Member, windows: Tensor) -> Any:
            return member.actor.restore.remote(number, request, windows.numpy())

        for values, said in in_order(crew, start, batches, MOST_ATTEMPTS, task.source):
            for line in said:
                warnings.warn(line, stacklevel=2)
            yield torch.from_numpy(values.copy())  # Ray's own memory is for reading

    waiting = crew.most_waiting + crew.size * crew.depth  # those in work lie in Ray's memory once more
    for task in work.tasks:
        model.spread = Spread(run=partial(spread, task), device=run.device, waiting=waiting)
        enlarge_here(work, model, task)


def _absolute(task: Task) -> Task:
    source, target = (place if is_url(place) else str(Path(place).absolute()) for place in (task.source, task.target))
    return replace(task, source=source, target=target)


def _as_asked(outcome: Outcome, task: Task, run: Run) -> Outcome:
    """Give the user's own names back."""
    if outcome.result is not None:
        result = replace(outcome.result, input=task.source, output=task.target, model=run.model)
        outcome = replace(outcome, result=result)
    there = _absolute(task)
    return outcome.renamed({there.source: task.source, there.target: task.target})

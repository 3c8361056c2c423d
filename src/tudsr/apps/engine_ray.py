"""The engine of many machines: Ray actors with one model each; this process hands out and journals the work."""

import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import tudsr
from tudsr.apps.remote import Task, is_url
from tudsr.apps.upscale import Run
from tudsr.apps.work import Outcome, Work, enlarge_task, probe
from tudsr.errors import InputError, TudsrError
from tudsr.request import Request

_CONNECT_SECONDS = 5
_MOST_FALSE_STARTS = 3


class Worker:
    """What runs as an actor: a model, and pictures one after another.

    Args:
        run: with the number of threads.
        request: what is asked of every picture.
    """

    def __init__(self, run: Run, request: Request) -> None:
        assert run.threads is not None, "Ray's default of one would change results"
        torch.set_num_threads(run.threads)
        self._run, self._request = run, request

    def load(self) -> str:
        """Load the model; return this process's machine and number."""
        self._model = tudsr.load(self._run.model, self._run.device, self._run.dtype)
        probe(self._model, self._request)
        return f"{socket.gethostname()}:{os.getpid()}"

    def enlarge(self, task: Task) -> Outcome:
        """Enlarge one picture."""
        return enlarge_task(self._model, task, self._request, self._run)


def run_ray(work: Work) -> None:
    """Enlarge all pictures.

    Raises:
        TudsrError: before any picture, or when the only one cannot be done.
    """
    ray = _import_ray()
    for task in work.tasks:
        for place in (task.source, task.target):
            if place.startswith("memory:"):
                raise InputError(f"{place}: memory:// ends with this process, and Ray's workers are others.")
    # Ray tells of dead workers on stdout, where only results belong; the work tells of them itself.
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), _connected(ray, work.run):
        share = share_out([node["Resources"] for node in ray.nodes() if node["Alive"]], work.run)
        # Workers may stand in other folders.
        model = str(Path(work.run.model).absolute()) if Path(work.run.model).exists() else work.run.model
        run = replace(work.run, model=model, threads=share.threads, device=share.device)
        actor = ray.remote(Worker).options(
            num_cpus=share.threads,
            num_gpus=share.gpus,
            max_restarts=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(share.threads)}},
        )
        _Crew(ray, work, lambda: actor.remote(run, work.request), share.workers).run()


def _import_ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise InputError("--engine ray needs the package ray; pip install tudsr[ray] installs it.") from error
    return ray


@contextlib.contextmanager
def _connected(ray: ModuleType, run: Run) -> Iterator[None]:
    """Connect to the cluster, or start one on this machine; a connection that is there already is used and kept."""
    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if run.address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cpus = max(os.cpu_count() or 1, (run.threads or 1) * (run.workers or 1))
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    else:
        _check_address(run.address)
        try:
            ray.init(address=run.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, AssertionError) as error:
            raise _unreachable(run.address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Knock first: Ray itself waits long for a cluster that is not there."""
    if address == "auto":
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return InputError(
        f"--address {address}: no Ray cluster is reached there ({reason}); auto or HOST:PORT is accepted."
    )


@dataclass(frozen=True, kw_only=True)
class Share:
    """What each worker gets, and how many there are."""

    threads: int
    gpus: int
    workers: int
    device: str


def share_out(nodes: list[dict[str, float]], run: Run) -> Share:
    """Divide a cluster among workers.

    Args:
        nodes: CPU and GPU counts of each machine.
        run: wishes; threads default to what one process here takes, or, with GPUs, to a fair part of the CPUs.

    Raises:
        InputError: when no machine has enough for one worker, or all together not for as many as asked.
    """
    cpus = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    gpu = run.device == "cuda" or (run.device == "auto" and any(count for _, count in cpus))
    usable = [(cpu, count) for cpu, count in cpus if cpu and (count or not gpu)]
    if not usable:
        raise InputError(f"The Ray cluster has no machine with {'a GPU' if gpu else 'a CPU'} for a worker.")
    if run.threads is not None:
        threads = run.threads
    elif gpu:
        threads = max(1, min(cpu // count for cpu, count in usable))
    else:
        threads = min(torch.get_num_threads(), max(cpu for cpu, _ in usable))
    most = sum(min(cpu // threads, count) if gpu else cpu // threads for cpu, count in usable)
    if most < (run.workers or 1):
        asked = f"{run.workers or 1} workers of {threads} threads"
        raise InputError(f"{asked} were asked for, and the Ray cluster has room for {most}.")
    device = "cuda" if gpu else run.device
    return Share(threads=threads, gpus=int(gpu), workers=run.workers or most, device=device)


@dataclass(frozen=True, eq=False)
class _Member:
    actor: Any
    name: str | None = None


class _Crew:
    """Gives pictures to workers, one at a time each, and replaces workers that die."""

    def __init__(self, ray: ModuleType, work: Work, hire: Callable[[], Any], size: int) -> None:
        from ray import exceptions

        self._ray, self._work, self._hire, self._size = ray, work, hire, size
        self._deaths = (
            exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.OutOfMemoryError,
            exceptions.NodeDiedError,
        )  # fmt: skip
        self._task_error = exceptions.RayTaskError
        self._queue = deque(work.tasks)
        self._idle: list[_Member] = []
        self._loading: dict[Any, _Member] = {}
        self._working: dict[Any, tuple[_Member, Task]] = {}
        self._false_starts = 0

    def run(self) -> None:
        try:
            while self._queue or self._working:
                self._assign()
                (ready,), _ = self._ray.wait([*self._loading, *self._working], num_returns=1)
                if ready in self._loading:
                    self._welcome(self._loading.pop(ready), ready)
                else:
                    self._receive(*self._working.pop(ready), ready)
        finally:
            members = [*self._idle, *self._loading.values(), *(member for member, _ in self._working.values())]
            for member in members:
                self._dismiss(member)

    def _assign(self) -> None:
        """Give pictures to idle workers, and hire as many as the rest of the pictures needs."""
        while self._queue and self._idle:
            member, task = self._idle.pop(), self._queue.popleft()
            self._work.begin(task, member.name)
            self._working[member.actor.enlarge.remote(_absolute(task))] = member, task
        while len(self._loading) < len(self._queue) and len(self._loading) + len(self._working) < self._size:
            member = _Member(self._hire())
            self._loading[member.actor.load.remote()] = member

    def _welcome(self, member: _Member, ready: Any) -> None:
        try:
            name = self._get(ready)
        except self._deaths as error:
            self._dismiss(member)
            self._false_starts += 1
            if self._false_starts == _MOST_FALSE_STARTS:
                reason = str(error).strip().splitlines()[-1].rstrip(".")
                raise InputError(
                    f"{_MOST_FALSE_STARTS} Ray workers died before they had loaded the model ({reason})."
                ) from error
        else:
            self._false_starts = 0
            self._idle.append(replace(member, name=name))

    def _receive(self, member: _Member, task: Task, ready: Any) -> None:
        try:
            outcome = self._get(ready)
        except self._deaths:
            self._dismiss(member)
            if self._work.lose(task, member.name):
                self._queue.append(task)
        else:
            self._idle.append(member)
            self._work.settle(task, _as_asked(outcome, task, self._work.run), member.name)

    def _get(self, ready: Any) -> Any:
        try:
            return self._ray.get(ready)
        except self._task_error as error:
            if isinstance(error.cause, TudsrError):
                raise error.cause from error
            raise

    def _dismiss(self, member: _Member) -> None:
        """Make sure that a worker is gone: one that is only out of reach must not go on beside its successor."""
        self._ray.kill(member.actor, no_restart=True)


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

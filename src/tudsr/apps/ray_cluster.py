"""A Ray cluster: started or joined, and divided among workers."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch

from tudsr.apps.upscale import Run
from tudsr.errors import InputError

_CONNECT_SECONDS = 5


def import_ray() -> ModuleType:
    """Return Ray.

    Raises:
        InputError: where it is not installed, with what installs it.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--engine ray needs the package ray; pip install tudsr[ray] installs it.") from error
    return ray


@contextlib.contextmanager
def connected(ray: ModuleType, run: Run) -> Iterator[None]:
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


@contextlib.contextmanager
def in_words(ray: ModuleType) -> Iterator[None]:
    """Turn what Ray itself raises into one sentence; what a worker's code raised stays what it was.

    Raises:
        InputError: when Ray cannot go on.
    """
    try:
        yield
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise InputError(f"Ray cannot go on with the work ({_first_line(error)}).") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


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
    return InputError(
        f"--address {address}: no Ray cluster is reached there ({_first_line(error)}); auto or HOST:PORT is accepted."
    )


@dataclass(frozen=True, kw_only=True)
class Share:
    """What each worker gets and computes on, how many there are, and how many of them on one machine at most."""

    threads: int
    gpus: int
    workers: int
    together: int
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
    rooms = [min(cpu // threads, count) if gpu else cpu // threads for cpu, count in usable]
    most = sum(rooms)
    if most < (run.workers or 1):
        asked = f"{run.workers or 1} workers of {threads} threads"
        raise InputError(f"{asked} were asked for, and the Ray cluster has room for {most}.")
    # Settled here for all: rows of a picture depend on it, and machines would settle it each in its own way.
    device = "cuda" if gpu else "cpu" if run.device == "auto" else run.device
    workers = run.workers or most
    return Share(threads=threads, gpus=int(gpu), workers=workers, together=min(workers, max(rooms)), device=device)

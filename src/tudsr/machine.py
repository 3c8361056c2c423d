"""The machine that figures were made on: what it is, which code ran, and how fast it multiplies matrices."""

import contextlib
import ctypes
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tudsr.device import pick_dtype

if TYPE_CHECKING:
    import psutil

_CPU_INFO = Path("/proc/cpuinfo")
_STATUS = Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUP_FILES = (  # folder, controller, files, and what is cached in memory.stat
    ("", "", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_sharing: "tuple[int, Callable[[], list[psutil.Process]]] | None" = None
_LEFT_FREE = 0.85  # of what is free: other programs take some while this one works
_MATMUL_SIDE = {"cuda": 8192}
_MATMUL_SIDE_ELSEWHERE = 2048
_MATMUL_RUNS, _MATMUL_SECONDS = 9, 1.0


def machine(device: torch.device, dtype: str) -> dict[str, Any]:
    """Return what figures and seconds depend on beside the code: versions, processor, threads, device, dtype."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name() or platform.processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(pick_dtype(dtype, device)).removeprefix("torch."),
    }


def cpu_name() -> str:
    """Return what the system calls its processor; empty where it does not say."""
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def status_bytes(field: str) -> int | None:
    """Return a field of this process's status in bytes, such as VmRSS or VmHWM; None where the system keeps none."""
    if not _STATUS.is_file():
        return None
    fields = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines())
    return int(fields[field].split()[0]) * 1024


def give_back_freed() -> None:
    """Return to the system what the C library keeps of freed memory, where that can be done: it counts as held."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # macOS and musl cannot, Windows has no such library
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Return this process's resident memory now."""
    found = status_bytes("VmRSS")
    if found is not None:
        return found
    import psutil

    return int(psutil.Process().memory_info().rss)


def commit(package: Path = Path(__file__).parent) -> str:
    """Return the git commit of this package's checkout, with «+» when it has changes, or «unknown».

    The environment's TUDSR_COMMIT is believed: a copy of a checkout's files may have none, or another.

    Args:
        package: the folder of the package. A package that was installed below some other project's checkout does not
            get that project's commit.
    """
    said = os.environ.get("TUDSR_COMMIT")
    if said:
        return said
    try:
        top = _git(package, "rev-parse", "--show-toplevel")
        if (Path(top) / "src" / "tudsr").resolve() != package.resolve():
            return "unknown"
        return _git(package, "describe", "--always", "--dirty=+", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Measure this machine's matrix product, as it is now: after a warm-up, up to 9 runs or about a second.

    Args:
        device: to measure.
        dtype: of both matrices.

    Returns:
        `tflops`, the median in TFLOP/s; `side` of the square matrices; `runs`.
    """
    side = _MATMUL_SIDE.get(device.type, _MATMUL_SIDE_ELSEWHERE)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    _timed_matmul(a, b)
    seconds = [_timed_matmul(a, b)]
    while len(seconds) < _MATMUL_RUNS and sum(seconds) < _MATMUL_SECONDS:
        seconds.append(_timed_matmul(a, b))
    return {"tflops": 2 * side**3 / statistics.median(seconds) / 1e12, "side": side, "runs": len(seconds)}


def _timed_matmul(a: torch.Tensor, b: torch.Tensor) -> float:
    begun = time.perf_counter()
    (a @ b)[0, 0].item()  # reading a number waits for the device
    return time.perf_counter() - begun


def free_bytes(device: torch.device) -> int:
    """Return what may be used: of the GPU's memory on CUDA, of the machine's (or its container's) elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _LEFT_FREE)
    import psutil

    free = min(psutil.virtual_memory().available, _container_bytes())
    if _sharing is None:
        return int(free * _LEFT_FREE)
    # What the others hold already is of their parts: who asks late must not get a part of what is left.
    processes, others = _sharing
    own = _private_bytes(psutil.Process())
    held = own + sum(map(_private_bytes, others()))
    return max(0, int((free + held) * _LEFT_FREE / processes) - own)


def held_bytes(device: torch.device) -> int:
    """Return the memory that this process holds, of the GPU on CUDA, without what is only kept for later."""
    if device.type != "cuda":
        give_back_freed()
        return resident_bytes()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


class Held:
    """What a process that enlarges picture after picture holds beside the work on one.

    Args:
        slack: bytes that each picture has for what it leaves, such as code that has run.
    """

    def __init__(self, slack: int) -> None:
        self._slack, self._least = slack, sys.maxsize

    def now(self, device: torch.device) -> int:
        """Return it in bytes, without what earlier pictures left, up to the slack: the next one has the same again."""
        held = held_bytes(device)
        self._least = min(self._least, held)
        return held if device.type == "cuda" else max(self._least, held - self._slack)


@contextlib.contextmanager
def sharing_memory(processes: int, others: "Callable[[], list[psutil.Process]]") -> Iterator[None]:
    """Have `free_bytes` give this process an equal part of what so many on this machine may take together.

    Args:
        processes: with this one, at most, whether they have begun or not.
        others: finds those that have.
    """
    global _sharing  # noqa: PLW0603 - it is of the process, as the number of threads is
    before, _sharing = _sharing, (processes, others)
    try:
        yield
    finally:
        _sharing = before


def _private_bytes(process: "psutil.Process") -> int:
    """Return the resident memory that no other process shares."""
    import psutil

    with contextlib.suppress(psutil.Error):
        found = process.memory_info()
        return int(found.rss - getattr(found, "shared", 0))
    return 0


def _container_bytes() -> float:
    """Return what the groups that this process is in leave free, by cgroup version 2 or 1; infinite without a limit.

    Those of a container, a cluster's job or a service: its own and all that it lies in.
    """
    free = [math.inf]
    for mount, controller, most, now, cached in _CGROUP_FILES:
        own = PurePosixPath(_cgroup_of(controller).lstrip("/"))
        for group in (own, *own.parents):
            folder = _CGROUP / mount / group
            with contextlib.suppress(OSError, ValueError):  # not there, or «max»
                limit, used = (int((folder / name).read_text(encoding="ascii")) for name in (most, now))
                stat = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
                spare = int(stat.get(cached, 0))  # pages of files, which are given up for those of a program
                free.append(max(0, limit - used + spare))
    return min(free)


def _cgroup_of(controller: str) -> str:
    """Return the group that this process is in by a controller of version 1, or by none: by version 2."""
    with contextlib.suppress(OSError):
        for line in _OWN_CGROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                return path
    return "/"

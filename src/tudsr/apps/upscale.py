"""Enlarge one picture: what is asked of it, and how a command works. Engines call this for every picture."""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tudsr.apps.batch import Job
from tudsr.apps.compare import comparison_bytes, comparison_size, write_comparison
from tudsr.apps.report import Result, peak_gpu_mb, peak_rss_mb
from tudsr.checkpoint import check_folder
from tudsr.errors import InputError
from tudsr.files import Later, Read, upscale_file
from tudsr.image import read_picture
from tudsr.image_encode import check_size
from tudsr.image_spool import read_header
from tudsr.pipeline import TUDSR
from tudsr.request import Request, is_out_of_memory, parse_memory
from tudsr.spooled import Deliver, Say
from tudsr.tiling import Progress


@dataclass(frozen=True, kw_only=True)
class Run:
    """How one command works: which model, where, and what it does beside the pictures."""

    model: str = "tiny"
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    overwrite: bool = False
    as_json: bool = False
    quiet: bool = False
    compare: Path | None = None
    memory: str | None = None
    engine: str = "local"
    address: str | None = None
    workers: int | None = None
    split: bool | None = None


def parse_size(text: str) -> tuple[int, int]:
    """Turn «WxH» into (height, width).

    Raises:
        InputError: when it is not two whole numbers from 1 up.
    """
    match = re.fullmatch(r"([1-9]\d*)[xX×]([1-9]\d*)", text.strip())
    if match is None:
        raise InputError(f"--size {text!r}: WIDTHxHEIGHT in pixels is expected, for example 2048x1536.")
    return int(match[2]), int(match[1])


def make_request(scale: float | None, size: str | None, options: dict[str, Any]) -> Request:
    """Build what is asked of every picture; ×8 where nothing says how large.

    Raises:
        InputError: for a scale and a size at once, or wishes that contradict each other for every picture.
        ConfigError: for an option out of range.
    """
    if scale is not None and size is not None:
        raise InputError("--scale and --size were both given; one of them is accepted.")
    target = None if size is None else parse_size(size)
    return Request.of({"scale": scale, "size": target, **options})


@contextlib.contextmanager
def memory_in_words(job: Job) -> Iterator[None]:
    """Turn the many ways of running out of memory into one sentence that says what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"{job.source}: there is not enough memory for it; a smaller --batch or --tile-px, or a smaller output, "
            "needs less."
        ) from error


def enlarge_job(
    model: TUDSR,
    job: Job,
    request: Request,
    run: Run,
    say: Say,
    windows: Progress | None = None,
    later: Later | None = None,
    read: Read = read_picture,
    deliver: Deliver | None = None,
) -> Result:
    """Enlarge one picture file.

    Args:
        model: loaded.
        job: two local files.
        request: what is asked of the picture.
        run: the rest.
        say: called with a sentence for whatever the user should know.
        windows: called with (windows done, windows in all).
        later: see `upscale_file`; the result tells of the file as if it were there.
        read: likewise.
        deliver: likewise.

    Raises:
        InputError: when it cannot be done.
    """
    begun = time.perf_counter()
    done = upscale_file(
        model,
        job.source,
        job.target,
        request,
        memory=None if run.memory is None else parse_memory(run.memory),
        beside=0 if run.compare is None else _check_compare(model, job, request, run.compare),
        work=job.work,
        progress=windows,
        say=say,
        later=None if run.compare is not None else later,
        read=read,
        deliver=deliver,
    )
    seconds = time.perf_counter() - begun
    if run.compare is not None:
        assert done.before is not None, "asked for in memory"
        assert done.after is not None, "asked for in memory"
        write_comparison(run.compare, done.before, done.after, model.config.name)
    plan = done.plan
    return Result(
        input=str(job.source),
        output=str(job.target),
        in_size=done.in_size,
        out_size=(plan.width, plan.height),
        seconds=round(seconds, 3),
        peak_rss_mb=round(peak_rss_mb(), 1),
        peak_gpu_mb=peak_gpu_mb() if model.device == "cuda" else None,
        model=run.model,
        m=plan.m,
        n=plan.n,
    )


def _check_compare(model: TUDSR, job: Job, request: Request, path: Path) -> int:
    """Refuse a comparison that could not be written; return the memory that it takes."""
    header = read_header(job.source)
    plan = model.plan(header.height, header.width, request)
    check_size(path, *comparison_size(plan.height, plan.width))
    check_folder(path.parent)
    return comparison_bytes(plan.height, plan.width)

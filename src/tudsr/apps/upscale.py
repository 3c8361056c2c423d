"""Enlarge files and folders: one picture after another, with one model."""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tudsr
from tudsr.apps.batch import Job, plan_jobs
from tudsr.apps.compare import comparison_size, write_comparison
from tudsr.apps.report import Reporter, Result, peak_rss_mb
from tudsr.errors import InputError
from tudsr.image import check_output_path, read_picture, write_picture
from tudsr.image_encode import check_size
from tudsr.pipeline import TUDSR, Request

_PROBE_PX = 1  # the smallest picture: what is too large for it is too large for all
_MEMORY_WORDS = ("not enough memory", "can't allocate memory", "out of memory")  # Windows, Linux, MPS


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


def upscale_all(inputs: list[Path], output: str, request: Request, run: Run) -> int:
    """Enlarge everything.

    Args:
        inputs: files and folders.
        output: file or folder, as the user wrote it.
        request: what is asked of every picture.
        run: the rest.

    Returns:
        How many pictures of several could not be done; each has been reported.

    Raises:
        TudsrError: before any work, or when the only picture cannot be done.
    """
    jobs = plan_jobs(inputs, output)
    if run.compare is not None:
        _check_compare(run, jobs)
    todo = [job for job in jobs if run.overwrite or not job.target.exists()]
    with Reporter(todo, as_json=run.as_json, quiet=run.quiet) as reporter:
        for job in jobs:
            if job not in todo:
                reporter.note(f"{job.target}: exists already, not redone (--overwrite redoes it)")
        failed = _work(todo, request, run, reporter, alone=len(jobs) == 1) if todo else 0
        if failed:
            reporter.error(f"{failed} of {len(jobs)} pictures could not be enlarged.")
        return failed


def _check_compare(run: Run, jobs: list[Job]) -> None:
    assert run.compare is not None, "only called with it"
    check_output_path(run.compare)
    if len(jobs) > 1:
        raise InputError(f"--compare makes one picture, and {len(jobs)} inputs came; give one.")
    if run.compare.resolve() in {jobs[0].source.resolve(), jobs[0].target.resolve()}:
        raise InputError(f"--compare {run.compare}: this is the input or the output; give another name.")
    if jobs[0].target.exists() and not run.overwrite:
        raise InputError(f"{jobs[0].target}: exists already, so there is nothing to compare; add --overwrite.")


def _work(jobs: list[Job], request: Request, run: Run, reporter: Reporter, *, alone: bool) -> int:
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    model = tudsr.load(run.model, run.device, run.dtype)
    if request.size is None:
        model.plan(_PROBE_PX, _PROBE_PX, request)  # contradictory wishes fail here, once, before any work
    failed = 0
    for job in jobs:
        reporter.begin(job)
        try:
            with _memory_in_words(job):
                result = _enlarge(model, job, request, run, reporter)
            reporter.done(result)
        except InputError as error:
            if alone:
                raise
            reporter.error(str(error))
            failed += 1
        reporter.end(job)
    return failed


@contextlib.contextmanager
def _memory_in_words(job: Job) -> Iterator[None]:
    """Turn the many ways of running out of memory into one sentence that says what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        short = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not short and not any(words in str(error) for words in _MEMORY_WORDS):
            raise
        raise InputError(
            f"{job.source}: there is not enough memory for it; a smaller --batch or --tile-px, or a smaller output, "
            "needs less."
        ) from error


def _enlarge(model: TUDSR, job: Job, request: Request, run: Run, reporter: Reporter) -> Result:
    begun = time.perf_counter()
    before = read_picture(job.source)
    plan = model.plan(before.height, before.width, request)
    check_size(job.target, plan.height, plan.width)
    if run.compare is not None:
        check_size(run.compare, *comparison_size(plan.height, plan.width))
    after = model.upscale_picture(before, request, lambda done, total: reporter.windows(job, done, total))
    lost = write_picture(job.target, after)
    seconds = time.perf_counter() - begun
    for note in (*before.info.notes, *lost):
        reporter.note(f"{job.source}: {note}")
    if run.compare is not None:
        write_comparison(run.compare, before, after, model.config.name)
    return Result(
        input=str(job.source),
        output=str(job.target),
        in_size=(before.width, before.height),
        out_size=(after.width, after.height),
        seconds=round(seconds, 3),
        peak_rss_mb=round(peak_rss_mb(), 1),
        model=run.model,
        m=plan.m,
        n=plan.n,
    )

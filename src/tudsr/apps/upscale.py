"""What a command asks of every picture, and how it works beside that."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tudsr.apps.batch import Job
from tudsr.errors import InputError
from tudsr.request import Request, is_out_of_memory


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


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """Turn «WxH», given by an option, into (height, width).

    Raises:
        InputError: when it is not two whole numbers from 1 up.
    """
    match = re.fullmatch(r"([1-9]\d*)[xX×]([1-9]\d*)", text.strip())
    if match is None:
        raise InputError(f"{option} {text!r}: WIDTHxHEIGHT in pixels is expected, for example 2048x1536.")
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

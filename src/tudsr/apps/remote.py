"""Pictures wherever fsspec reaches: what becomes what, by path or URL, and local copies to work on. No torch."""

import contextlib
import getpass
import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tudsr.apps.batch import (
    PICTURE_SUFFIXES,
    Job,
    a_folder_is_needed,
    check_apart,
    no_picture,
    plan_jobs,
    writable,
)
from tudsr.errors import InputError, TudsrError
from tudsr.image_encode import file_format

_CACHES = ("blockcache", "cached", "filecache", "simplecache")  # fsspec's; in a chain, the next link's path is theirs


@dataclass(frozen=True, kw_only=True)
class Task:
    """One picture to enlarge: where it comes from and where it goes, each a path or a URL as the user would write it.

    Attributes:
        source: the picture.
        target: the file to make.
        size_bytes: of the source.
    """

    source: str
    target: str
    size_bytes: int = 1


def is_url(place: str) -> bool:
    """Tell a URL from a path."""
    return "://" in place


def plan_tasks(inputs: Sequence[str], output: str) -> tuple[list[Task], str | None]:
    """Map pictures and folders, by path or URL, to outputs; the rules are those of `batch.plan_jobs`.

    Returns:
        The tasks, and the folder that they go to; None when the output is one named file.

    Raises:
        InputError: as `batch.plan_jobs`, or when a URL cannot be used.
    """
    if any(is_url(place) for place in (*inputs, output)):
        tasks = _plan_urls(inputs, output)
        alone = output
    else:
        with in_words(" ".join(inputs)):
            jobs = plan_jobs([Path(place) for place in inputs], output)
            tasks = [
                Task(source=str(job.source), target=str(job.target), size_bytes=max(1, job.source.stat().st_size))
                for job in jobs
            ]
        alone = str(Path(output))
    return tasks, None if len(tasks) == 1 and tasks[0].target == alone else output


def filesystem(place: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a path or URL, and the path in it.

    Raises:
        InputError: for an unknown protocol, or one whose package is missing.
    """
    from fsspec.core import url_to_fs

    with in_words(place):
        return url_to_fs(place)


@contextlib.contextmanager
def in_words(place: str) -> Iterator[None]:
    """Turn whatever filesystems raise, each by its own library, into one sentence."""
    try:
        yield
    except TudsrError:
        raise
    except Exception as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise InputError(f"{place}: cannot be used ({reason}).") from error


def exists(place: str) -> bool:
    """Whether there is a file at a path or URL."""
    if not is_url(place):
        return Path(place).exists()
    fs, path = filesystem(place)
    with in_words(place):
        return fs.exists(path)


def joined(folder: str, name: str) -> str:
    """Return the path or URL of a name in a folder."""
    if not is_url(folder):
        return str(Path(folder) / name)
    before, link, behind = _links(folder)
    protocol, _, path = link.partition("://")
    return f"{before}{protocol}://{path.rstrip('/')}/{name}{behind}"


def _links(url: str) -> tuple[str, str, str]:
    """Split a URL, maybe a chain of links with «::» between, at the one that has the path: before, it, behind."""
    links = url.split("::")
    at = next((at for at, link in enumerate(links) if link.removesuffix("://") not in _CACHES), 0)
    return "".join(f"{link}::" for link in links[:at]), links[at], "".join(f"::{link}" for link in links[at + 1 :])


@contextlib.contextmanager
def local_job(task: Task) -> Iterator[tuple[Job, Callable[[Path], None] | None]]:
    """Yield the local files of a task, temporary ones for URLs, and what uploads the finished one to its URL, if any.

    Raises:
        InputError: when a file cannot be fetched, or uploaded.
    """
    with contextlib.ExitStack() as stack:
        source, target = Path(task.source), Path(task.target)
        if is_url(task.source) or is_url(task.target):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tudsr-")))
            source = folder / f"in-{PurePosixPath(_links(task.source)[1]).name}" if is_url(task.source) else source
            target = folder / f"out-{target.name}" if is_url(task.target) else target
        if is_url(task.source):
            fs, path = filesystem(task.source)
            with in_words(task.source):
                fs.get_file(path, str(source))
        job = Job(source=source, target=target, work=work_place(task))
        yield job, partial(_store, task.target) if is_url(task.target) else None


def work_place(task: Task) -> Path | None:
    """Return where the work on a picture lies that goes to a URL and is enlarged from disk; None: beside its output.

    It is a folder of this machine and user that has the same name for the next attempt.

    Raises:
        InputError: when somebody else has taken its name.
    """
    if not is_url(task.target):
        return None
    whose = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    place = Path(tempfile.gettempdir()) / f"tudsr-work-{whose}"
    with in_words(str(place)):
        place.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid") and place.lstat().st_uid != os.getuid():
            raise InputError(f"{place}: this folder for work on disk belongs to another user.")
    name = hashlib.sha256(f"{task.source}\0{task.target}".encode(errors="backslashreplace")).hexdigest()[:16]
    return place / name


def _store(url: str, file: Path) -> None:
    """Upload under another name, then move: the file appears whole or not at all."""
    fs, path = filesystem(url)
    folder = path.rpartition("/")[0]
    part = f"{folder}/.{uuid.uuid4().hex}{file.suffix}"
    with in_words(url):
        fs.makedirs(folder, exist_ok=True)
        try:
            fs.put_file(str(file), part)
            _move(fs, part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                fs.rm_file(part)
            raise


def _move(fs: Any, part: str, path: str) -> None:
    """Rename a file on a disk; elsewhere copy it, since an object store's `mv` takes names for patterns."""
    from fsspec.implementations.local import LocalFileSystem

    if not isinstance(fs, LocalFileSystem):
        with contextlib.suppress(NotImplementedError):  # of sftp and its like, which rename and cannot copy
            fs.cp_file(part, path)
            fs.rm_file(part)
            return
    fs.mv(part, path)


def _plan_urls(inputs: Sequence[str], output: str) -> list[Task]:
    found = [entry for place in inputs for entry in _expand(place, output)]
    if len(inputs) == 1 and found[0][0] == inputs[0] and not _is_folder(output):
        file_format(Path(output))
        source, _, size = found[0]
        tasks = [Task(source=source, target=output, size_bytes=size)]
    else:
        if PurePosixPath(output).suffix.lower() in PICTURE_SUFFIXES and not _is_folder(output):
            raise a_folder_is_needed(output)
        beside = {PurePosixPath(name) for _, name, _ in found}
        names = ((source, str(writable(PurePosixPath(name), beside)), size) for source, name, size in found)
        tasks = [Task(source=source, target=joined(output, name), size_bytes=size) for source, name, size in names]
    tasks = list({_full(task.source): task for task in tasks}.values())
    check_apart([(task.source, task.target) for task in tasks], _full)
    return tasks


def _full(place: str) -> str:
    fs, path = filesystem(place)
    return f"{fs.unstrip_protocol(path)}{_links(place)[2] if is_url(place) else ''}"


def _is_folder(output: str) -> bool:
    fs, path = filesystem(output)
    with in_words(output):
        return output.endswith("/") or not PurePosixPath(output).suffix or fs.isdir(path)


def _expand(place: str, output: str) -> Iterator[tuple[str, str, int]]:
    """Yield (file, its name relative to the output folder, its bytes) for a file or all pictures below a folder."""
    fs, path = filesystem(place)
    with in_words(place):
        if fs.isfile(path):
            yield place, PurePosixPath(path).name, max(1, fs.size(path) or 1)
            return
        if not fs.isdir(path):
            raise InputError(f"{place}: no such file or folder.")
        sizes = {key.removeprefix(path).lstrip("/"): entry["size"] for key, entry in fs.find(path, detail=True).items()}
    root, inside = _full(place).rstrip("/") + "/", _full(output).rstrip("/") + "/"
    skipped = inside if inside.startswith(root) and inside != root else None
    found = [
        name
        for name in sorted(sizes)
        if PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES
        and not any(part.startswith(".") for part in PurePosixPath(name).parts)
        and not (skipped and (root + name).startswith(skipped))
    ]
    if not found:
        raise no_picture(place)
    yield from ((joined(place, name), name, max(1, sizes[name] or 1)) for name in found)

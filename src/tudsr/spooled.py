"""One picture from disk to disk, row by row; killed, it goes on where it was."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch
from numpy.typing import NDArray

from tudsr import __version__
from tudsr.alpha import covered
from tudsr.canvas import JOURNAL_NAME, DiskStore, RowsFrom, discard, read_journal
from tudsr.checkpoint import atomic_path, sha256_file, write_text
from tudsr.cost import spooled_bytes
from tudsr.errors import InputError
from tudsr.image import Picture, pixels_of, values_of
from tudsr.image_encode import file_format, lost_bits
from tudsr.image_raw import RawFile
from tudsr.image_spool import Header, check_spooled, encode_spooled, spool_input
from tudsr.machine import commit
from tudsr.pipeline import TUDSR
from tudsr.planner import Plan
from tudsr.request import Request
from tudsr.resize import Region, upsampled
from tudsr.tiling import Progress

Say = Callable[[str], None]
Deliver = Callable[[Path], object]

WORK_SUFFIX = ".tudsr-work"
_MB = 1e6
_commit = functools.cache(commit)  # of the code that runs: its checkout may move on under a run of many pictures


@dataclass(frozen=True, kw_only=True)
class Enlarged:
    """What became of a picture file of `in_size` (width, height); the pictures where they were in memory."""

    plan: Plan
    in_size: tuple[int, int]
    before: Picture | None = None
    after: Picture | None = None


def work_folder(target: Path) -> Path:
    """Return where the work of a picture lies that is enlarged from disk: beside it, under a name of fixed length."""
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    return target.with_name(f".{name}{WORK_SUFFIX}")


def _put(encoded: Path, target: Path) -> None:
    """Rename a finished file to its own name, or copy it there where that is another disk."""
    try:
        encoded.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with atomic_path(target) as part:
            shutil.copyfile(encoded, part)


def run_key(model: TUDSR, source: Path, target: Path, wish: Request) -> dict[str, Any]:
    """Return what a picture's rows depend on, but for what is chosen to fit into memory."""
    return {
        "version": __version__,
        "commit": _commit(),
        "source": sha256_file(source),
        "target": target.name,
        "request": wish.model_dump(mode="json", exclude={"batch", "low_memory", "graphs", "on_host"}),
        "model": hashlib.sha256(model.config.to_json().encode()).hexdigest(),  # settings, and hashes of the weights
        "dtype": str(model.model.backbone.dtype),
        "device": model.device,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


class Spooled:
    """One picture on its way from disk to disk.

    Args:
        model: loaded.
        source: the picture.
        target: the file to write, of one of `image_spool.SPOOLED_FORMATS`.
        folder: for the work; not there yet, or an earlier run's.
        header: what `read_header` said of the source.
        wish: what the user asks, which decides whether an earlier run's work is of use.
        request: the same, fitted into the memory.
        deliver: see `files.upscale_file`.
    """

    def __init__(
        self,
        model: TUDSR,
        source: Path,
        target: Path,
        folder: Path,
        header: Header,
        wish: Request,
        request: Request,
        deliver: Deliver | None = None,
    ) -> None:
        check_spooled(target)
        self._model, self._source, self._target, self._folder = model, source, target, folder
        self._header, self._wish, self._request = header, wish, request
        self._deliver = deliver or functools.partial(_put, target=target)

    def run(self, progress: Progress | None, say: Say) -> Enlarged:
        """Enlarge it, or go on with it; see `files.upscale_file`.

        Raises:
            InputError: when the disk has too little room or cannot be used, or another run is at it.
        """
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            with alone(self._folder.with_suffix(".lock"), self._target):
                return self._run(progress, say)
        except OSError as error:
            raise InputError(f"{self._target}: cannot be made ({error.strerror or error}).") from error

    def _run(self, progress: Progress | None, say: Say) -> Enlarged:
        plan = self._model.plan(self._header.height, self._header.width, self._request)
        needed = self._check_disk(plan)
        key = run_key(self._model, self._source, self._target, self._wish)
        store = DiskStore(self._folder, key, self._request.model_dump(include={"most_px", "batch"}))
        more = ", going on with what an earlier run left" if (self._folder / "header.json").is_file() else ""
        say(f"{self._source}: works on disk, in up to {needed / _MB:.0f} MB beside the output{more}.")
        try:
            header = self._input()
        except InputError:  # there is nothing yet to go on with
            shutil.rmtree(self._folder)
            raise
        values = RawFile(self._folder / "input.raw", header.shape, header.dtype)
        size = header.height, header.width
        plan = self._model.plan(*size, self._request)
        fmt = file_format(self._target)
        made = replace(header, height=plan.height, width=plan.width, bits=header.bits if fmt.wide else 8)
        source, alpha = _pixels(values), _alpha(values)
        source = source if alpha is None else covered(source, alpha, size)
        rows = self._model.run_passes(source, size, plan, self._request, store, progress)
        out = RawFile(self._folder / "output.raw", made.shape, made.dtype)
        with self._model.turn:
            store.write("output", out, numbers(store, out, values, rows))
        encoded = self._folder / f"encoded{self._target.suffix}"  # there a kill leaves nothing that nobody removes
        lost = encode_spooled(encoded, out, made)
        self._deliver(encoded)
        discard(self._folder)
        for note in (*header.notes, *lost, *lost_bits(header.bits, fmt)):
            say(f"{self._source}: {note}")
        return Enlarged(plan=plan, in_size=(header.width, header.height))

    def _input(self) -> Header:
        """Decode the input, once: `header.json`, written last, says that and what was found."""
        said = self._folder / "header.json"
        if not said.is_file():
            header = spool_input(self._source, self._header, self._folder / "input.raw")
            kept = asdict(header)
            for name in ("icc", "exif"):
                (self._folder / name).write_bytes(kept.pop(name) or b"")
            write_text(said, json.dumps(kept))
            return header
        found: dict[str, Any] = json.loads(said.read_text(encoding="utf-8"))
        found |= {name: (self._folder / name).read_bytes() or None for name in ("icc", "exif")}
        return Header(**found | {"notes": tuple(found["notes"])})

    def _check_disk(self, plan: Plan) -> int:
        """Return the bytes of disk that the work takes, or refuse."""
        header = self._header
        needed = spooled_bytes(header.height, header.width, plan, header.pixel_bytes, self._request.color)
        if file_format(self._target).name == "JPEG":  # libvips makes it of a flat TIFF
            needed += plan.height * plan.width * header.pixel_bytes
        have = sum(file.stat().st_size for file in self._folder.glob("*"))
        free = shutil.disk_usage(self._folder.parent).free
        if needed > have + free:
            raise InputError(
                f"{self._source}: {needed / _MB:.0f} MB of disk are needed beside {self._target}, and "
                f"{(have + free) / _MB:.0f} MB are free."
            )
        return needed


def numbers(store: DiskStore, out: RawFile, values: RawFile, rows: RowsFrom) -> Iterator[NDArray]:
    """Yield the output's rows that are still to be made, (rows, W, C)."""
    height, width, channels = out.shape
    given = _alpha(values)
    alpha = None if given is None else upsampled(given, (values.shape[0], values.shape[1]), (height, width))
    y = store.done("output", out)
    for pixels in store.rest("output", out, rows):
        below = y + pixels.shape[-2]
        yield values_of(pixels, None if alpha is None else alpha(y, below, 0, width), channels < 3, out.dtype)
        y = below


def begun(folder: Path) -> bool:
    """Whether an earlier run got so far with a picture on disk that there are rows to go on with."""
    journal = read_journal(folder)
    return journal is not None and any(journal["rows"].values())


def sweep(target: Path, folder: Path | None = None) -> None:
    """Remove what is left of the work on a picture that is finished, unless a run is at it.

    The picture is then younger than the work's journal; one that is about to be replaced is not.

    Args:
        target: the finished picture.
        folder: of the work; None: beside the picture.
    """
    folder = folder or work_folder(target)
    if folder.is_dir():
        with contextlib.suppress(InputError, OSError), alone(folder.with_suffix(".lock"), target):
            if read_journal(folder) is None or _changed(target) > _changed(folder / JOURNAL_NAME):
                discard(folder)


@contextlib.contextmanager
def alone(lock: Path, target: Path) -> Iterator[None]:
    """Refuse a second run at the same output, while the first one works."""
    try:
        import fcntl
    except ImportError:  # Windows has none; two runs at one output are then the user's own affair
        yield
        return
    with lock.open("w") as file:
        if not _locked(fcntl, file, lock):
            raise InputError(f"{target}: another run is making it; wait for it or stop it.")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _locked(fcntl: ModuleType, file: IO[str], lock: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), lock.stat())  # else a run that ended took this file away
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:  # some network filesystems know no locks; two runs are then the user's own affair too
        return True


def _changed(file: Path) -> int:
    return file.stat().st_mtime_ns


def _pixels(values: RawFile) -> Region:
    return lambda *box: pixels_of(values.read(*box))[0]


def _alpha(values: RawFile) -> Region | None:
    if values.shape[2] not in (2, 4):
        return None

    def part(y0: int, y1: int, x0: int, x1: int) -> torch.Tensor:
        alpha = pixels_of(values.read(y0, y1, x0, x1))[1]
        assert alpha is not None, "only pictures with alpha are asked for it"
        return alpha

    return part

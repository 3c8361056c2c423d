"""Enlarge a picture file in the memory that the user grants: in memory where it fits, else row by row from disk."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from tudsr import __version__
from tudsr.canvas import DiskStore, RowsFrom, plain, read_journal
from tudsr.checkpoint import sha256_file, write_text
from tudsr.errors import InputError
from tudsr.image import Picture, pixels_of, read_picture, values_of, write_picture
from tudsr.image_encode import check_size, file_format
from tudsr.image_raw import RawFile
from tudsr.image_spool import SPOOLED_FORMATS, Header, check_spooled, encode_spooled, read_header, spool_input
from tudsr.memory import Fit, spooled_bytes
from tudsr.pipeline import TUDSR
from tudsr.planner import Plan
from tudsr.request import Request, until_it_fits
from tudsr.resize import Region, upsampled
from tudsr.tiling import Progress

Say = Callable[[str], None]
Later = Callable[[Callable[[], None]], None]

WORK_SUFFIX = ".tudsr-work"
_MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Enlarged:
    """What became of a picture file of `in_size` (width, height); the pictures where they were in memory."""

    plan: Plan
    in_size: tuple[int, int]
    before: Picture | None = None
    after: Picture | None = None


def upscale_file(
    model: TUDSR,
    source: Path,
    target: Path,
    request: Request,
    *,
    memory: int | None = None,
    in_memory: bool = False,
    progress: Progress | None = None,
    say: Say = lambda line: None,
    later: Later | None = None,
) -> Enlarged:
    """Enlarge one picture file.

    The result is the same in memory and from disk, unless windows had to shrink, which is said. From disk, the work
    lies in a folder beside the target; killed and called again, it goes on where it was, with the same windows and
    batch where they fit into the memory it now may take. What cannot be used of it is begun anew, which is said.

    Args:
        model: loaded.
        source: the picture; libvips (the extra [huge]) reads it where it does not fit into memory.
        target: the file to write; its suffix names the format.
        request: what is asked.
        memory: bytes that this process (on CUDA: its memory on the GPU) may take; None: most of what is free.
        in_memory: whether the pictures are wanted in memory; where they do not fit, that is refused.
        progress: called with (windows done, windows in all).
        say: called with a sentence for whatever the user should know.
        later: given what writes the file, which raises what this function does, where the picture is small beside the
            memory that is free; None: it is written before this function returns.

    Raises:
        InputError: for a picture that cannot be read, written or done within the memory or the disk's free space.
        ConfigError: for wishes that cannot be met.
    """
    header, wish = read_header(source), model.settled(request)
    size = header.height, header.width
    plan = model.plan(*size, wish)
    check_size(target, plan.height, plan.width)

    def tell(line: str) -> None:
        say(f"{source}: {line}")

    spool = not in_memory and file_format(target).name in SPOOLED_FORMATS
    begun = _begun(model, source, target, wish, request.batch, tell) if spool else None
    fit = _fit(model, size, plan, wish, memory, header, spool=spool, begun=begun)
    on_disk = fit is not None and fit.on_disk
    if fit is not None and fit.most_px is not None:
        tell(fit.shrunk)
    if begun is not None and not (on_disk and fit is not None and fit.most_px == begun.most_px):
        tell("an earlier run's windows do not fit into the memory; what it had not finished is begun anew.")

    def run(request: Request) -> Enlarged:
        if on_disk:
            return _Spooled(model, source, target, header, wish, request).run(progress, say)
        return _in_memory(model, source, target, request, progress, say, later if fit is None else None)

    return until_it_fits(run, fit.applied(wish) if fit else wish, model.config.windows, tell)


def _fit(
    model: TUDSR,
    size: tuple[int, int],
    plan: Plan,
    wish: Request,
    memory: int | None,
    header: Header,
    *,
    spool: bool,
    begun: Request | None,
) -> Fit | None:
    try:
        return model.fit(
            size, plan, wish, memory, header.pixel_bytes, decode_bytes=header.decode_bytes, spool=spool, begun=begun
        )
    except InputError as error:
        if spool:
            raise
        known = ", ".join(SPOOLED_FORMATS)
        raise InputError(f"{error} From disk ({known}; not side by side with the input) it takes less.") from error


def _in_memory(
    model: TUDSR, source: Path, target: Path, request: Request, progress: Progress | None, say: Say, later: Later | None
) -> Enlarged:
    before = read_picture(source)
    after = model.upscale_picture(before, request, progress)

    def write() -> None:
        for note in (*before.info.notes, *write_picture(target, after)):
            say(f"{source}: {note}")
        shutil.rmtree(work_folder(target), ignore_errors=True)  # an earlier run may have begun it on disk

    (later or _now)(write)
    plan = model.plan(before.height, before.width, request)
    return Enlarged(plan=plan, in_size=(before.width, before.height), before=before, after=after)


def _now(write: Callable[[], None]) -> None:
    write()


def work_folder(target: Path) -> Path:
    """Return where the work of a picture lies that is enlarged from disk: beside it, under a name of fixed length."""
    name = hashlib.sha256(target.name.encode()).hexdigest()[:16]
    return target.with_name(f".{name}{WORK_SUFFIX}")


def _begun(model: TUDSR, source: Path, target: Path, wish: Request, batch: int | None, say: Say) -> Request | None:
    """Return a wish with the windows and the batch of an earlier run on disk that had the same one; else say so.

    Fewer windows run together where the user says so with `batch`: the earlier run may have died of them.
    """
    journal = read_journal(work_folder(target))
    if journal is None:
        return None
    key = plain(run_key(model, source, target, wish))
    others = [name for name, value in key.items() if journal["key"].get(name) != value]
    if others:
        say(f"what an earlier run left on disk is not used, because of another {' and '.join(others)}.")
        return None
    how = journal["how"]
    return wish.model_copy(update=how | ({} if batch is None else {"batch": min(batch, how.get("batch") or batch)}))


def run_key(model: TUDSR, source: Path, target: Path, wish: Request) -> dict[str, Any]:
    """Return what a picture's rows depend on, but for what is chosen to fit into memory."""
    return {
        "version": __version__,
        "source": sha256_file(source),
        "target": target.name,
        "request": wish.model_dump(mode="json", exclude={"batch", "low_memory", "graphs", "on_host"}),
        "model": hashlib.sha256(model.config.to_json().encode()).hexdigest(),  # settings, and hashes of the weights
        "dtype": str(model.model.backbone.dtype),
        "device": model.device,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


class _Spooled:
    """One picture on its way from disk to disk."""

    def __init__(
        self, model: TUDSR, source: Path, target: Path, header: Header, wish: Request, request: Request
    ) -> None:
        check_spooled(target)
        self._model, self._source, self._target, self._header = model, source, target, header
        self._wish, self._request, self._folder = wish, request, work_folder(target)

    def run(self, progress: Progress | None, say: Say) -> Enlarged:
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self._folder.with_suffix(".lock"), self._target):
                return self._run(progress, say)
        except OSError as error:
            raise InputError(f"{self._target}: cannot be made ({error.strerror or error}).") from error

    def _run(self, progress: Progress | None, say: Say) -> Enlarged:
        plan = self._model.plan(self._header.height, self._header.width, self._request)
        key = run_key(self._model, self._source, self._target, self._wish)
        store = DiskStore(self._folder, key, self._request.model_dump(include={"most_px", "batch"}))
        self._check_disk(plan, say)
        header = self._input()
        values = RawFile(self._folder / "input.raw", header.shape, header.dtype)
        size = header.height, header.width
        plan = self._model.plan(*size, self._request)
        made = replace(
            header, height=plan.height, width=plan.width, bits=header.bits if file_format(self._target).wide else 8
        )
        rows = self._model.run_passes(_pixels(values), size, plan, self._request, store, progress)
        out = RawFile(self._folder / "output.raw", made.shape, made.dtype)
        store.write("output", out, _numbers(store, out, values, rows))
        encoded = self._folder / f"encoded{self._target.suffix}"  # there a kill leaves nothing that nobody removes
        lost = encode_spooled(encoded, out, made)
        encoded.replace(self._target)
        store.close()
        for note in (*header.notes, *lost):
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

    def _check_disk(self, plan: Plan, say: Say) -> None:
        header = self._header
        needed = spooled_bytes(header.height, header.width, plan, header.pixel_bytes, self._request.color)
        if file_format(self._target).name == "JPEG":  # libvips makes it of a flat TIFF
            needed += plan.height * plan.width * header.pixel_bytes
        have = sum(file.stat().st_size for file in self._folder.glob("*"))
        free = shutil.disk_usage(self._target.parent).free
        if needed > have + free:
            raise InputError(
                f"{self._source}: {needed / _MB:.0f} MB of disk are needed beside {self._target}, and "
                f"{(have + free) / _MB:.0f} MB are free."
            )
        more = ", going on with what an earlier run left" if (self._folder / "header.json").is_file() else ""
        say(f"{self._source}: works on disk, in up to {needed / _MB:.0f} MB beside the output{more}.")


def _numbers(store: DiskStore, out: RawFile, values: RawFile, rows: RowsFrom) -> Iterator[NDArray]:
    """Yield the output's rows that are still to be made, (rows, W, C)."""
    height, width, channels = out.shape
    alpha = None
    if channels in (2, 4):
        alpha = upsampled(_alpha(values), (values.shape[0], values.shape[1]), (height, width))
    y = store.done("output", out)
    for pixels in store.rest("output", out, rows):
        below = y + pixels.shape[-2]
        yield values_of(pixels, None if alpha is None else alpha(y, below, 0, width), channels < 3, out.dtype)
        y = below


@contextlib.contextmanager
def _alone(lock: Path, target: Path) -> Iterator[None]:
    """Refuse a second run at the same output, while the first one works."""
    try:
        import fcntl
    except ImportError:  # Windows has none; two runs at one output are then the user's own affair
        yield
        return
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                raise OSError("a run that just ended took this file away, and another one made a new one")
        except OSError as error:
            raise InputError(f"{target}: another run is making it; wait for it or stop it.") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _pixels(values: RawFile) -> Region:
    return lambda *box: pixels_of(values.read(*box))[0]


def _alpha(values: RawFile) -> Region:
    def part(y0: int, y1: int, x0: int, x1: int) -> torch.Tensor:
        alpha = pixels_of(values.read(y0, y1, x0, x1))[1]
        assert alpha is not None, "only pictures with alpha are asked for it"
        return alpha

    return part

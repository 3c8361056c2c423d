"""Enlarge a picture file in the memory that the user grants: in memory where it fits, else row by row from disk."""

import shutil
from collections.abc import Callable
from pathlib import Path

from tudsr.canvas import plain, read_journal
from tudsr.checkpoint import check_folder
from tudsr.errors import InputError
from tudsr.image import Picture, read_picture, write_picture
from tudsr.image_encode import check_size, file_format
from tudsr.image_spool import SPOOLED_FORMATS, Header, read_header
from tudsr.memory import Fit
from tudsr.pipeline import TUDSR
from tudsr.planner import Plan
from tudsr.request import Request, until_it_fits
from tudsr.spooled import Enlarged, Say, Spooled, run_key, work_folder
from tudsr.tiling import Progress

Later = Callable[[Callable[[], None]], None]
Read = Callable[[Path], Picture]


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
    read: Read = read_picture,
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
        read: gives the picture where it is enlarged in memory: a caller may have read it already.

    Raises:
        InputError: for a picture that cannot be read, written or done within the memory or the disk's free space.
        ConfigError: for wishes that cannot be met.
    """
    header, wish = read_header(source), model.settled(request)
    size = header.height, header.width
    plan = model.plan(*size, wish)
    check_size(target, plan.height, plan.width)
    check_folder(target.parent)

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
            return Spooled(model, source, target, header, wish, request).run(progress, say)
        return _in_memory(model, read(source), source, target, request, progress, say, later if fit is None else None)

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
    model: TUDSR,
    before: Picture,
    source: Path,
    target: Path,
    request: Request,
    progress: Progress | None,
    say: Say,
    later: Later | None,
) -> Enlarged:
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

"""Enlarge a picture file in the memory that the user grants: in memory where it fits, else row by row from disk."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tudsr.canvas import plain, read_journal
from tudsr.checkpoint import check_folder
from tudsr.errors import InputError
from tudsr.image import Picture, read_picture, write_picture
from tudsr.image_encode import check_size, file_format
from tudsr.image_spool import SPOOLED_FORMATS, read_header
from tudsr.memory import Fit
from tudsr.pipeline import TUDSR
from tudsr.request import Request, until_it_fits
from tudsr.spooled import Deliver, Enlarged, Say, Spooled, run_key, sweep, work_folder
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
    beside: int = 0,
    work: Path | None = None,
    progress: Progress | None = None,
    say: Say = lambda line: None,
    later: Later | None = None,
    read: Read = read_picture,
    deliver: Deliver | None = None,
) -> Enlarged:
    """Enlarge one picture file.

    The result is the same in memory and from disk, unless windows had to shrink, which is said. From disk, the work
    lies in a folder; killed and called again, it goes on where it was, with the same windows and batch where they fit
    into the memory it now may take. What cannot be used of it is begun anew, which is said.

    Args:
        model: loaded.
        source: the picture; libvips (the extra [huge]) reads it where it does not fit into memory.
        target: the file to write; its suffix names the format.
        request: what is asked.
        memory: bytes that this process (on CUDA: its memory on the GPU) may take; None: most of what is free.
        beside: bytes for what the caller makes of the pictures, where it wants them in memory; where that does not fit,
            it is refused. 0: it does not.
        work: the folder for work on disk, which is not there or an earlier run's; None: a hidden one beside the target.
        progress: called with (windows done, windows in all).
        say: called with a sentence for whatever the user should know.
        later: given what writes the file, which raises what this function does, where the picture is small beside the
            memory that is free; None: it is written before this function returns.
        read: gives the picture where it is enlarged in memory: a caller may have read it already.
        deliver: takes the finished file where it belongs; work on disk is kept until it returns. None: it is `target`.

    Raises:
        InputError: for a picture that cannot be read, written or done within the memory or the disk's free space.
        ConfigError: for wishes that cannot be met.
    """
    with model.lock:
        job = _FileJob(model, source, target, work or work_folder(target), model.settled(request), say)
        check_size(target, job.plan.height, job.plan.width)
        check_folder(target.parent)
        fit = job.fit(memory, beside, request.batch)

        def run(request: Request) -> Enlarged:
            if fit is not None and fit.on_disk:
                spooled = Spooled(model, source, target, job.folder, job.header, job.wish, request, deliver)
                return spooled.run(progress, say)
            before = read(source)
            after = model.upscale_picture(before, request, progress)
            (_now if later is None or fit is not None else later)(partial(job.write, after, before.info.notes, deliver))
            plan = model.plan(before.height, before.width, request)
            return Enlarged(plan=plan, in_size=(before.width, before.height), before=before, after=after)

        lessened = partial(model.lessened, (job.header.height, job.header.width))
        return until_it_fits(run, fit.applied(job.wish) if fit else job.wish, lessened, job.tell)


class _FileJob:
    """One picture file to enlarge: what it is, what is asked of it, and what an earlier run left of it in `folder`."""

    def __init__(self, model: TUDSR, source: Path, target: Path, folder: Path, wish: Request, say: Say) -> None:
        self._model, self._source, self._target, self._say = model, source, target, say
        self.folder, self.wish, self.header = folder, wish, read_header(source)
        try:
            self.plan = model.plan(self.header.height, self.header.width, wish)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        if self.plan.stretched(self.header.height, self.header.width):
            down, across = self.plan.height / self.header.height, self.plan.width / self.header.width
            self.tell(f"it is stretched, by {across:.4g} in width and {down:.4g} in height, to the size asked for.")

    def tell(self, line: str) -> None:
        """Say something about this picture."""
        self._say(f"{self._source}: {line}")

    def write(self, after: Picture, notes: tuple[str, ...], deliver: Deliver | None) -> None:
        """Write what was made in memory, and say what could not be kept."""
        for note in (*notes, *write_picture(self._target, after)):
            self.tell(note)
        if deliver is not None:
            deliver(self._target)
        sweep(self._target, self.folder)  # an earlier run may have begun it on disk

    def fit(self, memory: int | None, beside: int, batch: int | None) -> Fit | None:
        """Choose how it fits into memory, and say what that changes; see `upscale_file` and `TUDSR.fit`.

        Raises:
            InputError: when it does not.
        """
        spool = not beside and file_format(self._target).name in SPOOLED_FORMATS
        begun = self._begun(batch) if spool else None
        try:
            fit = self._model.fit(
                (self.header.height, self.header.width), self.plan, self.wish, memory, self.header.pixel_bytes,
                decode_bytes=max(self.header.decode_bytes, beside),  # the one is before the work, the other after it
                spool=spool, begun=begun,
            )  # fmt: skip
        except InputError as error:
            if spool:
                raise
            known = ", ".join(SPOOLED_FORMATS)
            less = f"from disk ({known}; not side by side with the input) it takes less"
            raise InputError(f"{str(error).removesuffix('.')}; {less}.") from error
        if fit is not None and fit.most_px is not None:
            self.tell(fit.shrunk)
        if begun is not None and not (fit is not None and fit.on_disk and fit.most_px == begun.most_px):
            self.tell("an earlier run's windows do not fit into the memory; what it had not finished is begun anew.")
        return fit

    def _begun(self, batch: int | None) -> Request | None:
        """Return a wish with the windows and the batch of an earlier run on disk that had the same one; else say so.

        Fewer windows run together where the user says so with `batch`: the earlier run may have died of them.
        """
        journal = read_journal(self.folder)
        if journal is None:
            return None
        key = plain(run_key(self._model, self._source, self._target, self.wish))
        others = [name for name, value in key.items() if journal["key"].get(name) != value]
        if others:
            self.tell(f"what an earlier run left on disk is not used, because of another {' and '.join(others)}.")
            return None
        how = journal["how"]
        return self.wish.model_copy(
            update=how | ({} if batch is None else {"batch": min(batch, how.get("batch") or batch)})
        )


def _now(write: Callable[[], None]) -> None:
    write()

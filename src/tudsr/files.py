"""Enlarge a picture file in the memory that the user grants: in memory where it fits, else row by row from disk."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tudsr import __version__
from tudsr.canvas import DiskStore, RawFile
from tudsr.checkpoint import sha256_file
from tudsr.errors import InputError
from tudsr.image import Picture, pixels_of, read_picture, values_of, write_picture
from tudsr.image_encode import check_size, file_format
from tudsr.image_spool import Header, encode_spooled, read_header, spool_input
from tudsr.memory import Fit, until_it_fits
from tudsr.pipeline import TUDSR
from tudsr.planner import Plan
from tudsr.request import Request
from tudsr.resize import Region, upsampled
from tudsr.tiling import Progress

Say = Callable[[str], None]

WORK_SUFFIX = ".tudsr-work"
_NUMBERS = {8: np.uint8, 16: np.uint16}
_MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Enlarged:
    """What became of a picture file; the pictures themselves where they were in memory."""

    plan: Plan
    header: Header
    before: Picture | None = None
    after: Picture | None = None


def upscale_file(
    model: TUDSR,
    source: Path,
    target: Path,
    request: Request,
    *,
    memory: int | None = None,
    progress: Progress | None = None,
    say: Say = lambda line: None,
) -> Enlarged:
    """Enlarge one picture file.

    The result is the same in memory and from disk, unless windows had to shrink, which is said. From disk, the work
    lies in a folder beside the target; killed and called again, it goes on where it was.

    Args:
        model: loaded.
        source: the picture; libvips (the extra [huge]) reads it where it does not fit into memory.
        target: the file to write; its suffix names the format.
        request: what is asked.
        memory: bytes that this process (on CUDA: its memory on the GPU) may take; None: most of what is free.
        progress: called with (windows done, windows in all).
        say: called with a sentence for whatever the user should know.

    Raises:
        InputError: for a picture that cannot be read, written or done within the memory or the disk's free space.
        ConfigError: for wishes that cannot be met.
    """
    header = read_header(source)
    size = header.height, header.width
    plan = model.plan(*size, request)
    check_size(target, plan.height, plan.width)
    fit = model.fit(size, plan, request, memory, header.pixel_bytes)
    if fit is not None and fit.most_px is not None:
        request = request.model_copy(update={"most_px": fit.most_px})
        say(f"{source}: windows of at most {fit.most_px} px, to keep to the memory; the result is a little different.")

    def run(request: Request) -> Enlarged:
        if fit is not None and fit.on_disk:
            _Spooled(model, source, target, header, plan, request, fit).run(progress, say)
            return Enlarged(plan=plan, header=header)
        before = read_picture(source)
        after = model.upscale_picture(before, request, progress)
        for note in (*before.info.notes, *write_picture(target, after)):
            say(f"{source}: {note}")
        return Enlarged(plan=plan, header=header, before=before, after=after)

    return until_it_fits(run, request, model.config.windows, lambda line: say(f"{source}: {line}"))


class _Spooled:
    """One picture on its way from disk to disk."""

    def __init__(
        self, model: TUDSR, source: Path, target: Path, header: Header, plan: Plan, request: Request, fit: Fit
    ) -> None:
        self._model, self._source, self._target, self._plan, self._request = model, source, target, plan, request
        self._header, self._fit = header, fit
        self._out = replace(header, bits=header.bits if file_format(target).wide else 8)
        self._folder = target.with_name(f".{target.name}{WORK_SUFFIX}")

    def run(self, progress: Progress | None, say: Say) -> None:
        self._check_disk(say)
        plan, header = self._plan, self._header
        store = DiskStore(self._folder, self._key())
        shape = header.height, header.width, header.channels
        values = RawFile(self._folder / "input.raw", shape, _NUMBERS[header.bits])
        if values.path.stat().st_size != header.height * header.width * header.pixel_bytes:
            spool_input(self._source, header, values.path)
        rows = self._model.run_passes(
            _pixels(values), (header.height, header.width), plan, self._request, store, progress
        )
        out = RawFile(self._folder / "output.raw", (plan.height, plan.width, header.channels), _NUMBERS[self._out.bits])
        store.write("output", out, self._numbers(store, values, rows))
        lost = encode_spooled(self._target, out.path, self._out, (plan.height, plan.width))
        shutil.rmtree(self._folder)
        for note in (*header.notes, *lost):
            say(f"{self._source}: {note}")

    def _numbers(self, store: DiskStore, values: RawFile, rows: Any) -> Iterator[NDArray]:
        """Yield the output's rows that are still to be made, (rows, W, C)."""
        plan, header = self._plan, self._header
        alpha = None
        if header.channels in (2, 4):
            alpha = upsampled(_alpha(values), (header.height, header.width), (plan.height, plan.width))
        y = store.done("output")
        for pixels in store.rest("output", plan.height, rows):
            below = y + pixels.shape[-2]
            seen = None if alpha is None else alpha(y, below, 0, plan.width)
            yield values_of(pixels, seen, header.channels < 3, _NUMBERS[self._out.bits])
            y = below

    def _check_disk(self, say: Say) -> None:
        have = sum(file.stat().st_size for file in self._folder.glob("*")) if self._folder.is_dir() else 0
        self._target.parent.mkdir(parents=True, exist_ok=True)
        encoded = self._plan.height * self._plan.width * self._out.pixel_bytes  # at most, nearly
        needed = max(0, self._fit.disk_bytes + encoded - have)
        free = shutil.disk_usage(self._target.parent).free
        if needed > free:
            raise InputError(
                f"{self._source}: {needed / _MB:.0f} MB of disk are needed beside {self._target}, and "
                f"{free / _MB:.0f} MB are free."
            )
        more = "; going on with what an earlier run left" if have else ""
        say(f"{self._source}: works on disk, in up to {needed / _MB:.0f} MB beside the output{more}.")

    def _key(self) -> dict[str, Any]:
        """Return what the rows depend on."""
        backbone = self._model.model.backbone
        return {
            "version": __version__,
            "source": sha256_file(self._source),
            "request": self._request.model_dump(mode="json"),
            "plan": asdict(self._plan),
            "model": self._model.config.sha256,
            "dtype": str(backbone.dtype),
            "device": backbone.device.type,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "bits": self._out.bits,
        }


def _pixels(values: RawFile) -> Region:
    return lambda *box: pixels_of(values.read(*box))[0]


def _alpha(values: RawFile) -> Region:
    def part(y0: int, y1: int, x0: int, x1: int) -> torch.Tensor:
        alpha = pixels_of(values.read(y0, y1, x0, x1))[1]
        assert alpha is not None, "only pictures with alpha are asked for it"
        return alpha

    return part

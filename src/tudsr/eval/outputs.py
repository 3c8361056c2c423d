"""Make a method's outputs: 8-bit PNG files with a journal beside them, so that a killed report goes on where it was."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tudsr.checkpoint import sha256_file, write_text
from tudsr.errors import TudsrError
from tudsr.eval.kept import of_same_run
from tudsr.eval.methods import Method, Run
from tudsr.eval.pairs import Pair
from tudsr.image import Picture, PictureInfo, read_picture, write_picture
from tudsr.request import is_out_of_memory

JOURNAL = ".done.json"

Skip = Callable[[str, str], None]
FAILURES = (TudsrError, MemoryError, RuntimeError)
"""What may leave out a picture, if `reason` has a word for it: torch's lack of memory is a RuntimeError."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output's file, and the seconds that it took without reading and writing; None where nobody knows."""

    path: Path
    seconds: float | None = None


def make_outputs(
    method: Method,
    pairs: Sequence[Pair],
    folder: Path,
    run: Mapping[str, Any],
    *,
    device: torch.device,
    skip: Skip,
    step: Callable[[], None],
) -> dict[str, Output]:
    """Return a method's outputs by picture, making those that are not there yet; foreign ones are only listed.

    An existing file is taken only when the journal says that it was made of the same input by the same method in the
    same surroundings, and it has not changed since; never when nobody can say which code runs (`kept.of_same_run`). The
    first picture that is made is made twice: the first time, which fills caches, does not count.

    Args:
        method: what to run.
        pairs: the inputs.
        folder: where the outputs go.
        run: what else the outputs depend on (versions, commit, device, dtype), JSON values.
        device: that the method computes on, to wait for it.
        skip: called with (file, reason) for each picture that could not be made.
        step: called after each picture.
    """
    if method.open is None:
        found = {pair.name: pair.outputs[method.name] for pair in pairs if method.name in pair.outputs}
        return {name: Output(path=path, seconds=method.seconds.get(name)) for name, path in found.items()}
    journal = _Journal(folder, {**run, **_identity(method)})
    made: dict[str, Output] = {}
    fn: Run | None = None
    for pair in pairs:
        try:
            output = journal.find(pair)
            if output is None:
                warm_up = fn is None
                fn = fn or method.open()
                output = journal.add(pair, _make(fn, pair, folder / f"{pair.name}.png", device, warm_up=warm_up))
            made[pair.name] = output
        except FAILURES as error:
            if fn is None:
                raise  # the method itself cannot be had
            skip(str(pair.lq), f"{method.name}: {reason(error)}")
        step()
    return made


def reason(error: Exception, what: str = "it") -> str:
    """Return why a picture is left out: the user's own mistake, or no memory for `what`; raise anything else again."""
    if isinstance(error, TudsrError):
        return str(error)
    if is_out_of_memory(error):
        return f"there is not enough memory for {what}"
    raise error


def _identity(method: Method) -> dict[str, Any]:
    request = None if method.request is None else method.request.model_dump(mode="json")
    return {"kind": method.kind, "scale": method.scale, "request": request, "sha256": dict(method.sha256 or {})}


def _make(run: Run, pair: Pair, path: Path, device: torch.device, *, warm_up: bool) -> Output:
    picture = read_picture(pair.lq)
    lq = picture.pixels
    if warm_up:
        run(lq)
    _wait(device)
    begun = time.perf_counter()
    sr = run(lq)
    _wait(device)
    seconds = time.perf_counter() - begun
    info = PictureInfo(grey=picture.info.grey, icc=picture.info.icc)  # grey stays grey, as `tudsr upscale` writes it
    write_picture(path, Picture(pixels=sr, info=info))
    return Output(path=path, seconds=seconds)


def _wait(device: torch.device) -> None:
    """Wait until a device that works beside the CPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class _Journal:
    """What is known of the files in one folder of outputs; see `of_same_run`."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self._folder, self._run = folder, run
        self._pictures: dict[str, Any] = of_same_run(folder / JOURNAL, run).get("pictures", {})

    def find(self, pair: Pair) -> Output | None:
        """Return a picture's output when it is there and can be trusted."""
        entry, path = self._pictures.get(pair.name), self._folder / f"{pair.name}.png"
        if entry is None or not path.is_file():
            return None
        trusted = entry["lq"] == sha256_file(pair.lq) and entry["output"] == sha256_file(path)
        return Output(path=path, seconds=entry["seconds"]) if trusted else None

    def add(self, pair: Pair, output: Output) -> Output:
        """Note that a picture's output was made."""
        hashes = {"lq": sha256_file(pair.lq), "output": sha256_file(output.path)}
        self._pictures[pair.name] = hashes | {"seconds": output.seconds}
        write_text(self._folder / JOURNAL, json.dumps({"run": self._run, "pictures": self._pictures}, indent=1) + "\n")
        return output

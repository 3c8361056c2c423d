"""Pictures that are made row by row, in memory or on disk, and a journal of how far each of them is."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tudsr.checkpoint import write_text
from tudsr.image_raw import RawFile
from tudsr.resize import Region, part_of

RowsFrom = Callable[[int], Iterator[Tensor]]
"""start -> the rows of a picture from there on, (1, 3, rows, W), top to bottom."""

JOURNAL_NAME = "journal.json"


class Store(Protocol):
    """Where the pictures of an enlargement live."""

    def fill(self, name: str, height: int, width: int, rows_from: RowsFrom) -> Region:
        """Make a picture from its rows, (1, 3, rows, W) float32, and return its parts.

        Args:
            name: by which a picture that was begun before is found again.
            height: of the picture, in pixels.
            width: likewise.
            rows_from: gives the rows that are still to be made; not called where there are none.
        """
        ...


class MemoryStore:
    """Keeps every picture in memory for as long as somebody reads it, on the device.

    Args:
        device: of the pictures.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = device

    def fill(self, name: str, height: int, width: int, rows_from: RowsFrom) -> Region:  # noqa: ARG002
        """Make a picture; see `Store.fill`."""
        canvas, y = torch.empty(1, 3, height, width, device=self._device), 0
        for rows in rows_from(0):
            canvas[..., y : y + rows.shape[-2], :] = rows
            y += rows.shape[-2]
        return part_of(canvas)


class DiskStore:
    """Keeps every picture in a folder and remembers how many of its rows are done, so that a killed run goes on.

    Rows reach the disk before the journal says so: what the journal counts is there. It also says how each picture was
    made: one that is finished serves the next pass whatever its windows were, one that is not is begun anew with other
    windows, since there would be a seam.

    Args:
        folder: for the files; made if it is not there.
        key: what the rows depend on. Pictures that another key began are begun anew.
        how: `most_px`, of the windows, and `batch`, which rows hardly depend on: on that in their last bits.
        rows_at_once: rows that are written together, at least; the journal is written as often.
    """

    def __init__(
        self, folder: Path, key: dict[str, Any], how: dict[str, int | None] | None = None, rows_at_once: int = 64
    ) -> None:
        self._folder, self._rows_at_once = folder, rows_at_once
        folder.mkdir(parents=True, exist_ok=True)
        self._journal: dict[str, Any] = {"key": plain(key), "rows": {}, "made": {}}
        found = read_journal(folder)
        if found is not None and found["key"] == self._journal["key"]:
            self._journal = found
        else:
            # Of other pictures: not a row of theirs may be taken for ours, whenever this is killed.
            for file in sorted(folder.iterdir(), key=lambda file: file.name != JOURNAL_NAME):
                file.unlink()
        for part in folder.glob(".*"):  # what a kill left of a file that was being written
            part.unlink()
        self._journal["how"] = how or {}
        self._write_journal()

    def done(self, name: str, raw: RawFile) -> int:
        """Return how many rows of a picture are there: as many as the journal counts and the file holds.

        None are of a picture that was begun with other windows and never finished.
        """
        rows = min(int(self._journal["rows"].get(name, 0)), raw.path.stat().st_size // raw.row_bytes)
        made = self._journal["made"].get(name, {})
        return rows if rows == raw.shape[0] or made.get("most_px") == self._journal["how"].get("most_px") else 0

    def fill(self, name: str, height: int, width: int, rows_from: RowsFrom) -> Region:
        """Make a picture, or go on with it, in float32; see `Store.fill`."""
        raw = RawFile(self._folder / f"{name}.f32", (height, width, 3), np.float32)
        self.write(name, raw, (rows[0].permute(1, 2, 0).numpy() for rows in self.rest(name, raw, rows_from)))

        def part(y0: int, y1: int, x0: int, x1: int) -> Tensor:
            # (h, w, 3) -> (1, 3, h, w); contiguous, as pictures in memory are: a sum's last bit depends on the layout
            return torch.from_numpy(raw.read(y0, y1, x0, x1)).permute(2, 0, 1)[None].contiguous()

        return part

    def rest(self, name: str, raw: RawFile, rows_from: RowsFrom) -> Iterator[Tensor]:
        """Yield the rows that are still to be made, at least `rows_at_once` together but for the last ones."""
        done, height = self.done(name, raw), raw.shape[0]
        waiting: list[Tensor] = []
        for rows in rows_from(done) if done < height else ():
            waiting.append(rows)
            done += rows.shape[-2]
            if done == height or sum(one.shape[-2] for one in waiting) >= self._rows_at_once:
                yield torch.cat(waiting, dim=-2)
                waiting = []

    def write(self, name: str, raw: RawFile, rows: Iterator[NDArray]) -> None:
        """Write rows below those that are there, (rows, W, C), and journal them."""
        y = self.done(name, raw)
        if y < raw.shape[0]:  # said before a row is written: a kill may not leave new rows under the old windows
            self._journal["rows"][name], self._journal["made"][name] = y, self._journal["how"]
            self._write_journal()
        for values in rows:
            raw.write(y, values)
            y += len(values)
            self._journal["rows"][name] = y
            self._write_journal()

    def _write_journal(self) -> None:
        write_text(self._folder / JOURNAL_NAME, json.dumps(self._journal))


def discard(folder: Path) -> None:
    """Remove a store's folder, the journal first: what a kill leaves of it vouches for nothing."""
    (folder / JOURNAL_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder)


def plain(key: dict[str, Any]) -> dict[str, Any]:
    """Return a key as the journal gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(key))
    return found


def read_journal(folder: Path) -> dict[str, Any] | None:
    """Return what a folder's journal says, or None where there is none, or a damaged one."""
    try:
        found = json.loads((folder / JOURNAL_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    well = isinstance(found, dict) and all(isinstance(found.get(name), dict) for name in ("key", "how", "rows", "made"))
    return found if well else None

"""A picture as plain numbers in a file. No torch."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_STRIP_BYTES = 2**22


class RawFile:
    """A picture as plain numbers in a file, row by row, channels together; read and written without mapping it.

    A mapped file's pages would count as this process's memory.

    Args:
        path: of the file; made, without contents, if it is not there.
        shape: (H, W, C).
        dtype: of the numbers.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: DTypeLike) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self.row_bytes = shape[1] * shape[2] * self.dtype.itemsize
        path.touch()

    def read(self, y0: int, y1: int, x0: int, x1: int) -> NDArray:
        """Return rows y0 to y1 and columns x0 to x1, (y1 - y0, x1 - x0, C)."""
        _, width, channels = self.shape
        pixel = channels * self.dtype.itemsize
        values = np.empty((y1 - y0, x1 - x0, channels), self.dtype)
        whole = x1 - x0 == width
        with self.path.open("rb", buffering=0) as file:
            for row, y in enumerate(range(y0, y1)):
                if row == 0 or not whole:
                    file.seek((y * width + x0) * pixel)
                target = values if whole else values[row]
                _read_into(file, _bytes(target))
                if whole:
                    break
        return values

    def write(self, y: int, values: NDArray) -> None:
        """Write whole rows, (rows, W, C), from row y on, and wait until the disk has them."""
        assert values.shape[1:] == self.shape[1:], "whole rows are written"
        with self.path.open("r+b", buffering=0) as file:
            file.seek(y * self.shape[1] * self.shape[2] * self.dtype.itemsize)
            data = _bytes(np.ascontiguousarray(values, self.dtype))
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())

    def __getitem__(self, rows: slice) -> NDArray:
        """Return whole rows, as an array's slice does."""
        start, stop, _ = rows.indices(self.shape[0])
        return self.read(start, stop, 0, self.shape[1])

    @property
    def strip_rows(self) -> int:
        """Rows of some megabytes, at least one."""
        return max(1, _STRIP_BYTES // self.row_bytes)

    def strips(self) -> Iterator[NDArray]:
        """Yield the picture in strips of `strip_rows` rows."""
        for y in range(0, self.shape[0], self.strip_rows):
            yield self[y : y + self.strip_rows]


def _bytes(values: NDArray) -> memoryview:
    return memoryview(values.data).cast("B")


def _read_into(file: Any, target: memoryview) -> None:
    while target:
        count = file.readinto(target)
        if not count:
            raise OSError(f"{file.name} is shorter than its picture")
        target = target[count:]

"""Folders of photos: find, check, split, fingerprint and decode them."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tudsr.checkpoint import sha256_file
from tudsr.errors import DataError, InputError
from tudsr.image_decode import READABLE, decode_file
from tudsr.image_raster import decoding

PHOTO_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class PhotoReport:
    """What `check_photos` sorted out."""

    usable: int
    broken: tuple[Path, ...]
    too_small: tuple[Path, ...]

    def summary(self) -> str:
        """Return one line for a log."""
        return f"{self.usable} photos usable, {len(self.broken)} unreadable, {len(self.too_small)} too small"


def find_photos(root: Path) -> list[Path]:
    """List all photos below a folder, sorted by their path.

    Args:
        root: the folder.

    Raises:
        DataError: when it is not a folder or holds no photo.
    """
    if not root.is_dir():
        raise DataError(f"{root}: a folder of photos is expected, and this is not a folder.")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"{root}: no photo found; accepted are {', '.join(sorted(PHOTO_SUFFIXES))}.")
    return paths


def check_photos(paths: Sequence[Path], min_side_px: int) -> tuple[list[Path], PhotoReport]:
    """Sort out photos whose header cannot be read or whose short side is too small. Pixels are not decoded.

    Args:
        paths: the photos.
        min_side_px: least short side.

    Returns:
        The usable photos in their order, and the report.

    Raises:
        DataError: when none is left.
    """
    usable: list[Path] = []
    broken: list[Path] = []
    too_small: list[Path] = []
    for path in paths:
        try:
            with decoding(str(path)), Image.open(path, formats=READABLE) as photo:
                side = min(photo.size)
        except InputError:
            broken.append(path)
            continue
        (usable if side >= min_side_px else too_small).append(path)
    if not usable:
        raise DataError(
            f"none of {len(paths)} photos can be used: {len(broken)} unreadable, {len(too_small)} with a short side "
            f"below {min_side_px} px."
        )
    return usable, PhotoReport(usable=len(usable), broken=tuple(broken), too_small=tuple(too_small))


def split_photos(paths: Sequence[Path], val_count: int, seed: int, root: Path) -> tuple[list[Path], list[Path]]:
    """Set photos aside for validation: those whose names hash lowest, whatever their order.

    Photos added later leave the others' hashes alone, so that at most the new ones swap places.

    Args:
        paths: the photos.
        val_count: how many to set aside.
        seed: another seed gives another choice.
        root: names are taken relative to this folder.

    Returns:
        (train, val), each in the order of `paths`.

    Raises:
        DataError: when fewer than one photo would be left for training.
    """
    if not 0 <= val_count < len(paths):
        raise DataError(
            f"{val_count} photos for validation were asked for, of {len(paths)}; one must be left to train on."
        )
    ranked = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(f"{seed}:{_name(path, root)}")).digest())
    chosen = set(ranked[:val_count])
    return [path for path in paths if path not in chosen], [path for path in paths if path in chosen]


def manifest_hash(paths: Sequence[Path], root: Path, *, contents: bool = True) -> str:
    """Return a SHA-256 over all names, sizes and contents, for a training record; the order does not count.

    Args:
        paths: the photos.
        root: names are taken relative to this folder.
        contents: False for names and sizes alone, which takes no reading.
    """
    lines = []
    for path in paths:
        content = f"\t{sha256_file(path)}" if contents else ""
        lines.append(f"{_name(path, root)}\t{path.stat().st_size}{content}\n")
    return hashlib.sha256(os.fsencode("".join(sorted(lines)))).hexdigest()


def _name(path: Path, base: Path) -> str:
    return path.absolute().relative_to(base.absolute()).as_posix()


def decode_photo(path: Path) -> Pixels:
    """Decode a photo upright (EXIF orientation applied), as RGB; transparency is left out.

    Args:
        path: the file.

    Returns:
        (H, W, 3) uint8; of 16 bits the upper eight.

    Raises:
        InputError: when the file is gone, broken or not a photo.
    """
    values = decode_file(path).values
    if values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)
    colours = values[..., : 3 if values.shape[2] > 2 else 1]
    return np.ascontiguousarray(np.broadcast_to(colours, (*values.shape[:2], 3)))


class PhotoStore:
    """Photos by number, decoded on demand and kept in memory up to a limit; each worker process has its own."""

    def __init__(self, paths: Sequence[Path], min_side_px: int, cache_mb: int) -> None:
        """Args: the photos, the least short side, and the memory that decoded pixels may take, in MB."""
        self.paths = tuple(paths)
        self.broken: set[Path] = set()
        self._min_side_px = min_side_px
        self._room = cache_mb * 1_000_000
        self._kept: dict[int, Pixels] = {}

    def get(self, photo: int) -> Pixels | None:
        """Return (H, W, 3) uint8, or None when the photo is broken, which is warned about once."""
        if photo in self._kept:
            return self._kept[photo]
        path = self.paths[photo]
        if path in self.broken:
            return None
        try:
            pixels = decode_photo(path)
            if min(pixels.shape[:2]) < self._min_side_px:
                raise InputError(f"{path}: smaller than its header says.")
        except InputError as error:
            self.broken.add(path)
            warnings.warn(f"{str(error).removesuffix('.')}; skipped", stacklevel=2)
            return None
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[photo] = pixels
        return pixels

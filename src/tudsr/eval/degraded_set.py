"""Paired test sets: sharp photos and their degraded partners, the same bytes every time under constraints.txt."""

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from tudsr.checkpoint import check_folder, sha256_file, write_text
from tudsr.config import Settings, read_object
from tudsr.data.degradation import PRESETS, degrade
from tudsr.data.photos import find_photos
from tudsr.errors import ConfigError, InputError
from tudsr.image import Picture, read_picture, write_picture

RECORD = "degraded.json"
FORMAT = 1
DEGRADATION = 2
"""Of the code that makes a pair, here and in tudsr.data: raise it when the same settings give other pixels than before.
What was made under another number is made anew."""
PARTS = "gt", "lq"

Progress = Callable[[int, int], None]


class SetConfig(Settings):
    """What makes a set beside its photos."""

    preset: str
    scale: int
    seed: int


def make_set(source: Path, out: Path, config: SetConfig, progress: Progress) -> dict[str, Any]:
    """Write out/gt/NAME.png, out/lq/NAME.png and out/degraded.json for every photo.

    A photo's degradation depends on the seed and on its place among all photos of the folder, sorted by path. Finished
    pictures are not redone when the record of an earlier run says that they are what this one would make.

    Args:
        source: folder of sharp photos.
        out: folder of the set, not below `source`.
        config: preset, scale (a whole number from 1), seed (from 0).
        progress: called with (photos done, photos in all).

    Returns:
        The record: config, versions, the SHA-256 of each photo and each file, and the photos that were left out.

    Raises:
        ConfigError: for an unknown preset.
        DataError: when the source is not a folder or holds no photo.
        InputError: for a scale or seed out of range, two photos of one name, an `out` that lies among the photos, would
            be written over them or holds another set, or when no photo can be used.
    """
    _check(source, out, config)
    photos = find_photos(source)
    _check_names(photos)
    record = _new_record(config)
    old = _old_record(out, record)
    for index, path in enumerate(photos):
        try:
            _add(record, old, out, path, index, config)
        except InputError as error:
            record["skipped"].append({"file": str(path), "reason": str(error)})
        progress(index + 1, len(photos))
    if not record["files"]:
        raise InputError(f"{source}: no photo can be used (for example {record['skipped'][0]['reason']}).")
    _write(out, record)
    for name in old.get("files", {}).keys() - record["files"].keys():
        (out / name).unlink(missing_ok=True)  # of photos that are no longer there
    return record


def _check(source: Path, out: Path, config: SetConfig) -> None:
    if config.preset not in PRESETS:
        raise ConfigError(f"{config.preset!r} is not a degradation; known ones: {', '.join(sorted(PRESETS))}.")
    if config.scale < 1:
        raise InputError(f"--scale {config.scale}: a whole number from 1 up is expected.")
    if not 0 <= config.seed < 2**63:
        raise InputError(f"--seed {config.seed}: a whole number from 0 up, below 2^63, is expected.")
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"{out}: the set would lie among the photos of {source}; name a folder elsewhere.")
    for part in PARTS:
        if (out / part).resolve() in (source.resolve(), *source.resolve().parents):
            raise InputError(f"{out}: its {part} would be written over the photos of {source}; name another folder.")
    check_folder(out)


def _check_names(photos: Sequence[Path]) -> None:
    taken: dict[str, Path] = {}
    for path in photos:
        first = taken.setdefault(path.stem, path)
        if first != path:
            raise InputError(f"{first} and {path} would both become {path.stem}.png; rename one.")


def _new_record(config: SetConfig) -> dict[str, Any]:
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "degradation": DEGRADATION,
    }
    return {
        "format": FORMAT, **config.model_dump(), "versions": versions, "photos": {}, "files": {}, "skipped": [],
    }  # fmt: skip


def _old_record(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of an earlier run of the same settings; empty when there is none of these versions."""
    if not (out / RECORD).is_file():
        return {}
    old = read_object(out / RECORD)
    for key in ("format", *SetConfig.model_fields):
        if old.get(key) != record[key]:
            raise InputError(f"{out}: holds a set whose {key} is {old.get(key)!r}, not {record[key]!r}; name another.")
    if not all(isinstance(old.get(key), dict) for key in ("versions", "photos", "files")):
        raise InputError(f"{out / RECORD}: not the record of a set; name another folder.")
    return old


def _add(record: dict[str, Any], old: dict[str, Any], out: Path, path: Path, index: int, config: SetConfig) -> None:
    """Make one pair, unless it is there, and note it; the record is written each time, so that a kill loses little."""
    photo = {"index": index, "sha256": sha256_file(path)}
    names = {part: f"{part}/{path.stem}.png" for part in PARTS}
    known = old.get("versions") == record["versions"] and old["photos"].get(path.stem) == photo
    hashes = {name: old["files"].get(name) for name in names.values()} if known else {}
    finished = known and all(_is(out / name, digest) for name, digest in hashes.items())
    if not finished:
        gt, lq = make_pair(path, config, index)
        write_picture(out / names["gt"], gt)
        write_picture(out / names["lq"], lq)
        hashes = {name: sha256_file(out / name) for name in names.values()}
    record["photos"][path.stem] = photo
    record["files"] |= hashes
    if not finished:
        _write(out, record)


def _is(path: Path, digest: str | None) -> bool:
    return path.is_file() and sha256_file(path) == digest


def make_pair(path: Path, config: SetConfig, index: int) -> tuple[Picture, Picture]:
    """Return (gt, lq) of one photo, both in 8 bits when they are written.

    Args:
        path: the photo.
        config: preset, scale and seed.
        index: the photo's place among all photos of its folder.

    Returns:
        gt: cropped at its bottom and right to a multiple of the scale; lq: degraded, smaller by the scale.

    Raises:
        InputError: when the photo cannot be read or is smaller than the scale.
    """
    photo = read_picture(path).pixels
    height, width = (side // config.scale for side in photo.shape[-2:])
    if min(height, width) < 1:
        raise InputError(f"{path}: {photo.shape[-1]}x{photo.shape[-2]} px is too small to be brought down by the scale")
    gt = photo[..., : height * config.scale, : width * config.scale]
    lq = degrade(gt[0].double(), height, width, preset=config.preset, seed=config.seed, index=index)[None]
    return Picture(pixels=gt), Picture(pixels=lq.float())


def _write(out: Path, record: dict[str, Any]) -> None:
    write_text(out / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

"""A run's photos: found, checked, and parted into those to train on and those set aside."""

import json
from dataclasses import dataclass
from pathlib import Path

from tudsr.checkpoint import write_text
from tudsr.data.photos import PhotoReport, check_photos, find_photos, split_photos
from tudsr.errors import DataError
from tudsr.train.config import TrainConfig

PHOTOS_NAME = "photos.json"


@dataclass(frozen=True, kw_only=True)
class RunPhotos:
    """Photos that are large enough for the run's crops, and the report on the others."""

    training: list[Path]
    validation: list[Path]
    report: PhotoReport


def select_photos(config: TrainConfig) -> RunPhotos:
    """Find the photos of a run and set those for validation aside.

    Raises:
        DataError: when the folder is none, or too few photos can be used.
    """
    found = find_photos(config.data)
    names = {path: path.relative_to(config.data).as_posix() for path in found}
    named = [path for path, name in names.items() if not any(part in name for part in config.exclude)]
    usable, report = check_photos(named, max(config.crop_px, config.val_crop_px or 0))
    if len(usable) <= config.val_count:
        raise DataError(
            f"{config.data}: {len(usable)} usable photos, but val_count={config.val_count} are to be set aside; "
            "give more photos or --set val_count=0."
        )
    training, validation = split_photos(usable, config.val_count, seed=0, root=config.data)
    return RunPhotos(training=training, validation=validation, report=report)


def write_photos(out: Path, photos: RunPhotos, root: Path) -> None:
    """Write OUT/photos.json: which photos were set aside and which left out, by their names below `root`."""
    lists = {
        "validation": photos.validation,
        "unreadable": photos.report.broken,
        "too_small": photos.report.too_small,
    }
    names = {key: [path.relative_to(root).as_posix() for path in paths] for key, paths in lists.items()}
    write_text(out / PHOTOS_NAME, json.dumps({"training": len(photos.training)} | names, indent=2) + "\n")

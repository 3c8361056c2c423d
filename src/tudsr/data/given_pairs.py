"""Training pairs that are given rather than made: low-quality pictures with their partners, by file stem.

The partners may be real photographs of the same scene, or what another model made of the low-quality ones, to learn
from it.
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from tudsr.data.dataset import PhotoDataset, Scales, augmented, draw_symmetry, resized, to_tensor
from tudsr.data.photos import PhotoStore, Pixels, find_photos
from tudsr.errors import DataError, InputError
from tudsr.image_spool import read_header


class PairDataset(PhotoDataset):
    """Random crops of given pairs; samples are like those of `PhotoDataset`.

    A ratio below the pairs' own is met by reducing the ground truth, one above it by reducing the LQ picture.
    """

    def __init__(
        self, root: Path, *, crop_px: int, seed: int, length: int, scales: Scales, group: int = 1, cache_mb: int = 2000
    ) -> None:
        """Find the pairs and check their headers.

        Args:
            root: folder with `gt/` and `lq/`, paired by stem, all of one whole ratio (`tudsr degrade` makes such).
            crop_px: side of the ground truth.
            seed: the run's seed, >= 0.
            length: number of samples.
            scales: how the ratio of ground truth to LQ is drawn, once per group.
            group: consecutive samples that share one LQ size (the batch size).
            cache_mb: memory for decoded pictures, per process.

        Raises:
            DataError: when a folder is missing, a picture has no partner, or sizes do not fit.
        """
        gt, lq = find_photos(root / "gt"), {path.stem: path for path in find_photos(root / "lq")}
        alone = sorted(lq.keys() ^ {path.stem for path in gt})
        if alone:
            raise DataError(f"{root}: {alone[0]!r} is in one of gt and lq only; every picture needs its partner.")
        partners = [lq[path.stem] for path in gt]
        lq_sizes = [_size(path) for path in partners]
        self.ratio = _common_ratio(gt, lq_sizes)
        _check_large_enough(partners, lq_sizes, max(-(-crop_px // self.ratio), round(crop_px / scales.least)))
        super().__init__(gt, crop_px=crop_px, seed=seed, length=length, scales=scales, group=group, cache_mb=0)
        self._store = self._pairs = _PairStore(gt, partners, crop_px, cache_mb)

    def _pictures(self, photo: int, pixels: Pixels, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        lq, side = self._pairs.partner(photo), self.lq_side_px(index)
        region = max(side, -(-self.crop_px // self.ratio))  # in LQ pixels
        top, left = (int(rng.integers(length - region + 1)) for length in lq.shape[:2])
        turns, mirror = draw_symmetry(rng)
        found = {}
        for key, picture, ratio, px in (("gt", pixels, self.ratio, self.crop_px), ("lq", lq, 1, side)):
            y, x, length = (ratio * one for one in (top, left, region))
            square = resized(picture[y : y + length, x : x + length], px)
            found[key] = to_tensor(augmented(square, turns, mirror))
        return found


class _PairStore(PhotoStore):
    """Ground truth by number, as `PhotoStore`; a picture counts as broken when its partner is."""

    def __init__(self, gt: list[Path], lq: list[Path], crop_px: int, cache_mb: int) -> None:
        super().__init__(gt, crop_px, cache_mb * 9 // 10)
        self._lq = PhotoStore(lq, 1, cache_mb // 10)

    def get(self, photo: int) -> Pixels | None:
        return None if self._lq.get(photo) is None else super().get(photo)

    def partner(self, photo: int) -> Pixels:
        found = self._lq.get(photo)
        assert found is not None, "get was asked first"
        return found


def _common_ratio(gt: list[Path], lq_sizes: list[tuple[int, int]]) -> int:
    """Return the one whole ratio of all pairs, from their headers; sizes are (width, height)."""
    ratio = 0
    for path, (small_width, small_height) in zip(gt, lq_sizes, strict=True):
        width, height = _size(path)
        ratio = ratio or max(1, width // small_width)
        if (width, height) != (small_width * ratio, small_height * ratio):
            raise DataError(
                f"{path}: {width}x{height}, and its partner {small_width}x{small_height}; "
                f"{small_width * ratio}x{small_height * ratio} is expected, {ratio} times that as in the others."
            )
    return ratio


def _check_large_enough(lq: list[Path], sizes: list[tuple[int, int]], least_px: int) -> None:
    for path, (width, height) in zip(lq, sizes, strict=True):
        if min(width, height) < least_px:
            raise DataError(f"{path}: {width}x{height}; this run's crops and ratios need {least_px} px each way.")


def _size(path: Path) -> tuple[int, int]:
    """Return width and height of a picture that is upright, as its crops are, from its header."""
    try:
        header = read_header(path)
    except InputError as error:
        raise DataError(str(error)) from error
    return header.width, header.height

"""Photo data sets: reproducible crops with their degraded versions.

Everything random follows from (seed, index), so that a run sees the same samples with any number of workers and after
a resume at any position.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from tudsr.config import Settings
from tudsr.data.degradation import DegradationLike, degrade
from tudsr.data.photos import PhotoStore, Pixels
from tudsr.errors import DataError

# Streams of random numbers beside the degradation's own, which is (seed, index).
_STREAM_CROP, _STREAM_SCALE, _STREAM_ORDER = 1, 2, 3


class Scales(Settings):
    """How the upsampling ratio is drawn: some fixed ratios with their probabilities, the rest uniform in a range."""

    fixed: dict[float, float] = Field(default_factory=dict)
    uniform: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        total = sum(self.fixed.values())
        if self.least < 1:
            raise ValueError("ratios must be at least 1")
        if min((*self.fixed.values(), 0.0)) < 0 or total > 1 + 1e-9:
            raise ValueError("probabilities must be non-negative and sum to at most 1")
        if self.uniform is None and total < 1 - 1e-9:
            raise ValueError("without a uniform range the fixed probabilities must sum to 1")
        if self.uniform is not None and self.uniform[0] > self.uniform[1]:
            raise ValueError("the uniform range must be (low, high)")
        return self

    @property
    def least(self) -> float:
        """The least ratio."""
        return min((*self.fixed, *(self.uniform or ())), default=1.0)

    def draw(self, rng: np.random.Generator) -> float:
        """Draw one ratio."""
        where = rng.random()
        for ratio, probability in self.fixed.items():
            where -= probability
            if where < 0:
                return ratio
        if self.uniform is None:
            return next(reversed(self.fixed))
        return float(rng.uniform(*self.uniform))


class PhotoDataset(Dataset[dict[str, Any]]):
    """Random crops of photos, with their degraded versions.

    A sample is a dict: `gt` (3, crop, crop) and `lq` (3, side, side), float32 RGB in [-1, 1]; `index`; `photo`, the
    number of the photo in `paths`; `skipped`, the number of broken photos that were passed over to find it. Without a
    degradation there is no `lq`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        crop_px: int,
        seed: int,
        length: int,
        scales: Scales,
        degradation: DegradationLike | None = None,
        group: int = 1,
        cache_mb: int = 2000,
        p_down: float = 0.25,
    ) -> None:
        """Set up what is drawn; photos are decoded when they are asked for.

        Args:
            paths: photos that have passed `check_photos`.
            crop_px: side of the ground truth.
            seed: the run's seed, >= 0.
            length: number of samples.
            scales: how the ratio of ground truth to LQ is drawn, once per group.
            degradation: a preset's name or a mix; None gives ground truth only.
            group: consecutive samples that share one LQ size (the batch size).
            cache_mb: memory for decoded photos, per process.
            p_down: probability that the photo is first reduced by a factor in [1/2, 1), as far as the crop still fits.
        """
        self._store = PhotoStore(paths, crop_px, cache_mb)
        self.crop_px, self.seed, self.length, self.group = crop_px, seed, length, group
        self.scales, self.degradation, self.p_down = scales, degradation, p_down
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The photos; `photo` of a sample counts in these."""
        return self._store.paths

    def __len__(self) -> int:
        return self.length

    def lq_side_px(self, index: int) -> int:
        """Return the side of the LQ picture of a sample: that of its group."""
        ratio = self.scales.draw(np.random.default_rng((self.seed, index // self.group, _STREAM_SCALE)))
        return max(1, round(self.crop_px / ratio))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        photo, pixels, skipped = self._choose(index)
        rng = np.random.default_rng((self.seed, index, _STREAM_CROP))
        return self._pictures(photo, pixels, index, rng) | {"index": index, "photo": photo, "skipped": skipped}

    def _pictures(self, photo: int, pixels: Pixels, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Cut a sample's ground truth out of a photo, (H, W, 3), and degrade it."""
        gt = to_tensor(augmented(_random_crop(pixels, self.crop_px, self.p_down, rng), *draw_symmetry(rng)))
        if self.degradation is None:
            return {"gt": gt}
        side = self.lq_side_px(index)
        return {"gt": gt, "lq": degrade(gt, side, side, preset=self.degradation, seed=self.seed, index=index)}

    def _choose(self, index: int) -> tuple[int, Pixels, int]:
        """Return the sample's photo, or the next of the epoch's order that is not broken."""
        count = len(self.paths)
        epoch, position = divmod(index, count)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch, _STREAM_ORDER)).permutation(count)
        for skipped in range(count):
            photo = int(self._order[1][(position + skipped) % count])
            pixels = self._store.get(photo)
            if pixels is not None:
                return photo, pixels, skipped
        raise DataError(f"none of {count} photos can be decoded.")


def _random_crop(pixels: Pixels, crop_px: int, p_down: float, rng: np.random.Generator) -> Pixels:
    """Cut a random square, (crop_px, crop_px, 3), now and then from a photo reduced by up to a half."""
    height, width = pixels.shape[:2]
    side = crop_px
    if rng.random() < p_down:
        side = round(crop_px / rng.uniform(max(0.5, crop_px / min(height, width)), 1.0))
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    return resized(pixels[top : top + side, left : left + side], crop_px)


def resized(square: Pixels, side: int) -> Pixels:
    """Bring a square to a side by Lanczos; itself where it has that."""
    if len(square) == side:
        return square
    return np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.LANCZOS))


def draw_symmetry(rng: np.random.Generator) -> tuple[int, bool]:
    """Draw quarter turns and whether to mirror: all eight symmetries of the square, equally likely."""
    return int(rng.integers(4)), bool(rng.random() < 0.5)


def augmented(square: Pixels, turns: int, mirror: bool) -> Pixels:
    """Turn a square and mirror it."""
    turned = np.rot90(square, turns)
    return turned[:, ::-1] if mirror else turned


def to_tensor(pixels: Pixels) -> Tensor:
    """Return (3, H, W) float32 in [-1, 1] from (H, W, 3) uint8."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32, order="C")).div_(127.5).sub_(1)


class ValidationSet(Dataset[dict[str, Any]]):
    """The most detailed crop of every photo, with a degradation that depends on the seed and the photo's place only.

    Samples are like those of `PhotoDataset`; all ground truth is held in memory.
    """

    def __init__(
        self, paths: Sequence[Path], *, crop_px: int, scale: float, degradation: DegradationLike, seed: int
    ) -> None:
        """Decode all photos and cut their crops.

        Args:
            paths: photos that have passed `check_photos`; those that are broken all the same are left out.
            crop_px: side of the ground truth.
            scale: ratio of ground truth to LQ, >= 1.
            degradation: a preset's name or a mix.
            seed: seed of the degradation, >= 0.

        Raises:
            DataError: when no photo can be decoded.
        """
        store = PhotoStore(paths, crop_px, cache_mb=0)
        self.paths: list[Path] = []
        self._crops: list[Pixels] = []
        for photo, path in enumerate(paths):
            pixels = store.get(photo)
            if pixels is not None:
                top, left = _most_detailed(pixels, crop_px)
                self.paths.append(path)
                self._crops.append(pixels[top : top + crop_px, left : left + crop_px].copy())
        if not self._crops:
            raise DataError(f"none of {len(paths)} validation photos can be decoded.")
        self.side_px = max(1, round(crop_px / scale))
        self._degradation, self._seed = degradation, seed

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> dict[str, Any]:
        gt = to_tensor(self._crops[index])
        lq = degrade(gt, self.side_px, self.side_px, preset=self._degradation, seed=self._seed, index=index)
        return {"gt": gt, "lq": lq, "index": index, "photo": index, "skipped": 0}


def _most_detailed(pixels: Pixels, crop_px: int) -> tuple[int, int]:
    """Return top and left of the square with the largest sum of absolute luma gradients."""
    grey = pixels.astype(np.float32).mean(axis=2)
    detail = np.zeros_like(grey, dtype=np.float64)
    detail[1:] += np.abs(np.diff(grey, axis=0))
    detail[:, 1:] += np.abs(np.diff(grey, axis=1))
    table = np.pad(detail.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    n = crop_px
    sums = table[n:, n:] - table[:-n, n:] - table[n:, :-n] + table[:-n, :-n]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(top), int(left)

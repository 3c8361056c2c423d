"""The samples of a run, in their order, from the photos to the device."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from tudsr.data.dataset import PhotoDataset
from tudsr.data.degradation import degrade_batch
from tudsr.data.given_pairs import PairDataset
from tudsr.errors import DataError
from tudsr.train.config import TrainConfig


class Batches:
    """Micro-batches that follow from the seed and the step alone; processes take turns.

    Args:
        photos: to train on, already checked.
        config: of the run.
        accelerator: of the run.
    """

    def __init__(self, photos: list[Path], config: TrainConfig, accelerator: Accelerator) -> None:
        c = config
        self.config, self.accelerator = config, accelerator
        self.per_step = c.accumulate * accelerator.num_processes  # of all processes
        in_workers = c.stage > 0 and c.degrade_on == "workers"
        common: dict[str, Any] = {
            "crop_px": c.crop_px, "seed": c.seed, "length": c.steps * self.per_step * c.batch, "scales": c.scales,
            "group": c.batch, "cache_mb": c.cache_mb,
        }  # fmt: skip
        self.dataset = PairDataset(c.pairs, **common) if c.pairs is not None else PhotoDataset(
            photos, degradation=c.degradation if in_workers else None, p_down=c.p_down, **common
        )  # fmt: skip

    def from_step(self, step: int) -> Iterator[dict[str, Any]]:
        """Yield this process's micro-batches, on the CPU, from a step's first on.

        Raises:
            DataError: when no photo can be decoded.
        """
        c, acc = self.config, self.accelerator
        groups = range(step * self.per_step + acc.process_index, c.steps * self.per_step, acc.num_processes)
        indices = [list(range(g * c.batch, (g + 1) * c.batch)) for g in groups]
        loader = DataLoader(
            self.dataset, batch_sampler=indices, num_workers=c.workers,
            worker_init_fn=_settled if c.workers else None,
            generator=torch.Generator(),  # else each start would draw from the global one, whose state is saved
        )  # fmt: skip
        try:
            yield from loader
        except DataError as error:  # a worker's has its whole traceback for a text, which ends with the sentence
            raise DataError(str(error).rpartition(f"{DataError.__name__}: ")[2].strip()) from error

    def on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the pictures of a batch, `gt` and after stage 0 `lq`, on the device.

        The LQ pictures are made there when the settings say so, equal to the workers' up to float rounding.
        """
        c = self.config
        pictures: dict[str, Any] = {key: batch[key].to(self.accelerator.device) for key in ("gt", "lq") if key in batch}
        if c.stage > 0 and c.degrade_on == "device":
            indices = batch["index"].tolist()
            side = self.dataset.lq_side_px(indices[0])
            pictures["lq"] = degrade_batch(
                pictures["gt"], side, side, preset=c.degradation, seed=c.seed, indices=indices
            )
        return pictures


def _settled(worker: int) -> None:
    """Give a worker one thread, and leave it to its parent when a run is stopped: that may be told to a whole group.

    So it has a group of its own, and goes on listening to SIGTERM, by which a parent that ends sends it away.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()

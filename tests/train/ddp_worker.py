"""One process of the two that `test_ddp.py` starts: save the gradients of one step, with and without synchronisation.

Usage: ddp_worker.py SETTINGS.json OUT.pt
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tudsr.train import loop
from tudsr.train.config import TrainConfig


def doubled(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


def step_gradients(config: TrainConfig) -> dict[str, torch.Tensor]:
    """Run one step in float64 and return each net's gradients as clipping finds them."""
    trainer = loop.Trainer(config, resume=False)
    trainer.model.backbone.double()
    # A spectral norm iterates at each forward in training mode, so that D itself would depend on how many pictures a
    # process sees.
    trainer.task.net_d.double().eval()
    trainer.ema = loop.Ema(trainer.task.nets["g"], config.ema)
    found = []

    def note(parameters: list[torch.nn.Parameter], _: float) -> torch.Tensor:
        found.append(torch.cat([p.grad.flatten() for p in parameters]).clone())
        return torch.zeros(())

    original, loop.nn.utils.clip_grad_norm_ = loop.nn.utils.clip_grad_norm_, note
    try:
        trainer._one_step(doubled(trainer.batches.from_step(0)))
    finally:
        loop.nn.utils.clip_grad_norm_ = original
    return dict(zip(trainer.task.nets, found, strict=True)) | {
        "processes": torch.tensor(trainer.accelerator.num_processes)
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings = TrainConfig.read(Path(sys.argv[1]))
    synced = step_gradients(settings)
    loop.sync_gradients = lambda *_: None
    torch.save({"synced": synced, "alone": step_gradients(settings)}, sys.argv[2])

"""A run's folder: resolved config, environment, metrics.jsonl, TensorBoard, sample grids."""

import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tudsr.checkpoint import sweep_temporary, write_text
from tudsr.image import Picture, write_picture
from tudsr.machine import commit, cpu_name


class RunLog:
    """Write what a run says.

    Args:
        folder: of the run.
        config: resolved settings, JSON values.
        start_step: lines and scalars of later steps, left by a killed run, are dropped.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], start_step: int) -> None:
        self.folder = folder
        for place in (folder, folder / "samples"):
            sweep_temporary(place)
        self.metrics_path = folder / "metrics.jsonl"
        write_text(folder / "config.json", json.dumps(config, indent=2, default=str) + "\n")
        write_text(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
        self._drop_after(start_step)
        self._board = _tensorboard(folder / "tensorboard", start_step)

    def _drop_after(self, step: int) -> None:
        if not self.metrics_path.is_file():
            return
        kept = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # half a line, cut off by a kill
        write_text(self.metrics_path, "".join(kept))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line of figures."""
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)
            self._board.flush()  # a killed run's metrics.jsonl and TensorBoard hold the same steps

    def samples(self, step: int, grid: Tensor) -> None:
        """Save a grid of pictures, (3, H, W) in [-1, 1]."""
        if grid.numel() == 0:
            return
        write_picture(self.folder / "samples" / f"step_{step:06d}.png", Picture(pixels=grid[None].clamp(-1, 1)))
        if self._board is not None:
            self._board.add_image("samples", (grid.clamp(-1, 1) + 1) / 2, step)


def _tensorboard(folder: Path, start_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the `train` extra is not installed: metrics.jsonl holds the same figures
        return None
    return SummaryWriter(str(folder), purge_step=start_step + 1)


def environment() -> dict[str, Any]:
    """Return versions, machine and commit, for a run's record."""
    import diffusers
    import peft

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
        "machine": platform.machine(),
        "cpu": cpu_name() or platform.processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "commit": commit(),
    }

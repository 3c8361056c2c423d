"""CUDA graphs: what a stage makes of windows of one shape is recorded once, and replayed without the host's work.

Worth it where the host takes longer to start a network's many small kernels than the GPU to run them, and for several
pictures, since a recording holds the merged weights too: a later picture merges nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tudsr.stage import Stage
from tudsr.tiling import Fn

Key = tuple[str | None, int, float, tuple[int, ...]]
"""Adapter, timestep and strength of a stage, and the shape of its windows."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recorded run; `held` is what it reads beside its input: the merged weights and what is kept of the timestep."""

    graph: torch.cuda.CUDAGraph
    given: Tensor
    made: Tensor
    held: tuple[Any, ...]

    def replay(self, windows: Tensor) -> Tensor:
        """Run on other windows of the same shape; the result is a new tensor on their device."""
        self.given.copy_(windows)
        self.graph.replay()
        return self.made.to(windows.device, copy=True)


class Graphs:
    """Recordings of one model's stages, kept for as long as this object. They share one pool of memory."""

    def __init__(self) -> None:
        self._recordings: dict[Key, Recording] = {}
        self._pool: Any = None

    @contextlib.contextmanager
    def running(self, stage: Stage, inference: Callable[[], AbstractContextManager[Fn]]) -> Iterator[Fn]:
        """Run a stage for a picture from recordings, making those that are missing.

        Args:
            stage: on a CUDA device.
            inference: makes the context that runs it without a recording, from `stage.inference`.

        Yields:
            What the stage makes of windows, (b, 3, h, w), on their own device.
        """
        with contextlib.ExitStack() as opened:
            plain: list[Fn] = []

            def restore(windows: Tensor) -> Tensor:
                key = stage.adapter, stage.t, stage.strength, tuple(windows.shape)
                if key not in self._recordings:
                    if not plain:
                        plain.append(opened.enter_context(inference()))
                    self._recordings[key] = self._record(plain[0], stage, windows)
                return self._recordings[key].replay(windows)

            yield restore

    def _record(self, restore: Fn, stage: Stage, windows: Tensor) -> Recording:
        given = windows.to(stage.backbone.device, copy=True)
        beside = torch.cuda.Stream(given.device)
        beside.wait_stream(torch.cuda.current_stream(given.device))
        with torch.cuda.stream(beside):  # first runs choose algorithms and fill what is kept: nothing to be recorded
            restore(given)
        torch.cuda.current_stream(given.device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            made = restore(given)
        self._pool = graph.pool()
        held = tuple(part.__dict__["forward"] for part in stage.modules() if "forward" in part.__dict__)
        return Recording(graph=graph, given=given, made=made, held=held)

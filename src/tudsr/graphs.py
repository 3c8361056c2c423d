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
from torch import Tensor, nn

from tudsr.stage import Stage, inference
from tudsr.tiling import Fn

MOST_RECORDINGS = 8
"""Of two sizes of picture: each has two stages, and windows that are left over from whole batches."""

Key = tuple[tuple[str | None, int, float], tuple[int, ...]]
"""Adapter, timestep and strength of a stage, and the shape of its windows."""
Forwards = dict[nn.Module, Callable[..., Tensor]]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recorded run; `held` is what it reads beside its input: the merged weights and what is kept of the timestep."""

    graph: torch.cuda.CUDAGraph
    given: Tensor
    made: Tensor
    held: Forwards

    def replay(self, windows: Tensor) -> Tensor:
        """Run on other windows of the same shape; the result is a new tensor on their device."""
        self.given.copy_(windows)
        self.graph.replay()
        return self.made.to(windows.device, copy=True)


class Graphs:
    """Recordings of one model's stages: the MOST_RECORDINGS that ran last. They share one pool of memory."""

    def __init__(self) -> None:
        self._recordings: dict[Key, Recording] = {}  # the one that ran last is the last
        self._pool: Any = None
        self._beside: torch.cuda.Stream | None = None

    @contextlib.contextmanager
    def running(self, stage: Stage, plain: Callable[[], AbstractContextManager[Fn]]) -> Iterator[Fn]:
        """Run a stage for a picture from recordings, making those that are missing.

        Args:
            stage: on a CUDA device.
            plain: makes the context that runs it without a recording, from `stage.inference`.

        Yields:
            What the stage makes of windows, (b, 3, h, w), on their own device.
        """
        with self.until_an_error(), contextlib.ExitStack() as opened:
            run: list[Fn] = []

            def restore(windows: Tensor) -> Tensor:
                own = stage.adapter, stage.t, stage.strength
                key = own, tuple(windows.shape)
                found = self._recordings.pop(key, None)
                if found is None:
                    if not run:
                        held = next((one.held for (other, _), one in self._recordings.items() if other == own), None)
                        run.append(opened.enter_context(plain() if held is None else _merged_before(stage, held)))
                    while len(self._recordings) >= MOST_RECORDINGS:
                        del self._recordings[next(iter(self._recordings))]
                    found = self._record(run[0], stage, windows)
                self._recordings[key] = found
                return found.replay(windows)

            yield restore

    @contextlib.contextmanager
    def until_an_error(self) -> Iterator[None]:
        """Let all recordings go on an error: mostly there was too little memory, and they can be made again."""
        try:
            yield
        except Exception:
            self._recordings.clear()
            self._pool = None  # the pool ends with its last recording
            raise

    def _record(self, restore: Fn, stage: Stage, windows: Tensor) -> Recording:
        given = windows.to(stage.backbone.device, copy=True)
        if self._beside is None:
            self._beside = torch.cuda.Stream(given.device)
        beside, current = self._beside, torch.cuda.current_stream(given.device)
        beside.wait_stream(current)
        with torch.cuda.stream(beside):  # first runs choose algorithms and fill what is kept: nothing to be recorded
            restore(given)
        current.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # By itself torch would take a stream of the current device, which need not be the model's.
        with torch.cuda.graph(graph, pool=self._pool, stream=beside):
            made = restore(given)
        self._pool = graph.pool()
        held = {part: part.__dict__["forward"] for part in stage.modules() if "forward" in part.__dict__}
        return Recording(graph=graph, given=given, made=made, held=held)


@contextlib.contextmanager
def _merged_before(stage: Stage, held: Forwards) -> Iterator[Fn]:
    """Run a stage with what an earlier run merged and kept: the bare base's context puts all of it back on leaving."""
    with inference(Stage(stage.backbone, stage.t, None)) as restore:
        for part, forward in held.items():
            part.forward = forward
        yield restore

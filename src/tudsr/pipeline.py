"""TUDSR: twice upsampling-diffusion. The paper's figure, top to bottom."""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tudsr.alpha import seen
from tudsr.canvas import MemoryStore, RowsFrom, Store
from tudsr.color import COLOR_FIXES, strip_rows, strips
from tudsr.config import ModelConfig
from tudsr.cost import shapes_of
from tudsr.device import pick_device, pick_dtype
from tudsr.errors import ConfigError
from tudsr.folder import Model, base_reader, load_model
from tudsr.graphs import Graphs
from tudsr.image import Picture, PictureLike, picture_from, picture_like
from tudsr.machine import Held
from tudsr.memory import SLACK, Fit, Need, fit_here, has_room
from tudsr.planner import Pass, Plan
from tudsr.request import Request, parse_memory, until_it_fits
from tudsr.resize import Region, part_of, rows_of, upsample, upsampled
from tudsr.spread import Spread
from tudsr.stage import Stage, Turn, inference
from tudsr.tiling import Fn, Progress, share_of_progress, tiled_rows
from tudsr.whole import latent_grid, restored
from tudsr.windows import WindowGrid, plan_windows

BATCH = {"cuda": 4}
"""Device → windows that run together unless somebody says how many; 1 elsewhere.

One window fills two CPU cores; 1 and 4 took an H100 1.48 and 1.15 s by CUDA graphs (docs/benchmarks/README.md)."""

Keep = Callable[[RowsFrom], Region]


class TUDSR:
    """A loaded model that enlarges pictures, one at a time: of several threads one works and the others wait.

    Args:
        model: from `folder.load_model`.
        spread: runs the stages' windows elsewhere; None: here.
    """

    def __init__(self, model: Model, spread: Spread | None = None) -> None:
        self.model, self.spread, self._graphs, self.turn = model, spread, Graphs(), Turn()
        self._held = Held(SLACK)
        self.lock = threading.RLock()  # a pass changes the one backbone, and memory is counted by process

    @classmethod
    def load(cls, model: str | Path = "tiny", device: str = "auto", dtype: str = "auto") -> Self:
        """Load a model.

        Args:
            model: an embedded name (tiny), a TUDSR folder, or a hub id.
            device: auto, cpu, cuda or mps.
            dtype: auto, fp32, bf16 or fp16.

        Raises:
            ModelError: when the model is not there or damaged.
            InputError: for a device or dtype that cannot be used.
        """
        where = pick_device(device)
        return cls(load_model(model, where, pick_dtype(dtype, where)))

    @property
    def device(self) -> str:
        """The kind of device that windows run on."""
        return self.model.backbone.device.type if self.spread is None else self.spread.device

    @property
    def _on_own_gpu(self) -> bool:
        return self.device == "cuda" and self.spread is None

    @property
    def config(self) -> ModelConfig:
        """What the model says of itself."""
        return self.model.config

    def upscale(
        self,
        image: PictureLike,
        scale: float | None = None,
        *,
        memory: str | int | None = None,
        progress: Progress | None = None,
        **options: object,
    ) -> PictureLike:
        """Enlarge one picture.

        Args:
            image: PIL image; NumPy (H, W[, C]), uint8, uint16 or float in [0, 1]; torch ([1,] C, H, W) likewise.
            scale: ratio, at least 1; 8 when neither it nor size, nor both m and n, are given.
            memory: what this process may take, in bytes or such as "2GB"; None: most of what is free. Windows shrink
                where it is little, with a warning. Pictures in memory stay there; `files.upscale_file` has them on
                disk.
            progress: called with (windows done, windows in all).
            options: further fields of `Request`.

        Returns:
            The enlarged picture, of the kind that came.

        Raises:
            InputError: for a picture that cannot be used, too little memory, or contradictory wishes.
            ConfigError: for an unknown or wrong option.
        """
        with self.lock:
            request, picture = self.settled(Request.of({"scale": scale, **options})), picture_from(image)
            size, budget = (picture.height, picture.width), None if memory is None else parse_memory(memory)
            found = self.fit(size, self.plan(*size, request), request, budget, spool=False)
            if found is not None:
                if found.most_px != request.most_px:
                    warnings.warn(found.shrunk, stacklevel=2)
                request = found.applied(request)
            enlarge = partial(self.upscale_picture, picture, progress=progress, to_cpu=False)
            return picture_like(until_it_fits(enlarge, request, partial(self.lessened, size), warnings.warn), image)

    def upscale_picture(
        self, picture: Picture, request: Request, progress: Progress | None = None, *, to_cpu: bool = True
    ) -> Picture:
        """Enlarge one `image.Picture`, alpha by bicubic interpolation; without `to_cpu` pixels may stay on a GPU."""
        with self.lock, self._graphs.until_an_error(), self.turn:
            # With a GPU the pictures lie there too: the host would take longer over resampling and colours than it.
            where = self.model.backbone.device if self._on_own_gpu and not request.on_host else torch.device("cpu")
            request, store, size = self.settled(request), MemoryStore(where), (picture.height, picture.width)
            plan = self.plan(*size, request)
            rows = self.run_passes(part_of(seen(picture).to(where)), size, plan, request, store, progress)
            pixels = store.fill("output", plan.height, plan.width, rows)(0, plan.height, 0, plan.width)
            pixels = pixels.cpu() if to_cpu else pixels
        alpha = None if picture.alpha is None else upsample(picture.alpha, plan.height, plan.width).clamp_(0, 1)
        return replace(picture, pixels=pixels, alpha=alpha)

    def lessened(self, size: tuple[int, int], request: Request) -> Request | None:
        """Return a request that takes less memory at once for a picture of that height and width, or None."""
        grids = [self.grid(step, request) for step in self.plan(*size, request).passes]
        largest = max(max(grid.window_h, grid.window_w) for grid in grids)
        return request.lessened(self.config.windows, largest, on_gpu=self._on_own_gpu)

    def settled(self, request: Request) -> Request:
        """Return a request that says how many windows run together, or raise ConfigError for CUDA graphs elsewhere."""
        if request.graphs and not self._on_own_gpu:
            where = self.device if self.spread is None else "Ray's workers"
            raise ConfigError(f"graphs are CUDA's own, for a GPU of this process; this model runs on {where}.")
        if request.graphs and self.model.backbone.dtype == torch.float16:
            raise ConfigError("graphs go without fp16: to look for its overflows stops the recording; bf16 has none.")
        return request if request.batch else request.model_copy(update={"batch": BATCH.get(self.device, 1)})

    def plan(self, height: int, width: int, request: Request) -> Plan:
        """Return the passes for a picture of that size."""
        plan = request.passes(height, width, self.config)
        for step in plan.passes if request.vae == "whole" else ():
            self.grid(step, request)  # refuses what it cannot do before any work
        return plan

    def run_passes(
        self,
        source: Region,
        size: tuple[int, int],
        plan: Plan,
        request: Request,
        store: Store,
        progress: Progress | None = None,
    ) -> RowsFrom:
        """Run every pass but the last, and return what makes the last one's rows.

        Args:
            source: parts of the input picture, (1, 3, h, w), float32, [-1, 1].
            size: its height and width.
            plan: from `plan`.
            request: windows, colour fix, timesteps.
            store: where the pictures between the passes live.
            progress: called with (windows done, windows in all passes).

        Returns:
            start -> the rows of the enlarged picture from there on, (1, 3, rows, W), float32, [-1, 1].
        """
        counts = [len(self.grid(step, request).windows) for step in plan.passes]
        rows: RowsFrom | None = None
        for number, step in enumerate(plan.passes):
            if rows is not None:
                before = plan.passes[number - 1]
                size = before.height, before.width
                source = store.fill(f"pass_{number}", *size, rows)
            keep = partial(store.fill, f"pass_{number + 1}_unfixed", step.height, step.width)
            rows = self._pass_rows(source, size, step, request, keep, share_of_progress(progress, counts, number))
        assert rows is not None, "a plan has at least one pass"
        return rows

    def _pass_rows(
        self, x: Region, size: tuple[int, int], step: Pass, request: Request, keep: Keep, progress: Progress | None
    ) -> RowsFrom:
        """Return what makes the rows of one pass: upsample → encode → one step → decode by windows → blend → colour."""
        height, width = after = step.height, step.width
        lq_up = upsampled(x, size, after)
        grid, fix, stage = self.grid(step, request), COLOR_FIXES[request.color], self._stage(step.stage, request)
        batch = request.batch or 1

        def each(restore: Fn, windows: Iterator[Tensor]) -> Iterator[Tensor]:
            return map(restore, windows) if self.spread is None else self.spread.run(step.stage, request, windows)

        def blended(start: int) -> Iterator[Tensor]:
            with self.turn.taken(self._inference(stage, request)) as restore:
                if request.vae == "whole":
                    yield restored(stage, lq_up(0, height, 0, width), grid, batch, progress)[..., start:, :]
                    return
                rows = tiled_rows(restore, lq_up, grid, batch, progress, start, each)
                yield from strips(rows, strip_rows(width))

        def finished(start: int) -> Iterator[Tensor]:
            rows, statistics = blended, None
            if fix.statistics is not None:
                whole = keep(blended)
                rows, statistics = partial(rows_of, whole, after), fix.statistics(whole, lq_up, after)
            y = start
            for fixed in fix.rows(rows(max(0, start - fix.halo_px)), lq_up, after, start, statistics):
                sr, below = fixed.clamp_(-1, 1), y + fixed.shape[-2]
                if step.stage == 2 and request.fidelity:
                    # What stage 2 gets is restored already: to restore it again, as its base would, is not truer to it.
                    sr = sr.lerp(lq_up(y, below, 0, width), request.taken_back).clamp_(-1, 1)
                y = below
                yield sr

        return finished

    def running(self, number: int, request: Request) -> contextlib.AbstractContextManager[Fn]:
        """Make the context that gives what a stage, 1 or 2, makes of windows, (b, 3, h, w), [-1, 1]."""
        return self._inference(self._stage(number, request), request)

    def _inference(self, stage: Stage, request: Request) -> contextlib.AbstractContextManager[Fn]:
        if self.spread is not None:
            return contextlib.nullcontext(lambda windows: windows)  # others have the weights
        run = partial(inference, stage, base_reader(self.model) if request.low_memory else None)
        return self._graphs.running(stage, run) if request.graphs else run()

    def _stage(self, number: int, request: Request) -> Stage:
        own, asked = (self.config.t1, request.t1) if number == 1 else (self.config.t2, request.t2)
        strength = 1 - request.taken_back if number == 1 else 1.0
        return Stage(self.model.backbone, own if asked is None else asked, f"stage_{number}", strength)

    def grid(self, step: Pass, request: Request) -> WindowGrid:
        """Return the windows of a pass: of the latent where the autoencoder sees the whole picture."""
        windows = request.windows(self.config.windows)
        if request.vae == "whole":
            return latent_grid(self.model.backbone, step.height, step.width, windows)
        return plan_windows(step.height, step.width, windows, request.shift_px)

    def fit(
        self,
        size: tuple[int, int],
        plan: Plan,
        request: Request,
        memory: int | None = None,
        pixel_bytes: int = 3,
        **more: Any,
    ) -> Fit | None:
        """Choose how an enlargement fits into memory.

        Args:
            size: height and width of the input.
            plan: from `plan`.
            request: what is asked.
            memory: bytes that this process (on CUDA: its memory on the GPU) may take; None: most of what is free.
            pixel_bytes: of a pixel in the files.
            more: further fields of `memory.Need`: decode_bytes, spool, begun.

        Returns:
            The choice, or None where nobody gave a number and all of it is small beside what is free.

        Raises:
            InputError: when it cannot be done in so little.
        """
        if memory is not None and (request.vae == "whole" or request.graphs):
            what = "graphs, which keep theirs" if request.graphs else "the autoencoder over the whole picture"
            raise ConfigError(f"memory cannot be kept to with {what}; give one of the two.")
        waiting = 0 if self.spread is None else self.spread.waiting
        easy = request.vae == "whole" or has_room(self.model, size, plan, request, pixel_bytes, waiting)
        if memory is None and easy and more.get("begun") is None:
            return None
        device = self.model.backbone.device
        need = Need(
            shapes=self.shapes, size=size, plan=plan, base=self._held.now(device), batch=request.batch or 1,
            pixel_bytes=pixel_bytes, color=request.color, rereads=self.model.folder is not None and not request.graphs,
            waiting=waiting, **more,
        )  # fmt: skip
        return fit_here(need, request, memory, device)

    @cached_property
    def shapes(self) -> Model:
        """The model without numbers, to count on."""
        return shapes_of(self.model)


load = TUDSR.load

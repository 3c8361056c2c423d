"""What can be measured: bicubic, a model's ways of splitting a scale, and folders of foreign outputs."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from tudsr.checkpoint import sha256_file, weight_hashes
from tudsr.config import ModelConfig, read_object
from tudsr.errors import ConfigError
from tudsr.eval.metrics import ShiftedRun
from tudsr.eval.pairs import SECONDS_JSON
from tudsr.find import CONFIG_NAME, find_model
from tudsr.image import Picture
from tudsr.pipeline import TUDSR
from tudsr.request import Request
from tudsr.resize import output_size, upsample
from tudsr.windows import half_tile_px, plan_windows

Run = Callable[[Tensor], Tensor]  # (1, 3, h, w) in [-1, 1] -> (1, 3, H, W), about [-1, 1]
Loader = Callable[[str], TUDSR]

ABLATION: dict[str, Request] = {
    "M4": Request(scale=4, stage=1),
    "N4": Request(scale=4, stage=2),
    "M2N2": Request(scale=4, m=2, n=2),
    "M8": Request(scale=8, stage=1),
    "N8": Request(scale=8, stage=2),
    "M4N2": Request(scale=8, m=4, n=2),
}
"""The paper's table: each stage alone against both, at ×4 and at ×8."""

LOSS_METRICS: dict[str, tuple[str, ...]] = {
    "dists": ("dists",),
    "ea_dists": ("dists",),
    "lpips_alex": ("lpips",),
    "lpips_vgg": ("lpips_vgg",),
}
"""Loss → the metrics that measure the same thing; other losses measure what no metric here does."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One column of a report.

    Attributes:
        name: unlike every other's; safe as the name of a folder where the outputs are ours.
        kind: how the outputs come about.
        scale: ratio of its outputs to the inputs.
        path: the model or the folder, as the user named it.
        m: ratio of stage 1, None without it.
        n: ratio of the first pass of stage 2, None without it.
        sha256: of a model's weight files and settings.
        trained_on: metrics that this model's losses were.
        request: what is asked of a model.
        seconds: what each foreign output took, by its file's stem, as far as somebody wrote it down.
        open: load what the method needs and return the function that enlarges; None for foreign outputs.
        shifted: run a model twice for the seam metric; None for what has no windows.
    """

    name: str
    kind: Literal["bicubic", "model", "outputs"]
    scale: float
    path: str | None = None
    m: float | None = None
    n: float | None = None
    sha256: Mapping[str, str] | None = None
    trained_on: tuple[str, ...] = ()
    request: Request | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    open: Callable[[], Run] | None = None
    shifted: Callable[[Tensor], ShiftedRun] | None = None

    def record(self) -> dict[str, Any]:
        """Return the method's own part of results.json, JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "scale": _short(self.scale),
            "path": self.path,
            "m": _short(self.m),
            "n": _short(self.n),
            "sha256": None if self.sha256 is None else dict(self.sha256),
            "trained_on": list(self.trained_on),
        }


def _short(ratio: float | None) -> float | int | None:
    return int(ratio) if ratio is not None and ratio == int(ratio) else ratio


def bicubic(scale: float) -> Method:
    """Return the enlargement that everything is compared to."""

    def run(lq: Tensor) -> Tensor:
        return upsample(lq, *output_size(lq.shape[-2], lq.shape[-1], scale))

    return Method(name="bicubic", kind="bicubic", scale=scale, open=lambda: run)


def foreign(name: str, folder: Path, scale: float) -> Method:
    """Return a folder of somebody else's outputs, with the times of its seconds.json where there is one.

    Raises:
        ConfigError: when that file is not JSON's {stem of an output: seconds that it took}.
    """
    seconds = read_object(folder / SECONDS_JSON) if (folder / SECONDS_JSON).is_file() else {}
    for stem, value in seconds.items():
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ConfigError(f"{folder / SECONDS_JSON}: {stem!r} took {value!r}; seconds above 0 are expected.")
    return Method(name=name, kind="outputs", scale=scale, path=str(folder), seconds=seconds)


def model_methods(
    model: str, scale: float, load: Loader, *, ways: Sequence[str] = (), fidelity: Sequence[float] = (0.0,)
) -> list[Method]:
    """Return the ways in which a model is run; nothing of it is loaded yet but its settings.

    Args:
        model: embedded name, folder or hub id.
        scale: what the model's own plan is made for.
        load: loads a model by that name; called once for every method that has something to compute.
        ways: names in ABLATION to run instead of the model's own plan.
        fidelity: each way is run with every one of these (see `pipeline.Request`).

    Raises:
        ModelError, ConfigError: when the model is not there or its settings are damaged.
        InputError: for a scale that the model cannot make.
    """
    folder = find_model(model)
    config = ModelConfig.read(folder / CONFIG_NAME)
    plans = [ABLATION[way] for way in ways] or [Request(scale=scale)]
    requests = [plan.model_copy(update={"fidelity": share}) for plan in plans for share in fidelity]
    hashes = weight_hashes(folder) | {CONFIG_NAME: sha256_file(folder / CONFIG_NAME)}
    label = re.sub(r"[^\w.+()-]+", "_", config.name).lstrip(".") or "model"
    return [_way(model, label, config, request, hashes, load) for request in requests]


def _way(
    model: str, label: str, config: ModelConfig, request: Request, hashes: Mapping[str, str], load: Loader
) -> Method:
    plan = request.passes(1, 1, config)  # the ratios are those of every picture
    stages = {step.stage for step in plan.passes}
    ways = "".join(f"{'M' if step.stage == 1 else 'N'}{step.ratio:g}" for step in plan.passes)
    return Method(
        name=f"{label} {ways}" + (f" fidelity {request.fidelity:g}" if request.fidelity else ""),
        kind="model",
        scale=plan.scale,
        path=model,
        m=plan.m if 1 in stages else None,
        n=plan.n if 2 in stages else None,
        sha256=hashes,
        trained_on=trained_on(config),
        request=request,
        open=lambda: _runner(load(model), request),
        shifted=lambda lq: shifted_run(load(model), lq, request),
    )


def _runner(model: TUDSR, request: Request) -> Run:
    return lambda lq: model.upscale_picture(Picture(pixels=lq), request).pixels


def shifted_run(model: TUDSR, lq: Tensor, request: Request) -> ShiftedRun:
    """Run a model twice, the windows of the second run half a tile away: half of the smallest step of any pass.

    Args:
        model: loaded.
        lq: (1, 3, h, w) in [-1, 1].
        request: what is asked, without a shift.

    Returns:
        Both outputs and the last pass's grids, whose borders are the finest.
    """
    plan = model.plan(lq.shape[-2], lq.shape[-1], request)
    windows = request.windows(model.config.windows)
    shift = min(half_tile_px(step.height, step.width, windows) for step in plan.passes)
    moved = request.model_copy(update={"shift_px": shift})
    return ShiftedRun(
        plain=_runner(model, request)(lq),
        shifted=_runner(model, moved)(lq),
        grid=plan_windows(plan.height, plan.width, windows),
        shifted_grid=plan_windows(plan.height, plan.width, windows, shift),
    )


def trained_on(config: ModelConfig) -> tuple[str, ...]:
    """Return the metrics that a model's training record names as losses, sorted.

    The prior (stage 0) has none, whatever its settings say; an adapter that was mixed has those of what went into it.
    Records of another form, of another program or a damaged file, say nothing.
    """
    found: set[str] = set()
    for record in _phases(config.training):
        settings = record.get("config")
        losses = settings.get("losses") if isinstance(settings, dict) else None
        if record.get("stage") == 0 or not isinstance(losses, dict):
            continue
        for loss, weight in losses.items():
            found.update(LOSS_METRICS.get(loss, ()) if weight else ())
    return tuple(sorted(found))


def _phases(records: object) -> Iterator[dict[str, Any]]:
    """Yield the training records in what should be a list of them, and those of what was mixed."""
    for record in records if isinstance(records, list) else ():
        if isinstance(record, dict):
            yield record
            mixture = record.get("interpolated")
            yield from _phases(mixture.get("with") if isinstance(mixture, dict) else None)


def distinct(methods: Iterable[Method]) -> list[Method]:
    """Number methods of one name: «tiny M2N2», «tiny M2N2 (2)»."""
    taken: dict[str, Method] = {}
    for method in methods:
        names = itertools.chain((method.name,), (f"{method.name} ({number})" for number in itertools.count(2)))
        name = next(name for name in names if name not in taken)
        taken[name] = replace(method, name=name)
    return list(taken.values())

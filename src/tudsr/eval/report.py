"""Measure methods side by side and write what came out: results.json, results.csv, index.html."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from tudsr import __version__
from tudsr.checkpoint import check_folder
from tudsr.config import Settings
from tudsr.device import pick_device, pick_dtype
from tudsr.errors import InputError
from tudsr.eval.iqa import find_metric
from tudsr.eval.kept import KeptFigures
from tudsr.eval.measure import Figures, Measure, measure_pictures, measure_sets
from tudsr.eval.methods import ABLATION, Loader, Method, bicubic, distinct, foreign, model_methods
from tudsr.eval.metrics import Metric
from tudsr.eval.outputs import make_outputs
from tudsr.eval.pairs import Pair, Skipped, find_pairs, readable
from tudsr.eval.record import check_targets, method_record, metric_record, picture_record, write_report
from tudsr.machine import commit, machine
from tudsr.pipeline import TUDSR

FORMAT = 1
DEFAULT_METRICS = ("psnr", "ssim", "lpips", "dists", "niqe", "lr_consistency")
BICUBIC = "bicubic"
OUTPUTS = "outputs"

Progress = Callable[[int, int, str], None]  # (done, in all, what is being done)


class EvalConfig(Settings):
    """What `tudsr eval` is asked: its options by the names that they have there."""

    lq: Path
    gt: Path | None = None
    scale: float = Field(ge=1)
    model: tuple[str, ...] = ()
    outputs: dict[str, Path] = Field(default_factory=dict)
    metrics: tuple[str, ...] | None = None
    ablate: bool = False
    ways: tuple[str, ...] = ()
    fidelity: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(0.0,), min_length=1)
    out: Path
    weights: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = Field(default=None, gt=0)
    limit: int | None = Field(default=None, gt=0)
    pictures: int = Field(default=24, ge=0)  # on the page


def evaluate(config: EvalConfig, notes: Callable[[str], None], progress: Progress) -> dict[str, Any]:
    """Run and measure everything, and write the report.

    Outputs that a killed run left are taken up where they can be trusted (`outputs.make_outputs`).

    Args:
        config: what is asked.
        notes: called with one line for each file that was left out and each licence that matters.
        progress: called after each picture of each method.

    Returns:
        What results.json holds.

    Raises:
        TudsrError: before any work, when an option, a folder, a model or a metric cannot be used.
        InputError: after it, without a report, when there is no figure of what was asked for.
    """
    _check(config)
    device = pick_device(config.device)
    pick_dtype(config.dtype, device)
    metrics = choose_metrics(config, device)
    for licence in dict.fromkeys(metric.licence for metric in metrics if metric.licence):
        notes(licence)
    measures = [Measure(metric=metric, fn=metric.load(config.weights)) for metric in metrics]
    methods = choose_methods(config, _loader(config, metrics))
    pairs, skipped = _pairs(config)
    for left_out in skipped:
        notes(f"{left_out.file}: {left_out.reason}")

    def skip(file: str, reason: str) -> None:
        skipped.append(Skipped(file=file, reason=reason))
        notes(f"{file}: {reason}")

    made = _make_all(config, methods, pairs, device, skip, progress)
    on = device if device.type == "cuda" else torch.device("cpu")  # MPS has no float64, which several metrics need
    torch.backends.cudnn.allow_tf32 = False  # ten bits of each factor would show in a figure's third digit
    shared: dict[str, Any] = {"scale": config.scale, "skip": skip}
    said = {metric.name: metric_record(metric, config.weights) for metric in metrics}
    kept, step = _kept(config, on, said), _counter(progress, len(pairs), "measuring")
    figures = measure_pictures(pairs, methods, made, measures, device=on, kept=kept, step=step, **shared)
    sets = measure_sets(pairs, methods, made, measures, **shared)
    _check_figures(methods, figures, sets)
    pictures = [picture_record(pair, config.scale, config.out, methods, made, figures[pair.name]) for pair in pairs]
    results = {
        "format": FORMAT,
        "tudsr": __version__,
        "commit": commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(device, config.dtype),
        "scale": config.scale,
        "config": config.model_dump(mode="json"),
        "metrics": said,
        "methods": [method_record(method, metrics, pictures, sets[method.name]) for method in methods],
        "pictures": pictures,
        "skipped": [{"file": one.file, "reason": one.reason} for one in skipped],
        "ablation": [method.name for method in methods if method.kind == "model"] if config.ablate else None,
    }
    write_report(results, config.out)
    return results


def _check(config: EvalConfig) -> None:
    """Refuse wishes that contradict each other, before anything is loaded."""
    if BICUBIC in config.outputs:
        raise InputError(f"--outputs {BICUBIC}=…: this name is taken by what everything is compared to.")
    scales = sorted({request.scale for request in ABLATION.values() if request.scale is not None})
    if config.ablate and (len(config.model) != 1 or config.scale not in scales):
        known = " or ".join(f"{scale:g}" for scale in scales)
        raise InputError(
            f"--ablate compares the ways of one model at x{known}; {len(config.model)} models and x{config.scale:g} "
            "came."
        )
    fitting = [way for way, request in ABLATION.items() if request.scale == config.scale]
    if (config.ways and config.ablate) or any(way not in fitting for way in config.ways):
        raise InputError(
            f"--ways {','.join(config.ways)}: at x{config.scale:g} {', '.join(fitting) or 'none'} can be asked for"
            + (", and --ablate runs them all." if config.ablate else ".")
        )
    if not config.model and (config.ways or set(config.fidelity) != {0.0}):
        raise InputError("--ways and --fidelity say how a model runs; add --model.")
    for folder in (config.lq, config.gt, *config.outputs.values()):
        if folder is not None and folder.resolve() in (config.out.resolve(), *config.out.resolve().parents):
            raise InputError(f"--out {config.out}: the report would lie among the pictures of {folder}.")
        if folder is not None and folder.resolve().is_relative_to((config.out / OUTPUTS).resolve()):
            raise InputError(f"{folder}: lies among the outputs that the report of --out {config.out} writes itself.")
    check_folder(config.out)
    check_folder(config.out / OUTPUTS)
    check_targets(config.out)


def _check_figures(
    methods: Sequence[Method], figures: Mapping[str, Mapping[str, Figures]], sets: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse to report nothing: bicubic, which is always there, counts where nothing else was asked for."""
    asked = [method.name for method in methods[1:] or methods]
    singles = [value for of in figures.values() for name in asked for value in of[name].values()]
    if all(value is None for value in singles) and not any(sets[name] for name in asked):
        raise InputError(f"no figure could be had of {', '.join(asked)}; no report is written.")


def choose_metrics(config: EvalConfig, device: torch.device) -> list[Metric]:
    """Return the metrics that were asked for, or those that this data can be measured by.

    Raises:
        ConfigError: for a metric that nobody knows.
        InputError: for one that compares with true pictures where there are none, or for none at all.
    """
    if config.metrics is None:
        metrics = [find_metric(name, device) for name in DEFAULT_METRICS]
        return [metric for metric in metrics if config.gt is not None or not metric.needs_gt]
    if not config.metrics:
        raise InputError("--metrics names none; names with commas between are expected, for example psnr,lpips.")
    metrics = [find_metric(name, device) for name in dict.fromkeys(config.metrics)]
    lacking = (
        ([metric.name for metric in metrics if metric.needs_gt], config.gt, "compare with true pictures", "--gt"),
        ([metric.name for metric in metrics if metric.reference == "model"], config.model, "run a model", "--model"),
    )
    for names, given, what, option in lacking:
        if names and not given:
            raise InputError(f"--metrics {','.join(names)}: these {what}; name it by {option}.")
    return metrics


def choose_methods(config: EvalConfig, load: Loader) -> list[Method]:
    """Return bicubic, the models' ways and the foreign folders, in this order, no two of one name."""
    others = [foreign(name, folder, config.scale) for name, folder in config.outputs.items()]
    ways = tuple(ABLATION) if config.ablate else config.ways
    run_as = partial(model_methods, scale=config.scale, load=load, ways=ways, fidelity=config.fidelity)
    ours = [method for name in config.model for method in run_as(name)]
    named = distinct([bicubic(config.scale), *others, *ours])  # foreign names stay as the user gave them
    return [named[0], *named[1 + len(others) :], *named[1 : 1 + len(others)]]


def _loader(config: EvalConfig, metrics: Sequence[Metric]) -> Loader:
    """Return what loads a model: one in memory at a time, unless a metric runs them all for each picture."""
    most = len(config.model) if any(metric.reference == "model" for metric in metrics) else 1
    return lru_cache(maxsize=most)(lambda name: TUDSR.load(name, config.device, config.dtype))


def _pairs(config: EvalConfig) -> tuple[list[Pair], list[Skipped]]:
    found, skipped = find_pairs(config.lq, config.gt, config.outputs, config.limit)
    pairs, unusable = readable(found, config.scale)
    skipped += unusable
    if not pairs:
        why = f" (for example {skipped[0].file}: {skipped[0].reason})" if skipped else ""
        raise InputError(f"{config.lq}: no picture is left to measure{why}.")
    return pairs, skipped


def _make_all(
    config: EvalConfig,
    methods: Sequence[Method],
    pairs: Sequence[Pair],
    device: torch.device,
    skip: Callable[[str, str], None],
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    run = _code(device, config)
    return {
        method.name: make_outputs(
            method, pairs, config.out / OUTPUTS / method.name, run,
            device=device, skip=skip, step=_counter(progress, len(pairs), method.name),
        )
        for method in methods
    }  # fmt: skip


def _kept(config: EvalConfig, device: torch.device, metrics: Mapping[str, Mapping[str, Any]]) -> KeptFigures:
    networks = {name: said.get("sha256") or said["source"] for name, said in metrics.items()}  # pyiqa's: its version
    return KeptFigures(config.out / OUTPUTS / ".figures.json", _code(device, config), networks)


def _code(device: torch.device, config: EvalConfig) -> dict[str, Any]:
    return machine(device, config.dtype) | {"tudsr": __version__, "commit": commit()}


def _counter(progress: Progress, total: int, what: str) -> Callable[[], None]:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total, what)

    return step

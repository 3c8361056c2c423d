"""Figures of finished outputs: each picture by each metric, then means with intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tudsr.errors import TudsrError
from tudsr.eval.bootstrap import mean_interval
from tudsr.eval.iqa import measure_set
from tudsr.eval.kept import KeptFigures, key_of
from tudsr.eval.methods import Method
from tudsr.eval.metrics import Metric, MetricFn
from tudsr.eval.outputs import FAILURES, Output, Skip, reason
from tudsr.eval.pairs import Loaded, Pair, read_output, read_pair
from tudsr.image_spool import read_header
from tudsr.resize import output_size

Figures = dict[str, float | None]  # metric -> value
Made = Mapping[str, Mapping[str, Output]]  # method -> picture -> output


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric with its function loaded."""

    metric: Metric
    fn: MetricFn


def measure_pictures(
    pairs: Sequence[Pair],
    methods: Sequence[Method],
    made: Made,
    measures: Sequence[Measure],
    *,
    scale: float,
    device: torch.device,
    kept: KeptFigures,
    skip: Skip,
    step: Callable[[], None],
) -> dict[str, dict[str, Figures]]:
    """Measure every output of every picture.

    A figure is None where it cannot be had: without an output, without what the metric compares to (a method of
    another scale than the true pictures', a seam without windows), or for a picture that the metric refuses.

    Args:
        pairs: the pictures.
        methods: what made the outputs.
        made: their files.
        measures: what to measure; metrics of whole sets are left out here.
        scale: ratio of the true pictures to the inputs.
        device: where to measure.
        kept: figures of an earlier call that was killed; these are added.
        skip: called with (file, reason) for each output or figure that could not be had though it should.
        step: called after each picture.

    Returns:
        picture → method → metric → value.
    """
    figures: dict[str, dict[str, Figures]] = {}
    single = [measure for measure in measures if measure.metric.reference != "set"]
    for pair in pairs:
        loaded = read_pair(pair, scale)
        if loaded.gt is not None:
            loaded = replace(loaded, gt=loaded.gt.to(device))  # once: metrics keep what they made of it
        h, w = loaded.lq.shape[-2:]
        figures[pair.name] = {}
        for method in methods:
            output = made[method.name].get(pair.name)
            empty: Figures = {measure.metric.name: None for measure in single}
            figures[pair.name][method.name] = empty
            if output is None:
                continue
            say = partial(_say, skip, output, method)
            try:
                sr = read_output(output.path, *output_size(h, w, method.scale)).to(device)
            except FAILURES as error:
                say(reason(error))
                continue
            fitting = [measure for measure in single if _applies(measure.metric, method, scale)]
            measured = partial(_measure, references=_references(method, loaded, device), sr=sr, say=say)
            empty |= _known_or(measured, fitting, kept, key_of(output.path, pair.gt, pair.lq))
        step()
    return figures


def _known_or(
    measured: Callable[[Sequence[Measure]], Figures],
    measures: Sequence[Measure],
    kept: KeptFigures,
    key: str,
) -> Figures:
    """Return the figures of an output: those that are kept, and the others as measured now, which are kept too."""
    known: Figures = {**kept.find(key)}
    new = [one for one in measures if one.metric.name not in known]
    if new:
        known |= measured(new)
        of_files = {one.metric.name for one in measures if one.metric.reference != "model"}
        kept.add(key, {name: known.get(name) for name in of_files})
    return {name: known[name] for name in (one.metric.name for one in measures) if name in known}


def _say(skip: Skip, output: Output, method: Method, text: str) -> None:
    skip(str(output.path), f"{method.name}: {text}")


def _applies(metric: Metric, method: Method, scale: float) -> bool:
    if metric.needs_gt:
        return method.scale == scale
    return metric.reference != "model" or method.shifted is not None


def _references(method: Method, loaded: Loaded, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return what metrics compare an output with, by `Metric.reference`; a model is run twice when first asked for."""
    found: dict[str, Callable[[], Any]] = {
        "gt": lambda: loaded.gt,
        "lq": lambda: loaded.lq.to(device),
        "none": lambda: None,
    }
    return found if method.shifted is None else found | {"model": cache(partial(method.shifted, loaded.lq))}


def _measure(
    measures: Sequence[Measure], references: Mapping[str, Callable[[], Any]], sr: Tensor, say: Callable[[str], None]
) -> Figures:
    """Return the figures of one output; None for a refusal, or for what JSON cannot hold, as equal pictures' PSNR."""
    figures: Figures = {}
    for measure in measures:
        name = measure.metric.name
        try:
            with torch.no_grad():
                value = float(measure.fn(sr, references[measure.metric.reference]()))
        except FAILURES as error:
            say(reason(error, f"{name} of it"))
        else:
            finite = math.isfinite(value)
            figures[name] = value if finite else None
            if not finite:
                say(f"{name} of it is {value:g}, which no mean can hold")
    return figures


def measure_sets(
    pairs: Sequence[Pair],
    methods: Sequence[Method],
    made: Made,
    measures: Sequence[Measure],
    *,
    scale: float,
    skip: Skip,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure what only whole sets have: method → metric → {mean, low, high, count}; there is no interval."""
    whole = [measure for measure in measures if measure.metric.reference == "set"]
    found: dict[str, dict[str, dict[str, Any]]] = {method.name: {} for method in methods}
    if not whole:
        return found

    def truth(pair: Pair) -> Tensor:
        gt = read_pair(pair, scale).gt
        assert gt is not None, "metrics of sets were refused without true pictures"
        return gt

    for method in methods:
        if method.scale != scale:
            continue
        outputs = made[method.name]
        ours = {
            pair.name: pair for pair in pairs if pair.name in outputs and _fits(outputs[pair.name].path, pair, scale)
        }
        if not ours:
            continue
        paths, truths = {name: outputs[name].path for name in ours}, {n: partial(truth, p) for n, p in ours.items()}
        for measure in whole:
            try:
                value = measure_set(measure.fn, paths, truths)
            except FAILURES as error:
                skip(method.name, reason(error, measure.metric.name))
                continue
            found[method.name][measure.metric.name] = {"mean": value, "low": None, "high": None, "count": len(paths)}
    return found


def _fits(path: Path, pair: Pair, scale: float) -> bool:
    header = read_header(pair.lq)
    try:
        read_output(path, *output_size(header.height, header.width, scale))
    except TudsrError:
        return False  # said when it was measured by itself
    return True


def means(figures: Sequence[Figures], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return one method's means with intervals: metric → {mean, low, high, count}; a metric without figures is absent.

    Args:
        figures: of each picture.
        names: of the metrics.
    """
    found = {}
    for name in names:
        values = [value for picture in figures if (value := picture.get(name)) is not None]
        if values:
            found[name] = asdict(mean_interval(values))
    return found

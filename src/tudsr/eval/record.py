"""What a report's files say: the parts of results.json, and the writing of all three files."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tudsr.checkpoint import sha256_file, write_text
from tudsr.errors import InputError
from tudsr.eval.measure import Figures, Made, means
from tudsr.eval.methods import Method
from tudsr.eval.metrics import Metric
from tudsr.eval.page import PAGE, write_page
from tudsr.eval.pairs import Pair
from tudsr.image_spool import read_header
from tudsr.perceptual.weights import find_weights
from tudsr.resize import output_size

RESULTS_JSON, RESULTS_CSV = "results.json", "results.csv"


def metric_record(metric: Metric, weights_dir: Path | None) -> dict[str, Any]:
    """Return what results.json says of a metric; an open end of its range is null.

    Args:
        metric: which.
        weights_dir: the folder that it was loaded with, to find the file of its network again.
    """
    record = {
        "direction": metric.direction,
        "range": [end if math.isfinite(end) else None for end in metric.range],
        "color_space": metric.color_space,
        "border_px": metric.border_px,
        "reference": metric.reference,
        "source": metric.source,
    }
    network = None if metric.network is None else find_weights(metric.network, weights_dir)
    return (
        record
        | ({"sha256": {network.name: sha256_file(network)}} if network else {})
        | ({"licence": metric.licence} if metric.licence else {})
        | ({} if metric.floor is None else {"floor": metric.floor})
    )


def picture_record(
    pair: Pair, scale: float, out: Path, methods: Sequence[Method], made: Made, figures: Mapping[str, Figures]
) -> dict[str, Any]:
    """Return what results.json says of a picture.

    Args:
        pair: its files.
        scale: of the report. Only outputs of this scale are named, which lie over each other pixel by pixel; the
            figures are there for all.
        out: the report's folder, which the paths of our own outputs are relative to.
        methods: all.
        made: method → picture → output.
        figures: method → metric → value.
    """
    found = {m.name: output for m in methods if (output := made[m.name].get(pair.name)) is not None}
    foreign = {m.name for m in methods if m.kind == "outputs"}
    paths = {
        name: str(output.path.resolve()) if name in foreign else output.path.relative_to(out).as_posix()
        for name, output in found.items()
    }
    return {
        "name": pair.name,
        "lq": _file_record(pair.lq),
        "gt": None if pair.gt is None else _file_record(pair.gt),
        "outputs": {m.name: paths[m.name] for m in methods if m.name in paths and m.scale == scale},
        "outputs_sha256": {m.name: sha256_file(found[m.name].path) for m in methods if m.name in found},
        "figures": {m.name: figures[m.name] for m in methods},
        "seconds": {m.name: found[m.name].seconds if m.name in found else None for m in methods},
    }


def _file_record(path: Path) -> dict[str, Any]:
    header = read_header(path)
    return {"path": str(path), "sha256": sha256_file(path), "size": [header.width, header.height]}


def method_record(
    method: Method, metrics: Sequence[Metric], pictures: Sequence[dict[str, Any]], of_sets: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what results.json says of a method.

    Args:
        method: which.
        metrics: all.
        pictures: every picture's record.
        of_sets: the figures of metrics of whole sets, as `means` gives them.
    """
    figures = [picture["figures"][method.name] for picture in pictures]
    timed = [picture for picture in pictures if picture["seconds"][method.name] is not None]
    seconds = sum(picture["seconds"][method.name] for picture in timed)
    sizes = [picture["lq"]["size"] for picture in timed]
    pixels = sum(math.prod(output_size(height, width, method.scale)) for width, height in sizes)
    return method.record() | {
        "means": {**means(figures, [metric.name for metric in metrics]), **of_sets},
        "seconds_per_mp": seconds / pixels * 1e6 if timed else None,
        "seconds_per_picture": seconds / len(timed) if timed else None,
    }


def check_targets(out: Path) -> None:
    """Check before any work that nothing is in the way of a report's files.

    Raises:
        InputError: when a folder has the name of one.
    """
    for path in (out / RESULTS_JSON, out / RESULTS_CSV, out / PAGE):
        if path.is_dir():
            raise InputError(f"{path}: the report's file is to be written here, and it is a folder.")


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write results.json, results.csv and the page."""
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(out / RESULTS_JSON, text)
    write_text(out / RESULTS_CSV, table(results))
    write_page(results, out, max_pictures=results["config"]["pictures"])


def table(results: Mapping[str, Any]) -> str:
    """Return results.csv: a row for each picture and method; what is not known is empty, metrics of sets left out."""
    names = [name for name, metric in results["metrics"].items() if metric["reference"] != "set"]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["picture", "method", *names, "seconds"])
    for picture in results["pictures"]:
        for method, figures in picture["figures"].items():
            rows.writerow([picture["name"], method, *(figures.get(n) for n in names), picture["seconds"][method]])
    return text.getvalue()

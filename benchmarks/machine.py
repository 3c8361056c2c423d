"""What every benchmark's JSON says about where it ran."""

import json
import statistics
from pathlib import Path
from typing import Any

from tudsr.checkpoint import write_text
from tudsr.cost import pass_costs
from tudsr.folder import Model
from tudsr.request import Request
from tudsr.train.runlog import environment


def spread(values: list[float]) -> dict[str, float]:
    """Return median, minimum, maximum and count."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "runs": len(values),
    }


def useful_tflop(shapes: Model, request: Request, side: int) -> float:
    """Return the work on a square picture of `side` px, overlap left out, in TFLOP; `shapes` is a `meta_model`."""
    plan, windows = request.passes(side, side, shapes.config), request.windows(shapes.config.windows)
    return sum(one.useful_flop for one in pass_costs(shapes, plan, windows)) / 1e12


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Print a result with the machine it was made on and, with a path, keep it."""
    text = json.dumps(result | {"machine": environment()}, indent=2, ensure_ascii=False) + "\n"
    print(text, end="")
    if path is not None:
        write_text(path, text)

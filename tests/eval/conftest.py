"""A small report as `tudsr eval` leaves it: three methods, three pictures, one with a name that is markup."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

METHODS = {"bicubic": "bicubic", "tiny M2N2": "model", "peer": "outputs"}
METRICS = {"psnr": "higher", "dists": "lower", "niqe": "lower"}
HOSTILE = "<img src=x onerror=alert(1)>"
PICTURES = ("lake", HOSTILE, "</script><script>alert(2)</script>")
MEANS = {"psnr": (25.5, 24.25, 9.75), "dists": (0.2411, 0.1391, 0.1402), "niqe": (None, 4.61, math.inf)}


def _picture(path: Path, seed: int, size: tuple[int, int] = (96, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def _method(index: int, name: str, kind: str) -> dict[str, Any]:
    means = {
        metric: {"mean": x[index], "low": None if x[index] is None else x[index] * 0.9, "high": x[index], "count": 3}
        for metric, x in MEANS.items()
    }
    twice = kind == "model"
    return {
        "name": name, "kind": kind, "scale": 4, "path": None, "m": 2 if twice else None, "n": 2 if twice else None,
        "sha256": None, "trained_on": ["dists"] if twice else [], "means": means, "seconds_per_picture": None,
        "seconds_per_mp": (0.01, 0.5, None)[index],
    }  # fmt: skip


def _record(folder: Path, index: int, name: str) -> dict[str, Any]:
    outputs = {method: f"outputs/{number}/{index}.png" for number, method in enumerate(METHODS)}
    for number, path in enumerate(outputs.values()):
        _picture(folder / path, 10 * index + number)
    _picture(folder / f"gt/{index}.png", 100 + index)
    _picture(folder / f"lq/{index}.png", 200 + index, (24, 16))
    return {
        "name": name,
        "lq": {"path": str(folder / f"lq/{index}.png"), "sha256": "0" * 64, "size": [24, 16]},
        "gt": {"path": str(folder / f"gt/{index}.png"), "sha256": "0" * 64, "size": [96, 64]},
        "outputs": outputs,
        "figures": {
            method: {metric: x[number] and x[number] + index for metric, x in MEANS.items()}
            for number, method in enumerate(METHODS)
        },
        "seconds": dict.fromkeys(METHODS),
    }


@pytest.fixture
def make_results() -> Callable[[Path], dict[str, Any]]:
    """Return a function (report folder) -> results; it writes the pictures that they name."""

    def make(folder: Path) -> dict[str, Any]:
        definition = {"range": [0, None], "color_space": "RGB", "border_px": 0, "reference": "gt", "source": "a paper"}
        return {
            "format": 1, "tudsr": "9.9", "commit": "0123456789abcdef", "created": "2026-01-02T03:04:05+00:00",
            "machine": {"cpu": "Abacus", "threads": 2, "device": "cpu", "dtype": "float32"}, "scale": 4.0, "config": {},
            "metrics": {name: {"direction": direction, **definition} for name, direction in METRICS.items()},
            "methods": [_method(index, name, kind) for index, (name, kind) in enumerate(METHODS.items())],
            "pictures": [_record(folder, index, name) for index, name in enumerate(PICTURES)],
            "skipped": [{"file": HOSTILE, "reason": "no partner"}], "ablation": None,
        }  # fmt: skip

    return make

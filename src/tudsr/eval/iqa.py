"""Metrics that are not ours: every one of pyiqa's by its own name, where the extra `iqa` is installed."""

import contextlib
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tudsr.errors import ConfigError, InputError, WeightsError, cause
from tudsr.eval.metrics import METRICS, Metric, MetricFn
from tudsr.image import Picture, write_picture

REMEDY = "pip install tudsr[iqa]"
LICENCE = (
    "pyiqa is under the PolyForm Noncommercial License 1.0.0 and its networks' weights under licences of their own: "
    "figures made with it are not for commercial use"
)
SET_METRICS = frozenset({"fid", "sfid", "fid_dinov2", "fid_mmd", "inception_score"})
"""pyiqa's metrics of whole folders: of the outputs, compared with that of the true pictures by all but the last."""

# What pyiqa and the libraries below it raise on pictures that a metric cannot take (too small, mostly) …
_MEASURE_ERRORS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)
# … and when weights cannot be fetched or read, or a library that only this metric needs is not there.
_LOAD_ERRORS = (ImportError, OSError, RuntimeError, ValueError, KeyError, AssertionError)


def find_metric(name: str, device: torch.device) -> Metric:
    """Return a metric of ours, else pyiqa's of that name, which is built at once to learn its direction.

    Args:
        name: a key of METRICS or one of pyiqa's names (musiq, maniqa-pipal, clipiqa+, liqe, fid, …).
        device: where pyiqa's networks go.

    Raises:
        ConfigError: for a name that is not ours when pyiqa is not installed, or that neither has.
        WeightsError: when pyiqa cannot load the metric's networks.
    """
    if name in METRICS:
        return METRICS[name]
    known = f"{name!r} is not one of tudsr's metrics ({', '.join(METRICS)})"
    try:
        pyiqa = import_module("pyiqa")
    except ImportError as error:
        raise ConfigError(
            f"{known}, and pyiqa, which has more, cannot be imported ({cause(error)}): {REMEDY}."
        ) from error
    if name not in pyiqa.list_models():
        raise ConfigError(f"{known}, nor one of pyiqa's; pyiqa.list_models() lists those.")
    try:
        with _printing_elsewhere():
            net = pyiqa.create_metric(name, device=device)
    except _LOAD_ERRORS as error:
        raise WeightsError(f"pyiqa's metric {name!r} cannot be loaded ({cause(error)}).") from error
    return _entry(name, net, str(getattr(pyiqa, "__version__", "")))


def _entry(name: str, net: Any, version: str) -> Metric:
    whole_set = name in SET_METRICS
    one_by_one = _pictures(name, net)
    return Metric(
        name=name,
        direction="lower" if net.lower_better else "higher",
        range=_range(str(getattr(net, "score_range", ""))),
        color_space="RGB, or what pyiqa makes of it",
        reference="set" if whole_set else "gt" if net.metric_mode == "FR" else "none",
        source=f"pyiqa {version}: {name}".replace("  ", " "),
        load=lambda weights_dir: _folders(name, net) if whole_set else one_by_one,
        licence=LICENCE,
    )


def _range(text: str) -> tuple[float, float]:
    """Read «0, 1», «~0, ~100» or «~, 2», open at its lower end; of any other text, anything from 0 up."""
    words = [word.strip().removeprefix("~") for word in text.split(",")]
    try:
        low, high = (float(word or end) for word, end in zip(words, ("-inf", "inf"), strict=True))
    except ValueError:
        return 0.0, math.inf
    return low, high


def _pictures(name: str, net: Any) -> MetricFn:
    """Wrap a metric of single pictures, which takes (1, 3, H, W) in [0, 1]."""

    def measure(sr: Tensor, gt: Tensor | None) -> float:
        inputs = [(x.clamp(-1, 1) + 1) / 2 for x in (sr, gt) if x is not None]
        with _measuring(name, "picture"):
            return float(net(*inputs[: 2 if net.metric_mode == "FR" else 1]))

    return measure


def _folders(name: str, net: Any) -> MetricFn:
    """Wrap a metric that takes the folder of outputs and the folder of true pictures."""

    def measure(outputs: Path, truths: Path) -> float:
        with _measuring(name, "set"):
            value = net(str(outputs), str(truths))
            return float(value["inception_score_mean"] if isinstance(value, dict) else value)

    return measure


@contextlib.contextmanager
def _measuring(name: str, what: str) -> Iterator[None]:
    """Put in words why a metric cannot measure; fgresq_pair, for one, gives four figures of a pair, not one."""
    try:
        with _printing_elsewhere(), torch.no_grad():
            yield
    except _MEASURE_ERRORS as error:
        raise InputError(f"{name}: pyiqa cannot measure this {what} ({cause(error)}).") from error


def _printing_elsewhere() -> contextlib.AbstractContextManager[Any]:
    """Send what pyiqa prints on stdout, which `--json` keeps for its own, to stderr."""
    return contextlib.redirect_stdout(sys.stderr)


def measure_set(fn: MetricFn, outputs: Mapping[str, Path], truths: Mapping[str, Callable[[], Tensor]]) -> float:
    """Measure whole sets, of exactly the pictures that both have.

    Args:
        fn: of a metric whose reference is «set».
        outputs: picture → file of its output.
        truths: picture → what reads the true picture of the output's size, (1, 3, H, W) in [-1, 1].

    Raises:
        InputError: when the metric cannot measure them.
    """
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "outputs"), Path(folder, "truths")
        ours.mkdir()
        for name, path in outputs.items():
            shutil.copyfile(path, ours / f"{name}{path.suffix}")
            write_picture(theirs / f"{name}.png", Picture(pixels=truths[name]()))
        return float(fn(ours, theirs))

"""Figures that are kept while a report is made, so that a killed one does not measure again what it had measured."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tudsr.checkpoint import sha256_file, write_text

Kept = dict[str, float]  # metric -> value


def of_same_run(path: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file holds that an earlier call wrote with `run` in it; nothing where that was another run.

    Nothing either when the code has no name: a commit that ends in «+» (a working copy with changes) may stand for
    other code each time. An installed package has no commit; its version names it.
    """
    if not run["commit"].endswith("+"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no file, or no whole one: no trust
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if found["run"] == json.loads(json.dumps(run)):
                return found
    return {}


def key_of(*files: Path | None) -> str:
    """Return what the contents of an output, and of what it is compared with, are known by."""
    hashes = ("-" if file is None else sha256_file(file) for file in files)
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


class KeptFigures:
    """Figures of outputs by the contents of all files that they depend on; see `of_same_run`, `key_of`.

    Args:
        path: the file to keep them in.
        run: what else figures depend on: versions, commit, device; JSON values.
        metrics: those that are measured, each with what tells its network from another, or None.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        self._path, self._said = path, {"run": dict(run), "metrics": dict(metrics)}
        found = of_same_run(path, run)
        before = found.get("metrics", {})
        same = {name for name, network in metrics.items() if name in before and before[name] == network}
        self._figures: dict[str, Kept] = {
            key: {name: one[name] for name in same & one.keys()} for key, one in found.get("figures", {}).items()
        }

    def find(self, key: str) -> Kept:
        """Return what is known of an output; empty where nothing is."""
        return dict(self._figures.get(key, {}))

    def add(self, key: str, figures: Mapping[str, float | None]) -> None:
        """Keep an output's figures; one that could not be had is tried again the next time, to say why."""
        self._figures[key] = {name: value for name, value in figures.items() if value is not None}
        write_text(self._path, json.dumps(self._said | {"figures": self._figures}) + "\n")

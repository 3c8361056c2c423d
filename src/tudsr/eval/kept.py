"""Figures that are kept while a report is made, so that a killed one does not measure again what it had measured."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tudsr.checkpoint import sha256_file, write_text

Kept = dict[str, float]  # metric -> value


class KeptFigures:
    """Figures of outputs by the contents of all files that they depend on.

    Nothing is taken of another run's, of another network's, or where the code has no name (see `outputs`).

    Args:
        path: the file to keep them in.
        run: what else figures depend on: versions, commit, device; JSON values.
        metrics: those that are measured, each with what tells its network from another, or None.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        self._path, self._said = path, {"run": dict(run), "metrics": dict(metrics)}
        self._figures: dict[str, Kept] = {}
        if run["commit"].endswith("+"):
            return
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = json.loads(path.read_text(encoding="utf-8"))
            same = {name for name, network in metrics.items() if found["metrics"].get(name, "") == network}
            if found["run"] == json.loads(json.dumps(run)):
                self._figures = {
                    key: {name: one[name] for name in same & one.keys()} for key, one in found["figures"].items()
                }

    def find(self, *files: Path | None) -> Kept:
        """Return what is known of an output; empty where nothing is.

        Args:
            files: the output and what it is compared with.
        """
        return dict(self._figures.get(_key(files), {}))

    def add(self, figures: Mapping[str, float | None], *files: Path | None) -> None:
        """Keep an output's figures; one that could not be had is tried again the next time, to say why."""
        self._figures[_key(files)] = {name: value for name, value in figures.items() if value is not None}
        write_text(self._path, json.dumps(self._said | {"figures": self._figures}) + "\n")


def _key(files: tuple[Path | None, ...]) -> str:
    hashes = ("-" if file is None else sha256_file(file) for file in files)
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()

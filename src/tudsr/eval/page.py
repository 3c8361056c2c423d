"""The report as a page: one self-contained index.html to judge by eye, made from what results.json says.

The page's own files lie in the folder `page` beside this module: a template, a style sheet and a script, put into one
file together with the data. The page's policy allows just that script and that style, pictures out of the file itself,
and no network.
"""

import base64
import hashlib
import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from tudsr.checkpoint import write_text
from tudsr.eval.page_pictures import page_pictures

PAGE = "index.html"
_TAKEN_OVER = ("tudsr", "commit", "created", "machine", "scale", "config", "metrics", "methods", "skipped", "ablation")


def write_page(results: dict[str, Any], report_dir: Path, *, max_pictures: int = 24) -> Path:
    """Write the page of a measurement.

    Args:
        results: as in results.json; the paths of its pictures are relative to `report_dir` or absolute.
        report_dir: where index.html is written.
        max_pictures: how many pictures are put into the page at most, at least 0; if there are more, those are taken
            whose outputs differ most, and the page says so.

    Returns:
        The path of index.html; it appears whole or not at all.
    """
    path = report_dir / PAGE
    write_text(path, render(page_data(results, report_dir, max_pictures)))
    return path


def page_data(results: dict[str, Any], report_dir: Path, max_pictures: int) -> dict[str, Any]:
    """Gather what the page shows, as values that JSON can hold; figures that are not finite become None."""
    pictures, notes = page_pictures(results, report_dir, max_pictures)
    data = {key: results.get(key) for key in _TAKEN_OVER}
    return _finite(data | {"set": _describe(results["pictures"]), "pictures": pictures, "notes": notes})


def render(data: dict[str, Any]) -> str:
    """Put data, style and script into the template.

    Args:
        data: as `page_data` gives it.

    Returns:
        HTML in which nothing of the data can be read as markup.
    """
    template, style = _own_file("report.html"), _own_file("report.css")
    script = _own_file("report.js") + _own_file("compare.js")
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    parts = {"POLICY": policy, "STYLE": style, "SCRIPT": script, "DATA": script_json(data)}
    # In one pass, so that nothing which is put in is taken for a place to fill.
    return re.sub("@@([A-Z]+)@@", lambda match: parts[match[1]], template)


def script_json(value: Any) -> str:
    r"""Return JSON that may stand inside a script element: every < is written \u003c, all else in ASCII."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _own_file(name: str) -> str:
    return (files("tudsr.eval") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Give the name that a content security policy knows an inline element by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _describe(pictures: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the size of the set: how many pictures, how many with a true one, the smallest and the largest input."""
    sizes = sorted((entry["lq"]["size"] for entry in pictures if entry.get("lq")), key=math.prod)
    return {
        "count": len(pictures),
        "with_gt": sum(bool(entry.get("gt")) for entry in pictures),
        "lq_sizes": [sizes[0], sizes[-1]] if sizes else [],
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

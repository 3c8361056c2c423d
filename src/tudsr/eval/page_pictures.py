"""The pictures of the report's page: which are shown, which parts of them, and how they are put into the file.

A page is one file, so pictures go in as WebP data URIs: the whole picture at most 1024 px long at quality 90, and
crops at the methods' own pixels, lossless, taken where the methods' outputs differ most.
"""

import base64
import heapq
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tudsr.errors import InputError
from tudsr.image import Picture, picture_like, read_picture
from tudsr.image_raster import colour_profile
from tudsr.resize import upsample
from tudsr.windows import Window

CROPS = 3
CROP_PX = 192
WHOLE_PX = 1024
WHOLE_QUALITY = 90
THUMB_PX = 144
THUMB_QUALITY = 70

_STRIDE_PX = 8  # windows are looked for at every eighth pixel: a finer search moves a crop by less than one notices


@dataclass(frozen=True, kw_only=True)
class View:
    """One way to see a picture: a method's output, the true picture, or the input enlarged by bicubic.

    Attributes:
        id: distinct among a picture's views, whatever methods are called.
        name: for people.
        kind: where it comes from.
        pixels: (H, W, 3) uint8; all views of a picture are of one size.
        icc: the ICC profile that the colours are meant in, or None.
    """

    id: str
    name: str
    kind: Literal["method", "gt", "lq"]
    pixels: NDArray[np.uint8]
    icc: bytes | None = None


def page_pictures(
    results: dict[str, Any], report_dir: Path, max_pictures: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the pictures that results name, and make of them what the page shows.

    Args:
        results: as in results.json.
        report_dir: the folder that relative paths start from.
        max_pictures: if there are more, those whose outputs differ most on average are taken.

    Returns:
        JSON values of each picture, in the order of the results; and one sentence for each thing that was left out.
    """
    entries, notes = list(results["pictures"]), []
    if len(entries) > max_pictures:
        spread = [_mean_difference(load_views(entry, results, report_dir)[0]) for entry in entries]
        chosen = sorted(heapq.nlargest(max_pictures, range(len(entries)), key=spread.__getitem__))
        notes.append(
            f"{max_pictures} of {len(entries)} pictures are shown: those where the methods' outputs differ most. "
            "The means are over all of them."
        )
        entries = [entries[index] for index in chosen]
    shown = []
    for entry in entries:
        views, problems = load_views(entry, results, report_dir)
        notes += problems
        if views:
            shown.append(_picture_data(entry, views))
    return shown, notes


def load_views(entry: dict[str, Any], results: dict[str, Any], report_dir: Path) -> tuple[list[View], list[str]]:
    """Read all views of one picture: outputs in the order of the methods, then the true picture, then the input.

    A larger true picture is cropped at its bottom and right. The input is enlarged by bicubic; it is left out where
    bicubic is among the methods already.

    Args:
        entry: one of results["pictures"].
        results: as in results.json.
        report_dir: the folder that relative paths start from.

    Returns:
        The views, all of the size of the first readable output; and a sentence for each one that is left out.
    """
    views: list[View] = []
    notes: list[str] = []

    def add(view_id: str, name: str, kind: Literal["method", "gt", "lq"], path: str) -> None:
        try:
            picture = read_picture(_located(path, report_dir))
            if kind == "lq" and views:
                height, width = views[0].pixels.shape[:2]
                picture = Picture(pixels=upsample(picture.pixels, height, width).clamp(-1, 1), info=picture.info)
            pixels = picture_like(Picture(pixels=picture.pixels), np.empty((1, 1, 3), np.uint8))
            if kind == "gt" and views:  # larger where the scale does not divide its sides: cropped as it was to measure
                pixels = pixels[: views[0].pixels.shape[0], : views[0].pixels.shape[1]]
            if views and pixels.shape != views[0].pixels.shape:
                size, wanted = (f"{p.shape[1]}x{p.shape[0]}" for p in (pixels, views[0].pixels))
                raise InputError(f"{size} pixels came, {wanted} as the other outputs' is accepted")
        except InputError as error:
            notes.append(f"{entry['name']}, {name}: not shown ({error}).")
            return
        views.append(View(id=view_id, name=name, kind=kind, pixels=pixels, icc=colour_profile(picture.info.icc)))

    for index, method in enumerate(results["methods"]):
        if method["name"] in entry["outputs"]:
            add(f"method-{index}", method["name"], "method", entry["outputs"][method["name"]])
    if views and entry.get("gt"):
        add("gt", "GT", "gt", entry["gt"]["path"])
    if views and entry.get("lq") and all(method["kind"] != "bicubic" for method in results["methods"]):
        add("lq", "LQ, bicubic", "lq", entry["lq"]["path"])
    return views, notes


def difference_map(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Give the mean absolute difference between pictures, over all pairs of them and the channels.

    Args:
        pictures: each (H, W, 3) uint8, of one size; fewer than two differ nowhere.

    Returns:
        (H, W) float32, in levels of 255.
    """
    planes = [picture.transpose(2, 0, 1).astype(np.int16) for picture in pictures]  # (3, H, W)
    pairs = list(combinations(planes, 2))
    total = np.zeros(pictures[0].shape[:2], np.float32)
    for x, y in pairs:
        total += np.abs(x - y).sum(0)
    total /= max(1, 3 * len(pairs))
    return total


def differing_windows(difference: NDArray[np.float32], count: int = CROPS, side_px: int = CROP_PX) -> list[Window]:
    """Find the windows with the largest mean, one after the other, none overlapping an earlier one.

    They may lie anywhere, unless the first ones leave too little room for the others: then they are taken from a grid.

    Args:
        difference: (H, W), as `difference_map` gives it.
        count: how many at most; a small picture has room for fewer.
        side_px: of a window; where the picture is shorter, the window is as short.

    Returns:
        The windows, the largest mean first; the topmost, then leftmost of equal ones.
    """
    height, width = (min(side_px, side) for side in difference.shape)
    rows, columns = difference.shape
    table = np.pad(difference.cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0)))  # sums of all top left parts
    free = _largest(table, _starts(rows - height), _starts(columns - width), height, width, count)
    grid = _largest(table, _apart(rows, height), _apart(columns, width), height, width, count)
    return free if len(free) >= len(grid) else grid


def _largest(
    table: NDArray[np.float64], ys: NDArray[np.intp], xs: NDArray[np.intp], height: int, width: int, count: int
) -> list[Window]:
    """Choose among windows that begin at given rows and columns, by the sums of all top left parts, (H + 1, W + 1)."""
    bands = table[ys + height] - table[ys]  # (len(ys), W + 1)
    sums = bands[:, xs + width] - bands[:, xs]  # (len(ys), len(xs))
    windows: list[Window] = []
    while len(windows) < count and np.isfinite(sums).any():
        row, column = np.unravel_index(sums.argmax(), sums.shape)
        y, x = int(ys[row]), int(xs[column])
        windows.append(Window(y0=y, x0=x, y1=y + height, x1=x + width))
        sums[np.ix_(np.abs(ys - y) < height, np.abs(xs - x) < width)] = -np.inf
    return windows


def webp_uri(pixels: NDArray[np.uint8], *, icc: bytes | None = None, quality: int | None = None) -> str:
    """Encode a picture as a WebP data URI.

    Args:
        pixels: (H, W, 3) uint8.
        icc: ICC profile to embed.
        quality: 1 to 100; None is lossless.

    Returns:
        data:image/webp;base64,…
    """
    buffer = io.BytesIO()
    how: dict[str, Any] = {"lossless": True} if quality is None else {"quality": quality}
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", icc_profile=icc, **how)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def shrunk(pixels: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """Bring the long side down to at most `side_px`, by Lanczos; (H, W, 3) uint8."""
    image = Image.fromarray(pixels)
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS, reducing_gap=None)
    return np.asarray(image)


def _located(path: str, report_dir: Path) -> Path:
    """Find a picture that is named relative to the report, absolutely, or as the user named an input."""
    inside = report_dir / path
    return inside if inside.exists() else Path(path)


def _apart(side: int, window: int) -> NDArray[np.intp]:
    """Spread as many windows over a side as fit beside each other."""
    return np.linspace(0, side - window, side // window).astype(np.intp)


def _starts(last: int) -> NDArray[np.intp]:
    return np.unique(np.append(np.arange(0, last, _STRIDE_PX), last))


def _compared(views: list[View]) -> list[NDArray[np.uint8]]:
    """Give what crops are chosen by: the outputs, or all views where there is one output only."""
    outputs = [view.pixels for view in views if view.kind == "method"]
    return outputs if len(outputs) > 1 else [view.pixels for view in views]


def _mean_difference(views: list[View]) -> float:
    return float(difference_map(_compared(views)).mean()) if views else -1.0


def _picture_data(entry: dict[str, Any], views: list[View]) -> dict[str, Any]:
    height, width = views[0].pixels.shape[:2]
    windows = differing_windows(difference_map(_compared(views)))
    shown = [_view_data(view, windows) for view in views]
    return {
        "name": entry["name"],
        "size": [width, height],
        "lq_size": entry["lq"]["size"] if entry.get("lq") else None,
        "thumb": webp_uri(shrunk(views[-1].pixels, THUMB_PX), icc=views[-1].icc, quality=THUMB_QUALITY),
        "crops": [{"x": w.x0, "y": w.y0, "width": w.width, "height": w.height} for w in windows],
        "views": shown,
        "figures": entry.get("figures", {}),
        "seconds": entry.get("seconds", {}),
    }


def _view_data(view: View, windows: list[Window]) -> dict[str, Any]:
    crops = [view.pixels[w.y0 : w.y1, w.x0 : w.x1] for w in windows]
    return {
        "id": view.id,
        "name": view.name,
        "kind": view.kind,
        "whole": webp_uri(shrunk(view.pixels, WHOLE_PX), icc=view.icc, quality=WHOLE_QUALITY),
        "crops": [webp_uri(crop, icc=view.icc) for crop in crops],
    }

"""What came of an ablation: its results.json, what its figures say in sentences, and the page with both."""

import heapq
import itertools
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from ablation_parts import Ablation, Place, begins, budget, origins
from ablation_plan import SEED
from PIL import Image, ImageDraw

from tudsr import __version__
from tudsr.checkpoint import atomic_path
from tudsr.config import ModelConfig, read_object
from tudsr.eval.bootstrap import Interval, mean_interval
from tudsr.eval.metrics import as_counted
from tudsr.eval.page_pictures import View, difference_map, differing_windows, load_views
from tudsr.find import CONFIG_NAME
from tudsr.machine import commit

LEAST_PICTURES = 5
"""Of fewer pictures a bootstrap interval says nothing."""

CELL_PX, LABEL_PX, MONTAGE_ROWS, MONTAGE_BYTES = 176, 18, 2, 60_000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two methods in one metric: both means over the pictures that both have, and the interval of b - a as it counts.

    `better` is the better method's name where the interval leaves 0 out, else None; `trained` says that it was a loss
    of one of them.
    """

    metric: str
    a: str
    b: str
    means: Mapping[str, float]
    interval: Interval
    better: str | None
    trained: bool

    def text(self) -> str:
        """Return «dists° (0.26 against 0.35; -0.09 [-0.1, -0.07])», the better method, or else a, first."""
        first = self.better or self.a
        second = self.b if first == self.a else self.a
        i, sign = self.interval, 1 if first == self.b else -1
        low_high = sorted(sign * end + 0.0 for end in (i.low, i.high) if end is not None)  # + 0.0: no «-0»
        interval = f" [{', '.join(f'{end:+.3g}' for end in low_high)}]" if low_high else ""
        mark = "°" if self.trained else ""
        difference = f"{sign * i.mean + 0.0:+.3g}{interval}"
        return f"{self.metric}{mark} ({self.means[first]:.4g} against {self.means[second]:.4g}; {difference})"


def compare(report: Mapping[str, Any], a: str, b: str) -> Iterator[Difference]:
    """Compare two methods of a report, picture by picture.

    Both made the same pictures, so that the interval is of the differences: pictures differ from each other far more
    than methods do. Figures below a metric's floor differ from each other by nothing.

    Args:
        report: as `tudsr eval` writes it into results.json.
        a: name of a method.
        b: name of another.

    Returns:
        A difference for every metric that at least one picture has for both.
    """
    trained = {metric for method in report["methods"] if method["name"] in (a, b) for metric in method["trained_on"]}
    for metric, about in report["metrics"].items():
        both = [(p["figures"][a].get(metric), p["figures"][b].get(metric)) for p in report["pictures"]]
        values = [(x, y) for x, y in both if x is not None and y is not None]
        if not values:
            continue
        interval = mean_interval([as_counted(about, y) - as_counted(about, x) for x, y in values])
        clear = len(values) >= LEAST_PICTURES and not interval.low <= 0 <= interval.high
        b_wins = (interval.mean > 0) == (about["direction"] == "higher")
        means = {
            name: sum(column) / len(values) for name, column in zip((a, b), zip(*values, strict=True), strict=True)
        }
        yield Difference(
            metric=metric, a=a, b=b, means=means, interval=interval, trained=metric in trained,
            better=(b if b_wins else a) if clear else None,
        )  # fmt: skip


def verdict(where: str, report: Mapping[str, Any], groups: Sequence[Sequence[str]]) -> list[str]:
    """Return one sentence for every two methods of one group.

    Args:
        where: the test set.
        report: its results.
        groups: names of methods that are compared with each other.
    """
    pairs = [pair for group in groups for pair in itertools.combinations(group, 2)]
    return [_sentence(where, a, b, list(compare(report, a, b))) for a, b in pairs]


def _sentence(where: str, a: str, b: str, found: Sequence[Difference]) -> str:
    few = [d.metric for d in found if d.interval.count < LEAST_PICTURES]
    unclear = [d.text() for d in found if d.better is None and d.metric not in few]
    parts = []
    for winner, other in ((a, b), (b, a)):
        won = [d.text() for d in found if d.better == winner]
        parts += [f"{winner} is better than {other} in {', '.join(won)}"] if won else []
    parts += [f"no clear difference between {a} and {b} in {', '.join(unclear)}"] if unclear else []
    parts += [f"too few pictures to compare {a} with {b} in {', '.join(few)}"] if few else []
    return f"{where}: {'; '.join(parts) or f'no metric was measured for both {a} and {b}'}."


def gather(name: str, ablation: Ablation, place: Place, reports: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what results.json says of an ablation whose phases are finished.

    Args:
        name: in ABLATIONS.
        ablation: the arms.
        place: where their models lie.
        reports: test set → report, whose models are the arms in their order.
    """
    sets, said = {}, []
    for eval_set in ablation.sets():
        report = reports[eval_set.name]
        models = [method["name"] for method in report["methods"] if method["kind"] == "model"]
        groups: dict[str, list[str]] = {}
        for (arm, _), method in zip(ablation.on(eval_set), models, strict=True):
            groups.setdefault(arm.group, []).append(method)
        said += verdict(eval_set.name, report, list(groups.values()))
        sets[eval_set.name] = {
            "report": f"{name}/reports/{eval_set.name}",
            "commit": report["commit"], "created": report["created"], "machine": report["machine"],
            "pictures": len(report["pictures"]), "skipped": report["skipped"],
            "metrics": {metric: about["direction"] for metric, about in report["metrics"].items()},
            "methods": report["methods"],
        }  # fmt: skip
    return {
        "format": 1, "ablation": name, "title": ablation.title, "question": ablation.question, "note": ablation.note,
        "verdict": said, "tudsr": __version__, "commit": commit(), "steps": ablation.steps, "seed": SEED,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *map(_without_folder, sys.argv)]),
        "machine": next(iter(sets.values()))["machine"],
        **origins(ablation, place),
        "phases": _phase_records(ablation, place),
        "arms": [
            {"name": arm.name, "group": arm.group, "phases": [phase.name for phase in arm.phase.chain()]}
            for arm in ablation.arms
        ],
        "sets": sets,
    }  # fmt: skip


def _without_folder(argument: str) -> str:
    """Leave out where on a machine something lies: that tells a reader nothing."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _phase_records(ablation: Ablation, place: Place) -> list[dict[str, Any]]:
    """Return what was run in each phase, once each, and in which settings the arms of its group differ there."""
    records: dict[str, dict[str, Any]] = {}
    for group in dict.fromkeys(arm.group for arm in ablation.arms):
        chains = [arm.phase.chain() for arm in ablation.arms if arm.group == group]
        for alternatives in zip(*chains, strict=True):  # the arms' first phases, then their second ones
            trained = [ModelConfig.read(place.model(phase) / CONFIG_NAME).training[-1] for phase in alternatives]
            apart = differing([record["config"] for record in trained])
            for phase, record in zip(alternatives, trained, strict=True):
                known = records.setdefault(phase.name, {"differs_in": []})
                known |= {
                    "name": phase.name, "stage": phase.stage, "start": phase.start.name,
                    "settings": record["config"], "differs_in": sorted({*known["differs_in"], *apart}),
                    "environment": read_object(place.folder(phase) / "environment.json"),
                    **{key: record[key] for key in ("hours", "commit", "photos", "photos_sha256", "figures")},
                }  # fmt: skip
    return list(records.values())


def differing(alternatives: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys, sorted, that do not have one value in all mappings."""
    keys = sorted({key for one in alternatives for key in one})
    return [key for key in keys if any(one.get(key) != alternatives[0].get(key) for one in alternatives)]


def page(results: Mapping[str, Any]) -> str:
    """Return a page for docs/experiments, Markdown, with results.json as data/ablation-NAME.json beside it.

    Args:
        results: what ablations.py writes into results.json.
    """
    machine, kept = results["machine"], f"ablation-{results['ablation']}"
    ran_on = ", ".join(str(machine[key]) for key in ("cpu", "device", "torch") if machine.get(key))
    lines = [
        f"# {results['created'][:10]}: {results['title']}",
        "",
        f"**Question.** {results['question']}",
        "",
        "**Verdict.** Intervals are of the mean difference, picture by picture (95 %, bootstrap); a difference counts "
        "as clear where its interval leaves 0 out. ° marks a metric that was a loss of one of the two.",
        "",
        *(f"- {sentence}" for sentence in results["verdict"]),
        "",
        "## What was run",
        f"`{results['command']}` at commit {results['commit']}; {ran_on}, {machine['threads']} threads. Budget: "
        f"{budget(results['arms'], results['phases'])}. Seed {results['seed']} in every phase. "
        f"{begins(results)} All other settings are equal and stand in [{kept}.json](data/{kept}.json).",
        *(["", results["note"]] if results["note"] else []),
        "",
        "| phase | stage | starts from | steps × batch, crop | hours | settings in which arms differ |",
        "|---|---|---|---|---|---|",
        *(_phase_row(phase) for phase in results["phases"]),
        "",
        "| arm | compared within | phases |",
        "|---|---|---|",
        *(f"| {arm['name']} | {arm['group'] or 'all'} | {', '.join(arm['phases'])} |" for arm in results["arms"]),
        "",
        "## Figures",
        "Means with 95 % bootstrap intervals over the pictures; ° was a loss of that arm.",
        *itertools.chain.from_iterable(_set_lines(name, found) for name, found in results["sets"].items()),
        "",
        "## Pictures",
        f"![Crops of the truth, bicubic and every arm](../images/{kept}.webp)",
        "",
        "Of the photos in which the arms differ most, the crop in which they do. All outputs lie under sliders in the "
        f"runs' folder: {', '.join(found['report'] + '/index.html' for found in results['sets'].values())}.",
        "",
        "## What this does not say",
        "One seed for each arm: the intervals are over pictures, and how far another seed would move the means is not "
        "known. With dozens of comparisons at 95 %, one in twenty may seem clear by chance.",
    ]
    return "\n".join(lines) + "\n"


def write_montage(path: Path, reports: Mapping[Path, Mapping[str, Any]]) -> None:
    """Write the truth, bicubic and every arm, labelled, where the arms differ most: WebP of at most MONTAGE_BYTES.

    Args:
        path: of the montage.
        reports: folder of each test set's report → its results; of each, the photos in which the arms differ most.
    """
    rows: list[dict[str, Image.Image]] = []
    for folder, report in reports.items():
        arms = {method["name"] for method in report["methods"] if method["kind"] == "model"}
        entries = [entry for entry in report["pictures"] if arms <= entry["outputs"].keys()]
        crops = [_crops(load_views(entry, dict(report), folder)[0], arms) for entry in entries]
        count = max(1, MONTAGE_ROWS // len(reports))
        rows += [cells for _, cells in heapq.nlargest(count, crops, key=lambda crop: crop[0])]
    sheet = Image.new("RGB", (max(map(len, rows)) * CELL_PX, len(rows) * (CELL_PX + LABEL_PX)), "white")
    for row, column, (label, crop) in ((y, x, c) for y, cells in enumerate(rows) for x, c in enumerate(cells.items())):
        corner = column * CELL_PX, row * (CELL_PX + LABEL_PX)
        ImageDraw.Draw(sheet).text((corner[0] + 3, corner[1] + 3), label, "black")
        sheet.paste(crop, (corner[0], corner[1] + LABEL_PX))
    with atomic_path(path) as part:
        for quality in range(95, 0, -5):
            sheet.save(part, quality=quality, method=6)
            if part.stat().st_size <= MONTAGE_BYTES:
                break


def _crops(views: Sequence[View], arms: Set[str]) -> tuple[float, dict[str, Image.Image]]:
    """Return how much the arms differ where they do most, in levels of 255, and each view there."""
    difference = difference_map([view.pixels for view in views if view.name in arms])
    (at,) = differing_windows(difference, 1, CELL_PX)
    inside = np.s_[at.y0 : at.y1, at.x0 : at.x1]
    ordered = sorted(views, key=lambda view: (view.kind != "gt", view.name in arms))
    return difference[inside].mean(), {view.name: Image.fromarray(view.pixels[inside]) for view in ordered}


def _phase_row(phase: Mapping[str, Any]) -> str:
    settings = phase["settings"]
    apart = "; ".join(f"{key} = {json.dumps(settings.get(key))}" for key in phase["differs_in"]) or "–"
    amount = f"{settings['steps']:,} × {settings['batch']}, {settings['crop_px']}²"
    return f"| {phase['name']} | {phase['stage']} | {phase['start']} | {amount} | {phase['hours']:.2f} | {apart} |"


def _set_lines(name: str, found: Mapping[str, Any]) -> list[str]:
    directions = {"higher": "↑", "lower": "↓"}
    metrics = found["metrics"]
    titles = [f"{metric} {directions[direction]}" for metric, direction in metrics.items()]
    return [
        "",
        f"### {name}, {found['pictures']} pictures",
        "| " + " | ".join(["method", *titles, "s/MP"]) + " |",
        "|---" * (len(titles) + 2) + "|",
        *(_method_row(method, list(metrics)) for method in found["methods"]),
    ]


def _method_row(method: Mapping[str, Any], metrics: Sequence[str]) -> str:
    cells = []
    for metric in metrics:
        mean = method["means"].get(metric)
        mark = "°" if metric in method["trained_on"] else ""
        spread = f" [{mean['low']:.4g}, {mean['high']:.4g}]" if mean and mean["low"] is not None else ""
        cells.append(f"{mean['mean']:.4g}{mark}{spread}" if mean else "–")
    seconds = method["seconds_per_mp"]
    return "| " + " | ".join([method["name"], *cells, "–" if seconds is None else f"{seconds:.3g}"]) + " |"

"""`tudsr degrade`: settings from the command line, a progress bar, the set."""

from pathlib import Path

from tudsr.apps.report import steps_bar
from tudsr.eval.degraded_set import SetConfig, make_set


def run_degrade(source: Path, out: Path, preset: str, scale: int, seed: int) -> list[str]:
    """Make a paired test set under a progress bar.

    Args:
        source: folder of sharp photos.
        out: folder of the set.
        preset: of the degradation.
        scale: ratio of the photos to their degraded partners.
        seed: of every random choice.

    Returns:
        What to say: the photos that were left out, then what was made.

    Raises:
        TudsrError: when the set cannot be made.
    """
    config = SetConfig(preset=preset, scale=scale, seed=seed)
    with steps_bar(f"degrade {preset} x{scale}", enabled=True) as bar:
        task = bar.add_task("", total=None, figures="")
        record = make_set(source, out, config, lambda done, total: bar.update(task, completed=done, total=total))
    lines = [f"skipped {one['file']}: {one['reason']}" for one in record["skipped"]]
    return [*lines, f"{out}: {len(record['photos'])} pairs, {preset}, x{scale}, seed {seed}"]

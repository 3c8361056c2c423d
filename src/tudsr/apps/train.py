"""`tudsr train`: settings from the command line, a progress bar, the loop."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tudsr.apps.report import steps_bar
from tudsr.checkpoint import check_folder
from tudsr.errors import ConfigError, StoppedError
from tudsr.find import CONFIG_NAME
from tudsr.train.config import TrainConfig
from tudsr.train.estimate_t import DATA_NAME, PLOT_NAME, estimate
from tudsr.train.loop import train

_TWICE_S = 1.0  # timeout(1) and terminals may send one signal twice
_SHOWN = ("loss_g", "loss_d", "loss_prior", "val_score")


def run_training(config: TrainConfig, *, resume: bool) -> dict[str, float]:
    """Train under a progress bar with ETA; of several processes only the first draws it.

    Ctrl-C or SIGTERM ends the run after its step, with a checkpoint and OUT/model, and then the program, by SystemExit.

    Args:
        config: the run.
        resume: go on from where the folder's run stopped.

    Returns:
        The last figures.

    Raises:
        TudsrError: before any work, when something in the settings or the data cannot be used.
    """
    check_folder(config.out)
    main_process = os.environ.get("RANK", "0") == "0"  # set by accelerate's and torch's launchers
    with steps_bar(f"stage {config.stage}", enabled=main_process) as bar:
        task = bar.add_task("", total=config.steps, figures="")

        def progress(step: int, steps: int, figures: dict[str, float]) -> None:
            shown = " ".join(f"{key} {figures[key]:.4g}" for key in _SHOWN if key in figures)
            bar.update(task, completed=step, total=steps, figures=shown)

        def note(line: str) -> None:
            bar.console.print(line, markup=False)

        with _signals() as came:
            try:
                return train(config, resume=resume, progress=progress, notes=note, stop=lambda: bool(came))
            except StoppedError as stopped:
                if main_process:
                    note(str(stopped))
                sys.exit(128 + (came[0] if came else signal.SIGTERM))  # none came where another process was asked


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the first Ctrl-C or SIGTERM instead of ending by it; one that comes later does what it would have done.

    Those that were ignored before still are.
    """
    came: list[int] = []
    first, before = 0.0, dict[signal.Signals, Any]()

    def put_back() -> None:
        for number, own in before.items():
            signal.signal(number, own)

    def collect(number: int, _frame: Any) -> None:
        nonlocal first
        now = time.monotonic()
        if not came:
            came.append(number)
            first = now
            os.write(2, b"\nStopping after this step; once more to stop at once.\n")  # print may be in the midst of one
        elif now - first > _TWICE_S:
            put_back()
            os.kill(os.getpid(), number)

    if threading.current_thread() is threading.main_thread():  # others cannot, and nobody signals them
        wanted = ((number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM))
        before = {number: own for number, own in wanted if own not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, collect)
    try:
        yield came
    finally:
        put_back()


def run_estimate(model: str, data: Path, out: Path, overrides: list[str]) -> list[str]:
    """Estimate the mid-timestep under a progress bar and return what to say.

    Raises:
        ConfigError: for an override other than scale, count and degradation, or a value that cannot be.
        ModelError, DataError: when the model or the photos cannot be used.
    """
    check_folder(out)
    options: Any = _estimate_options(overrides)
    with steps_bar("estimate t", enabled=True) as bar:
        task = bar.add_task("", total=None, figures="")
        found, plotted = estimate(
            model, data, out, progress=lambda done, total: bar.update(task, completed=done, total=total), **options
        )
    spread = f"{found.snr_db:.2f} ± {found.spread_db:.2f} dB over {found.count} pictures"
    no_plot = f"No {PLOT_NAME} was drawn: matplotlib is missing, which the extra [train] brings."
    said = f"t = {found.t}: the LQ latents' SNR is {spread}"
    use = f"Before stage 1 learns, set t1 in the model's {CONFIG_NAME} to it; `tudsr upscale --t1 {found.t}` tries it."
    return [said, use, str(out / DATA_NAME), str(out / PLOT_NAME) if plotted else no_plot]


def _estimate_options(overrides: list[str]) -> dict[str, float | int | str]:
    kinds = {"scale": float, "count": int, "degradation": str}
    options: dict[str, float | int | str] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        if key not in kinds:
            raise ConfigError(f"--set {override!r}: with --estimate-t the settings are {', '.join(kinds)}.")
        try:
            options[key] = kinds[key](text)
        except ValueError as error:
            raise ConfigError(f"--set {override!r}: {key} is a number.") from error
    return options

"""Enlarge files and folders: what is to be done, and by which engine."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tudsr.apps.engine_local import run_local
from tudsr.apps.engine_ray import run_ray
from tudsr.apps.journal import MOST_ATTEMPTS, Journal
from tudsr.apps.remote import Task, exists, work_place
from tudsr.apps.report import Reporter
from tudsr.apps.upscale import Run
from tudsr.apps.work import Work, check_wishes, left_sentence
from tudsr.config import ModelConfig
from tudsr.errors import InputError, TudsrError
from tudsr.find import CONFIG_NAME, find_model
from tudsr.image_encode import file_format
from tudsr.request import Request, parse_memory
from tudsr.spooled import begun, sweep, work_folder

ENGINES: dict[str, Callable[[Work], None]] = {"local": run_local, "ray": run_ray}


def upscale_all(tasks: Sequence[Task], folder: str | None, request: Request, run: Run) -> int:
    """Enlarge everything.

    Args:
        tasks: the pictures, from `remote.plan_tasks`.
        folder: that they go to, from there too.
        request: what is asked of every picture.
        run: the rest.

    Returns:
        How many pictures of several could not be done; each has been reported, or what ended the work.

    Raises:
        TudsrError: before any work, or when the only picture cannot be done.
    """
    _check(run, tasks)
    journal = Journal(folder, fresh=run.overwrite)
    made = set() if run.overwrite else {task for task in tasks if exists(task.target)}
    for task in made:
        sweep(Path(task.target), work_place(task))
    deadly = {task for task in tasks if journal.attempts(task) >= MOST_ATTEMPTS} - made
    left = [task for task in tasks if task in deadly and not _half_done(task)]
    # What goes on where it was may die once more: it must not stand before the others each time.
    todo = sorted((task for task in tasks if task not in made and task not in left), key=deadly.__contains__)
    if not todo:  # else the engine looks, once it has the model
        check_wishes(ModelConfig.read(find_model(run.model) / CONFIG_NAME), request)
    with Reporter(todo, as_json=run.as_json, quiet=run.quiet) as reporter:
        work = Work(todo, request, run, reporter, journal, alone=len(tasks) == 1)
        for task in tasks:
            if task in made:
                reporter.note(f"{task.target}: exists already, not redone (--overwrite redoes it)")
        for task in left:
            work.give_up(left_sentence(task))
        if todo:
            try:
                ENGINES[run.engine](work)
            except TudsrError as error:
                if not work.done:
                    raise
                reporter.error(str(error))
                work.failed = len(tasks) - len(made) - work.done
            finally:
                work.stop()
        if work.failed:
            reporter.error(f"{work.failed} of {len(tasks)} pictures could not be enlarged.")
        return work.failed


def _half_done(task: Task) -> bool:
    return begun(work_place(task) or work_folder(Path(task.target)))


def _check(run: Run, tasks: Sequence[Task]) -> None:
    if run.engine == "local" and (run.address, run.workers, run.split) != (None, None, None):
        raise InputError("--address, --workers and --split belong to --engine ray; add it, or leave them out.")
    if run.memory is not None:
        parse_memory(run.memory)
    if run.compare is not None:
        _check_compare(run, run.compare, tasks)


def _check_compare(run: Run, compare: Path, tasks: Sequence[Task]) -> None:
    file_format(compare)
    if run.engine != "local":
        raise InputError(f"--compare {compare}: only --engine local makes it.")
    if len(tasks) > 1:
        raise InputError(f"--compare makes one picture, and {len(tasks)} inputs came; give one.")
    if compare.resolve() in {Path(tasks[0].source).resolve(), Path(tasks[0].target).resolve()}:
        raise InputError(f"--compare {compare}: this is the input or the output; give another name.")
    if exists(tasks[0].target) and not run.overwrite:
        raise InputError(f"{tasks[0].target}: exists already, so there is nothing to compare; add --overwrite.")
    if compare.exists() and not run.overwrite:
        raise InputError(f"--compare {compare}: exists already; give another name, or add --overwrite.")

"""Enlarge files and folders: what is to be done, and by which engine."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tudsr.apps.engine_local import run_local
from tudsr.apps.engine_ray import run_ray
from tudsr.apps.journal import MOST_ATTEMPTS, Journal
from tudsr.apps.remote import Task, exists, is_url, plan_tasks
from tudsr.apps.report import Reporter
from tudsr.apps.upscale import Run
from tudsr.apps.work import Work, left_sentence
from tudsr.errors import InputError
from tudsr.image_encode import file_format
from tudsr.request import Request
from tudsr.spooled import work_folder

ENGINES: dict[str, Callable[[Work], None]] = {"local": run_local, "ray": run_ray}


def upscale_all(inputs: Sequence[str], output: str, request: Request, run: Run) -> int:
    """Enlarge everything.

    Args:
        inputs: files and folders, by path or URL.
        output: file or folder, by path or URL, as the user wrote it.
        request: what is asked of every picture.
        run: the rest.

    Returns:
        How many pictures of several could not be done; each has been reported.

    Raises:
        TudsrError: before any work, or when the only picture cannot be done.
    """
    tasks, folder = plan_tasks(inputs, output)
    _check(run, tasks)
    journal = Journal(folder, fresh=run.overwrite)
    made = set() if run.overwrite else {task for task in tasks if exists(task.target)}
    left = [task for task in tasks if task not in made and _kills(task, journal)]
    todo = [task for task in tasks if task not in made and task not in left]
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
            finally:
                work.stop()
        if work.failed:
            reporter.error(f"{work.failed} of {len(tasks)} pictures could not be enlarged.")
        return work.failed


def _kills(task: Task, journal: Journal) -> bool:
    """Return whether a picture seems to kill what works on it: not one that is half done on disk, which goes on."""
    half_done = not is_url(task.target) and work_folder(Path(task.target)).is_dir()
    return journal.attempts(task) >= MOST_ATTEMPTS and not half_done


def _check(run: Run, tasks: list[Task]) -> None:
    if run.engine not in ENGINES:
        raise InputError(f"--engine {run.engine}: accepted are {', '.join(ENGINES)}.")
    if run.engine == "local" and (run.address, run.workers, run.split) != (None, None, None):
        raise InputError("--address, --workers and --split belong to --engine ray; add it, or leave them out.")
    if run.compare is not None:
        _check_compare(run, run.compare, tasks)


def _check_compare(run: Run, compare: Path, tasks: list[Task]) -> None:
    file_format(compare)
    if run.engine != "local":
        raise InputError(f"--compare {compare}: only --engine local makes it.")
    if len(tasks) > 1:
        raise InputError(f"--compare makes one picture, and {len(tasks)} inputs came; give one.")
    if compare.resolve() in {Path(tasks[0].source).resolve(), Path(tasks[0].target).resolve()}:
        raise InputError(f"--compare {compare}: this is the input or the output; give another name.")
    if exists(tasks[0].target) and not run.overwrite:
        raise InputError(f"{tasks[0].target}: exists already, so there is nothing to compare; add --overwrite.")

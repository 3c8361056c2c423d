"""The engine of one machine: one picture after another, with one model, in this process."""

from functools import partial

import torch

import tudsr
from tudsr.apps.remote import Task
from tudsr.apps.work import Work, enlarge_task, probe
from tudsr.pipeline import TUDSR


def run_local(work: Work) -> None:
    """Enlarge all pictures.

    Raises:
        TudsrError: before any picture, or when the only one cannot be done.
    """
    run = work.run
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    model = tudsr.load(run.model, run.device, run.dtype)
    probe(model, work.request)
    for task in work.tasks:
        enlarge_here(work, model, task)


def enlarge_here(work: Work, model: TUDSR, task: Task) -> None:
    """Enlarge one picture in this process."""
    work.begin(task)
    work.settle(task, enlarge_task(model, task, work.request, work.run, partial(work.reporter.windows, task)))

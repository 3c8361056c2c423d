"""Which picture becomes which file: inputs and outputs of one command, settled before any work. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tudsr.errors import InputError
from tudsr.image_encode import FILE_FORMATS, file_format

READ_ONLY_SUFFIXES = frozenset({".gif"})
PICTURE_SUFFIXES = frozenset(FILE_FORMATS) | READ_ONLY_SUFFIXES


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to enlarge: the file it comes from and the file it goes to."""

    source: Path
    target: Path


def plan_jobs(inputs: Sequence[Path], output: str) -> list[Job]:
    """Map files and folders to output files.

    A folder is searched at every depth and its structure is kept; hidden files, and the output folder where it lies
    inside, are left out. A file keeps its name; a format that can be read but not written becomes PNG.

    Args:
        inputs: files and folders.
        output: a file (for one input file), or a folder: an existing one, a name that ends with a slash or has no
            suffix, and any name when there are several inputs or a folder.

    Returns:
        The jobs, in the order of the inputs, each folder's sorted by path; a file that is named twice comes once.

    Raises:
        InputError: when an input is missing, a folder holds no picture, two inputs would become the same file, an
            output would be its own input, or `output` cannot be what it has to be.
    """
    for path in inputs:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder.")
    if len(inputs) == 1 and inputs[0].is_file() and not _is_folder(output):
        file_format(Path(output))
        jobs = [Job(source=inputs[0], target=Path(output))]
    else:
        folder = _output_folder(Path(output))
        jobs = [Job(source=s, target=folder / t) for path in inputs for s, t in _expand(path, folder)]
    jobs = list({(job.source.resolve(), job.target): job for job in jobs}.values())
    _check(jobs)
    return jobs


def _is_folder(output: str) -> bool:
    return Path(output).is_dir() or output.endswith(("/", "\\")) or not Path(output).suffix


def _output_folder(folder: Path) -> Path:
    if folder.is_file() or (not folder.is_dir() and folder.suffix.lower() in PICTURE_SUFFIXES):
        raise InputError(f"{folder}: several pictures need a folder to go to, and this names a file.")
    return folder


def _expand(path: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    """Yield (file, its name relative to the output folder) for a file or all pictures below a folder."""
    if path.is_file():
        yield path, _writable(Path(path.name))
        return
    inside = output.resolve() if output.resolve() != path.resolve() else None
    names = [file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES]
    found = [
        name
        for name in sorted(names)
        if not any(part.startswith(".") for part in name.parts)
        and (path / name).is_file()
        and (inside is None or inside not in (path / name).resolve().parents)
    ]
    if not found:
        known = ", ".join(sorted(PICTURE_SUFFIXES))
        raise InputError(f"{path}: the folder holds no picture; accepted are {known}.")
    yield from ((path / name, _writable(name)) for name in found)


def _writable(name: Path) -> Path:
    return name if name.suffix.lower() in FILE_FORMATS else name.with_suffix(".png")


def _check(jobs: Sequence[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    taken: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target in sources:
            raise InputError(f"{job.target}: this output is an input too; give another folder or name.")
        if target in taken:
            raise InputError(f"{taken[target]} and {job.source} would both become {job.target}; enlarge them apart.")
        if target.is_dir():
            raise InputError(f"{job.target}: a folder of this name is in the way of an output file.")
        taken[target] = job.source

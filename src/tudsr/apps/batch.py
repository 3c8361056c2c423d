"""Which picture becomes which file: inputs and outputs of one command, settled before any work. No torch."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from tudsr.errors import InputError
from tudsr.image_encode import FILE_FORMATS, file_format

READ_ONLY_SUFFIXES = frozenset({".gif"})
PICTURE_SUFFIXES = frozenset(FILE_FORMATS) | READ_ONLY_SUFFIXES
AnyPath = TypeVar("AnyPath", bound=PurePath)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to enlarge: its file, the one to make, and where work on disk lies; None: beside that."""

    source: Path
    target: Path
    work: Path | None = None


def plan_jobs(inputs: Sequence[Path], output: str) -> list[Job]:
    """Map files and folders to output files.

    A folder is searched at every depth and its structure is kept; hidden files, and the output folder where it lies
    inside, are left out. A file keeps its name; a format that can be read but not written becomes PNG (`writable`).

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
    check_apart([(str(job.source), str(job.target)) for job in jobs], lambda place: str(Path(place).resolve()))
    for job in jobs:
        if job.target.is_dir():
            raise InputError(f"{job.target}: a folder of this name is in the way of an output file.")
    return jobs


def _is_folder(output: str) -> bool:
    return Path(output).is_dir() or output.endswith(("/", "\\")) or not Path(output).suffix


def _output_folder(folder: Path) -> Path:
    if folder.is_file() or (not folder.is_dir() and folder.suffix.lower() in PICTURE_SUFFIXES):
        raise a_folder_is_needed(str(folder))
    return folder


def _expand(path: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    """Yield (file, its name relative to the output folder) for a file or all pictures below a folder."""
    if path.is_file():
        yield path, writable(Path(path.name))
        return
    inside = output.resolve() if path.resolve() in output.resolve().parents else None
    names = [file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES]
    found = [
        name
        for name in sorted(names)
        if not any(part.startswith(".") for part in name.parts)
        and (path / name).is_file()
        and (inside is None or inside not in (path / name).resolve().parents)
    ]
    if not found:
        raise no_picture(str(path))
    yield from ((path / name, writable(name, found)) for name in found)


def a_folder_is_needed(output: str) -> InputError:
    """Return the refusal of a file's name as the output of several pictures."""
    return InputError(f"{output}: several pictures need a folder to go to, and this names a file.")


def no_picture(folder: str) -> InputError:
    """Return the refusal of a folder without pictures."""
    known = ", ".join(sorted(PICTURE_SUFFIXES))
    return InputError(f"{folder}: the folder holds no picture; accepted are {known}.")


def writable(name: AnyPath, beside: Collection[AnyPath] = ()) -> AnyPath:
    """Return a file's name as its output has it: what can be read but not written becomes PNG.

    Its suffix stays where a PNG of that name is among those `beside` it: a.gif, beside a.png, becomes a.gif.png.
    """
    if name.suffix.lower() in FILE_FORMATS:
        return name
    made = name.with_suffix(".png")
    return name.with_name(f"{name.name}.png") if made in beside else made


def check_apart(pairs: Sequence[tuple[str, str]], full: Callable[[str], str]) -> None:
    """Check that no output is an input, nor that of two inputs.

    Args:
        pairs: inputs and their outputs, as the user would write them.
        full: returns the one name of a place.

    Raises:
        InputError: naming the first that is.
    """
    sources = {full(source) for source, _ in pairs}
    taken: dict[str, str] = {}
    for source, target in pairs:
        place = full(target)
        if place in sources:
            raise InputError(f"{target}: this output is an input too; give another folder or name.")
        if place in taken:
            raise InputError(f"{taken[place]} and {source} would both become {target}; enlarge them apart.")
        taken[place] = source

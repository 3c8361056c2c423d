"""Files that survive a kill: atomic writes, hashes, and safetensors that carry their own metadata."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tudsr.errors import InputError, ModelError

try:
    import fcntl
except ImportError:  # of Windows
    fcntl = None  # type: ignore[assignment]

FP16 = ".fp16.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_METADATA = "tudsr"
_HELD = r"\.tudsr-[0-9a-f]{32}"
"""A stem of `atomic_path` for a file that is locked for as long as its writer lives."""
_TEMPORARY = rf"{_HELD}|\.[0-9a-f]{{32}}|\.tmp\w{{6}}"
"""The same, one that is not locked, and safetensors' own."""
_tidied: set[Path] = set()


def check_folder(folder: Path) -> None:
    """Check before any work that a folder is one to write to, or can be made.

    Raises:
        InputError: when a file is in its way, or its permissions are.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"{folder}: a folder to write to is expected, and {there} is a file.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: a folder to write to is expected, and {there} may not be written to.")


@contextlib.contextmanager
def atomic_path(path: Path, *, replaced: bool = False) -> Iterator[Path]:
    """Yield a temporary file beside `path` with its suffix; on success it is renamed to `path`, else removed.

    Once per process and folder, what killed processes left there is removed, where there are file locks to tell it by.

    Args:
        path: to write.
        replaced: whether its writer puts another file in the temporary one's place, which no lock would hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy(path.parent)
    with _free(path) if replaced else _held(path) as temporary:
        mode = temporary.stat().st_mode
        try:
            yield temporary
            temporary.chmod(stat.S_IMODE(mode))  # safetensors' own file is for nobody but its owner
            with temporary.open("rb+") as file:  # a rename that outlives a power cut must not outlive the contents
                os.fsync(file.fileno())
            os.replace(temporary, path)  # noqa: PTH105 - replaces and, unlike Path.rename, says so on every platform
        finally:
            temporary.unlink(missing_ok=True)


def _tidy(folder: Path) -> None:
    """Remove temporary files whose writers are dead: once, since a folder may hold a million files.

    A file's age would not tell a dead writer from a stopped one, nor let a run that follows at once tidy up.
    """
    if folder not in _tidied:
        _tidied.add(folder)
        for path in folder.glob(".tudsr-*"):
            if re.fullmatch(_HELD, path.stem):
                _remove_left(path)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[Path]:
    """Yield a new file, which is locked meanwhile where that can be done."""
    # Not the target's name: a long one must stay writable.
    temporary = path.with_name(f".tudsr-{uuid.uuid4().hex}{path.suffix}")
    with temporary.open("xb") as file:
        if fcntl is not None and _lock(file, temporary):
            yield temporary
            return
    temporary.unlink(missing_ok=True)
    with _free(path) as unlocked:
        yield unlocked


@contextlib.contextmanager
def _free(path: Path) -> Iterator[Path]:
    """Yield a new file that is not locked."""
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    temporary.touch()
    yield temporary


def _lock(file: IO[bytes], path: Path) -> bool:
    """Lock a file that was just made; False where locks are unknown, or let nobody write it, as SMB's."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for probe in (b"-", b""):
            path.write_bytes(probe)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())  # else another took it for one that was left
    except OSError:
        return False


def _remove_left(temporary: Path) -> None:
    """Remove a temporary file, unless its writer lives."""
    if fcntl is not None:
        with contextlib.suppress(OSError), temporary.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


def sweep_temporary(folder: Path) -> None:
    """Remove what kills left of `atomic_path` right below a folder that nobody else writes to."""
    for path in folder.glob(".*"):
        if re.fullmatch(_TEMPORARY, path.stem):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success it takes the place of `path`, else it is removed.

    A kill leaves the old folder or the new one, whole, under one of the two names; only between two renames is there
    none under `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (path.with_name(f".{path.name}.{word}") for word in ("new", "old"))
    for rest in (fresh, old):
        shutil.rmtree(rest, ignore_errors=True)
    fresh.mkdir()
    try:
        yield fresh
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; of a file's name that is no text, the escape that JSON has for it."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def save_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
    """Save tensors as safetensors, atomically.

    Args:
        path: the file.
        tensors: name → tensor.
        metadata: name → JSON value, kept in the file's header under one key.
    """
    from safetensors.torch import save_file

    # One key only: safetensors writes several in random order, and equal files should have equal hashes.
    header = {_METADATA: json.dumps(metadata, sort_keys=True)} if metadata else None
    with atomic_path(path, replaced=True) as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary, header)


def load_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load what `save_tensors` wrote: (tensors, metadata).

    Raises:
        ModelError: when the file is missing, a pickle or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise ModelError(f"{path}: no such file.")
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: only .safetensors files are loaded; a pickle can run code, so convert it first.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            metadata = json.loads(header[_METADATA]) if _METADATA in header else dict(header)
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}).") from error


def find_weights(folder: Path) -> list[Path]:
    """Return the .safetensors files of one part of a diffusers folder, sorted; fp16 variants only where all are."""
    found = sorted(folder.glob("*.safetensors"))
    return [path for path in found if not path.name.endswith(FP16)] or found


def pickles(folder: Path, stem: str = "*") -> list[str]:
    """Return the sorted names of the files in a folder that are pickles by their suffix, of that stem (a glob)."""
    return sorted(path.name for path in folder.glob(f"{stem}.*") if path.suffix in PICKLES)


def weights_variant(folder: Path) -> str | None:
    """Return the `variant` by which diffusers and transformers find what `find_weights` does."""
    return "fp16" if any(path.name.endswith(FP16) for path in find_weights(folder)) else None


def tensor_reader(paths: Iterable[Path]) -> Callable[[str], Any]:
    """Return what reads one tensor by its name, each time anew, from safetensors files, which are mapped into memory.

    Raises:
        ModelError: now or on reading, when a file is missing or damaged, or none has a tensor of that name.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: not a readable safetensors file ({error}).") from error

    def read(name: str) -> Any:
        if name not in found:
            raise ModelError(f"{', '.join(map(str, set(found.values())))}: holds no weight {name!r}.")
        try:
            with safe_open(found[name], framework="pt") as file:  # closed again: mapped pages count as resident memory
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{found[name]}: {name!r} cannot be read again ({error}).") from error

    return read


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_hashes(folder: Path) -> dict[str, str]:
    """Return {relative POSIX path: SHA-256} of every .safetensors file below a folder."""
    files = sorted(path for path in folder.rglob("*.safetensors") if not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def verify_hashes(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """Return one line per weight file that is missing, changed or not listed; an empty list means all is well."""
    found = weight_hashes(folder)
    lines = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name}: not listed in tudsr.json" for name in sorted(found.keys() - expected.keys())]
    changed = (name for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name])
    return lines + [f"{name}: SHA-256 is {found[name]}, tudsr.json says {expected[name]}" for name in changed]

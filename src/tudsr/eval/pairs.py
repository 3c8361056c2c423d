"""Which pictures belong together: inputs, true pictures and foreign outputs, by file stem."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tudsr.data.photos import PHOTO_SUFFIXES, find_photos
from tudsr.errors import InputError
from tudsr.image import read_picture
from tudsr.resize import output_size

SECONDS_JSON = "seconds.json"
"""What each output in a folder took, see `methods.foreign`: the one file beside pictures that goes without saying."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that was left out, or a figure that could not be taken of it, and why."""

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One input with what it is compared to; `outputs` are foreign methods' files, by the method's name."""

    name: str
    lq: Path
    gt: Path | None
    outputs: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A pair's pixels.

    Attributes:
        lq: (1, 3, h, w) float32 in [-1, 1].
        gt: (1, 3, H, W) float32 in [-1, 1], H and W being those of an output; or None.
    """

    lq: Tensor
    gt: Tensor | None


def find_pairs(
    lq: Path, gt: Path | None, outputs: Mapping[str, Path], limit: int | None = None
) -> tuple[list[Pair], list[Skipped]]:
    """Pair files by their stem, whatever their suffix and subfolder.

    An input without a true picture is left out where true pictures are given; one without a foreign output is kept,
    and that method lacks it.

    Args:
        lq: folder of inputs.
        gt: folder of true pictures, or None.
        outputs: method → folder of its outputs.
        limit: keep the first so many pairs.

    Returns:
        The pairs, sorted by the input's path, and what has no partner or another suffix than pictures have. Partners
        that only `limit` left out count as found.

    Raises:
        DataError: when one of the folders is not there or holds no picture.
    """
    skipped: list[Skipped] = []
    inputs = _by_stem(lq, skipped)
    truths = _by_stem(gt, skipped) if gt is not None else None
    foreign = {name: _by_stem(folder, skipped) for name, folder in outputs.items()}
    partners = [*([] if truths is None else [truths]), *foreign.values()]
    for found in partners:
        skipped += [
            Skipped(file=str(path), reason=f"no input of this name in {lq}")
            for stem, path in found.items()
            if stem not in inputs
        ]
    pairs: list[Pair] = []
    for stem, path in inputs.items():
        if limit is not None and len(pairs) == limit:
            break
        if truths is not None and stem not in truths:
            skipped.append(Skipped(file=str(path), reason=f"no true picture of this name in {gt}"))
            continue
        skipped += [
            Skipped(file=str(path), reason=f"no output of {name} of this name in {outputs[name]}")
            for name, found in foreign.items()
            if stem not in found
        ]
        own = {name: found[stem] for name, found in foreign.items() if stem in found}
        pairs.append(Pair(name=stem, lq=path, gt=truths[stem] if truths is not None else None, outputs=own))
    return pairs, skipped


def _by_stem(folder: Path, skipped: list[Skipped]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PHOTO_SUFFIXES:
            if path.is_symlink() and not path.exists():
                skipped.append(Skipped(file=str(path), reason="a link to nothing"))
        elif path.is_file() and path.name != SECONDS_JSON and not path.name.startswith("."):
            known = ", ".join(sorted(PHOTO_SUFFIXES))
            skipped.append(Skipped(file=str(path), reason=f"not of a kind that is measured ({known})"))
    for path in find_photos(folder):
        first = found.setdefault(path.stem, path)
        if first != path:
            skipped.append(Skipped(file=str(path), reason=f"{first} has this name too, and the first one is taken"))
    return found


def readable(pairs: Sequence[Pair], scale: float) -> tuple[list[Pair], list[Skipped]]:
    """Sort out the pairs whose input or true picture cannot be read, or whose sizes do not belong together.

    Args:
        pairs: from `find_pairs`.
        scale: ratio of output to input.

    Returns:
        The pairs that are left, and why the others are not.
    """
    kept, skipped = [], []
    for pair in pairs:
        try:
            read_pair(pair, scale)
        except InputError as error:
            skipped.append(Skipped(file=str(pair.lq), reason=str(error)))
        else:
            kept.append(pair)
    return kept, skipped


def read_pair(pair: Pair, scale: float) -> Loaded:
    """Read an input and its true picture.

    A true picture that is larger than the output by less than `scale` px a side, the input having been made of a
    size that `scale` does not divide, is cropped at its bottom and right.

    Args:
        pair: from `find_pairs`.
        scale: ratio of output to input, from 1.

    Raises:
        InputError: when one cannot be read, or their sizes differ by more than that.
    """
    lq = read_picture(pair.lq).pixels
    if pair.gt is None:
        return Loaded(lq=lq, gt=None)
    height, width = output_size(lq.shape[-2], lq.shape[-1], scale)
    gt = read_picture(pair.gt).pixels
    excess = gt.shape[-2] - height, gt.shape[-1] - width
    if min(excess) < 0 or max(excess) >= scale:
        raise InputError(
            f"differs in size: {pair.gt} has {gt.shape[-1]}x{gt.shape[-2]} px, and x{scale:g} of "
            f"{lq.shape[-1]}x{lq.shape[-2]} px makes {width}x{height}"
        )
    return Loaded(lq=lq, gt=gt[..., :height, :width])


def read_output(path: Path, height: int, width: int) -> Tensor:
    """Read an output of a known size.

    Args:
        path: its file.
        height: rows that it must have, in pixels.
        width: columns that it must have, in pixels.

    Returns:
        (1, 3, height, width) float32 in [-1, 1].

    Raises:
        InputError: when it cannot be read or has another size.
    """
    sr = read_picture(path).pixels
    if sr.shape[-2:] != (height, width):
        raise InputError(f"differs in size: {sr.shape[-1]}x{sr.shape[-2]} px came, {width}x{height} is expected")
    return sr

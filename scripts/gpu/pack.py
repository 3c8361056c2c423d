"""Pack what a GPU machine without a network needs into parts of .pack/, each small enough to be carried by itself.

    python scripts/gpu/pack.py --photos ../shared/data/train --weights ../shared/data/weights \
        --set kodak=PAIRS --set realsr=PAIRS --peer ../shared/data/weights/peers/realesr-general-x4v3.safetensors

Wheels, loss weights, the photos' most detailed squares, test sets (`lq/` and, where there is one, `gt/`) and peers'
weights fill the parts in this order: the first ones are enough to train, all of them to evaluate. Parts have one layout
and are merged by setup.sh.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tudsr.data.dataset import ValidationSet
from tudsr.data.photos import find_photos
from tudsr.machine import commit

PACK = Path(__file__).resolve().parents[2] / ".pack"
WHEELS = (
    "diffusers", "peft", "pydantic", "pydantic_core", "typing-inspection", "annotated-types", "annotated-doc",
    "importlib_metadata", "zipp",
)  # fmt: skip
WEIGHTS = ("lpips_vgg16.safetensors", "lpips_alexnet.safetensors")
PEERS = ("spandrel==0.4.2",)  # not a dependency of ours, hence not among the constraints
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


class Parts:
    """Folders of at most so many bytes, filled one after the other."""

    def __init__(self, most_bytes: float) -> None:
        self.most_bytes, self.number, self.spent = most_bytes, 1, 0

    def add(self, file: Path, place: str) -> None:
        """Move a file into a part, under the place that it has in every part."""
        size = file.stat().st_size
        if self.spent and self.spent + size > self.most_bytes:
            self.number, self.spent = self.number + 1, 0
        target = PACK / f"part-{self.number}" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
        self.spent += size


def wheels(folder: Path, python: str) -> Iterator[tuple[Path, str]]:
    """Download the pinned wheels for another Python on x86-64 Linux."""
    pins = [line for line in Path("constraints.txt").read_text().split() if line.split("==")[0] in WHEELS]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command += [f"--python-version={python}", *(f"--platform={name}" for name in PLATFORMS)]
    subprocess.run([*command, *pins, *PEERS], check=True)
    for path in sorted(folder.iterdir()):
        yield path, f"wheels/{path.name}"


def squares(photos: Path, folder: Path, side: int, quality: int) -> Iterator[tuple[Path, str]]:
    """Cut the most detailed square out of every photo and save it as WebP."""
    for path in find_photos(photos):
        with Image.open(path) as picture:
            whole = min(side, *picture.size)
        crop = ValidationSet([path], crop_px=whole, scale=1, degradation="light", seed=0)
        values = crop[0]["gt"].add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(values).save(folder / "square.webp", quality=quality)
        # the photo's own name: a run sets aside the same ones for validation
        yield folder / "square.webp", f"photos/{path.relative_to(photos).with_suffix('.webp')}"


def copies(files: list[tuple[Path, str]], folder: Path) -> Iterator[tuple[Path, str]]:
    """Copy files that are there."""
    for path, place in files:
        yield Path(shutil.copy(path, folder / "copy")), place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="NAME=DIR")
    parser.add_argument("--peer", action="append", default=[], type=Path, metavar="FILE")
    parser.add_argument("--side", type=int, default=1000)
    parser.add_argument("--quality", type=int, default=93)
    parser.add_argument("--part-mb", type=float, default=41)
    parser.add_argument("--python", default="3.12")
    args = parser.parse_args()
    shutil.rmtree(PACK, ignore_errors=True)
    scratch = PACK / "scratch"
    scratch.mkdir(parents=True)
    (scratch / "commit").write_text(commit())
    files = [(args.weights / name, f"weights/{name}") for name in WEIGHTS]
    tests = [
        (path, f"sets/{name}/{kind}/{path.name}")
        for name, folder in (text.split("=", 1) for text in args.sets)
        for kind in ("lq", "gt")
        for path in sorted(Path(folder, kind).glob("*"))
    ]
    peers = [(path, f"peers/{path.name}") for path in args.peer]
    parts = Parts(args.part_mb * 1e6)
    parts.add(scratch / "commit", "commit")
    (scratch / "wheels").mkdir()
    for source in (
        wheels(scratch / "wheels", args.python), copies(files, scratch),
        squares(args.photos, scratch, args.side, args.quality), copies(tests + peers, scratch),
    ):  # fmt: skip
        for path, place in source:
            parts.add(path, place)
    shutil.rmtree(scratch)
    for part in sorted(PACK.iterdir()):
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        print(f"{part}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

"""Pack photos (crops), loss weights and wheels into .pack/ for a GPU machine without a network.

python scripts/gpu/pack.py --photos ../shared/data/train --weights ../shared/data/weights --side 640 --budget-mb 40
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tudsr.data.dataset import ValidationSet
from tudsr.data.photos import find_photos

PACK = Path(__file__).resolve().parents[2] / ".pack"
WHEELS = ("diffusers", "peft", "pydantic", "pydantic-core", "typing-inspection", "annotated-types")
WEIGHTS = ("lpips_vgg16.safetensors", "lpips_alexnet.safetensors")


def pack_photos(photos: Path, side: int, quality: int, budget_mb: float) -> None:
    """Keep the most detailed square of every photo, as WebP, until the budget is used up."""
    target = PACK / "photos"
    target.mkdir(parents=True, exist_ok=True)
    spent = 0
    for path in find_photos(photos):
        out = target / f"{path.parent.name}-{path.stem}.webp"
        if not out.exists():
            crops = ValidationSet([path], crop_px=side, scale=1, degradation="light", seed=0, crop="detail")
            values = crops[0]["gt"].add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(values).save(out, quality=quality)
        spent += out.stat().st_size
        if spent > budget_mb * 1e6:
            out.unlink()
            break
    print(f"{len(list(target.iterdir()))} photos, {spent / 1e6:.1f} MB")


def pack_wheels(python: str) -> None:
    """Download the pinned wheels for another Python on x86-64 Linux."""
    pins = dict(line.split("==") for line in Path("constraints.txt").read_text().split() if "==" in line)
    platforms = [
        f"--platform={name}" for name in ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
    ]
    for name in WHEELS:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        command += [f"--python-version={python}", *platforms, "-d", str(PACK / "wheels"), f"{name}=={pins[name]}"]
        subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--quality", type=int, default=92)
    parser.add_argument("--budget-mb", type=float, default=24)
    parser.add_argument("--python", default="3.12")
    args = parser.parse_args()
    pack_photos(args.photos, args.side, args.quality, args.budget_mb)
    (PACK / "weights").mkdir(exist_ok=True)
    for name in WEIGHTS:
        shutil.copyfile(args.weights / name, PACK / "weights" / name)
    pack_wheels(args.python)
    total = sum(path.stat().st_size for path in PACK.rglob("*") if path.is_file())
    print(f"{PACK}: {total / 1e6:.1f} MB in all")


if __name__ == "__main__":
    main()

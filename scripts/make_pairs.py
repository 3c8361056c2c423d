"""Make training pairs once that would cost degrading them anew in every run: photos, or a teacher's pictures, and LQ.

    python scripts/make_pairs.py PHOTOS OUT [--teacher WEIGHTS.safetensors [--low-sigma 8]] [--ratio 4] [--crops 6]
        [--mix light=0.8 heavy=0.2] [--exclude NAME ...]

Reads the photos as a run does (the same ones are set aside for validation), cuts crops of 512 px, degrades them as the
presets do and writes OUT/lq and OUT/gt, for `tudsr train --set pairs=OUT`. With --teacher, the ground truth is what
that x4 model made of the LQ picture (at other ratios: run twice and brought down), to learn from it. That needs
spandrel, whose torchvision must not stand beside diffusers in the project's own environment: give it a folder of its
own and name it in PYTHONPATH.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

from tudsr.data.degradation import DegradationMix, degrade
from tudsr.data.photos import decode_photo, find_photos, split_photos
from tudsr.device import pick_dtype
from tudsr.errors import InputError

SIDE_PX = 512


def teacher(weights: Path) -> torch.nn.Module:
    """Load a x4 model, in bf16 where this CPU computes it natively.

    Two operators that torchvision's import asks for are declared, never called.
    """
    stubs = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        stubs.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from spandrel import ModelLoader

    state = {key: value.float() for key, value in load_file(weights).items()}
    model = ModelLoader().load_from_state_dict(state).model.eval()
    return model.to(pick_dtype("auto", torch.device("cpu")), memory_format=torch.channels_last)


def enlarge(model: torch.nn.Module, lq: torch.Tensor, ratio: int) -> torch.Tensor:
    """Return the teacher's picture of (3, h, w) in [-1, 1], `ratio` times as large."""
    dtype = next(model.parameters()).dtype
    sr = ((lq + 1) / 2)[None].to(dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        while sr.shape[-1] < ratio * lq.shape[-1]:
            sr = model(sr).clamp(0, 1)
    return F.interpolate(sr.float(), scale_factor=ratio * lq.shape[-1] / sr.shape[-1], mode="area")[0] * 2 - 1


def with_low_of(photo: torch.Tensor, picture: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return a (3, H, W) picture whose low frequencies are the photo's: tones a teacher got wrong are not learned."""
    blurred = gaussian_filter((photo - picture).numpy(), (0, sigma, sigma), mode="nearest")
    return picture + torch.from_numpy(blurred)


def save(path: Path, picture: torch.Tensor) -> None:
    """Write (3, H, W) in [-1, 1] as an 8-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, compress_level=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", type=Path, help="weights of a x4 model; without it, the photos are the truth")
    parser.add_argument("--low-sigma", type=float, help="px; the teacher's picture gets what is coarser from the photo")
    parser.add_argument("--ratio", type=int, default=4, help="of gt to lq")
    parser.add_argument("--exclude", nargs="*", default=[])
    parser.add_argument("--val-count", type=int, default=12)
    parser.add_argument("--crops", type=int, default=6, help="of each photo")
    parser.add_argument("--limit", type=int, help="photos, the first ones")
    parser.add_argument("--mix", nargs="*", default=["light=0.8", "heavy=0.2"], help="degradations and their weights")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    found = [path for path in find_photos(args.photos) if not any(part in path.as_posix() for part in args.exclude)]
    weights = {name: float(weight) for name, _, weight in (part.partition("=") for part in args.mix)}
    mix = DegradationMix(weights=weights)
    paths = split_photos(found, args.val_count, seed=0, root=args.photos)[0][: args.limit]
    model, begun = args.teacher and teacher(args.teacher), time.perf_counter()
    for photo, path in enumerate(paths):
        try:
            pixels = decode_photo(path)
        except InputError as error:
            print(f"{error}; skipped", flush=True)
            continue
        for crop in range(args.crops):
            index = photo * args.crops + crop
            rng = np.random.default_rng((args.seed, index))
            top, left = (int(rng.integers(side - SIDE_PX + 1)) for side in pixels.shape[:2])
            square = pixels[top : top + SIDE_PX, left : left + SIDE_PX]
            gt = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1
            side = SIDE_PX // args.ratio
            lq = degrade(gt, side, side, preset=mix, seed=args.seed, index=index)
            lq = ((lq.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1  # what its file will hold
            save(args.out / "lq" / f"{index:05d}.png", lq)
            target = enlarge(model, lq, args.ratio) if model else gt
            if args.low_sigma:
                target = with_low_of(gt, target, args.low_sigma)
            save(args.out / "gt" / f"{index:05d}.png", target)
        print(f"{photo + 1}/{len(paths)} photos, {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""Make training pairs once that would cost degrading them anew in every run: photos, or a teacher's pictures, and LQ.

    python scripts/make_pairs.py PHOTOS OUT [--teacher WEIGHTS.safetensors [--low-sigma 8] [--true-share 0.6]]
        [--ratio 4] [--crops 6] [--mix light=0.8 heavy=0.2] [--exclude NAME ...] [--workers 1]

Reads the photos as a run does (the same ones are set aside for validation), cuts crops of 512 px, degrades them as the
presets do and writes OUT/lq and OUT/gt, for `tudsr train --set pairs=OUT`. With --teacher, the ground truth is what
that x4 model made of the LQ picture (at other ratios: run twice and brought down), to learn from it; --true-share of
the LQ pictures come a second time, with their photos. That needs spandrel, whose torchvision must not stand beside
diffusers in the project's own environment: give it a folder of its own and name it in PYTHONPATH.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from torch.utils.data import DataLoader, Dataset

from tudsr.data.degradation import DegradationMix, degrade
from tudsr.data.photos import PhotoStore, Pixels, find_photos, split_photos
from tudsr.device import pick_device, pick_dtype

SIDE_PX = 512


def teacher(weights: Path, device: torch.device) -> torch.nn.Module:
    """Load a x4 model, in fp16 on CUDA (bf16's steps would show in its pictures), in bf16 where a CPU computes it.

    Where torchvision was built for another torch, two operators that its import asks for are declared, never called.
    """
    try:
        import torchvision  # noqa: F401 - to see whether it can be
    except RuntimeError:
        stubs = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            stubs.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from spandrel import ModelLoader

    state = {key: value.float() for key, value in load_file(weights).items()}
    dtype = torch.float16 if device.type == "cuda" else pick_dtype("auto", device)
    return ModelLoader().load_from_state_dict(state).model.eval().to(device, dtype, memory_format=torch.channels_last)


class Crops(Dataset[list[dict[str, Any]]]):
    """Squares of each photo and their LQ pictures, which depend on the seed and their index alone.

    An item is a photo's list of dicts: `gt` (3, 512, 512) and `lq`, float32 in [-1, 1], the latter of whole levels of
    255, as its file will hold it; `index`. Of a photo that is broken it is empty.
    """

    def __init__(self, paths: Sequence[Path], crops: int, ratio: int, mix: DegradationMix, seed: int) -> None:
        self._photos = PhotoStore(paths, SIDE_PX, cache_mb=0)
        self._crops, self._side, self._mix, self._seed = crops, SIDE_PX // ratio, mix, seed

    def __len__(self) -> int:
        return len(self._photos.paths)

    def __getitem__(self, photo: int) -> list[dict[str, Any]]:
        pixels = self._photos.get(photo)
        numbers = range(photo * self._crops, (photo + 1) * self._crops)
        return [] if pixels is None else [self._crop(pixels, index) for index in numbers]

    def _crop(self, pixels: Pixels, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self._seed, index))
        top, left = (int(rng.integers(side - SIDE_PX + 1)) for side in pixels.shape[:2])
        square = np.array(pixels[top : top + SIDE_PX, left : left + SIDE_PX])
        gt = torch.from_numpy(square).permute(2, 0, 1).float() / 127.5 - 1
        lq = degrade(gt, self._side, self._side, preset=self._mix, seed=self._seed, index=index)
        return {"index": index, "gt": gt, "lq": ((lq.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1}


@torch.inference_mode()
def enlarge(model: torch.nn.Module, lq: torch.Tensor, ratio: int) -> torch.Tensor:
    """Return the teacher's picture of (3, h, w) in [-1, 1], `ratio` times as large, on the CPU."""
    own = next(model.parameters())
    sr = ((lq + 1) / 2)[None].to(own.device, own.dtype, memory_format=torch.channels_last)
    while sr.shape[-1] < ratio * lq.shape[-1]:
        sr = model(sr).clamp(0, 1)
    sr = F.interpolate(sr.float(), scale_factor=ratio * lq.shape[-1] / sr.shape[-1], mode="area")
    return sr[0].cpu() * 2 - 1


def with_low_of(photo: torch.Tensor, picture: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return a (3, H, W) picture whose low frequencies are the photo's: tones a teacher got wrong are not learned."""
    blurred = gaussian_filter((photo - picture).numpy(), (0, sigma, sigma), mode="nearest")
    return picture + torch.from_numpy(blurred)


def save(path: Path, picture: torch.Tensor) -> None:
    """Write (3, H, W) in [-1, 1] as an 8-bit PNG."""
    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, compress_level=1)


def write(out: Path, sample: dict[str, Any], taught: torch.Tensor | None, low_sigma: float | None, true: bool) -> None:
    """Write the pairs of one sample: with the teacher's picture, with the photo, or one of each."""
    targets = {}
    if taught is not None:
        targets[f"{sample['index']:05d}"] = with_low_of(sample["gt"], taught, low_sigma) if low_sigma else taught
    if true:
        targets[f"{sample['index']:05d}{'' if taught is None else 't'}"] = sample["gt"]
    for name, target in targets.items():
        save(out / "lq" / f"{name}.png", sample["lq"])
        save(out / "gt" / f"{name}.png", target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", type=Path, help="weights of a x4 model; without it, the photos are the truth")
    parser.add_argument("--low-sigma", type=float, help="px; the teacher's picture gets what is coarser from the photo")
    parser.add_argument("--true-share", type=float, default=0.0, help="of LQ pictures that also come with their photo")
    parser.add_argument("--ratio", type=int, default=4, help="of gt to lq")
    parser.add_argument("--exclude", nargs="*", default=[])
    parser.add_argument("--val-count", type=int, default=12)
    parser.add_argument("--crops", type=int, default=6, help="of each photo")
    parser.add_argument("--limit", type=int, help="photos, the first ones")
    parser.add_argument("--mix", nargs="*", default=["light=0.8", "heavy=0.2"], help="degradations and their weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that degrade")
    args = parser.parse_args()
    if args.teacher is None and (args.low_sigma or args.true_share):
        parser.error("--low-sigma and --true-share go with --teacher")
    found = [path for path in find_photos(args.photos) if not any(part in path.as_posix() for part in args.exclude)]
    weights = {name: float(weight) for name, _, weight in (part.partition("=") for part in args.mix)}
    paths = split_photos(found, args.val_count, seed=0, root=args.photos)[0][: args.limit]
    photos = Crops(paths, args.crops, args.ratio, DegradationMix(weights=weights), args.seed)
    for kind in ("gt", "lq"):
        (args.out / kind).mkdir(parents=True, exist_ok=True)
    model, begun = args.teacher and teacher(args.teacher, pick_device()), time.perf_counter()
    with ThreadPoolExecutor(max(1, args.workers)) as pool:
        for done, samples in enumerate(DataLoader(photos, batch_size=None, num_workers=args.workers), 1):
            written = []
            for sample in samples:
                taught = enlarge(model, sample["lq"], args.ratio) if model else None
                index = sample["index"]  # those that come with their photo are spread evenly, the same in every run
                true = model is None or int((index + 1) * args.true_share) > int(index * args.true_share)
                written.append(pool.submit(write, args.out, sample, taught, args.low_sigma, true))
            for one in written:
                one.result()
            print(f"{done}/{len(photos)} photos, {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""Seconds per output megapixel of a peer at ×4, warm, on one picture of noise; beside upscale.py's.

    python benchmarks/peer_time.py WEIGHTS.safetensors --side 256 --dtype bf16 --out FILE

Needs the package spandrel, which the project does not: peers belong into an environment of their own.
"""

import argparse
import time
from pathlib import Path

import machine
import torch
from safetensors.torch import load_file

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--side", type=int, default=256, help="of the square input, px")
    parser.add_argument("--dtype", choices=_DTYPES, default="bf16")
    parser.add_argument("--runs", type=int, default=5, help="after one that warms up")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    # torchvision's Python part registers shapes for these, also where its own binaries, of another build, are missing.
    stubs = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        stubs.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from spandrel import ModelLoader

    state = {name: tensor.float() for name, tensor in load_file(args.weights).items()}
    net = ModelLoader().load_from_state_dict(state).model.eval()
    net.to(dtype=_DTYPES[args.dtype], memory_format=torch.channels_last)
    picture = torch.rand(1, 3, args.side, args.side, generator=torch.Generator().manual_seed(0))
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + args.runs):
            begun = time.perf_counter()
            out = net(picture.to(_DTYPES[args.dtype]).to(memory_format=torch.channels_last)).float()
            seconds.append(time.perf_counter() - begun)
    megapixels = out.shape[-1] * out.shape[-2] / 1e6
    found = machine.spread(seconds[1:])
    result = {
        "benchmark": "peer_time", "peer": args.weights.stem, "dtype": args.dtype, "in_px": [args.side] * 2,
        "out_px": list(out.shape[-2:]), "seconds": found,
        "seconds_per_megapixel": round(found["median"] / megapixels, 4),
    }  # fmt: skip
    machine.write(args.out, result)

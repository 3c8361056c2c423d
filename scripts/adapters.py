"""Arithmetic on a small model's adapters: mix two, put one into the base, or take what a base learned out of it.

    python scripts/adapters.py mix MODEL OTHER OUT --stage 1 --share 0.6
    python scripts/adapters.py fold MODEL OUT
    python scripts/adapters.py split CLEAN SHARP OUT

`mix`: (1 - share) of MODEL's weight changes and share of OTHER's, brought back to the adapter's rank.
`fold`: LoRA-1 becomes part of the base, and both adapters fresh, so that `--set train=base` can go on from there.
`split`: LoRA-1 becomes the nearest of its rank to what turned CLEAN's base into SHARP's, and the base is SHARP's less
that: base and LoRA-1 together are SHARP's base, the base alone is nearly CLEAN's. LoRA-2 becomes the nearest to what
makes the new base CLEAN's with its LoRA-2.

Source of mix: network interpolation of Wang et al., «ESRGAN», 2018, section 3.4.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from tudsr import lora
from tudsr.checkpoint import replaced_folder
from tudsr.folder import Model, load_model, save_model

FIRST, SECOND = lora.STAGES
FOLDED = "LoRA-1 folded into the base; both adapters reset to the identity"
SPLIT = "what the base learned since it was clean moved into LoRA-1"


def nearest(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A, (rank, in), and B, (out, rank), whose product is nearest to a matrix, (out, in)."""
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    kept, root = min(rank, len(s)), s[:rank].sqrt()
    a, b = torch.zeros(rank, v.shape[1]), torch.zeros(u.shape[0], rank)
    a[:kept], b[:, :kept] = root[:, None] * v[:kept], u[:, :kept] * root
    return a, b


def put(layer: Any, name: str, change: torch.Tensor) -> None:
    """Set one layer's adapter to the nearest to a change of its weight."""
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    new_a, new_b = nearest(change.flatten(1) / layer.scaling[name], len(a))
    a.copy_(new_a.view_as(a))
    b.copy_(new_b.view_as(b))


def mix(model: Model, other: Model, name: str, share: float) -> None:
    """Mix one stage's adapters of two models of the same base, into the first."""
    theirs = lora.layers(other.backbone.unet, name)
    for key, layer in lora.layers(model.backbone.unet, name).items():
        put(layer, name, (1 - share) * lora.delta_weight(layer, name) + share * lora.delta_weight(theirs[key], name))


def fold(model: Model) -> None:
    """Add LoRA-1 to the base and make both adapters the identity."""
    for layer in lora.layers(model.backbone.unet, FIRST).values():
        layer.get_base_layer().weight += lora.delta_weight(layer, FIRST)
    for name in lora.STAGES:
        for layer in lora.layers(model.backbone.unet, name).values():
            layer.lora_B[name].weight.zero_()


def split(clean: Model, sharp: Model) -> None:
    """Split the sharp model's base into a nearly clean one and LoRA-1."""
    cleans = lora.layers(clean.backbone.unet, SECOND)
    for key, layer in lora.layers(sharp.backbone.unet, FIRST).items():
        own, was = layer.get_base_layer().weight, cleans[key].get_base_layer().weight
        put(layer, FIRST, own - was)
        own -= lora.delta_weight(layer, FIRST)
        put(layer, SECOND, was + lora.delta_weight(cleans[key], SECOND) - own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("mix", "fold", "split"))
    parser.add_argument("models", type=Path, nargs="+", help="one to read for fold, two for mix and split; then OUT")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1, help="of mix")
    parser.add_argument("--share", type=float, default=1.0, help="of OTHER, 0 to 1")
    args = parser.parse_args()
    *sources, out = args.models
    if len(sources) != (1 if args.what == "fold" else 2):
        parser.error(f"{args.what}: {len(args.models)} folders were given.")
    models = [load_model(path, torch.device("cpu"), torch.float32) for path in sources]
    if any(one.config.lora != models[0].config.lora for one in models):
        raise SystemExit(f"{sources[1]}: its adapters have another rank, alpha or targets than {sources[0]}'s.")
    result, ours = models[-1 if args.what == "split" else 0], models[0].config.training
    phases = [one for one in models[-1].config.training if one["stage"] == args.stage and one not in ours]
    with torch.no_grad():
        if args.what == "mix":
            mix(*models, lora.STAGES[args.stage - 1], args.share)
            record = {"stage": args.stage, "interpolated": {"share": args.share, "with": phases}}
        elif args.what == "fold":
            fold(*models)
            record = {"stage": 1, "notes": [FOLDED]}
        else:
            split(*models)
            record = {"stage": 1, "notes": [SPLIT]}
    with replaced_folder(out) as folder:
        save_model(folder, result, torch.bfloat16, record)


if __name__ == "__main__":
    main()

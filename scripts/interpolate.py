"""Mix one stage's adapters of two models of the same base: between a clean one and a sharp one lies a better one.

    python scripts/interpolate.py MODEL OTHER OUT --stage 1 --share 0.6

The layers' weight changes are mixed, (1 - share) of MODEL's and share of OTHER's, and brought back to the adapter's
rank by a singular value decomposition. OTHER's training records of that stage go into OUT's.

Source: network interpolation of Wang et al., «ESRGAN», 2018, section 3.4.
"""

import argparse
from pathlib import Path

import torch

from tudsr import lora
from tudsr.checkpoint import replaced_folder
from tudsr.folder import load_model, save_model


def mixed(pairs: list[tuple[torch.Tensor, torch.Tensor, float]], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A, (rank, in), and B, (out, rank), whose product is nearest to the weighted sum of products B A."""
    change = sum(share * (b.flatten(1) @ a.flatten(1)) for a, b, share in pairs)
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    kept, root = min(rank, len(s)), s[:rank].sqrt()
    a, b = torch.zeros(rank, v.shape[1]), torch.zeros(u.shape[0], rank)
    a[:kept], b[:, :kept] = root[:, None] * v[:kept], u[:, :kept] * root
    return a, b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", type=int, choices=(1, 2), required=True)
    parser.add_argument("--share", type=float, required=True, help="of OTHER, 0 to 1")
    args = parser.parse_args()
    model, other = (load_model(path, torch.device("cpu"), torch.float32) for path in (args.model, args.other))
    if model.config.lora != other.config.lora:
        raise SystemExit(f"{args.other}: its adapters have another rank, alpha or targets than {args.model}'s.")
    name = f"stage_{args.stage}"
    theirs = lora.layers(other.backbone.unet, name)
    for key, layer in lora.layers(model.backbone.unet, name).items():
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        twin = theirs[key]
        their_a, their_b = twin.lora_A[name].weight, twin.lora_B[name].weight
        pairs = [(a, b, 1 - args.share), (their_a, their_b, args.share)]
        with torch.no_grad():
            new_a, new_b = mixed(pairs, len(a))
            a.copy_(new_a.view_as(a))
            b.copy_(new_b.view_as(b))
    ours = model.config.training
    phases = [one for one in other.config.training if one["stage"] == args.stage and one not in ours]
    record = {"stage": args.stage, "interpolated": {"share": args.share, "with": phases}}
    with replaced_folder(args.out) as folder:
        save_model(folder, model, torch.bfloat16, record)


if __name__ == "__main__":
    main()

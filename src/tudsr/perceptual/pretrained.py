"""Published feature networks that transformers runs: where they are, how they are loaded, their tokens as maps."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tudsr.errors import WeightsError, cause

HUB_IDS = {
    "dinov3": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    "dinov2": "facebook/dinov2-base",
    "convnext": "facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
}


def load_pretrained(weights: str | Path, types: Sequence[str], refused: str, remedy: str) -> nn.Module:
    """Load a model that is whole, in float32; only safetensors are read.

    Args:
        weights: a folder that transformers wrote, or a hub id.
        types: transformers' names of the types that are accepted.
        refused: how the sentence of an error begins.
        remedy: how it ends, where the model cannot be read.

    Raises:
        WeightsError: when it cannot be read, is of another type or lacks tensors.
    """
    import transformers  # slow to import, and most losses and the discriminator `patch` do without it
    from safetensors import SafetensorError

    try:
        found_type = transformers.AutoConfig.from_pretrained(str(weights)).model_type
        if found_type not in types:
            raise WeightsError(f"{refused}: it is of type {found_type!r}, {' or '.join(map(repr, types))} is expected.")
        net, report = transformers.AutoModel.from_pretrained(
            str(weights), use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise WeightsError(f"{refused} ({cause(error)}): {remedy}.") from error
    if report["missing_keys"]:
        raise WeightsError(f"{refused}: its file lacks {len(report['missing_keys'])} tensors; {remedy}.")
    return net  # type: ignore[no-any-return]


def token_map(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Lay a ViT's patch tokens back into a map; its class and register tokens, which come first, are left out.

    Args:
        tokens: (B, special + rows · columns, C).
        rows: of patches.
        columns: of patches.

    Returns:
        (B, C, rows, columns).
    """
    return tokens[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))

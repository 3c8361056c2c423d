"""What is the same for all windows of a run, computed once: the timestep's embeddings, the prompt's keys and values."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tudsr.backbones.base import Backbone

_OF_THE_TIMESTEP = ("time_proj", "time_embedding", "time_emb_proj")
_OF_THE_PROMPT = ("to_k", "to_v")

Forward = Callable[..., Tensor]


@contextlib.contextmanager
def kept(backbone: Backbone) -> Iterator[None]:
    """Run the layers that see only the timestep or the prompt at their first call, and give that result again after.

    Inside, the UNet must see one timestep and one prompt, and the same weights; the context of a merged adapter lies
    around this one, so that its weights are in what is kept. Windows may be of any size and number.

    Args:
        backbone: its UNet's layers are put back on leaving, on errors too.
    """
    assert not torch.is_grad_enabled(), "what is kept has no graph to go back through"
    layers = list(constant_layers(backbone))
    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _once(layer.forward)
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.__dict__.pop("forward", None)
            if own is not None:
                layer.forward = own


def constant_layers(backbone: Backbone) -> Iterator[nn.Module]:
    """Yield the UNet's layers whose input is the same for every window."""
    for path, module in backbone.unet.named_modules():
        if path.rpartition(".")[2] in _OF_THE_TIMESTEP:
            yield module
        elif backbone.prompt_embeds is not None and getattr(module, "is_cross_attention", False):
            yield from (getattr(module, name) for name in _OF_THE_PROMPT)


def _once(forward: Forward) -> Forward:
    made: dict[torch.dtype, Tensor] = {}  # a window that overflows in float16 is run again in float32

    def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.dtype not in made:
            made[x.dtype] = forward(x[:1], *args, **kwargs)
        one = made[x.dtype]
        return one.expand(len(x), *one.shape[1:])  # (1, …) to (B, …), without a copy

    return run

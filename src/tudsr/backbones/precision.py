"""A float16 network in float32 for a moment."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def in_float32(net: nn.Module) -> Iterator[None]:
    """Hold a net's float16 weights in float32; they come back bit for bit, and others (adapters) are not touched."""
    halves = [tensor for tensor in (*net.parameters(), *net.buffers()) if tensor.dtype == torch.float16]
    try:
        _convert(halves, torch.float32)
        yield
    finally:
        _convert(halves, torch.float16)


def _convert(tensors: list[Tensor], dtype: torch.dtype) -> None:
    with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode could not be trained after
        for tensor in tensors:
            tensor.data = tensor.data.to(dtype)

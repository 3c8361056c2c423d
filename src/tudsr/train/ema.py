"""Exponential moving average of the weights that learn."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """Keep an average of parameters.

    Args:
        parameters: the live ones.
        decay: per step; early on the average follows faster, min(decay, (1 + step) / (10 + step)).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay, self.step = list(parameters), decay, 0
        self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Fold the live weights in, after each optimizer step."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Run with the average in place of the live weights, which are put back exactly."""
        live = [p.detach().clone() for p in self.parameters]
        try:
            self._write(self.average)
            yield
        finally:
            self._write(live)

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        torch._foreach_copy_([p.data for p in self.parameters], list(values))

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {"step": self.step, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the average and its step."""
        self.step = state["step"]
        torch._foreach_copy_(self.average, state["average"])

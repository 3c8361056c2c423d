"""Windows that are run elsewhere: by other processes, on other machines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from tudsr.request import Request


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Runs windows elsewhere, on `device`: (stage number, request, batches) -> what it makes of each, in order.

    `waiting` batches are here meanwhile, at most.
    """

    run: Callable[[int, Request, Iterator[Tensor]], Iterator[Tensor]]
    device: str
    waiting: int = 0

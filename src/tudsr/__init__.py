"""TUDSR: twice upsampling-diffusion super-resolution. The public names; torch is imported when one is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tudsr.errors import TudsrError
    from tudsr.pipeline import TUDSR, load

__version__ = "0.1.0"
__all__ = ["TUDSR", "TudsrError", "__version__", "load"]

_HOMES = {"TUDSR": "tudsr.pipeline", "load": "tudsr.pipeline", "TudsrError": "tudsr.errors"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

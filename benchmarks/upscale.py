"""Seconds and peak memory of whole enlargements, each run in a fresh process.

    python benchmarks/upscale.py --model tiny --side 256 --scale 8 --runs 5 --out docs/benchmarks/tiny-256-x8.json
    python benchmarks/upscale.py --model DIR --side 128 --scale 8 --runs 1 --out docs/benchmarks/sd21-128-x8.json

«cold» counts from the start of Python; «warm» is the second picture of the same process.
"""

from typing import Any

import fresh


def load(model: str, dtype: str) -> Any:
    """Return the pipeline as users get it."""
    import tudsr

    return tudsr.load(model, dtype=dtype)


if __name__ == "__main__":
    fresh.main("upscale", __doc__, dtype="auto")

"""Frozen feature networks, and the perceptual distances built on them (used by training and by evaluation)."""

from tudsr.perceptual.dists import Dists, EaDists
from tudsr.perceptual.lpips import Lpips

__all__ = ["Dists", "EaDists", "Lpips"]

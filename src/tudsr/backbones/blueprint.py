"""What a backbone is made of before it has weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from tudsr.backbones.base import Backbone

SD_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "epsilon",
}
"""Stable Diffusion's noise schedule. Source: the scheduler_config.json of SD 2.1-base."""


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """Architecture and default settings of one backbone.

    Args:
        unet: keyword arguments of diffusers' UNet2DConditionModel.
        vae: makes the autoencoder, with random weights if it has any.
        settings: fields of ModelConfig (R, window range, LoRA, licence …).
        schedule: keyword arguments of diffusers' DDPMScheduler.
        prompt_shape: (tokens, width) of the prompt embedding, or None without cross-attention.
    """

    unet: dict[str, Any]
    vae: Callable[[], nn.Module]
    settings: dict[str, Any]
    schedule: dict[str, Any] = field(default_factory=lambda: dict(SD_SCHEDULE))
    prompt_shape: tuple[int, int] | None = None

    def build(self, dtype: torch.dtype = torch.float32) -> tuple[Backbone, DDPMScheduler]:
        """Return the backbone with random weights, built directly in `dtype`, and its scheduler."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # a full-size UNet built in float32 first would need twice the memory
        try:
            unet, vae = UNet2DConditionModel(**self.unet), self.vae()
        finally:
            torch.set_default_dtype(default)
        scheduler = DDPMScheduler(**self.schedule)
        embeds = None if self.prompt_shape is None else torch.randn(1, *self.prompt_shape, dtype=dtype)
        prediction = scheduler.config.prediction_type
        return Backbone(unet, vae, scheduler.alphas_cumprod, prediction, embeds), scheduler

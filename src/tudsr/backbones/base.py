"""The backbone: a diffusers UNet, VAE and noise schedule behind three calls (encode, predict, decode)."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tudsr.backbones.activations import reuse_maps
from tudsr.backbones.blocks import reuse_sums
from tudsr.backbones.norms import keep_layout
from tudsr.backbones.precision import in_float32


class Backbone(nn.Module):
    """UNet, autoencoder and schedule of any size; the only place that knows the latent's scaling.

    Args:
        unet: a diffusers UNet2DConditionModel.
        vae: a diffusers autoencoder with `encode`, `decode` and `config.scaling_factor`.
        alphas_cumprod: alpha_bar of every training timestep, (T,), float.
        prediction_type: epsilon, v_prediction or sample.
        prompt_embeds: (1, tokens, width), or None for a UNet without cross-attention.
    """

    alphas_cumprod: Tensor
    prompt_embeds: Tensor | None

    def __init__(
        self, unet: Any, vae: Any, alphas_cumprod: Tensor, prediction_type: str, prompt_embeds: Tensor | None
    ) -> None:
        super().__init__()
        self.unet, self.vae = unet, vae
        for part in (unet, vae):
            reuse_maps(part)
            keep_layout(part)
            reuse_sums(part)
        self.prediction_type = prediction_type
        self._overflowed: tuple[nn.Module, ...] = ()
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)
        self.register_buffer("prompt_embeds", prompt_embeds, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the UNet's weights."""
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        """Device of the UNet's weights."""
        return self._first.device

    @property
    def patch_px(self) -> int:
        """The side of what becomes one position of the latent, in pixels."""
        config = self.vae.config
        return int(config["patch_px"] if "patch_px" in config else 2 ** (len(config["block_out_channels"]) - 1))

    @property
    def latent_channels(self) -> int:
        """Channels of the autoencoder's latent."""
        config = self.vae.config
        return 3 * config["patch_px"] ** 2 if "patch_px" in config else int(config["latent_channels"])

    @property
    def _first(self) -> Tensor:
        """The base's first weight: diffusers' own properties look through all modules for theirs, at every question."""
        weight: Tensor = next(self.unet.parameters())
        return weight

    @property
    def wide_dtype(self) -> torch.dtype:
        """Dtype of pixels, z0 and the blend: float32, or float64 for a float64 UNet."""
        return torch.promote_types(self.dtype, torch.float32)

    def alpha_bar(self, t: int | Tensor) -> Tensor:
        """Return alpha_bar at timestep t: a scalar for an int, (B, 1, 1, 1) for a batch of timesteps."""
        value = self.alphas_cumprod[t]
        return value if isinstance(t, int) else value.view(-1, 1, 1, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Encode x, (B, 3, H, W) in [-1, 1], to the scaled latent (B, C, h, w): the posterior's mode, no randomness."""
        return self._finite(self.vae, lambda at: self._encode(x[at]), len(x)) * self.vae.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """Decode a scaled latent, (B, C, h, w), to pixels (B, 3, H, W), about [-1, 1]."""
        z = z / self.vae.config.scaling_factor
        return self._finite(self.vae, lambda at: self._decode(z[at]), len(z))

    def predict(self, z: Tensor, t: int | Tensor) -> Tensor:
        """Run the UNet on a scaled latent at timestep t (an int, or (B,)); returns its prediction, (B, C, h, w)."""
        return self._finite(self.unet, lambda at: self._predict(z[at], t if isinstance(t, int) else t[at]), len(z))

    def _predict(self, z: Tensor, t: int | Tensor) -> Tensor:
        c = self.prompt_embeds
        z = z.to(self.dtype, memory_format=torch.channels_last)
        if isinstance(t, int) and z.device.type == "cuda":  # diffusers would send it there, which no graph can record
            t = torch.full((1,), t, device=z.device)
        prompt = None if c is None else c.to(self.dtype).expand(len(z), -1, -1)
        return self.unet(z, t, prompt, return_dict=False)[0]

    def _encode(self, x: Tensor) -> Tensor:
        out = self.vae.encode(x.to(self._vae_dtype, memory_format=torch.channels_last))
        return out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents

    def _decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z.to(self._vae_dtype)).sample

    def _finite(self, part: nn.Module, run: Callable[[slice], Tensor], count: int) -> Tensor:
        """Run the UNet or a half of the autoencoder; what overflows in float16 is run again in float32, said once.

        One window at a time, as memory is counted; those that do not overflow are the same in any batch.

        Args:
            part: whose weights are held in float32 for it.
            run: runs a slice of the batch.
            count: windows in the batch.
        """
        out = run(slice(None))
        if out.dtype != torch.float16 or out.is_meta or bool(out.isfinite().all()):
            return out
        if part not in self._overflowed:
            self._overflowed += (part,)
            name = "the UNet" if part is self.unet else "the autoencoder"
            warnings.warn(f"{name} overflowed in float16; where it does, it runs again in float32", stacklevel=3)
        if out.is_cuda:
            torch.cuda.empty_cache()  # blocks that float16 was worked in are too small now, and would stay beside
        with in_float32(part):
            each = (slice(one, one + 1) for one in range(count))
            return torch.cat([out[at].float() if bool(out[at].isfinite().all()) else run(at) for at in each])

    @property
    def _vae_dtype(self) -> torch.dtype:
        # A parameter-free autoencoder loses nothing in the wide type, and rounding pixels to bf16 would.
        first = next(self.vae.parameters(), None)
        return self.wide_dtype if first is None else first.dtype

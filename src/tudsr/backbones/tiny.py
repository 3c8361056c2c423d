"""`tiny`: the embedded model. SD's design at small size, convolutions only, on space-to-depth latents."""

from tudsr.backbones.blueprint import Blueprint
from tudsr.backbones.space_to_depth import SpaceToDepth

PATCH_PX = 4
CHANNELS = 3 * PATCH_PX**2
WIDTHS = (64, 96, 128)  # the first must be at least CHANNELS: a rank bound of eps-prediction (METHOD, «Generator»)


def blueprint() -> Blueprint:
    """Return the architecture of `tiny`: about 4.8 M parameters."""
    return Blueprint(
        unet={
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "down_block_types": ("DownBlock2D",) * len(WIDTHS),
            "mid_block_type": "UNetMidBlock2D",
            "up_block_types": ("UpBlock2D",) * len(WIDTHS),
            "block_out_channels": WIDTHS,
            "layers_per_block": 2,
            "norm_num_groups": 16,
            "attention_head_dim": 8,
        },
        vae=lambda: SpaceToDepth(patch_px=PATCH_PX, scaling_factor=2.0),
        settings={
            "name": "tiny",
            "backbone": "tiny",
            "r_px": 128,
            "once_up_to": 4.0,  # docs/adr/0010-once.md
            "t1": 50,  # the paper's 200 would send the net's error into the picture two and a half times as strong
            "windows": {"min_px": 112, "max_px": 1024, "stride_px": 16, "overlap_px": 56},
            "lora": {
                "rank": 64,
                "alpha": 64,
                "targets": ("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out"),
            },
            "licence": "Apache-2.0",
        },
    )

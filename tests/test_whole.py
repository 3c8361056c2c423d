"""A pass with the autoencoder over the whole picture."""

import contextlib
import copy

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from tudsr import lora
from tudsr.backbones import Backbone, blueprint
from tudsr.backbones.tiled_vae import TiledVAE
from tudsr.config import LoraSpec, ModelConfig, WindowRange
from tudsr.errors import ConfigError, InputError
from tudsr.folder import Model
from tudsr.image import Picture
from tudsr.pipeline import TUDSR
from tudsr.request import Request
from tudsr.resize import upsample
from tudsr.stage import Stage, inference
from tudsr.whole import latent_grid, latent_windows, restored, whole_vae
from tudsr.windows import plan_windows

ONE = WindowRange(min_px=64, max_px=128, stride_px=8, overlap_px=16)
SMALL = WindowRange(min_px=32, max_px=32, stride_px=8, overlap_px=16)


@pytest.fixture(scope="module")
def stage() -> Stage:
    torch.manual_seed(2)
    blocks = {"block_out_channels": (16, 16), "layers_per_block": 1, "norm_num_groups": 8}
    unet = UNet2DConditionModel(
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type=None, **blocks
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.5, **blocks,
    )  # fmt: skip
    net = Backbone(unet, vae, torch.linspace(0.99, 0.1, 1000), "epsilon", None)
    return Stage(net.requires_grad_(False).eval(), 200, None)


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(4)) * 2 - 1


def test_one_window_is_the_plain_stage(stage):
    """In float64: in float32 processors differ by some 1e-5 here, as random weights make much of a last bit."""
    stage, x = copy.deepcopy(stage).double(), picture(64, 72).double()
    with inference(stage):
        wanted = stage(x)
        grid = latent_grid(stage.backbone, 64, 72, ONE)
        torch.testing.assert_close(restored(stage, x, grid), wanted, rtol=1e-9, atol=1e-9)


def test_only_the_unet_goes_by_windows(stage, monkeypatch):
    """An odd size comes back as it came; progress counts the windows of the latent."""
    x, seen, told = picture(65, 90), [], []
    predict = stage.backbone.predict
    monkeypatch.setattr(stage.backbone, "predict", lambda z, t: (seen.append(z.shape[-2:]), predict(z, t))[1])
    with inference(stage):
        out = restored(
            stage, x, latent_grid(stage.backbone, 65, 90, SMALL), batch=2, progress=lambda *done: told.append(done)
        )
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    count = len(plan_windows(33, 45, latent_windows(SMALL, 2)).windows)
    assert set(seen) == {(16, 16)}
    assert told[-1] == (count, count)
    assert count > 4


def test_the_autoencoder_comes_back(stage, make_model):
    own = stage.backbone.vae
    with contextlib.suppress(ZeroDivisionError), whole_vae(stage.backbone):
        assert isinstance(stage.backbone.vae, TiledVAE)
        raise ZeroDivisionError
    assert stage.backbone.vae is own
    other = make_model().backbone
    with pytest.raises(InputError, match="SpaceToDepth"), whole_vae(other):
        pass
    assert type(other.vae).__name__ == "SpaceToDepth"


def test_the_pipeline_takes_it_by_name(stage):
    settings = blueprint("tiny").settings | {"windows": SMALL.model_dump(), "t1": 200}
    model = TUDSR(Model(ModelConfig.parse(settings, "test"), stage.backbone, None))
    for name in lora.STAGES:
        lora.attach(stage.backbone.unet, name, LoraSpec(rank=2, alpha=2, targets=("conv1",)))
    x, told = picture(20, 24), []
    request = Request(scale=2, stage=1, vae="whole", color="none")
    out = model.upscale_picture(Picture(pixels=x), request, lambda *done: told.append(done)).pixels
    one = Stage(stage.backbone, 200, "stage_1")
    with inference(one):
        wanted = restored(one, upsample(x, 40, 48), latent_grid(stage.backbone, 40, 48, SMALL)).clamp(-1, 1)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-6)
    assert told[-1][0] == told[-1][1] == len(latent_grid(stage.backbone, 40, 48, SMALL).windows)
    with pytest.raises(InputError, match="3000x3000 px; .* up to 2048 px"):
        model.plan(1500, 1500, request)
    with pytest.raises(ConfigError, match="memory"):
        model.fit((20, 24), model.plan(20, 24, request), request, 10**9)


def test_windows_in_the_latents_measure():
    assert latent_windows(SMALL, 8) == WindowRange(min_px=4, max_px=4, stride_px=1, overlap_px=2)
    with pytest.raises(ConfigError, match="do not divide by 16"):
        latent_windows(SMALL, 16)

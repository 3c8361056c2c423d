"""Costs counted on shapes, against real networks, formulas of their own, and sums by hand."""

import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tudsr import lora
from tudsr.backbones import Backbone
from tudsr.backbones.space_to_depth import SpaceToDepth
from tudsr.cost import WORKSPACE, LiveBytes, meta_model, pass_costs, shapes_of, weights_bytes, window_bytes, window_cost
from tudsr.errors import ModelError
from tudsr.folder import Model, load_model
from tudsr.planner import plan_passes
from tudsr.stage import Stage
from tudsr.windows import plan_windows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config_folder(model_folder, tmp_path_factory):
    """The small model without a single weight file."""
    folder = tmp_path_factory.mktemp("models") / "configs"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture(scope="module")
def shapes(config_folder):
    return meta_model(config_folder, torch.float32)


def test_nothing_has_numbers(shapes):
    tensors = [*shapes.backbone.parameters(), *shapes.backbone.buffers()]
    assert len(tensors) > 20
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_a_window_is_counted_once_for_a_model(config_folder, monkeypatch):
    shapes, ran = meta_model(config_folder, torch.float32), []
    real = Stage.forward
    monkeypatch.setattr(Stage, "forward", lambda self, x: ran.append(tuple(x.shape)) or real(self, x))
    first = window_cost(shapes, 32, 48)
    assert window_cost(shapes, 32, 48) is first
    assert window_cost(shapes, 48, 32) == first
    assert ran == [(1, 3, 32, 48), (1, 3, 48, 32)]
    assert window_cost(meta_model(config_folder, torch.bfloat16), 32, 48) != first


@pytest.mark.parametrize("size", [(32, 32), (48, 64)])
def test_shapes_cost_what_the_real_network_does(shapes, model_folder, size):
    """The real one runs with its adapter, on numbers."""
    real = load_model(model_folder, CPU, torch.float32)
    flops, window = FlopCounterMode(display=False), torch.zeros(1, 3, *size)
    stage = Stage(real.backbone, 200, "stage_1")
    with torch.no_grad(), stage.active():  # `inference` keeps what later windows need again
        with flops:
            stage(window)
        with LiveBytes(real.backbone) as live:
            stage(window.clone())
    found = window_cost(shapes, *size)
    assert found.flop == flops.get_total_flops() > 1e7
    assert found.live_bytes == live.most > window.nbytes


def attention_model(shapes):
    """A model with self- and cross-attention over 7 tokens of a prompt, on meta."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            in_channels=48, out_channels=48, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(32, 64), layers_per_block=1,
            norm_num_groups=16, attention_head_dim=(2, 4), cross_attention_dim=24,
        )  # fmt: skip
        embeds, alphas = torch.empty(1, 7, 24), torch.empty(1000)
    backbone = Backbone(unet, SpaceToDepth(patch_px=4), alphas, "epsilon", embeds)
    return Model(shapes.config, backbone.eval(), None)


def test_flops_are_those_of_the_formulas(shapes):
    """Two FLOPs for a multiply-add: kernels at every output position, and both products of attention."""
    model, counted = attention_model(shapes), []

    def conv(module, _, out):
        counted.append(2 * out.numel() * module.weight[0].numel())

    def linear(module, _, out):
        counted.append(2 * out.numel() * module.in_features)

    def attention(module, args, kwargs, out):
        context = kwargs.get("encoder_hidden_states")
        keys = out.shape[1] if context is None else context.shape[1]
        counted.append(2 * 2 * out.shape[0] * out.shape[1] * keys * module.inner_dim)

    attentions = 0
    for module in model.backbone.modules():
        if isinstance(module, Attention):
            attentions += 1
            module.register_forward_hook(attention, with_kwargs=True)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(conv if isinstance(module, nn.Conv2d) else linear)
    found = window_cost(model, 48, 64)
    assert attentions >= 6
    assert found.flop == sum(counted)


def test_attention_makes_no_scores(shapes):
    """Of all tokens against all others there is no tensor: twice the area takes about twice the memory."""
    model = attention_model(shapes)
    small, large = (window_cost(model, 128, width).live_bytes for width in (256, 512))
    assert large < 2.1 * small


def test_half_precision_costs_half_the_network(config_folder, shapes):
    half, whole = (meta_model(config_folder, torch.float16), shapes)
    found, other = window_cost(half, 64, 64), window_cost(whole, 64, 64)
    assert found.flop == other.flop
    assert 0.5 * other.live_bytes <= found.live_bytes < 0.8 * other.live_bytes  # pixels stay float32


def test_live_bytes_by_hand():
    net = nn.Linear(10, 10, bias=False)
    with torch.no_grad(), LiveBytes(net) as live:
        a = torch.ones(100)  # 400 bytes
        b = a + 1  # 800
        b += a.view(10, 10).flatten()  # in place, and views: still 800
        del a  # 400
        c = net.weight.view(100)  # a parameter's memory, which does not count
        d = torch.cat([b, b])  # 1200
        del b, d
        assert live.most == 1200
        e = torch.empty(500)  # 2000
    assert live.most == 2000
    assert c.numel() + e.numel() == 600


def test_a_loaded_models_shapes_are_its_folders(shapes, model_folder):
    loaded = load_model(model_folder, CPU, torch.float32)
    found = shapes_of(loaded)
    assert next(found.backbone.parameters()).is_meta
    assert not next(loaded.backbone.parameters()).is_meta
    assert window_cost(found, 64, 64) == window_cost(shapes, 64, 64)
    loaded.folder = None
    assert next(shapes_of(loaded).backbone.parameters()).is_meta
    loaded.backbone.half()  # what has no numbers cannot be looked over for float16's overflow
    assert window_cost(shapes_of(loaded), 64, 64).flop > 0
    assert shapes_of(loaded).backbone.dtype == torch.float16


def test_weights_are_those_of_a_running_stage(shapes, model_folder):
    """With both adapters, and one of them merged."""
    net = load_model(model_folder, CPU, torch.float32).backbone
    merged = sum(lora.delta_weight(layer, "stage_2").nbytes for layer in lora.layers(net.unet, "stage_2").values())
    assert weights_bytes(shapes) == sum(parameter.nbytes for parameter in net.parameters()) + merged


def test_an_enlargement_is_the_sum_of_its_windows(shapes):
    plan = plan_passes(30, 40, scale=4)  # M2 N2: 60x80, 120x160
    passes = pass_costs(shapes, plan, shapes.config.windows)
    grids = [plan_windows(height, width, shapes.config.windows) for height, width in ((60, 80), (120, 160))]
    windows = [window_cost(shapes, grid.window_h, grid.window_w) for grid in grids]
    assert len(grids[1].windows) > 4
    assert [one.flop for one in passes] == [len(g.windows) * one.flop for g, one in zip(grids, windows, strict=True)]
    for dtype, factor in WORKSPACE.items():
        assert [window_bytes(one.window, dtype) for one in passes] == [int(factor * one.live_bytes) for one in windows]
    useful = sum(one.useful_flop for one in passes)
    assert useful < sum(one.flop for one in passes)
    # A network of convolutions takes the same for every pixel; only borders and the timestep's layers differ.
    pixels = sum(grid.height * grid.width for grid in grids)
    assert useful / pixels == pytest.approx(windows[0].flop / (grids[0].window_h * grids[0].window_w), 0.01)


@pytest.mark.parametrize(
    ("part", "kind", "accepted"),
    [("vae", "VQModel", "AutoencoderKL"), ("unet", "UNet2DModel", "UNet2DConditionModel")],
)
def test_an_unknown_kind_of_network_is_named(config_folder, tmp_path, part, kind, accepted):
    folder = tmp_path / "model"
    shutil.copytree(config_folder, folder)
    (folder / part / "config.json").write_text(f'{{"_class_name": "{kind}"}}')
    with pytest.raises(ModelError, match=f"'{kind}' is unknown; accepted: {accepted}"):
        meta_model(folder, torch.float32)

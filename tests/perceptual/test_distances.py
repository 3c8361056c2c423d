"""DISTS, EA-DISTS and LPIPS: their contract and algebra with random weights; with the true ones, order and bf16.

Their values stand in test_reference.py (the papers' formulas) and in eval/test_parity.py (published figures).
"""

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor
from transformers import (
    BertConfig,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from tudsr.errors import ConfigError, InputError, WeightsError
from tudsr.perceptual.backbone_dists import FeatureDists
from tudsr.perceptual.dists import Dists, EaDists, sobel, texture_and_structure
from tudsr.perceptual.features import AlexNetFeatures, Vgg16Features
from tudsr.perceptual.lpips import Lpips
from tudsr.perceptual.weights import find_weights


def picture(batch: int = 2, height: int = 40, width: int = 36, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def dinov2() -> torch.nn.Module:
    return Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56))


def dinov3() -> torch.nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    return DINOv3ViTModel(DINOv3ViTConfig(**sizes, num_register_tokens=4))


def convnext() -> torch.nn.Module:
    return ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]))


def dinov3_convnext() -> torch.nn.Module:
    return DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]))


BACKBONES = [dinov2, dinov3, convnext, dinov3_convnext]
DISTANCES = {
    "dists": Dists,
    "ea_dists": lambda: EaDists(Dists()),
    "lpips_alex": lambda: Lpips("alex"),
    "lpips_vgg": lambda: Lpips("vgg"),
    "dists_bf16": lambda: Dists(torch.bfloat16),
    "lpips_alex_bf16": lambda: Lpips("alex", torch.bfloat16),
    **{f.__name__: lambda f=f: FeatureDists(f()) for f in BACKBONES},
}


@pytest.mark.parametrize("name", DISTANCES)
def test_contract_of_every_distance(name):
    torch.manual_seed(0)
    net = DISTANCES[name]()
    x, y = picture().requires_grad_(), picture(seed=1).requires_grad_()
    distance = net(x, y)
    assert distance.shape == (2,)
    assert distance.dtype == torch.float32
    assert (distance > 0).all()
    assert net(x, x).abs().max() < 1e-6
    distance.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
    assert y.grad is None
    assert not any(p.requires_grad for p in net.parameters())
    # each picture is measured by itself
    torch.testing.assert_close(net(x[1:], y[1:]), distance[1:], rtol=2e-2 if "bf16" in name else 1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dists", "lpips_alex", "lpips_vgg", "ea_dists"])
def test_flat_pictures_have_finite_gradients(name):
    x = torch.zeros(1, 3, 40, 40, requires_grad=True)
    DISTANCES[name]()(x, picture(1, 40, 40)).sum().backward()
    assert x.grad.isfinite().all()


def test_vgg16_maps_have_the_documented_shapes():
    shapes = [tuple(f.shape[1:]) for f in Vgg16Features()(picture(1, 32, 48))]
    assert shapes == [(64, 32, 48), (128, 16, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3)]
    assert [f.shape[1] for f in AlexNetFeatures()(picture(1, 64, 64))] == [64, 192, 384, 256, 256]


def test_features_are_not_changed_by_later_layers():
    torch.manual_seed(0)
    net = Vgg16Features()
    x = picture(1, 16, 16)
    first = torch.relu(net.convs["conv1"](torch.relu(net.convs["conv0"](x))))
    torch.testing.assert_close(net(x)[0], first)


@pytest.mark.parametrize(("name", "least"), [("dists", 16), ("lpips_alex", 32), ("lpips_vgg", 16)])
def test_too_small_pictures_are_refused_and_the_least_size_works(name, least):
    net = DISTANCES[name]()
    assert net(picture(1, least, least), picture(1, least, least, seed=1)).isfinite().all()
    with pytest.raises(InputError, match=f"{least} is the least"):
        net(picture(1, least - 1, 64), picture(1, least - 1, 64))


def test_texture_and_structure_in_closed_form():
    y = picture(1, 8, 8).double()
    texture, structure = texture_and_structure(3 * y + 1, y)
    mean, var = y.mean((2, 3)), y.var((2, 3), correction=0)
    torch.testing.assert_close(structure, (6 * var + 1e-6) / (10 * var + 1e-6))
    a = 3 * mean + 1
    torch.testing.assert_close(texture, (2 * a * mean + 1e-6) / (a**2 + mean**2 + 1e-6))


def test_sobel_equals_scipy_on_luma():
    x = picture(1, 12, 17)
    luma = ((x[0] + 1) / 2 * torch.tensor([0.2989, 0.5870, 0.1140]).view(3, 1, 1)).sum(0).numpy()
    rows, columns = ndimage.sobel(luma, 0, mode="nearest"), ndimage.sobel(luma, 1, mode="nearest")
    expected = torch.from_numpy((rows**2 + columns**2 + 1e-6) ** 0.5)
    for channel in (sobel(x)[0] + 1) / 2:
        torch.testing.assert_close(channel, expected, rtol=1e-4, atol=1e-5)


def test_ea_dists_is_the_sum_of_its_two_terms():
    torch.manual_seed(0)
    dists = Dists()
    x, y = picture(), picture(seed=1)
    torch.testing.assert_close(EaDists(dists)(x, y), dists(x, y) + dists(sobel(x), sobel(y)), rtol=1e-4, atol=1e-5)


def test_feature_dists_loads_what_transformers_saved(tmp_path):
    torch.manual_seed(0)
    backbone = dinov2()
    backbone.save_pretrained(tmp_path)
    x, y = picture(), picture(seed=1)
    torch.testing.assert_close(FeatureDists.load(tmp_path)(x, y), FeatureDists(backbone)(x, y))


def test_feature_dists_takes_whole_files_of_known_types_only(tmp_path):
    refused = "cannot be loaded as a feature backbone"
    dinov2().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({key: value for key, value in tensors.items() if key != "layernorm.weight"}, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=f"{refused}: its file lacks 1 tensors; name a folder or hub id"):
        FeatureDists.load(tmp_path)
    file.write_bytes(b"broken")
    with pytest.raises(WeightsError, match=refused):
        FeatureDists.load(tmp_path)
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=f"{refused}: it is of type 'bert', 'dinov2' or "):
        FeatureDists.load(tmp_path)


def test_feature_dists_says_what_is_wrong(tmp_path):
    with pytest.raises(WeightsError, match="cannot be loaded as a feature backbone"):
        FeatureDists.load(tmp_path)
    other = torch.nn.Identity()
    other.config = type("Config", (), {"model_type": "bert"})
    with pytest.raises(ConfigError, match="known types: dinov2"):
        FeatureDists(other)


@pytest.mark.weights
def test_the_true_weights_order_distortions_and_bf16_agrees():
    if find_weights("vgg16") is None or find_weights("alexnet") is None:
        pytest.skip("VGG16's and AlexNet's weights are not on this machine")
    ramp = torch.linspace(-1, 1, 64)
    gt = (torch.sin(12 * ramp)[:, None] * torch.cos(9 * ramp)).expand(1, 3, 64, 64) * 0.8
    noise = picture(1, 64, 64)
    for build in (
        Dists,
        lambda dtype=torch.float32: Lpips("alex", dtype),
        lambda dtype=torch.float32: Lpips("vgg", dtype),
    ):
        net, half = build().load(), build(torch.bfloat16).load()
        small, large = net(gt + 0.05 * noise, gt), net(gt + 0.3 * noise, gt)
        assert 0 < small < large < 1.2
        torch.testing.assert_close(half(gt + 0.3 * noise, gt), large, rtol=0.02, atol=0)


def test_sobel_is_computed_in_float32_under_autocast():
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = sobel(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sobel(x), plain)

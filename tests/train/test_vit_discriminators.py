"""The discriminators on a frozen ViT: what is read from it, and where its weights come from."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from tudsr.errors import ConfigError, WeightsError
from tudsr.train.discriminators import Discriminator, build_discriminator

VIT = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2}
CONFIGS = {
    "dinov2": {**VIT, "mlp_ratio": 2, "image_size": 56},
    "dinov3": {**VIT, "intermediate_size": 64, "num_register_tokens": 4},
}
every_vit = pytest.mark.parametrize("name", list(CONFIGS))


def small(name: str, **options) -> Discriminator:
    torch.manual_seed(0)
    return build_discriminator(name, **{"weights": "random", "config": CONFIGS[name], "head_width": 8, **options})


def pictures(batch: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=rng(1)) * 2 - 1


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_vit
def test_the_vit_is_frozen_unsaved_and_in_eval_mode(name):
    net = small(name).train()
    assert net.heads.training
    assert not any(m.training for m in net.vit.modules())
    assert not any(p.requires_grad for p in net.vit.parameters())
    assert not any(key.startswith(("vit.", "mean", "std")) for key in net.trainable_state_dict())
    assert {id(p) for p in net.vit.parameters()}.isdisjoint(id(p) for p in net.trainable_parameters())
    before = copy.deepcopy(net.vit.state_dict())
    sum(m.mean() for m in net(pictures(), rng(0))).backward()
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    assert all(torch.equal(before[key], value) for key, value in net.vit.state_dict().items())


@every_vit
def test_features_are_the_blocks_asked_for_without_special_tokens(name):
    net = small(name, blocks=(2, 5)).eval()
    layers = (net.vit.encoder if name == "dinov2" else net.vit.model).layer
    assert len(layers) == 5
    seen = {}
    for number, layer in enumerate(layers, 1):
        layer.register_forward_hook(lambda _m, _i, out, number=number: seen.update({number: out}))
    side = 5 * net.patch_px
    features = net.features(pictures(1, side, side))
    special = 1 if name == "dinov2" else 5
    for block, feature in zip((2, 5), features, strict=True):
        tokens = seen[block][0, special:].detach()  # (25, 32)
        expected = (tokens - tokens.mean(1, keepdim=True)) / (tokens.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        assert torch.allclose(feature[0].flatten(1).T, expected, atol=1e-5)


@every_vit
def test_tokens_lie_where_their_pixels_are(name):
    net = small(name, blocks=(1,)).eval()
    px = net.patch_px
    x = pictures(1, 5 * px, 7 * px)
    changed = x.clone()
    changed[..., 3 * px : 4 * px, 1 * px : 2 * px] *= -1
    (before,), (after,) = net.features(x), net.features(changed)
    assert before.shape == (1, 32, 5, 7)
    difference = (before - after).norm(dim=1).flatten()
    assert divmod(difference.argmax().item(), 7) == (3, 1)


@every_vit
def test_padding_leaves_the_pixels_as_they_are_and_normalises_them(name):
    net = small(name).eval()
    seen = []
    net.vit.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
    x = pictures(1, 65, 71)
    net(x)
    assert all(side % net.patch_px == 0 for side in seen[0].shape[2:])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((x[0].permute(1, 2, 0).numpy() + 1) / 2 - mean) / std
    np.testing.assert_allclose(seen[0][0, :, :65, :71].permute(1, 2, 0).numpy(), expected, atol=1e-5)


@every_vit
def test_weights_from_a_folder(name, tmp_path):
    import transformers

    kind = {"dinov2": "Dinov2", "dinov3": "DINOv3ViT"}[name]
    config = getattr(transformers, f"{kind}Config")(**CONFIGS[name])
    model = getattr(transformers, f"{kind}Model")(config)
    model.save_pretrained(tmp_path)
    net = small(name, weights=tmp_path, config=None)
    own = net.vit.state_dict()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in own.items())
    with pytest.raises(WeightsError, match="is expected"):
        small("dinov3" if name == "dinov2" else "dinov2", weights=tmp_path, config=None)
    with pytest.raises(ConfigError, match="goes with weights: 'random' only"):
        small(name, weights=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        small(name, weights=tmp_path, config=None)


def test_a_file_that_lacks_tensors_is_refused(tmp_path):
    import transformers
    from safetensors.torch import load_file, save_file

    transformers.Dinov2Model(transformers.Dinov2Config(**CONFIGS["dinov2"])).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("layernorm.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="lacks 1 tensors"):
        build_discriminator("dinov2", weights=tmp_path)


def test_a_gated_or_missing_model_says_the_remedy(tmp_path, monkeypatch):
    import transformers

    with pytest.raises(WeightsError, match=r"cannot be loaded .*'patch'"):
        build_discriminator("dinov2", weights=tmp_path / "none")

    def gated(*_args, **_kwargs):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", gated)
    with pytest.raises(WeightsError, match=r"dinov3-vitb16.*gated repo\): accept its licence") as error:
        build_discriminator("dinov3")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("blocks", [(), (0, 3), (3, 13), (6, 3), (3, 3)])
def test_blocks_out_of_range_are_refused(blocks):
    with pytest.raises(ConfigError, match="1 to 12"):
        small("dinov3", blocks=blocks)

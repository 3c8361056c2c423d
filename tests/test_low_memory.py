"""Low memory: the adapter in the base weights' own place, which come back from their file bit for bit."""

import shutil
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from tudsr import lora
from tudsr.apps.cli import app
from tudsr.checkpoint import load_tensors, save_tensors
from tudsr.errors import ModelError
from tudsr.find import UNET_FILE
from tudsr.folder import save_model
from tudsr.memory import Need, fit
from tudsr.pipeline import TUDSR, load
from tudsr.request import Request

DTYPES = ("fp32", "bf16", "fp16")


def weights(tudsr: TUDSR) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in tudsr.model.backbone.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def learnt(make_model, tmp_path_factory):
    """A folder in float16: what is loaded in another precision was cast."""
    folder = tmp_path_factory.mktemp("learnt")
    save_model(folder, make_model(seed=3), torch.float16)
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fidelity", [0.0, 0.6])
def test_the_picture_is_the_same_and_the_base_comes_back(learnt, dtype, fidelity):
    tudsr = load(learnt, "cpu", dtype)
    before, picture = weights(tudsr), torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(1))
    made = tudsr.upscale(picture, 8, fidelity=fidelity, low_memory=True)
    assert same(weights(tudsr), before)
    assert not any(tensor.is_inference() for tensor in tudsr.model.backbone.parameters())
    assert torch.equal(tudsr.upscale(picture, 8, fidelity=fidelity), made)


def test_the_running_adapter_lies_in_the_base_weights_own_place(learnt):
    tudsr = load(learnt, "cpu", "fp32")
    request = Request(scale=8, low_memory=True)
    unet, before = tudsr.model.backbone.unet, weights(tudsr)
    own = {path: layer.get_base_layer().weight for path, layer in lora.layers(unet, "stage_1").items()}
    places = [weight.data_ptr() for weight in own.values()]
    wanted = {
        path: weight + lora.delta_weight(layer, "stage_1")
        for (path, layer), weight in zip(lora.layers(unet, "stage_1").items(), own.values(), strict=True)
    }
    with tudsr.running(1, request):
        assert [weight.data_ptr() for weight in own.values()] == places
        assert all(torch.equal(own[path], wanted[path]) for path in own)
        with pytest.raises(AssertionError, match="over another"), tudsr.running(2, request):
            pass
    assert same(weights(tudsr), before)


def test_the_base_comes_back_after_an_error(learnt, monkeypatch):
    tudsr = load(learnt, "cpu", "fp32")
    before = weights(tudsr)

    def fail(z, t):
        raise ZeroDivisionError

    monkeypatch.setattr(tudsr.model.backbone, "predict", fail)
    with pytest.raises(ZeroDivisionError):
        tudsr.upscale(torch.rand(1, 3, 8, 8), 2, low_memory=True)
    assert same(weights(tudsr), before)
    assert not any("forward" in module.__dict__ for module in tudsr.model.backbone.unet.modules())


def test_it_takes_less_by_the_merged_layers_and_is_chosen_before_smaller_windows(learnt):
    tudsr = load(learnt, "cpu", "fp32")
    adapted = [layer.get_base_layer().weight for layer in lora.layers(tudsr.model.backbone.unet, "stage_1").values()]
    wish = Request(scale=8)
    plan = tudsr.plan(640, 640, wish)
    plenty = tudsr.fit((640, 640), plan, wish, 9 * 10**9)
    need = Need(shapes=tudsr.shapes, size=(640, 640), plan=plan, base=plenty.parts["base"], rereads=True)
    assert (plenty.low_memory, plenty.on_disk) == (False, False)
    assert plenty.parts["merged weights"] == sum(weight.nbytes for weight in adapted)
    spooled = fit(need, wish, plenty.peak_bytes - 1)
    assert (spooled.low_memory, spooled.on_disk) == (False, True)
    frugal = fit(need, wish, spooled.peak_bytes - 1)
    assert (frugal.low_memory, frugal.on_disk, frugal.most_px) == (True, True, None)
    assert frugal.parts == spooled.parts | {"merged weights": 0}
    assert frugal.applied(wish).low_memory
    assert fit(need, wish, frugal.peak_bytes - 1).most_px is not None
    with_files_gone = replace(need, rereads=False)
    assert fit(with_files_gone, wish, spooled.peak_bytes - 1).most_px is not None
    asked = fit(need, Request(scale=8, low_memory=True), 10**12)
    assert (asked.low_memory, asked.on_disk) == (True, False)


def test_a_model_without_files_or_with_others_is_refused(learnt, make_model, tmp_path):
    picture = torch.rand(1, 3, 8, 8)
    with pytest.raises(ModelError, match="made in memory and has none"):
        TUDSR(make_model(seed=1)).upscale(picture, 2, low_memory=True)
    tudsr = load(shutil.copytree(learnt, tmp_path / "m"), "cpu", "fp32")
    before, tensors = weights(tudsr), load_tensors(tmp_path / "m" / UNET_FILE)[0]
    tensors.pop("conv_in.weight")
    save_tensors(tmp_path / "m" / UNET_FILE, tensors)
    with pytest.raises(ModelError, match="holds no weight 'conv_in.weight'"):
        tudsr.upscale(picture, 2, low_memory=True)
    (tmp_path / "m" / UNET_FILE).write_bytes(b"short")
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        tudsr.upscale(picture, 2, low_memory=True)
    assert same(weights(tudsr), before)


def test_the_command_makes_the_same_file(learnt, photos, tmp_path):
    outs = [tmp_path / f"{name}.png" for name in ("plain", "low")]
    call = ["upscale", str(photos / "photo_0.png"), "--scale", "2", "--model", str(learnt), "--quiet", "-o"]
    for out, more in zip(outs, ([], ["--low-memory"]), strict=True):
        assert CliRunner().invoke(app, [*call, str(out), *more]).exit_code == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()

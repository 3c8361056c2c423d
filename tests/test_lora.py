"""LoRA against peft's own forward, what is put back afterwards, and files that diffusers reads."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tudsr import lora
from tudsr.checkpoint import load_tensors, save_tensors
from tudsr.config import LoraSpec
from tudsr.errors import ModelError

SPEC = LoraSpec(rank=4, alpha=4)
DIFFERENT_ALPHA = LoraSpec(rank=4, alpha=6, targets=("conv1", "conv_out", "to_q"))


class Mixed(nn.Module):
    """Convolutions of several shapes and a linear layer, with and without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
        self.conv_shortcut = nn.Conv2d(8, 12, 1)
        self.to_q = nn.Linear(12, 12, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(12, 12)])
        self.conv_out = nn.Conv2d(12, 4, 3, padding=1)
        self.untouched = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.conv_shortcut(torch.tanh(self.conv1(self.conv_in(x)))))  # (B, 12, H / 2, W / 2)
        h = self.to_out[0](torch.tanh(self.to_q(h.movedim(1, -1)))).movedim(-1, 1)
        return self.untouched(self.conv_out(h))


def attention_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=12,
        norm_num_groups=8,
        use_linear_projection=True,
    )


def build(kind: str, dtype: torch.dtype = torch.float64, spec: LoraSpec = SPEC, bare: bool = False) -> nn.Module:
    torch.manual_seed(5)
    net = {"mixed": Mixed, "unet": attention_unet}[kind]().to(dtype)
    if not bare:
        for name in lora.STAGES:
            lora.attach(net, name, spec)
        net.to(dtype)
    return net


def randomise(net: nn.Module, name: str, seed: int = 9) -> None:
    rng = torch.Generator().manual_seed(seed)
    for p in lora.parameters(net, name):
        p.data.copy_(torch.randn(p.shape, generator=rng) * 0.2)


def run(net: nn.Module, x: Tensor) -> Tensor:
    if isinstance(net, Mixed):
        return net(x)
    context = torch.linspace(-1, 1, 24, dtype=x.dtype).view(1, 2, 12).expand(len(x), -1, -1)
    return net(x, 200, context, return_dict=False)[0]


def picture(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


KINDS = pytest.mark.parametrize("kind", ["mixed", "unet"])
FORWARDS = pytest.mark.parametrize("how", sorted(lora.LORA_FORWARDS))


def gradients(net: nn.Module, how: str) -> Tensor:
    own = lora.parameters(net, "stage_1")
    for p in own:
        p.requires_grad_(True)
    with lora.LORA_FORWARDS[how](net, "stage_1"):
        run(net, picture()).square().sum().backward()
    found = torch.cat([p.grad.flatten() for p in own])
    net.zero_grad()
    return found


@KINDS
@pytest.mark.parametrize("spec", [SPEC, DIFFERENT_ALPHA])
def test_merged_is_pefts_own_forward(kind, spec):
    net = build(kind, spec=spec)
    for seed, name in enumerate(lora.STAGES):
        randomise(net, name, seed)
    outputs = {}
    for name in lora.STAGES:
        tuners = [module for module in net.modules() if isinstance(module, BaseTunerLayer)]
        for layer in tuners:
            layer.set_adapter(name)
        wanted = run(net, picture())
        for how, forward in lora.LORA_FORWARDS.items():
            for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
                with context(), forward(net, name):
                    torch.testing.assert_close(run(net, picture()), wanted, rtol=1e-10, atol=1e-10, msg=how)
        outputs[name] = wanted
    assert (outputs["stage_1"] - outputs["stage_2"]).abs().max() > 1e-3


@KINDS
def test_gradients_of_a_and_b_are_the_same_both_ways(kind):
    net = build(kind)
    randomise(net, "stage_1")
    ours, pefts = gradients(net, "merged"), gradients(net, "switched")
    assert pefts.norm() > 0
    assert ((ours - pefts).norm() / pefts.norm()).item() <= 1e-10


@KINDS
@FORWARDS
def test_b_of_zero_and_no_adapter_are_the_identity(kind, how):
    wanted = run(build(kind, bare=True), picture())
    net = build(kind)
    with lora.LORA_FORWARDS[how](net, "stage_1"):
        torch.testing.assert_close(run(net, picture()), wanted, rtol=1e-12, atol=1e-12)
    randomise(net, "stage_1")
    with lora.LORA_FORWARDS[how](net, None):
        torch.testing.assert_close(run(net, picture()), wanted, rtol=1e-12, atol=1e-12)


@KINDS
@FORWARDS
def test_a_scaled_adapter_is_one_whose_b_was_scaled(kind, how):
    net, half = build(kind), build(kind)
    for one in (net, half):
        randomise(one, "stage_1")
    with torch.no_grad():
        for layer in lora.layers(half, "stage_1").values():
            layer.lora_B["stage_1"].weight.mul_(0.5)
    with lora.LORA_FORWARDS[how](half, "stage_1"):
        wanted = run(half, picture())
    with lora.LORA_FORWARDS[how](net, "stage_1"):
        whole = run(net, picture())
    with lora.scaled(net, "stage_1", 0.5), lora.LORA_FORWARDS[how](net, "stage_1"):
        torch.testing.assert_close(run(net, picture()), wanted, rtol=1e-12, atol=1e-12)
    with lora.LORA_FORWARDS[how](net, "stage_1"):
        torch.testing.assert_close(run(net, picture()), whole, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_summed_in_float32_and_cast_once(dtype):
    net, rng = build("mixed", dtype, bare=True), torch.Generator().manual_seed(3)
    net.conv_shortcut.bias.data.zero_()
    lora.attach(net, "stage_1", SPEC)
    for p in lora.parameters(net, "stage_1"):
        p.data = torch.randint(-512, 513, p.shape, generator=rng) / 1024  # so few bits that B @ A is exact
    layers, wanted = lora.layers(net, "stage_1"), {}
    own = {path: layer.get_base_layer().weight for path, layer in layers.items()}
    bases = {path: weight.clone() for path, weight in own.items()}
    for path, layer in layers.items():
        a, b = (side["stage_1"].weight.double().flatten(1) for side in (layer.lora_A, layer.lora_B))
        delta = (b @ a).float().view_as(bases[path])
        wanted[path] = (bases[path].float() + delta).to(dtype)
        assert not torch.equal(wanted[path], bases[path] + delta.to(dtype))  # what a sum in the base's dtype gives
    with torch.no_grad(), lora.overwritten(net, "stage_1", lambda key: bases[key.removesuffix(".weight")]):
        assert all(torch.equal(own[path], wanted[path]) for path in own)
    one_hot = torch.eye(12, dtype=dtype)  # what a layer makes of it is its weights
    for grads in (False, True):
        with torch.set_grad_enabled(grads), lora.merged(net, "stage_1"):
            assert torch.equal(net.to_q(one_hot).mT, wanted["to_q"])
            made = net.conv_shortcut(one_hot[:8, :8, None, None])
            assert torch.equal(made[..., 0, 0].mT, wanted["conv_shortcut"][..., 0, 0])


class HaltError(Exception):
    """What a test raises inside."""


@KINDS
@FORWARDS
@pytest.mark.parametrize("name", ["stage_2", None])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back_also_on_errors(kind, how, name, fails):
    net = build(kind, torch.bfloat16)
    randomise(net, "stage_2")
    for i, p in enumerate(net.parameters()):
        p.requires_grad_(i % 3 == 0)
    tuners = [module for module in net.modules() if isinstance(module, BaseTunerLayer)]
    for layer in tuners:
        layer.set_adapter("stage_1")
    for i, p in enumerate(net.parameters()):
        p.requires_grad_(i % 3 == 0)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()]
    forwards = [layer.forward for layer in tuners]

    def use() -> None:
        with lora.LORA_FORWARDS[how](net, name):
            assert [p.requires_grad for p in net.parameters()] == flags
            run(net, picture(torch.bfloat16))
            if fails:
                raise HaltError

    if fails:
        with pytest.raises(HaltError):
            use()
    else:
        use()
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(list(layer.active_adapters) == ["stage_1"] and not layer.disable_adapters for layer in tuners)
    assert [layer.forward for layer in tuners] == forwards
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


def test_attach_makes_nothing_trainable_and_keeps_the_adapter_in_float32():
    net = build("unet", torch.bfloat16, bare=True)
    first = next(net.parameters())
    net.requires_grad_(False)
    first.requires_grad_(True)
    lora.attach(net, "stage_1", SPEC)
    own = lora.parameters(net, "stage_1")
    assert {p.dtype for p in own} == {torch.float32}
    assert [p for p in net.parameters() if p.requires_grad] == [first]
    assert all(layer.lora_A["stage_1"].weight.shape[0] == 4 for layer in lora.layers(net, "stage_1").values())
    assert all((layer.lora_B["stage_1"].weight == 0).all() for layer in lora.layers(net, "stage_1").values())
    touched = {path.rsplit(".", 1)[-1] if not path.endswith("to_out.0") else "to_out.0" for path in
               lora.layers(net, "stage_1")}  # fmt: skip
    assert touched == set(SPEC.targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_adapter_comes_back_with_its_metadata(tmp_path: Path, dtype):
    net = build("unet", torch.float32, DIFFERENT_ALPHA)
    randomise(net, "stage_1")
    metadata = {"t": 200, "range": [1.0, 4.0], "lora": DIFFERENT_ALPHA.model_dump(mode="json"), "prompt": ""}
    lora.save(net, "stage_1", tmp_path, metadata, dtype)
    other = build("unet", torch.float32, bare=True)
    assert lora.load(other, "stage_1", tmp_path, SPEC) == metadata  # its own rank, alpha, targets; not the fallback's
    pairs = zip(lora.parameters(net, "stage_1"), lora.parameters(other, "stage_1"), strict=True)
    assert all(torch.equal(a.to(dtype).float(), b) and b.dtype == torch.float32 for a, b in pairs)
    with torch.no_grad(), lora.merged(net, "stage_1"), lora.merged(other, "stage_1"):
        ours, theirs = run(net, picture(torch.float32)), run(other, picture(torch.float32))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 if dtype == torch.float32 else 5e-2)


def test_diffusers_reads_our_file_and_computes_the_same(tmp_path: Path):
    net = build("unet", torch.float32)
    randomise(net, "stage_1")
    lora.save(net, "stage_1", tmp_path, {"stage": "stage_1", "lora": SPEC.model_dump(mode="json")}, torch.float32)
    plain = build("unet", torch.float32, bare=True)
    before = run(plain, picture(torch.float32))
    plain.load_lora_adapter(tmp_path, prefix="unet", weight_name=lora.FILE_NAME)
    theirs = run(plain, picture(torch.float32))
    with torch.no_grad(), lora.merged(net, "stage_1"):
        torch.testing.assert_close(run(net, picture(torch.float32)), theirs, rtol=1e-5, atol=1e-5)
    assert (theirs - before).abs().max() > 1e-3


def test_files_that_do_not_fit_are_model_errors(tmp_path: Path):
    net = build("unet", torch.float32)
    state = lora.state(net, "stage_1")
    key = next(iter(state))
    wrong = {
        "missing": {k: v for k, v in state.items() if k != key},
        "extra": state | {"unet.more.lora_A.weight": torch.ones(1)},
        "shape": state | {key: torch.ones(3, 3)},
        "prefix": {k.removeprefix("unet."): v for k, v in state.items()},
    }
    before = {k: v.clone() for k, v in state.items()}
    for tensors in wrong.values():
        save_tensors(tmp_path / lora.FILE_NAME, tensors)
        with pytest.raises(ModelError, match="does not fit this UNet"):
            lora.load(build("unet", torch.float32, bare=True), "stage_1", tmp_path, SPEC)
        with pytest.raises(ModelError, match="somewhere: the LoRA does not fit"):
            lora.load_state(net, "stage_1", load_tensors(tmp_path / lora.FILE_NAME)[0], "somewhere")
    assert all(torch.equal(value, before[k]) for k, value in lora.state(net, "stage_1").items())

"""Mixed precision as sd21's preset trains: base in bf16, autocast, adapters in float32 through peft's own forward."""

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tudsr import lora
from tudsr.train import loop
from tudsr.train.loop import Trainer
from tudsr.train.objective import Seed
from tudsr.train.state import load_state

BF16 = {"base_dtype": "bf16", "precision": "bf16", "lora_forward": "switched"}
FP32 = BF16 | {"base_dtype": "fp32", "precision": "no"}
STAGE_2 = {"stage": 2, "crop_px": 128, "n": 2, "scales": {"fixed": {"8": 1.0}}, "val_scale": 8.0}
CASES = [
    {"loop": "paper"},
    {"loop": "exact"},
    STAGE_2 | {"loop": "paper"},
    STAGE_2 | {"loop": "exact", "loss_crop_px": 64, "loss_crops": 1},
]
EA_DISTS = {"loop": "exact", "losses": {"ea_dists": 5.0, "mae": 0.5}}

# Relative to the gradient's norm. Measured on these cases: 0.04 to 0.08 for G, most of it from the base's rounded
# weights, and 0.009 to 0.010 for D.
TOLERANCE = {"g": 0.12, "d": 0.03}


@pytest.fixture(autouse=True)
def any_precision(monkeypatch) -> Iterator[None]:
    """Let each trainer have its own precision: accelerate holds on to a process's first."""
    own = loop._accelerator

    def forgetful(precision: str) -> Accelerator:
        AcceleratorState._reset_state()
        return own(precision)

    monkeypatch.setattr(loop, "_accelerator", forgetful)
    yield
    AcceleratorState._reset_state()


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return each net's gradients of the first micro-step, which all are float32."""
    batch = next(trainer.batches.from_step(0))
    trainer.task.accumulate(trainer.batches.on_device(batch), 1.0, Seed(0, 0))
    return {name: torch.cat([p.grad.flatten() for p in net]) for name, net in trainer.task.nets.items()}


@pytest.mark.parametrize("changes", [*CASES, EA_DISTS])
def test_bf16_has_about_the_gradients_of_fp32(make_config, random_nets, tmp_path, changes):
    found, wanted = (
        gradients(Trainer(make_config(**changes | precision, out=tmp_path / name), resume=False))
        for name, precision in (("bf16", BF16), ("fp32", FP32))
    )
    for net, most in TOLERANCE.items():
        error = ((found[net] - wanted[net]).norm() / wanted[net].norm()).item()
        assert found[net].dtype == torch.float32
        # No more than bf16's rounding, and not so little that it cannot have been bf16.
        assert 1e-4 < error < most, net


@pytest.mark.parametrize("changes", CASES)
def test_bf16_moves_adapters_that_stay_float32(make_config, changes):
    config = make_config(**changes | BF16)
    trainer = Trainer(config, resume=False)
    net, own = trainer.model.backbone.unet, f"stage_{config.stage}"
    before = {name: value.clone() for name, value in net.state_dict().items()}
    computed = set()
    layers = [layer.lora_A[own] for layer in lora.layers(net, own).values()]
    for module in (*layers, trainer.task.net_d.stem[0][0]):
        module.register_forward_hook(lambda *hooked: computed.add(hooked[-1].dtype))
    figures = trainer.run(lambda *_: None)
    assert computed == {torch.bfloat16}
    assert all(value == value for value in figures.values())  # no NaN
    for name, value in net.state_dict().items():
        is_adapter = ".lora_" in name
        assert value.dtype == (torch.float32 if is_adapter else torch.bfloat16), name
        assert value.isfinite().all(), name
        assert torch.equal(value, before[name]) is (f".{own}." not in name), name
    state = load_state(config.out / "state.pt")
    saved = [*state["nets"]["g"], *state["nets"]["d"], *state["ema"]["average"]]
    moments = [
        value for net in ("g", "d") for kept in state["optimizers"][net]["state"].values() for value in kept.values()
    ]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in (*saved, *moments))

"""Devices and dtypes by name."""

import pytest
import torch

from tudsr.device import DTYPES, pick_device, pick_dtype
from tudsr.errors import InputError

CPU = torch.device("cpu")


def test_devices_by_name():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("cuda", "mps", "first"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)  # fmt: skip
def test_auto_prefers_accelerators(monkeypatch, cuda, mps, first):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # there may be no such device here
    assert pick_device("auto").type == first


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:x"])
def test_devices_that_are_not_there_are_input_errors(name):
    with pytest.raises(InputError, match=r"accepted: auto, cpu, cuda"):
        pick_device(name)


def test_dtypes_by_name():
    assert {name: pick_dtype(name, CPU) for name in DTYPES} == {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
    }
    with pytest.raises(InputError, match=r"'half' is unknown; accepted: auto, fp32, bf16, fp16"):
        pick_dtype("half", CPU)


@pytest.mark.parametrize("avx", [False, True])
@pytest.mark.parametrize("amx", [False, True])
def test_auto_on_a_cpu_takes_bf16_only_where_it_is_native(monkeypatch, avx, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert pick_dtype("auto", CPU) is (torch.bfloat16 if avx or amx else torch.float32)


@pytest.mark.parametrize("native", [False, True])
def test_auto_on_a_gpu_takes_fp16_where_bf16_is_emulated(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert pick_dtype("auto", torch.device("cuda")) is (torch.bfloat16 if native else torch.float16)
    assert pick_dtype("auto", torch.device("mps")) is torch.float32

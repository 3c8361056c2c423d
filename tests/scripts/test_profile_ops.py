"""benchmarks/profile_ops.py: an operator's group, nothing counted twice, and a real run of a small picture."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

import tudsr

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Return the module, which finds its neighbours in its own folder."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return pytest.importorskip("profile_ops")


def test_no_benchmark_has_the_name_of_a_module_of_pythons_own():
    """A script's folder comes first on the path: a profile.py there breaks cProfile, which torch imports."""
    assert not {path.stem for path in BENCHMARKS.glob("*.py")} & set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::addmm", "matrix product"),
        ("aten::bmm", "matrix product"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNN", "matrix product"),
        ("aten::native_group_norm", "normalisation"),
        ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<float>(long, float)", "normalisation"),
        ("aten::silu_", "activation"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::silu_kernel(…)>", "activation"),
        ("aten::upsample_nearest2d", "interpolation"),
        ("aten::upsample_bilinear2d", "interpolation"),
        ("Memcpy DtoH (Device -> Pinned)", "copy and cast"),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(…)>", "copy and cast"),
        ("aten::_to_copy", "copy and cast"),
        ("aten::cat", "copy and cast"),
        ("aten::add", "elementwise"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "elementwise"),
        ("aten::expand", "other"),
        ("aten::as_strided", "other"),
    ],
)
def test_an_operators_group(script, name, group):
    assert script.group_of(name) == group


def _event(key, device, own_cpu, own_device, annotation=False):
    return SimpleNamespace(
        key=key, count=2, device_type=device, is_user_annotation=annotation,
        self_cpu_time_total=own_cpu, self_device_time_total=own_device,
    )  # fmt: skip


def test_on_cuda_only_what_ran_on_the_device_counts(script):
    events = [
        _event("aten::cudnn_convolution", DeviceType.CPU, 500, 3000),
        _event("cudaLaunchKernel", DeviceType.CPU, 700, 0),
        _event("Memcpy HtoD (Pageable -> Device)", DeviceType.CUDA, 0, 1000),
        _event("sm90_xmma_fprop_implicit_gemm", DeviceType.CUDA, 0, 3000),
        _event("a range", DeviceType.CUDA, 0, 4000, annotation=True),
    ]
    rows = script.operators(events, cuda=True)
    assert [(row["group"], row["calls"], row["ms"], row["share"]) for row in rows] == [
        ("convolution", 2, 3.0, 0.75),
        ("copy and cast", 2, 1.0, 0.25),
    ]
    assert [row["ms"] for row in script.operators(events, cuda=False)] == [0.7, 0.5]


def test_groups_add_up(script):
    rows = [
        {"group": "other", "calls": 1, "ms": 1.0, "share": 0.1},
        {"group": "convolution", "calls": 2, "ms": 4.0, "share": 0.4},
        {"group": "convolution", "calls": 3, "ms": 5.0, "share": 0.5},
    ]
    found = script.grouped(rows)
    assert list(found) == ["convolution", "other"]
    assert found["convolution"] == {"calls": 5, "ms": 9.0, "share": pytest.approx(0.9)}


def test_a_run_of_the_embedded_model(script):
    found = script.measure(tudsr.load("tiny", device="cpu", dtype="fp32"), side=16, scale=2, top=5)
    assert found["out_px"] == [32, 32]
    assert (found["device"], found["dtype"]) == ("cpu", "torch.float32")
    assert "device_busy" not in found
    assert 0 < found["own_ms"] / 1e3 < found["seconds"]["profiled"]
    assert sum(group["share"] for group in found["groups"].values()) == pytest.approx(1, abs=0.001)
    assert sum(group["ms"] for group in found["groups"].values()) == pytest.approx(found["own_ms"], abs=0.01)
    assert found["groups"]["convolution"]["ms"] > 0
    times = [row["ms"] for row in found["operators"]]
    assert len(times) == 5
    assert times == sorted(times, reverse=True)
    assert found["operators_left_out"] > 0

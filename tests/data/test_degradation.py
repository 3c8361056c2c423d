"""The pipeline: settings, plans, determinism, and what a plan does."""

import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tudsr.config import Settings
from tudsr.data import degradation, kernels
from tudsr.data.degradation import (
    PRESETS,
    Degradation,
    DegradationMix,
    DegradationPlan,
    DegradationStage,
    RoundPlan,
    apply_plans,
    degrade,
    degrade_batch,
    draw_plan,
)
from tudsr.data.jpeg import jpeg
from tudsr.errors import ConfigError


def _photos(batch: int, side_px: int) -> Tensor:
    """Smooth pictures with some detail, (B, 3, side, side) in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 6, 6, generator=generator) * 1.6 - 0.8
    smooth = torch.nn.functional.interpolate(coarse, size=(side_px, side_px), mode="bicubic")
    return (smooth + 0.1 * torch.randn(batch, 3, side_px, side_px, generator=generator)).clamp(-1, 1)


def _plans(preset: str, count: int) -> list[DegradationPlan]:
    return [draw_plan(preset, np.random.default_rng((5, i))) for i in range(count)]


def _round(**changes: object) -> RoundPlan:
    """A round that does next to nothing: no blur, no resize, noise of 1e-6 levels, JPEG 100."""
    harmless = RoundPlan(
        kernel=None, resize=1.0, resize_mode="bicubic", noise="gaussian", noise_level=1e-6, noise_grey=False,
        noise_seed=0, jpeg_quality=100,
    )  # fmt: skip
    return dataclasses.replace(harmless, **changes)


def _plan(first: RoundPlan, second: RoundPlan, jpeg_last: bool = True) -> DegradationPlan:
    return DegradationPlan(first=first, second=second, final_kernel=None, final_resize_mode="area", jpeg_last=jpeg_last)


def _applied(gt: Tensor, lq_h: int, lq_w: int, plan: DegradationPlan) -> Tensor:
    return apply_plans(gt[None], lq_h, lq_w, [plan])[0]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(16, 16), (9, 13), (64, 64)])
def test_output_is_8_bit_of_the_size_asked_for(preset: str, size: tuple[int, int]) -> None:
    gt = _photos(1, 64)[0]
    for index in range(6):
        lq = degrade(gt, *size, preset=preset, seed=1, index=index)
        assert lq.shape == (3, *size)
        assert lq.dtype == torch.float32
        levels = (lq + 1) * 127.5
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
        assert lq.min() >= -1
        assert lq.max() <= 1


def test_seed_and_index_decide() -> None:
    gt = _photos(1, 48)[0]
    one = degrade(gt, 12, 12, preset="light", seed=3, index=7)
    assert torch.equal(one, degrade(gt, 12, 12, preset="light", seed=3, index=7))
    assert not torch.equal(one, degrade(gt, 12, 12, preset="light", seed=3, index=8))
    assert not torch.equal(one, degrade(gt, 12, 12, preset="light", seed=4, index=7))


def test_global_random_state_is_neither_read_nor_moved() -> None:
    gt = _photos(1, 48)[0]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = degrade(gt, 12, 12, preset="heavy", seed=0, index=0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(one, degrade(gt, 12, 12, preset="heavy", seed=0, index=0))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_batch_is_its_pictures_one_by_one(preset: str) -> None:
    """Exactly in float64; in float32 a last bit that turns a tie moves some levels."""
    gt, indices = _photos(8, 48), [3, 0, 11, 5, 2, 9, 7, 30]
    each = [degrade(one, 12, 10, preset=preset, seed=2, index=i) for one, i in zip(gt.double(), indices, strict=True)]
    wide, narrow = (degrade_batch(x, 12, 10, preset=preset, seed=2, indices=indices) for x in (gt.double(), gt))
    assert torch.equal(wide, torch.stack(each))
    assert (wide - narrow).abs().mean() < 1 / 127.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_changes_single_levels_only() -> None:
    here, there = (
        degrade_batch(gt, 32, 32, preset="light", seed=0, indices=range(4)).cpu()
        for gt in (_photos(4, 128), _photos(4, 128).cuda())
    )
    assert ((here - there).abs() > 1.5 / 127.5).float().mean() < 0.01


def test_light_is_milder_than_heavy() -> None:
    gt = _photos(8, 64)
    truth = torch.nn.functional.interpolate(gt, size=(16, 16), mode="area")
    light, heavy = (
        torch.stack([degrade(one, 16, 16, preset=preset, seed=0, index=index) for index, one in enumerate(gt)])
        for preset in ("light", "heavy")
    )
    assert (light - truth).abs().mean() < (heavy - truth).abs().mean()


@pytest.mark.parametrize("preset", PRESETS)
def test_plans_keep_to_the_settings(preset: str) -> None:
    spec, plans = PRESETS[preset], _plans(preset, 400)
    for name in ("first", "second"):
        stage: DegradationStage = getattr(spec, name)
        rounds: list[RoundPlan] = [getattr(plan, name) for plan in plans]
        _within([r.resize for r in rounds], stage.resize)
        _within([r.jpeg_quality for r in rounds], stage.jpeg_quality)
        for noise, bounds in (("gaussian", stage.noise_sigma), ("poisson", stage.poisson_scale)):
            _within([r.noise_level for r in rounds if r.noise == noise], bounds)
        _near([r.kernel is not None for r in rounds], stage.blur_prob)
        _near([r.noise == "gaussian" for r in rounds], 0.5)
        _near([r.noise_grey for r in rounds], 0.4)
        _near([r.resize > 1 for r in rounds], stage.resize_probs[0])
        _near([r.resize < 1 for r in rounds], stage.resize_probs[1])
    _near([plan.final_kernel is not None for plan in plans], spec.final_sinc_prob)
    _near([plan.jpeg_last for plan in plans], 0.5)


def _within(values: list[float], bounds: tuple[float, float]) -> None:
    """All within, and 400 draws come close to both ends."""
    low, high = bounds
    assert low <= min(values) <= low + 0.15 * (high - low)
    assert high - 0.15 * (high - low) <= max(values) <= high


def _near(events: list[bool], probability: float) -> None:
    """Within four standard deviations of 400 draws."""
    assert abs(np.mean(events) - probability) <= 4 * 0.5 / 20


def test_the_presets_are_those_of_the_method() -> None:
    light, heavy = PRESETS["light"], PRESETS["heavy"]
    assert (light.first.resize, light.second.resize) == ((0.3, 1.5), (0.6, 1.2))
    assert (light.first.noise_sigma, light.second.noise_sigma) == ((1, 15), (1, 12))
    assert (light.first.jpeg_quality, light.second.jpeg_quality) == ((60, 95), (60, 100))
    assert (heavy.first.resize, heavy.second.resize) == ((0.15, 1.5), (0.3, 1.2))
    assert (heavy.first.noise_sigma, heavy.second.noise_sigma) == ((1, 30), (1, 25))
    assert (heavy.first.jpeg_quality, heavy.second.jpeg_quality) == ((30, 95), (30, 95))
    assert (light.second.blur_prob, heavy.second.blur_prob) == (0.5, 0.8)
    assert DegradationMix().weights == {"light": 0.8, "heavy": 0.2}


@pytest.mark.parametrize(
    ("preset", "poisson"), [("light", ((0.05, 2), (0.05, 1.5))), ("heavy", ((0.05, 3), (0.05, 2.5)))]
)
def test_what_the_method_does_not_change_is_real_esrgans(preset: str, poisson: tuple[Any, Any]) -> None:
    spec = PRESETS[preset]
    rounds = spec.first, spec.second
    assert tuple(stage.poisson_scale for stage in rounds) == poisson
    assert [stage.sigma_px for stage in rounds] == [(0.2, 3), (0.2, 1.5)]
    assert [stage.resize_probs for stage in rounds] == [(0.2, 0.7, 0.1), (0.3, 0.4, 0.3)]
    assert [(stage.sinc_prob, stage.gaussian_prob, stage.grey_prob) for stage in rounds] == [(0.1, 0.5, 0.4)] * 2
    assert (spec.first.blur_prob, spec.final_sinc_prob) == (1, 0.8)


@pytest.fixture(scope="module")
def drawn_kernels() -> dict[str, list[dict[str, Any]]]:
    """Return what the kernels of 4000 heavy plans are made of, by their place in the plan."""

    def bivariate(
        size: int, sigma_x: float, sigma_y: float, angle: float, beta: float, *, plateau: bool
    ) -> dict[str, Any]:
        shape = "plateau_" if plateau else "generalized_" if beta != 1 else ""
        family = shape + ("iso" if sigma_x == sigma_y else "aniso")
        return {"family": family, "sigmas": (sigma_x, sigma_y), "angle": angle, "beta": beta}

    def sinc(size: int, cutoff: float) -> dict[str, Any]:
        return {"family": "sinc", "size": size, "cutoff": cutoff}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "bivariate_kernel", bivariate)
        patch.setattr(kernels, "sinc_kernel", sinc)
        plans = _plans("heavy", 4000)
    places = {
        "first": [plan.first.kernel for plan in plans],
        "second": [plan.second.kernel for plan in plans],
        "final": [plan.final_kernel for plan in plans],
    }
    return {place: [kernel for kernel in found if kernel is not None] for place, found in places.items()}


@pytest.mark.parametrize("place", ["first", "second"])
def test_kernel_families_come_as_often_as_the_method_says(drawn_kernels: Any, place: str) -> None:
    probabilities = {
        "sinc": 0.1, "iso": 0.405, "aniso": 0.225, "generalized_iso": 0.108, "generalized_aniso": 0.027,
        "plateau_iso": 0.108, "plateau_aniso": 0.027,
    }  # fmt: skip
    found = drawn_kernels[place]
    counts = Counter(kernel["family"] for kernel in found)
    assert set(counts) == set(probabilities)
    for family, p in probabilities.items():  # within four standard deviations
        assert abs(counts[family] - p * len(found)) < 4 * math.sqrt(p * (1 - p) * len(found)), family


@pytest.mark.parametrize(("place", "most"), [("first", 3.0), ("second", 1.5)])
def test_kernels_are_drawn_from_their_ranges(drawn_kernels: Any, place: str, most: float) -> None:
    bell = [kernel for kernel in drawn_kernels[place] if kernel["family"] != "sinc"]
    _within([sigma for kernel in bell for sigma in kernel["sigmas"]], (0.2, most))
    _within([kernel["angle"] for kernel in bell if kernel["family"].endswith("aniso")], (-math.pi, math.pi))
    for shape, bounds in (("generalized", (0.5, 4.0)), ("plateau", (1.0, 2.0))):
        betas = [kernel["beta"] for kernel in bell if kernel["family"].startswith(shape)]
        _within(betas, bounds)
        _near([beta <= 1 for beta in betas], 0.5)


def test_cut_offs_are_drawn_from_their_ranges(drawn_kernels: Any) -> None:
    """Real-ESRGAN's: small filters keep more in the rounds, the final one never goes below a third."""
    blurs = [kernel for place in ("first", "second") for kernel in drawn_kernels[place] if kernel["family"] == "sinc"]
    _within([kernel["cutoff"] for kernel in blurs if kernel["size"] < 13], (math.pi / 3, math.pi))
    _within([kernel["cutoff"] for kernel in blurs if kernel["size"] >= 13], (math.pi / 5, math.pi))
    final = drawn_kernels["final"]
    assert {kernel["family"] for kernel in final} == {"sinc"}
    for small in (True, False):
        _within([kernel["cutoff"] for kernel in final if (kernel["size"] < 13) == small], (math.pi / 3, math.pi))


@pytest.mark.parametrize("jpeg_last", [True, False])
def test_operators_come_in_real_esrgans_order(monkeypatch: pytest.MonkeyPatch, jpeg_last: bool) -> None:
    done: list[tuple[object, ...]] = []

    def note(x: Tensor, *what: object) -> Tensor:
        done.append(what)
        return x

    operators = {
        "blur": lambda x, kernels: note(x, "blur", *kernels),
        "resize_to": lambda x, height, width, mode: note(x, "resize", height, width, mode),
        "jpeg": lambda x, qualities: note(x, "jpeg", *qualities),
    }
    for name, operator in operators.items():
        monkeypatch.setattr(degradation, name, operator)
    for name in ("gaussian", "poisson"):
        monkeypatch.setitem(
            degradation._NOISES, name, lambda x, levels, *, grey, seeds, name=name: note(x, name, *levels, grey, *seeds)
        )
    first = RoundPlan(
        kernel="k1", resize=0.5, resize_mode="area", noise="gaussian", noise_level=7.0, noise_grey=True, noise_seed=1,
        jpeg_quality=61,
    )  # fmt: skip
    second = RoundPlan(
        kernel="k2", resize=1.25, resize_mode="bilinear", noise="poisson", noise_level=0.5, noise_grey=False,
        noise_seed=2, jpeg_quality=62,
    )  # fmt: skip
    plan = DegradationPlan(
        first=first, second=second, final_kernel="k3", final_resize_mode="bicubic", jpeg_last=jpeg_last
    )
    _applied(_photos(1, 32)[0], 8, 4, plan)
    end = [("resize", 8, 4, "bicubic"), ("blur", "k3")]
    second_jpeg = [("jpeg", 62)]
    assert done == [
        ("blur", "k1"), ("resize", 16, 16, "area"), ("gaussian", 7.0, True, 1), ("jpeg", 61),
        ("blur", "k2"), ("resize", 10, 5, "bilinear"), ("poisson", 0.5, False, 2),
        *(end + second_jpeg if jpeg_last else second_jpeg + end),
    ]  # fmt: skip


def test_mix_draws_by_weight() -> None:
    """JPEG below 60 tells heavy: (95 - 30 + 1 - 36) / 66 = 30 / 66 of its first rounds."""
    mix = DegradationMix(weights={"light": 0.5, "heavy": 0.5})
    plans = [draw_plan(mix, np.random.default_rng(i)) for i in range(400)]
    _near([plan.first.jpeg_quality < 60 for plan in plans], 0.5 * 30 / 66)
    only = [draw_plan(DegradationMix(weights={"light": 1.0}), np.random.default_rng(i)) for i in range(100)]
    assert min(plan.first.jpeg_quality for plan in only) >= 60


@pytest.mark.parametrize("jpeg_last", [True, False])
def test_a_harmless_plan_is_the_mean_of_blocks(jpeg_last: bool) -> None:
    gt = _photos(1, 32)[0].mean(dim=0, keepdim=True).expand(3, 32, 32)
    second = _round(resize_mode="area")
    lq = _applied(gt, 8, 8, _plan(_round(), second, jpeg_last))
    truth = torch.nn.functional.avg_pool2d(gt[None], 4)[0]
    assert (lq - truth).abs().max() < 3 / 127.5


def test_each_operator_leaves_its_mark() -> None:
    gt = _photos(1, 64)[0]
    plain = _applied(gt, 64, 64, _plan(_round(), _round()))
    box = np.full((7, 7), 1 / 49)
    blurred = _applied(gt, 64, 64, _plan(_round(kernel=box), _round()))
    assert _roughness(blurred) < 0.5 * _roughness(plain)
    for noise in ("gaussian", "poisson"):
        level = 20.0 if noise == "gaussian" else 2.0
        noisy = _applied(gt, 64, 64, _plan(_round(noise=noise, noise_level=level), _round()))
        assert _roughness(noisy) > 1.2 * _roughness(plain)
    small = _applied(gt, 64, 64, _plan(_round(resize=0.25), _round()))
    assert _roughness(small) < 0.7 * _roughness(plain)
    crushed = _applied(gt, 64, 64, _plan(_round(jpeg_quality=5), _round()))
    assert (crushed - plain).abs().mean() > 5 / 127.5
    ringing = dataclasses.replace(_plan(_round(), _round()), final_kernel=box)
    assert _roughness(_applied(gt, 64, 64, ringing)) < 0.5 * _roughness(plain)


def test_the_last_jpeg_comes_before_or_after_the_last_resize() -> None:
    """Afterwards, the 8x8 blocks lie on the output's grid: writing it once more changes little."""
    gt = _photos(1, 64)[0]
    rounds = _round(), _round(resize=0.6, jpeg_quality=10)
    changes = {}
    for last in (False, True):
        lq = _applied(gt, 64, 64, _plan(*rounds, jpeg_last=last))
        plain = _applied(gt, 64, 64, _plan(rounds[0], _round(resize=0.6), jpeg_last=last))
        assert (lq - plain).abs().mean() > 3 / 127.5
        changes[last] = (jpeg(lq[None] / 2 + 0.5, [10])[0] * 2 - 1 - lq).abs().mean().item()
    assert changes[True] < 0.5 * changes[False]


def _roughness(x: Tensor) -> float:
    return x.diff(dim=-1).abs().mean().item()


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'mild' is not a degradation; known ones: camera, heavy, light"):
        degrade(_photos(1, 16)[0], 4, 4, preset="mild", seed=0, index=0)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (DegradationMix, {"weights": {"mild": 1.0}}),
        (DegradationMix, {"weights": {}}),
        (DegradationMix, {"weights": {"light": -1.0, "heavy": 2.0}}),
        (Degradation, PRESETS["light"].model_dump() | {"final_sinc_prob": 1.5}),
        (DegradationStage, PRESETS["light"].first.model_dump() | {"resize": (1.1, 1.5)}),
        (DegradationStage, PRESETS["light"].first.model_dump() | {"resize_probs": (0.5, 0.5, 0.5)}),
        (DegradationStage, PRESETS["light"].first.model_dump() | {"jpeg_quality": (50, 101)}),
        (DegradationStage, PRESETS["light"].first.model_dump() | {"noise_sigma": (5, 1)}),
    ],
)
def test_bad_settings_are_refused(kind: type[Settings], values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        kind.parse(values, "test")

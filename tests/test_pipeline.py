"""The pipeline: exact sizes, every kind of picture, windows, colour fixes, and what it leaves behind."""

import contextlib
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tudsr import lora
from tudsr.backbones import blueprint
from tudsr.color import COLOR_FIXES, fix_color
from tudsr.config import ModelConfig, WindowRange
from tudsr.errors import ConfigError, InputError
from tudsr.find import CONFIG_NAME, find_model
from tudsr.image import Picture, picture_from
from tudsr.one_step import z0_from_prediction
from tudsr.pipeline import TUDSR, load
from tudsr.request import Request, _window_range
from tudsr.resize import upsample
from tudsr.spread import Spread
from tudsr.stage import Stage, inference
from tudsr.tiling import add_window, extract


@pytest.fixture(scope="module")
def tudsr(model_folder) -> TUDSR:
    return load(model_folder, device="cpu", dtype="fp32")


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def result(tudsr: TUDSR, picture: np.ndarray, **wishes) -> torch.Tensor:
    return tudsr.upscale_picture(picture_from(picture), Request(**wishes)).pixels


@pytest.mark.parametrize(
    ("height", "width", "scale", "out"),
    [
        (1, 1, 8, (8, 8)),
        (1, 1, 1, (1, 1)),
        (3, 1, 1.5, (5, 2)),
        (7, 5, 3.3, (23, 17)),
        (33, 17, 4, (132, 68)),
        (13, 21, 1, (13, 21)),
        (9, 11, 2.05, (18, 23)),
        (5, 4, 17, (85, 68)),
    ],
)
def test_output_sizes_are_exact(tudsr, height, width, scale, out):
    enlarged = tudsr.upscale(noise(height, width), scale)
    assert enlarged.shape == (*out, 3)
    assert enlarged.dtype == np.uint8


def test_the_default_is_eightfold_and_sizes_may_be_given(tudsr):
    assert tudsr.upscale(noise(3, 5)).shape == (24, 40, 3)
    assert tudsr.upscale(noise(10, 10), size=(31, 47)).shape == (31, 47, 3)
    assert tudsr.upscale(noise(6, 5), m=2, n=1.5).shape == (18, 15, 3)
    assert tudsr.upscale(noise(6, 5), 4, stage=2).shape == (24, 20, 3)


def test_twice_upsampling_diffusion_by_hand(tudsr):
    """M2N2 on one window each, computed through peft's own forward."""
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    net = tudsr.model.backbone
    wanted = x
    for name, t in (("stage_1", 200), ("stage_2", 50)):
        up = torch.nn.functional.interpolate(wanted, scale_factor=2, mode="bicubic")
        canvas = torch.nn.functional.pad(up, (0, 32 - up.shape[3], 0, 32 - up.shape[2]), mode="replicate")
        if up.shape[2] > 16:
            canvas = torch.nn.functional.pad(up, (0, 32 - up.shape[3], 0, 32 - up.shape[2]), mode="reflect")
        with torch.no_grad(), lora.switched(net.unet, name):
            z = torch.nn.functional.pixel_unshuffle(canvas, 4) * 2
            pred = net.unet(z, t, None).sample
            z0 = z0_from_prediction(pred, z, net.alphas_cumprod[t], "epsilon")
            wanted = torch.nn.functional.pixel_shuffle(z0 / 2, 4)[..., : up.shape[2], : up.shape[3]].clamp(-1, 1)
    out = tudsr.upscale_picture(Picture(pixels=x), Request(scale=4, color="none")).pixels
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, wanted, rtol=0, atol=2e-5)


def test_timesteps_by_hand_and_order_of_the_stages_matter(tudsr):
    usual = result(tudsr, noise(8, 8), scale=4)
    for wishes in ({"t1": 100}, {"t2": 100}, {"m": 4, "n": 1}, {"stage": 1}, {"stage": 2}):
        other = result(tudsr, noise(8, 8), scale=4, **wishes)
        assert (other - usual).abs().max() > 1e-3, wishes
    assert torch.equal(result(tudsr, noise(8, 8), scale=4, t1=200, t2=50, m=2, n=2), usual)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P"])
def test_pil_pictures(tudsr, mode):
    image = Image.fromarray(noise(6, 9, 4)).convert("RGB" if mode == "P" else mode).convert(mode)
    out = tudsr.upscale(image, 2)
    assert isinstance(out, Image.Image)
    assert out.size == (18, 12)
    assert out.mode == {"P": "RGB"}.get(mode, mode)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_numpy_pictures(tudsr, dtype, channels):
    whole = noise(6, 9, channels or 1)
    picture = whole / 255 if np.dtype(dtype).kind == "f" else whole.astype(dtype) * (257 if dtype == np.uint16 else 1)
    picture = picture.astype(dtype)[..., 0] if channels == 0 else picture.astype(dtype)
    out = tudsr.upscale(picture, 1.5)
    assert isinstance(out, np.ndarray)
    assert out.dtype == dtype
    assert out.shape == (9, 14, channels) if channels else (9, 14)


@pytest.mark.parametrize("shape", [(3, 6, 9), (1, 3, 6, 9), (1, 1, 6, 9)])
def test_torch_pictures(tudsr, shape):
    out = tudsr.upscale(torch.rand(shape, generator=torch.Generator().manual_seed(0)), 2)
    assert isinstance(out, torch.Tensor)
    assert out.shape == (*shape[:-2], 12, 18)
    assert out.min() >= 0
    assert out.max() <= 1


def test_all_kinds_get_the_same_pixels(tudsr):
    picture = noise(7, 7)
    out = tudsr.upscale(picture, 4)
    assert np.array_equal(np.asarray(tudsr.upscale(Image.fromarray(picture), 4)), out)
    as_float = tudsr.upscale(torch.from_numpy(picture / 255).movedim(-1, 0).float(), 4).movedim(0, -1).numpy()
    assert np.abs(as_float * 255 - out).max() <= 0.51


def test_alpha_is_enlarged_by_bicubic_and_does_not_touch_the_colours(tudsr):
    picture = noise(6, 6, 4)
    out = tudsr.upscale(picture, 4)
    alpha = upsample(torch.from_numpy(picture[None, None, ..., 3] / 255).float(), 24, 24).clamp(0, 1)
    assert np.abs(out[..., 3] - alpha[0, 0].numpy() * 255).max() <= 0.51
    assert np.array_equal(out[..., :3], tudsr.upscale(picture[..., :3], 4))


@pytest.mark.parametrize("batch", [2, 7])
def test_batching_changes_nothing(tudsr, batch):
    one = result(tudsr, noise(33, 29), scale=4)
    assert (result(tudsr, noise(33, 29), scale=4, batch=batch) - one).abs().max() <= 1e-5


def window_by_window(tudsr: TUDSR, x: torch.Tensor, request: Request) -> torch.Tensor:
    """Do all passes on a whole canvas, each window alone and from the last one to the first."""
    plan = tudsr.plan(x.shape[-2], x.shape[-1], request)
    for step in plan.passes:
        lq_up, grid = upsample(x, step.height, step.width), tudsr.grid(step, request)
        assert len(grid.windows) > 1
        canvas = torch.zeros_like(lq_up)
        stage = Stage(tudsr.model.backbone, 200 if step.stage == 1 else 50, f"stage_{step.stage}")
        with inference(stage) as restore:
            for window in reversed(grid.windows):
                add_window(canvas, restore(extract(lq_up, grid, window)), grid, window)
        x = fix_color(request.color, canvas, lq_up).clamp(-1, 1)
    return x


@pytest.mark.parametrize("batch", [1, 2])
def test_the_order_of_windows_changes_nothing(tudsr, batch):
    picture = picture_from(noise(33, 29))
    request = Request(scale=4, batch=batch)
    rows = tudsr.upscale_picture(picture, request).pixels
    wanted = window_by_window(tudsr, picture.pixels, request)
    assert wanted.dtype == torch.float32
    torch.testing.assert_close(rows, wanted, rtol=0, atol=1e-5)


def test_a_shifted_grid_makes_a_picture_of_the_same_size_that_differs_little(tudsr):
    usual = result(tudsr, noise(33, 29), scale=4)
    shifted = result(tudsr, noise(33, 29), scale=4, shift_px=16)
    assert shifted.shape == usual.shape
    difference = (shifted - usual).abs()
    assert 0 < difference.mean() < 0.1
    with pytest.raises(InputError, match="shift_px is 32"):
        result(tudsr, noise(9, 9), scale=2, shift_px=32)


@pytest.mark.parametrize("name", sorted(COLOR_FIXES))
def test_the_colour_fix_takes_the_stages_own_upsampled_input_after_blending(tudsr, name):
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.6
    lq_up = upsample(x, 32, 32)
    stage = Stage(tudsr.model.backbone, 200, "stage_1")
    with inference(stage):
        raw = stage(lq_up)
    wanted = fix_color(name, raw, lq_up).clamp(-1, 1)
    one_pass = tudsr.upscale_picture(Picture(pixels=x), Request(scale=2, stage=1, color=name))
    torch.testing.assert_close(one_pass.pixels, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"sclae": 4}, "'sclae' is not a setting"),
        ({"tile_px": 36}, "tile_px is 36; .* stride of 8 px .* from 32 px .* overlap of 16 px; nearest: 32 and 40"),
        ({"tile_px": 16}, "tile_px is 16; .* from 32 px .*nearest: 32"),
        ({"tile_px": 64, "overlap_px": 40}, "tile_px is 64; .* from 80 px with an overlap of 40 px; nearest: 80"),
        ({"overlap_px": 40}, "overlap_px is 40; 0 to 32, .* accepted, or more with a tile_px of at least 80"),
        ({"tile_px": 0}, "tile_px"),
        ({"t1": 1000}, "t1"),
        ({"batch": 0}, "batch"),
        ({"stage": 3}, "stage"),
        ({"m": float("nan")}, "m:"),
    ],
)
def test_options_that_cannot_be_used_are_config_errors(tudsr, wishes, words):
    with pytest.raises(ConfigError, match=words):
        tudsr.upscale(noise(4, 4), 2, **wishes)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"stage": 1, "t2": 9}, "t2 is 9, but there is no pass of stage 2: M is 2 and N 1"),
        ({"stage": 2, "t1": 9}, "t1 is 9, but there is no pass of stage 1"),
    ],
)
def test_a_timestep_of_a_stage_without_a_pass_is_refused(tudsr, wishes, words):
    with pytest.raises(InputError, match=words):
        tudsr.upscale(noise(4, 4), 2, **wishes)


def test_an_unknown_colour_fix_is_refused_before_any_work(tudsr, monkeypatch):
    monkeypatch.setattr(TUDSR, "run_passes", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ConfigError, match=r"wavelet, adain, none.*'lab'"):
        tudsr.upscale(noise(4, 4), 2, color="lab")


def test_tiles_by_hand(tudsr):
    out = result(tudsr, noise(20, 20), scale=4, tile_px=64, overlap_px=32)
    assert out.shape[-2:] == (80, 80)
    assert (out - result(tudsr, noise(20, 20), scale=4)).abs().max() > 0  # other windows, really


@pytest.mark.parametrize(("overlap_px", "least"), [(0, 32), (16, 32), (20, 40), (24, 48), (32, 64)])
def test_an_overlap_alone_takes_windows_that_are_large_enough_for_it(tudsr, overlap_px, least):
    request = Request(scale=4, overlap_px=overlap_px)
    step = tudsr.plan(40, 9, request).passes[-1]  # 160 x 36 px
    grid = tudsr.grid(step, request)
    assert min(grid.window_h, grid.window_w) >= least
    assert grid.window_w == max(40, least)
    assert all(a + grid.window_h - b >= overlap_px for a, b in zip(grid.ys, grid.ys[1:], strict=False))
    assert len(grid.ys) > 1


def test_the_embedded_models_windows_take_a_larger_overlap():
    tiny = WindowRange.parse(blueprint("tiny").settings["windows"], "tiny")
    assert tiny == ModelConfig.read(find_model("tiny") / CONFIG_NAME).windows  # what ships is what is made anew
    assert _window_range(tiny, None, 96) == tiny.model_copy(update={"min_px": 192, "overlap_px": 96})
    with pytest.raises(ConfigError, match="tile_px is 300; .* stride of 16 px .*; nearest: 288 and 304"):
        _window_range(tiny, 300, None)


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 8),
        ({"m": 2}, 8),
        ({"n": 4, "m": None, "size": None}, 8),
        ({"scale": None, "size": None, "m": None, "n": None}, 8),
        ({"scale": 3, "m": 1.5}, 3),
        ({"size": (9, 9)}, None),
        ({"m": 2, "n": 2}, None),
    ],
)
def test_eightfold_unless_scale_or_size_or_both_ratios_are_given(tudsr, monkeypatch, options, scale):
    assert Request.of(options).scale == scale
    requests = []
    monkeypatch.setattr(
        TUDSR, "upscale_picture", lambda self, picture, request, **_: requests.append(request) or picture
    )
    tudsr.upscale(noise(4, 4), **options)
    assert requests == [tudsr.settled(Request.of(options))]


@pytest.mark.parametrize(("device", "batch"), [("cpu", 1), ("mps", 1), ("cuda", 4)])
def test_windows_run_together_as_the_device_likes_or_as_asked(tudsr, device, batch):
    there = TUDSR(tudsr.model, Spread(run=lambda *_: iter(()), device=device))
    assert there.settled(Request(scale=2)).batch == batch
    assert there.settled(Request(scale=2, batch=3)).batch == 3


def test_the_models_own_ranges_bound_the_plan(tudsr, monkeypatch):
    assert [step.ratio for step in tudsr.plan(8, 8, Request(scale=8)).passes] == [4, 2]
    narrow = tudsr.config.model_copy(update={"m_range": (1.0, 2.0), "n_range": (1.0, 4.0)})
    monkeypatch.setattr(tudsr.model, "config", narrow)
    assert [step.ratio for step in tudsr.plan(8, 8, Request(scale=8)).passes] == [2, 4]


@pytest.mark.parametrize("fails", [None, "network", "colours"])
def test_adapters_flags_and_mode_are_put_back(tudsr, monkeypatch, fails):
    """At once, though the traceback of an error holds the rows that were being made."""
    net = tudsr.model.backbone
    layers = list(lora.layers(net.unet, "stage_1").values())
    for i, p in enumerate(net.parameters()):
        p.requires_grad_(i % 2 == 0)
    active = [list(layer.active_adapters) for layer in layers]
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    if fails == "network":
        monkeypatch.setattr(net, "decode", lambda z: (_ for _ in ()).throw(MemoryError))
    if fails == "colours":
        monkeypatch.setitem(COLOR_FIXES, "wavelet", replace(COLOR_FIXES["wavelet"], rows=_taken_then_fails))
    with contextlib.nullcontext() if fails is None else pytest.raises(MemoryError) as kept:
        tudsr.upscale(noise(4, 4), 4)
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [i % 2 == 0 for i in range(len(list(net.parameters())))]
    assert [list(layer.active_adapters) for layer in layers] == active
    assert all("forward" not in vars(layer) for layer in layers)
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    net.requires_grad_(False).eval()
    assert kept is None or kept.value.__traceback__ is not None


def test_windows_in_use_are_what_is_lessened(tudsr):
    """Those of a small picture are smaller than the model's largest: to halve that would change nothing."""
    assert tudsr.lessened((4, 4), Request(scale=4, batch=2)).batch == 1
    assert tudsr.lessened((4, 4), Request(scale=4, batch=1)) is None
    assert tudsr.lessened((99, 99), Request(scale=4, batch=1)).most_px == 32


def test_an_error_that_somebody_still_looks_at_spoils_no_later_picture(tudsr, monkeypatch):
    """Its traceback keeps the rows that were being made, and with them a merged adapter and a stage's constants."""
    picture, wishes = noise(9, 7), {"scale": 4, "t1": 200, "t2": 900}
    wanted = result(tudsr, picture, **wishes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COLOR_FIXES, "wavelet", replace(COLOR_FIXES["wavelet"], rows=_taken_then_fails))
        with pytest.raises(MemoryError) as kept:
            result(tudsr, picture, **wishes)
    assert torch.equal(result(tudsr, picture, **wishes), wanted)
    assert kept.value.__traceback__ is not None


def test_memory_is_fitted_while_no_other_thread_works(tudsr, monkeypatch):
    def fit(*_, **__):
        thread = threading.Thread(target=lambda: free.append(tudsr.lock.acquire(blocking=False)))
        thread.start()
        thread.join()

    free = []
    monkeypatch.setattr(tudsr, "fit", fit)
    tudsr.upscale(noise(5, 7), 2)
    assert free == [False]


def test_two_threads_do_not_disturb_each_other(tudsr):
    picture, wish = picture_from(noise(40, 150)), Request(scale=2, most_px=64)
    alone = tudsr.upscale_picture(picture, wish).pixels
    begun, over = threading.Event(), threading.Event()

    def in_the_middle(done, total):
        begun.set()
        over.wait(0.5)  # the other would be done by then, if it did not wait

    def other():
        begun.wait()
        tudsr.upscale_picture(picture_from(noise(5, 7)), wish)
        over.set()

    thread = threading.Thread(target=other)
    thread.start()
    disturbed = tudsr.upscale_picture(picture, wish, in_the_middle).pixels
    thread.join()
    assert over.is_set()
    assert torch.equal(disturbed, alone)


def _taken_then_fails(rows, *_):
    next(rows)
    raise MemoryError


def test_progress_counts_the_windows_of_all_passes(tudsr):
    calls = []
    tudsr.upscale(noise(20, 20), 4, progress=lambda done, total: calls.append((done, total)), batch=2)
    total = calls[0][1]
    plan = tudsr.plan(20, 20, Request(scale=4))
    assert total == sum(len(tudsr.grid(step, Request(scale=4)).windows) for step in plan.passes) > 2
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (total, total)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [("uint8", 1), ("uint16", 64), ("float32", 1e-3)])
def test_a_picture_that_stayed_on_the_gpu_comes_over_as_from_the_host(model_folder, channels, dtype, tolerance):
    model = load(model_folder, device="cuda", dtype="fp32")
    values = np.random.default_rng(0).random((40, 56, channels))
    picture = (values * (1 if dtype == "float32" else np.iinfo(dtype).max)).astype(dtype)
    made, host = (model.upscale(picture, scale=2, on_host=where) for where in (False, True))
    assert made.dtype == host.dtype == picture.dtype
    np.testing.assert_allclose(made.astype(float), host.astype(float), rtol=0, atol=tolerance)

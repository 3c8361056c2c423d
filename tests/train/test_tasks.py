"""What one step learns: which parameters get gradients, which loop, and what D sees."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import ConvNextConfig, ConvNextModel

from tudsr import lora
from tudsr.color import fix_color
from tudsr.config import WindowRange
from tudsr.errors import ConfigError
from tudsr.perceptual.backbone_dists import FeatureDists
from tudsr.perceptual.dists import EaDists
from tudsr.stage import Stage
from tudsr.tiling import tiled
from tudsr.train.losses import LOSSES, REAL_LABEL, adversarial_loss
from tudsr.train.objective import Objective, Seed
from tudsr.train.tasks import TASKS, GanTask, PriorTask, seeded_adapters
from tudsr.windows import plan_windows

SEED = Seed(run=3, sample=17)
STAGE_2 = {"stage": 2, "crop_px": 128, "n": 2, "loss_gan": 0.0}
Square = tuple[int, int, int]


@pytest.fixture
def make_task(make_model, make_config) -> Callable[..., GanTask | PriorTask]:
    """Return a function (dtype, vae, **settings) -> the task, its parameters set to learn as the trainer does."""

    def make(dtype: torch.dtype = torch.float32, vae: nn.Module | None = None, **changes):
        torch.manual_seed(0)
        config = make_config(**changes)
        model = make_model(dtype=dtype)
        if vae is not None:
            model.backbone.vae = vae.requires_grad_(False)
        task = TASKS[config.stage](model, config, nullcontext)
        for parameters in task.nets.values():
            for p in parameters:
                p.requires_grad_(True)
        if task.net_d is not None:
            task.net_d.to(dtype)
        return task

    return make


class WideMse(nn.Module):
    """The loss `mse`, in the pictures' own dtype."""

    def forward(self, sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        return (sr - gt).square().mean((1, 2, 3))


@pytest.fixture
def wide_mse(monkeypatch) -> None:
    """Let `mse` compute in float64 where the pictures are: in float32 it would hide errors of 1e-7."""
    monkeypatch.setitem(LOSSES, "mse", lambda *_: WideMse())


def batch(side: int, scale: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(5)
    gt, lq = (torch.rand(1, 3, s, s, generator=rng, dtype=torch.float64) * 2 - 1 for s in (side, side // scale))
    return {"gt": gt.to(dtype), "lq": lq.to(dtype)}


def flat_gradients(parameters: list[nn.Parameter]) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in parameters])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def learners(task: GanTask) -> set[str]:
    net = task.stage.backbone
    return {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("how", ["merged", "switched"])
def test_stage_1_moves_lora_1_only(make_task, how):
    task = make_task(lora_forward=how)
    parts = task.accumulate(batch(64), 1.0, SEED)
    assert {"loss_g", "loss_g_mae", "loss_g_gan", "loss_d"} == parts.keys()
    torch.testing.assert_close(parts["loss_g"], parts["loss_g_mae"] + 0.5 * parts["loss_g_gan"])
    assert all(torch.isfinite(value) for value in parts.values())
    names = learners(task)
    assert names
    assert all(".stage_1." in name for name in names)
    assert flat_gradients(task.nets["d"]).abs().max() > 0


@pytest.mark.parametrize("loop", ["paper", "exact"])
@pytest.mark.parametrize("how", ["merged", "switched"])
def test_stage_2_moves_lora_2_only(make_task, loop, how):
    task = make_task(**STAGE_2, loop=loop, lora_forward=how)
    task.accumulate(batch(128), 1.0, SEED)
    names = learners(task)
    assert names
    assert all(".stage_2." in name for name in names)


def small_vae() -> AutoencoderKL:
    torch.manual_seed(1)
    sides = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    return AutoencoderKL(block_out_channels=(8, 8, 8), latent_channels=48, norm_num_groups=4, **sides)


def test_gradient_checkpointing_takes_an_autoencoder_that_has_none(make_task):
    task = make_task(**STAGE_2 | {"gradient_checkpointing": True})
    assert task.stage.backbone.unet.is_gradient_checkpointing


@pytest.mark.parametrize("loop", ["paper", "exact"])
@pytest.mark.parametrize("how", ["merged", "switched"])
def test_gradient_checkpointing_computes_again_and_changes_no_gradient(make_task, loop, how):
    gradients, runs = [], []
    for checkpointing in (False, True):
        settings = STAGE_2 | {"loop": loop, "lora_forward": how, "gradient_checkpointing": checkpointing}
        task = make_task(vae=small_vae(), **settings)
        net, ran = task.stage.backbone, Counter()
        net.unet.train()  # as the trainer does
        for name, block in (("unet", net.unet.down_blocks[0]), ("vae", net.vae.decoder.mid_block)):
            block.resnets[0].register_forward_pre_hook(lambda *_, name=name, ran=ran: ran.update([name]))
        task.accumulate(batch(128), 1.0, SEED)
        gradients.append(flat_gradients(task.nets["g"]))
        runs.append(ran)
    again = len(task.grid.windows)  # each has a graph once
    assert runs[1] == runs[0] + Counter(unet=again, vae=again)
    assert gradients[0].norm() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-9)


def test_training_the_base_moves_the_base_only(make_task):
    task = make_task(train="base", loss_gan=0.0)
    task.accumulate(batch(64), 1.0, SEED)
    names = learners(task)
    assert names
    assert not any(".lora_" in name for name in names)
    assert task.stage.adapter is None


def test_stage_2_starts_from_the_frozen_stage_1(make_task):
    task = make_task(**STAGE_2)
    lq = batch(128, 8)["lq"]
    net = task.stage.backbone
    with torch.no_grad(), lora.switched(net.unet, "stage_1"):
        up = Stage.upsample(lq, 64, 64)
        m = fix_color("wavelet", Stage(net, 200, "stage_1")(up), up).clamp(-1, 1)
    y = task.stage_input(lq, 128)
    assert not y.requires_grad
    torch.testing.assert_close(y, Stage.upsample(m, 128, 128), rtol=0, atol=1e-5)
    assert (task.stage.t, task.stage.adapter, task.first.t) == (50, "stage_2", 200)


def test_stage_1_starts_from_bicubic_at_t1(make_task):
    task = make_task()
    lq = batch(64)["lq"]
    assert torch.equal(task.stage_input(lq, 64), Stage.upsample(lq, 64, 64))
    assert (task.stage.t, task.stage.adapter) == (200, "stage_1")


@pytest.mark.parametrize("how", ["merged", "switched"])
def test_the_exact_loop_is_backpropagation_through_the_tiled_stage(make_task, wide_mse, how):
    task = make_task(torch.float64, **STAGE_2, loop="exact", losses={"mse": 1.0}, lora_forward=how)
    data = batch(128, dtype=torch.float64)
    y = task.stage_input(data["lq"], 128)
    windows = WindowRange(min_px=64, max_px=80, stride_px=8, overlap_px=16)
    with task.stage.active(how):
        sr = tiled(task.stage, y, plan_windows(128, 128, windows))
        (sr - data["gt"]).square().mean().backward()
    wanted = flat_gradients(task.nets["g"])
    for p in task.nets["g"]:
        p.grad = None
    parts = task.accumulate(data, 0.5, SEED)
    assert len(task.grid.windows) == 4
    found = flat_gradients(task.nets["g"]) * 2
    assert relative(found, wanted) <= 1e-10
    assert parts["loss_g_mse"].item() == pytest.approx((sr.detach() - data["gt"]).square().mean().item(), rel=1e-12)


@pytest.mark.parametrize(("overlap_px", "windows"), [(8, 4), (16, 4), (24, 4), (32, 1)])
def test_an_overlap_above_half_of_a_chunk_grows_the_windows(make_task, overlap_px, windows):
    grid = make_task(**STAGE_2 | {"crop_px": 64, "loop": "exact", "overlap_px": overlap_px}).grid
    assert len(grid.windows) == windows
    assert grid.window_w == {8: 40, 16: 40, 24: 48, 32: 64}[overlap_px]


@pytest.mark.parametrize("how", ["merged", "switched"])
def test_the_papers_loop_sums_its_chunks(make_task, wide_mse, how):
    task = make_task(torch.float64, **STAGE_2, losses={"mse": 2.0}, lora_forward=how)
    data = batch(128, dtype=torch.float64)
    y = task.stage_input(data["lq"], 128)
    total = 0
    with task.stage.active(how):
        for top in (0, 64):
            for left in (0, 64):
                place = (..., slice(top, top + 64), slice(left, left + 64))
                total = total + 2 * (task.stage(y[place]) - data["gt"][place]).square().mean() / 4
        total.backward()
    wanted = flat_gradients(task.nets["g"])
    for p in task.nets["g"]:
        p.grad = None
    parts = task.accumulate(data, 1.0, SEED)
    found = flat_gradients(task.nets["g"])
    assert relative(found, wanted) <= 1e-10
    assert 2 * parts["loss_g_mse"].item() == pytest.approx(total.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("loop", "mode", "touched"),
    [("paper", "frozen", False), ("exact", "frozen", False), ("paper", "contaminated", True)],
)
def test_the_generators_step_leaves_d_alone_unless_told_otherwise(make_task, monkeypatch, loop, mode, touched):
    monkeypatch.setattr(GanTask, "_discriminator_pass", lambda *_: None)
    task = make_task(loop=loop, d_in_g_step=mode)
    parts = task.accumulate(batch(64), 1.0, SEED)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in task.nets["d"]) is touched
    assert all(p.requires_grad for p in task.nets["d"])
    assert parts["loss_g_gan"] > 0
    assert flat_gradients(task.nets["g"]).abs().max() > 0


@pytest.mark.parametrize("loop", ["paper", "exact"])
def test_the_gan_pulls_the_generator(make_task, loop):
    plain = make_task(loop=loop, loss_gan=0.0)
    pulled = make_task(loop=loop, loss_gan=0.5)
    for task in (plain, pulled):
        task.accumulate(batch(64), 1.0, SEED)
    alone, both = flat_gradients(plain.nets["g"]), flat_gradients(pulled.nets["g"])
    assert (alone - both).norm() > 1e-3 * alone.norm()


def test_d_learns_from_detached_pictures(make_task):
    task = make_task(losses={"mae": 1.0})
    task.accumulate(batch(64), 1.0, SEED)
    g = flat_gradients(task.nets["g"])
    for p in task.nets["d"]:
        p.grad = None
    again = make_task(losses={"mae": 1.0})
    again._discriminator_pass = lambda *_: None
    again.accumulate(batch(64), 1.0, SEED)
    assert torch.equal(flat_gradients(again.nets["g"]), g)


class Corners(nn.Module):
    """A deep loss that notes which squares it sees, of pictures made by `ramps`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Square, Square]] = []

    def forward(self, sr: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        self.seen.append((square(sr), square(gt)))
        return (sr - gt).square().mean((1, 2, 3))


def ramps(side: int) -> torch.Tensor:
    """Return a picture, (1, 3, side, side), whose first two channels say where each pixel lies."""
    at = torch.arange(side).float() / side
    return torch.stack([at[:, None].expand(side, side), at.expand(side, side), torch.zeros(side, side)])[None]


def square(x: torch.Tensor) -> Square:
    """Return top, left and side of a part of `ramps`' picture of 144 px."""
    top, left = (round(value * 144) for value in x.detach()[0, :2, 0, 0].tolist())
    return top, left, x.shape[-1]


@pytest.fixture
def watched(make_task, monkeypatch) -> Callable[..., tuple[GanTask, Corners, list, list]]:
    """Return a function (**settings) -> a task on 144 px that gives back `ramps`, and what its judges are shown.

    That is the deep loss, then D's squares and D's draws, G's step first.
    """

    def make(**changes):
        deep, squares, draws = Corners(), [], []
        monkeypatch.setitem(LOSSES, "corners", lambda *_: deep)
        settings = {"stage": 2, "n": 2, "crop_px": 144, "jitter_px": 8, "losses": {"corners": 1.0}}
        task = make_task(**settings | changes)
        task.stage.forward = lambda x: x + 0 * task.nets["g"][0].sum()  # something to learn
        task.stage_input = lambda lq, side_px: ramps(side_px)

        def augment(x, generator):
            squares.append(square(x))
            draws.append(torch.rand(1, generator=generator).item())
            return x

        task.net_d.augment = augment
        return task, deep, squares, draws

    return make


LOOPS = [{"loop": "paper"}, {"loop": "exact", "loss_crop_px": 72, "loss_crops": 4}]


@pytest.mark.parametrize("changes", LOOPS)
def test_d_learns_from_the_squares_that_g_is_judged_on(watched, changes):
    task, deep, squares, _ = watched(**changes)
    task.accumulate({"gt": ramps(144), "lq": ramps(144)[..., ::4, ::4]}, 1.0, SEED)
    assert all(sr == gt for sr, gt in deep.seen)
    judged = [sr for sr, _ in deep.seen]
    assert squares[:4] == judged
    assert squares[4::2] == squares[5::2] == judged  # true and generated ones take turns
    crops = task._crops(SEED)
    offsets = {(top - crop.y0, left - crop.x0) for (top, left, _), crop in zip(judged, crops, strict=True)}
    assert all(0 <= at <= 8 for offset in offsets for at in offset)
    assert len(offsets) > 1  # each crop has a draw of its own
    assert {side for *_, side in judged} == {64}


@pytest.mark.parametrize("changes", LOOPS)
def test_each_crop_is_augmented_by_a_draw_of_its_own_that_repeats(watched, changes):
    task, _, _, draws = watched(**changes)
    for seed in (SEED, SEED, Seed(run=3, sample=18)):
        task.accumulate({"gt": ramps(144), "lq": ramps(144)[..., ::4, ::4]}, 1.0, seed)
    first, again, other = draws[:12], draws[12:24], draws[24:]
    assert first == again
    assert len({*first, *other}) == 24


@pytest.mark.parametrize(
    ("net", "crop_px", "seen_px"),
    [("patch", 144, 136), ("dinov2", 144, 126), ("dinov3", 144, 128), ("dinov2", 72, 64), ("dinov3", 72, 64)],
)
def test_a_vit_sees_whole_patches(make_config, net, crop_px, seen_px):
    vit = {"hidden_size": 32, "num_hidden_layers": 9, "num_attention_heads": 2}
    options = {} if net == "patch" else {"weights": "random", "head_width": 4, "config": vit}
    config = make_config(crop_px=crop_px, jitter_px=8, discriminator=net, discriminator_options=options)
    assert Objective(config, torch.device("cpu")).seen_px == seen_px


def test_a_backbone_of_ea_dists_sees_whole_patches_too(make_config, monkeypatch):
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]))
    monkeypatch.setitem(LOSSES, "ea_dists_convnext", lambda *_: EaDists(FeatureDists(model)))
    config = make_config(crop_px=144, jitter_px=8, losses={"ea_dists_convnext": 1.0})
    assert Objective(config, torch.device("cpu")).seen_px == 128


def test_the_prior_predicts_the_noise_with_the_bare_base(make_task):
    task = make_task(stage=0, train="base")
    gt = batch(64)["gt"]
    generator = SEED.torch(11)
    t = torch.randint(1000, (1,), generator=generator)
    z0 = torch.nn.functional.pixel_unshuffle(gt, 4) * 2
    noise = torch.randn(z0.shape, generator=generator)
    alpha_bar = task.net.alphas_cumprod[t]
    z = alpha_bar.sqrt() * z0 + (1 - alpha_bar).sqrt() * noise
    with torch.no_grad(), lora.switched(task.net.unet, None):
        wanted = (task.net.unet(z, t, None).sample - noise).square().mean()
    parts = task.accumulate({"gt": gt}, 1.0, SEED)
    assert parts["loss_prior"].item() == pytest.approx(wanted.item(), rel=1e-5)
    names = {name for name, p in task.net.named_parameters() if p.grad is not None}
    assert names
    assert not any(".lora_" in name for name in names)
    assert torch.equal(task.restore(batch(64)["lq"], 64), Stage.upsample(batch(64)["lq"], 64, 64))


def test_restore_is_the_stages_picture(make_task):
    task = make_task(loss_gan=0.0)
    lq = batch(64)["lq"]
    with torch.no_grad(), lora.switched(task.stage.backbone.unet, "stage_1"):
        up = Stage.upsample(lq, 64, 64)
        wanted = fix_color("wavelet", task.stage(up), up).clamp(-1, 1)
    torch.testing.assert_close(task.restore(lq, 64), wanted, rtol=0, atol=1e-5)


def test_randomness_is_the_runs_and_the_samples_alone():
    draws = {
        (run, sample, stream): torch.rand(1, generator=Seed(run, sample).torch(stream)).item()
        for run in (0, 1)
        for sample in (0, 1)
        for stream in (11, 12)
    }
    assert len(set(draws.values())) == 8
    assert torch.rand(1, generator=Seed(1, 1).torch(12)).item() == draws[1, 1, 12]
    assert Seed(1, 2).numpy(3).random() == Seed(1, 2).numpy(3).random() != Seed(1, 3).numpy(3).random()
    parts = list(Seed(1, 2).parts(3))
    assert len({part.numpy(3).random() for part in parts}) == 3
    assert len({torch.rand(1, generator=part.torch(3)).item() for part in parts}) == 3
    # A micro-step's first crop, which often is its only one, draws what it did before crops had numbers.
    assert parts[0].numpy(3).random() == np.random.default_rng((1, 2, 3)).random()


def test_stage_2_may_start_from_lora_1(make_model, make_config):
    model = make_model()
    before = {k: v.clone() for k, v in lora.state(model.backbone.unet, "stage_2").items()}
    seeded_adapters(model, make_config(**STAGE_2, init_adapter="keep"))
    assert all(torch.equal(v, before[k]) for k, v in lora.state(model.backbone.unet, "stage_2").items())
    seeded_adapters(model, make_config(**STAGE_2, init_adapter="from_stage_1"))
    first = lora.state(model.backbone.unet, "stage_1")
    assert all(torch.equal(v, first[k]) for k, v in lora.state(model.backbone.unet, "stage_2").items())


def test_training_the_base_needs_adapters_that_do_nothing(make_model, make_config):
    model = make_model()
    with pytest.raises(ConfigError, match="stage_1 and stage_2 were trained on the base as it is"):
        seeded_adapters(model, make_config(train="base"))
    notes = seeded_adapters(model, make_config(stage=0, train="base"))
    assert [note.split(" (")[0] for note in notes] == [f"adapter {s} reset to the identity" for s in lora.STAGES]
    for stage in lora.STAGES:
        assert all(not layer.lora_B[stage].weight.any() for layer in lora.layers(model.backbone.unet, stage).values())
    assert seeded_adapters(model, make_config(train="base")) == []


def test_without_a_gan_there_is_no_discriminator(make_task):
    task = make_task(loss_gan=0.0, discriminator="dinov3", discriminator_options={})  # gated weights: not to be built
    assert task.net_d is None
    assert task.nets.keys() == {"g"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop_px": 68}, "crop_px / n is 68; a multiple of this model's stride, 8 px"),
        ({"stage": 0, "train": "base", "crop_px": 68}, "crop_px / n is 68"),
        (STAGE_2 | {"crop_px": 64, "loop": "exact", "overlap_px": 40}, "overlap_px.*at most half of min_px"),
        ({"losses": {"psnr": 1.0}}, "'psnr' is not a known loss; known ones: .*mae"),
        ({"discriminator": "vgg"}, "Unknown discriminator 'vgg'; known ones: dinov3"),
        ({"discriminator_options": {"depth": 3}}, "no option 'depth'"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_config_errors(make_task, changes, words):
    with pytest.raises(ConfigError, match=words):
        make_task(**changes)


def test_the_real_label_is_the_papers():
    assert REAL_LABEL == 0.8
    assert adversarial_loss([torch.zeros(1, 1, 2, 2)], REAL_LABEL).item() == pytest.approx(0.6931472)

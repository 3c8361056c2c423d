"""What one step learns: the noise-prediction prior (stage 0) or the one-step GAN (stages 1 and 2)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tudsr import lora
from tudsr.backbones import Backbone
from tudsr.config import WindowRange
from tudsr.errors import ConfigError
from tudsr.folder import Model
from tudsr.one_step import TARGET_OF
from tudsr.stage import Stage, whole_picture
from tudsr.train.chunks import ChunkResult, cut, exact_loop, paper_loop, straddling_crops
from tudsr.train.config import TrainConfig
from tudsr.train.discriminators import Discriminator, frozen
from tudsr.train.objective import Figures, Objective, Seed
from tudsr.windows import Window, WindowGrid, chunk_grid, plan_windows

Autocast = Callable[[], AbstractContextManager[Any]]
_STREAM_PRIOR, _STREAM_CROPS = 11, 15


class Task(Protocol):
    """What the trainer needs of a stage."""

    @property
    def nets(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that learn: «g», and «d» where there is a discriminator."""

    @property
    def net_d(self) -> Discriminator | None:
        """The discriminator, if there is one."""

    def accumulate(self, batch: dict[str, Any], share: float, seed: Seed) -> dict[str, Tensor]:
        """Add one micro-batch's gradients, times share, to every net and return scalars to log."""

    def restore(self, lq: Tensor, side_px: int) -> Tensor:
        """Return what the model makes of an LQ picture, for validation."""


def seeded_adapters(model: Model, config: TrainConfig) -> list[str]:
    """Prepare the adapters.

    Stage 2 may start from LoRA-1's weights instead of the identity. Adapters that were made for a base do not fit the
    one that training it leaves: stage 0 resets them to the identity.

    Returns:
        Notes for the run's record.

    Raises:
        ConfigError: when stage 1 is to train the base of a model whose adapters are not the identity.
    """
    unet = model.backbone.unet
    if config.stage == 2 and config.init_adapter == "from_stage_1":
        lora.load_state(unet, "stage_2", lora.state(unet, "stage_1"), "adapter stage_1")
    stale = [name for name in lora.STAGES if _is_away(unet, name)] if config.train == "base" else []
    if stale and config.stage > 0:
        raise ConfigError(
            f"train=base: the adapters {' and '.join(stale)} were trained on the base as it is; a model with fresh "
            "adapters (B = 0) is expected."
        )
    for name in stale:
        for layer in lora.layers(unet, name).values():
            nn.init.zeros_(layer.lora_B[name].weight)
    return [f"adapter {name} reset to the identity (B = 0): its base has changed" for name in stale]


def _is_away(unet: nn.Module, name: str) -> bool:
    """Say whether an adapter does anything: whether any B is not 0."""
    return any(bool(layer.lora_B[name].weight.any()) for layer in lora.layers(unet, name).values())


class PriorTask:
    """Predict the noise (or v, or the sample) at every timestep on clean photos.

    Source: Ho et al. 2020, eq. 14, through the scheduler's own prediction_type.
    """

    def __init__(self, model: Model, config: TrainConfig, autocast: Autocast) -> None:
        _window_px(config, model.config.windows)
        self.net, self.net_d, self.autocast = model.backbone, None, autocast
        self.nets = {"g": base_parameters(model.backbone)}

    def accumulate(self, batch: dict[str, Any], share: float, seed: Seed) -> dict[str, Tensor]:
        """Add the gradients of the mean squared prediction error."""
        loss = self.loss(batch["gt"], seed.torch(_STREAM_PRIOR))
        (loss * share).backward()
        return {"loss_prior": loss.detach()}

    def loss(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Return the prediction error on clean pictures, (B, 3, H, W) in [-1, 1], at random timesteps."""
        t = torch.randint(len(self.net.alphas_cumprod), (len(x0),), generator=generator).to(x0.device)
        with lora.merged(self.net.unet, None), self.autocast():
            z0 = self.net.encode(x0)
            noise = torch.randn(z0.shape, generator=generator).to(z0)
            alpha_bar = self.net.alpha_bar(t)
            alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            pred = self.net.predict(alpha * z0 + sigma * noise, t)
        target = TARGET_OF[self.net.prediction_type](z0, noise, alpha, sigma)
        return nn.functional.mse_loss(pred.float(), target.float())

    def restore(self, lq: Tensor, side_px: int) -> Tensor:
        """Return the bicubic picture: the prior has no one-step picture of its own."""
        return Stage.upsample(lq, side_px, side_px)


class GanTask:
    """The one-step GAN of stage 1 (one window) and stage 2 (looped chunks, LoRA-1 frozen)."""

    def __init__(self, model: Model, config: TrainConfig, autocast: Autocast) -> None:
        settings, net = model.config, model.backbone
        self.config, self.autocast = config, autocast
        own_adapter = None if config.train == "base" else f"stage_{config.stage}"
        self.first = Stage(net, settings.t1, "stage_1") if config.stage == 2 else None
        self.stage = Stage(net, settings.t2 if config.stage == 2 else settings.t1, own_adapter)
        self.grid, self.windows = loop_grid(config, settings.windows), settings.windows
        self.objective = Objective(config, net.device)
        self.net_d = self.objective.net_d
        self.nets = {"g": base_parameters(net) if own_adapter is None else lora.parameters(net.unet, own_adapter)}
        if self.net_d is not None:
            self.nets["d"] = self.net_d.trainable_parameters()
        if config.gradient_checkpointing:
            net.unet.enable_gradient_checkpointing()
            if getattr(net.vae, "_supports_gradient_checkpointing", False):  # all of diffusers' have the method
                net.vae.enable_gradient_checkpointing()

    def accumulate(self, batch: dict[str, Any], share: float, seed: Seed) -> dict[str, Tensor]:
        """Add G's gradients by the configured loop, then D's on the detached result."""
        gt, figures = batch["gt"], Figures()
        with self.autocast():
            y = self.stage_input(batch["lq"], gt.shape[-1])
        crops = self._crops(seed)
        sr = self._generator_pass(y, gt, crops, share, seed, figures).sr
        if self.net_d is not None:
            self._discriminator_pass(sr, gt, crops, share, seed, figures)
        means = figures.means()
        return means | {"loss_g": self.objective.total(means)}

    def stage_input(self, lq: Tensor, side_px: int) -> Tensor:
        """Return the upsampled input of the stage that learns: in stage 2 the frozen stage 1 runs first."""
        if self.first is None:
            return Stage.upsample(lq, side_px, side_px)
        middle = side_px // self.config.n
        m = self._picture(self.first, Stage.upsample(lq, middle, middle))
        return Stage.upsample(m, side_px, side_px)

    def restore(self, lq: Tensor, side_px: int) -> Tensor:
        """Return the picture of inference, (B, 3, side, side): the model's own windows, blended, colours fixed."""
        with self.autocast():
            return self._picture(self.stage, self.stage_input(lq, side_px))

    @torch.no_grad()
    def _picture(self, stage: Stage, lq_up: Tensor) -> Tensor:
        with stage.active(self.config.lora_forward):
            wide = lq_up.to(torch.promote_types(lq_up.dtype, torch.float32))
            return whole_picture(stage, wide, plan_windows(lq_up.shape[-2], lq_up.shape[-1], self.windows))

    def _crops(self, seed: Seed) -> tuple[Window, ...]:
        """Return where deep losses and D look: at each chunk, at random crops, or at the whole picture."""
        c = self.config
        if c.loop == "paper":
            return self.grid.windows
        if c.loss_crop_px is None:
            return (Window(y0=0, x0=0, y1=c.crop_px, x1=c.crop_px),)
        return straddling_crops(self.grid, c.loss_crop_px, c.loss_crops, seed.numpy(_STREAM_CROPS))

    def _generator_pass(
        self, y: Tensor, gt: Tensor, crops: tuple[Window, ...], share: float, seed: Seed, figures: Figures
    ) -> ChunkResult:
        parts = seed.parts(len(crops))  # either loop judges each crop once, in their order, as D's step does

        def pixel(sr: Tensor, real: Tensor) -> Tensor:
            return self.objective.pixel(sr, real, figures)

        def deep(sr: Tensor, real: Tensor) -> Tensor:
            return self.objective.deep(sr, real, figures, next(parts))

        def backward(loss: Tensor) -> None:
            (loss * share).backward()

        keep_d: AbstractContextManager[None] = nullcontext()
        if self.net_d is not None and self.config.d_in_g_step == "frozen":
            keep_d = frozen(self.net_d)
        with keep_d, self.autocast(), self.stage.active(self.config.lora_forward):
            if self.config.loop == "paper":
                both = lambda sr, real: pixel(sr, real) + deep(sr, real)  # noqa: E731 - short and local
                return paper_loop(self.stage, y, gt, both, self.grid, backward=backward)
            return exact_loop(
                self.stage, y, gt, pixel if self.objective.has_pixel else None, self.grid,
                crop_loss=deep if self.objective.has_deep else None, crops=crops, backward=backward,
            )  # fmt: skip

    def _discriminator_pass(
        self, sr: Tensor, gt: Tensor, crops: tuple[Window, ...], share: float, seed: Seed, figures: Figures
    ) -> None:
        for window, part in zip(crops, seed.parts(len(crops)), strict=True):
            with self.autocast():
                loss = self.objective.discriminator(cut(sr, window), cut(gt, window), figures, part)
            (loss * share / len(crops)).backward()


def base_parameters(net: Backbone) -> list[nn.Parameter]:
    """Return the UNet's own parameters, without the adapters'."""
    return [parameter for name, parameter in net.unet.named_parameters() if ".lora_" not in name]


def _window_px(config: TrainConfig, windows: WindowRange) -> int:
    """Return R of this run, the side that the generator sees, or raise before it does."""
    r_px, stride = config.crop_px // config.n, windows.stride_px
    if r_px % stride:
        raise ConfigError(f"crop_px / n is {r_px}; a multiple of this model's stride, {stride} px, is expected.")
    return r_px


def loop_grid(config: TrainConfig, windows: WindowRange) -> WindowGrid:
    """Return the chunks, or the windows, that a step of this run loops over."""
    r_px, stride = _window_px(config, windows), windows.stride_px
    if config.loop == "paper":
        return chunk_grid(config.crop_px, config.n)
    # Windows of just over the chunk's side, so that n of them with their overlap cover the crop. An overlap above half
    # of the chunk makes them larger, which takes more memory and fewer kernels: with n=2, one window in the end.
    most = min(config.crop_px, r_px + -(-config.overlap_px // stride) * stride)
    least = min(most, max(r_px, -(-2 * config.overlap_px // stride) * stride))
    fields = {"min_px": least, "max_px": most, "stride_px": stride, "overlap_px": config.overlap_px}
    return plan_windows(config.crop_px, config.crop_px, WindowRange.parse(fields, "crop_px, n and overlap_px"))


TASKS: dict[int, Callable[[Model, TrainConfig, Autocast], Task]] = {0: PriorTask, 1: GanTask, 2: GanTask}
"""Stage number → what its steps learn."""

"""Settings of one training run: assembled from a preset, a file and overrides, checked before any work."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from tudsr.config import ModelConfig, Settings, read_object
from tudsr.data.dataset import Scales
from tudsr.data.degradation import DegradationMix
from tudsr.device import pick_dtype
from tudsr.errors import ConfigError
from tudsr.find import CONFIG_NAME, find_model
from tudsr.presets import training_preset
from tudsr.train.discriminators import Discriminator
from tudsr.train.losses import LEAST_PX

Weight = Annotated[float, Field(ge=0)]
_OPTIONS = ("stage", "model", "data", "out")  # of the command line, not of --set


class TrainConfig(Settings):
    """One run of one stage.

    `batch` is per process and micro-step, `accumulate` the micro-steps per optimizer step; sides are in pixels;
    `ema` is the decay per step; `lora_forward` names an entry of `lora.LORA_FORWARDS`; `train` says whether the
    stage's adapter or the base itself learns; deep losses and D see the picture less a border of `jitter_px` in all
    (or a little more, for whole patches of a ViT), at a random offset; `degrade_on` says who makes the LQ pictures,
    the loader's workers or the trainer on its device (equal up to rounding); `base_dtype` and `precision` auto become
    bf16 where the device computes it natively, else fp32 and no (a base that learns is fp32 everywhere); `pairs` is
    a folder with gt/ and lq/ to learn from instead of degraded photos (those of `data` then only validate);
    `weights_dir` holds the loss networks, `feature_model` the ViT or ConvNeXt of an ea_dists over such features;
    `d_in_g_step` «contaminated» reproduces the relatives' mistake, for comparison only (METHOD, «Losses»).
    """

    stage: Literal[0, 1, 2]
    model: Path
    data: Path
    out: Path

    steps: int = Field(default=5100, gt=0)
    batch: int = Field(default=1, gt=0)
    accumulate: int = Field(default=4, gt=0)
    lr: float = Field(default=5e-5, gt=0)
    lr_d: float = Field(default=5e-5, gt=0)
    lr_end: float = Field(default=1.0, ge=0, le=1)
    warmup: int = Field(default=500, ge=0)
    clip: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**63)

    crop_px: int = Field(default=512, gt=0)
    n: int = Field(default=1, gt=0)
    loop: Literal["paper", "exact"] = "paper"
    overlap_px: int = Field(default=64, ge=0)
    loss_crop_px: int | None = Field(default=None, gt=1)
    loss_crops: int = Field(default=4, gt=0)
    jitter_px: int = Field(default=8, ge=0)
    scales: Scales = Scales(fixed={4.0: 1.0})
    degradation: DegradationMix = DegradationMix()
    degrade_on: Literal["workers", "device"] = "workers"
    p_down: float = Field(default=0.25, ge=0, le=1)
    pairs: Path | None = None

    train: Literal["adapter", "base"] = "adapter"
    init_adapter: Literal["keep", "from_stage_1"] = "keep"
    lora_forward: Literal["merged", "switched"] = "switched"
    base_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    precision: Literal["auto", "no", "bf16"] = "auto"
    gradient_checkpointing: bool = False

    losses: dict[str, Weight] = Field(default_factory=lambda: {"ea_dists": 5.0, "mae": 0.5})
    loss_gan: float = Field(default=0.5, ge=0)
    discriminator: str = "dinov3"
    discriminator_options: dict[str, Any] = Field(default_factory=dict)
    init_discriminator: Path | None = None
    d_in_g_step: Literal["frozen", "contaminated"] = "frozen"
    weights_dir: Path | None = None
    feature_model: str | None = None

    val_count: int = Field(default=12, ge=0)
    val_crop_px: int | None = Field(default=None, gt=0)
    val_scale: float = Field(default=4.0, ge=1)
    val_every: int = Field(default=500, gt=0)
    exclude: tuple[str, ...] = ()
    checkpoint_every: int = Field(default=200, gt=0)
    log_every: int = Field(default=10, gt=0)
    workers: int = Field(default=1, ge=0)
    cache_mb: int = Field(default=2000, ge=0)

    @field_validator("base_dtype", "precision")
    @classmethod
    def _native(cls, value: str, info: ValidationInfo) -> str:
        """Settle «auto» here, so that the run's files say what it was, and it is not resumed with another."""
        if value != "auto":
            return value
        # Nothing may be put on a GPU here: which one is this process's is not settled yet.
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        is_native = pick_dtype("auto", device) is torch.bfloat16
        if info.field_name == "precision":
            return "bf16" if is_native else "no"
        return "bf16" if is_native and info.data.get("train") == "adapter" else "fp32"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.out.resolve().is_relative_to(self.data.resolve()):
            raise ValueError("out lies inside data: the run's sample pictures would be taken for photos of it")
        if self.stage == 0 and self.train != "base":
            raise ValueError("stage 0 trains the base: set train=base")
        if self.stage == 0 and self.gradient_checkpointing:
            raise ValueError("gradient_checkpointing goes with stages 1 and 2: stage 0 is for small backbones")
        if self.train == "base" and self.stage == 2:
            raise ValueError("stage 2 shares the base with stage 1: it trains its adapter only")
        if self.train == "base" and self.base_dtype != "fp32":
            raise ValueError("training the base needs base_dtype=fp32")
        if self.stage > 0 and not (any(self.losses.values()) or self.loss_gan):
            raise ValueError("there is no loss: give losses or loss_gan a weight")
        if self.pairs is not None and (self.stage == 0 or self.degrade_on == "device"):
            raise ValueError("pairs come with their LQ pictures: they go with stage 1 or 2 and degrade_on=workers")
        if self.d_in_g_step == "contaminated" and self.loop == "exact":
            raise ValueError("d_in_g_step=contaminated goes with loop=paper only: the exact loop never touches D")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.stage < 2 and self.n > 1:
            raise ValueError(f"n is for stage 2; in stage {self.stage} it must be 1")
        if self.crop_px % self.n:
            raise ValueError("crop_px must be a multiple of n")
        least_ratio = min(self.scales.least, self.val_scale)
        if least_ratio < self.n:
            raise ValueError(f"scales and val_scale must be at least n={self.n}, which stage 2 takes of them")
        if self.loss_crop_px is not None and self.loss_crop_px > self.crop_px:
            raise ValueError("loss_crop_px may be at most crop_px")
        if self.loss_crop_px is not None and self.loop == "paper":
            raise ValueError("loss_crop_px goes with loop=exact only: the paper's losses see chunks; set it to null")
        if self.jitter_px >= self.deep_crop_px:
            raise ValueError(f"jitter_px must be below the side that deep losses get, {self.deep_crop_px} px")
        seen_px = self.deep_crop_px - self.jitter_px
        for name, least_px in self._least_px().items():
            if seen_px < least_px:
                raise ValueError(
                    f"{name} needs at least {least_px} px, but sees {seen_px}: a crop of {self.deep_crop_px} px less "
                    f"jitter_px={self.jitter_px}"
                )
        return self

    @property
    def deep_crop_px(self) -> int:
        """The side of the crops that deep losses and the discriminator get, before the jitter."""
        if self.loop == "paper":
            return self.crop_px // self.n
        return self.loss_crop_px or self.crop_px

    def _least_px(self) -> dict[str, int]:
        """Return the least sides of the nets that this run has; unknown names are refused where they are built."""
        if self.stage == 0:
            return {}
        found = {name: LEAST_PX.get(name, 1) for name, weight in self.losses.items() if weight}
        return found | ({"the discriminator": Discriminator.min_px} if self.loss_gan else {})

    @classmethod
    def assemble(
        cls,
        *,
        stage: int | None,
        model: str | Path | None,
        data: Path,
        out: Path,
        file: Path | None,
        overrides: list[str],
    ) -> Self:
        """Build from the preset of (backbone, stage), then a JSON file, then key=value overrides; later ones win.

        Args:
            stage: 0, 1 or 2; None: the file's, else 1.
            model: embedded name, folder or hub id; None: the file's, else tiny.
            data: folder of photos.
            out: folder of the run.
            file: JSON object of settings, or None.
            overrides: «key=value», value in JSON or plain text; «losses.mae=1» reaches into a mapping, of whose other
                values the preset's, the file's or else the defaults stay.

        Raises:
            ConfigError: naming the setting that is unknown or wrong.
            ModelError: when the model is not there.
        """
        given = {} if file is None else read_object(file)
        if model is None:
            model = given.get("model", "tiny")
        if stage is None:
            stage = given.get("stage", 1)
        if not isinstance(model, str | Path) or type(stage) is not int:
            raise ConfigError(
                f"{file}: model {model!r} and stage {stage!r} came; a name or folder and 0, 1 or 2 are accepted."
            )
        folder = find_model(model)
        preset = training_preset(ModelConfig.read(folder / CONFIG_NAME).backbone, stage)
        values = preset | given
        for override in overrides:
            _apply_override(values, override)
        own = "discriminator_options"
        if values.get("discriminator") != preset.get("discriminator") and values.get(own) == preset.get(own):
            values.pop(own, None)  # the preset's, of another net
        values |= {"stage": stage, "model": str(folder), "data": str(data), "out": str(out)}
        return cls.parse(values, str(file) if file else "training settings")


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if key in _OPTIONS:
        raise ConfigError(f"--set {override!r}: {key} has an option of its own, --{key}.")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: key=value is expected, for example --set lr=1e-4.")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    *path, last = key.split(".")
    if path and path[0] not in values and path[0] in TrainConfig.model_fields:
        default = TrainConfig.model_fields[path[0]].get_default(call_default_factory=True)
        values[path[0]] = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
    for part in path:
        child = values.get(part)
        values[part] = dict(child) if isinstance(child, dict) else {}
        values = values[part]
    values[last] = value

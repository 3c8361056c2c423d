"""Frozen, validated settings: what a model folder says of itself (`tudsr.json`) and how values are checked."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tudsr.errors import ConfigError

T = TypeVar("T", bound="Settings")


class Settings(BaseModel):
    """A frozen settings object: unknown keys are refused, every field is validated on construction."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls: type[T], values: dict[str, Any], where: str) -> T:
        """Build from plain values.

        Args:
            values: plain JSON values.
            where: what the values come from, for the error's sentence.

        Raises:
            ConfigError: naming the first wrong field, what came and what is accepted.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or cls.__name__
            if first["type"] == "extra_forbidden":
                known = ", ".join(sorted(_fields(cls, first["loc"][:-1])))
                raise ConfigError(f"{where}: {field!r} is not a setting; known ones: {known}.") from error
            said = first["msg"].removeprefix("Value error, ")
            if not first["loc"]:  # several settings that do not go together; the message names them
                raise ConfigError(f"{where}: {said}.") from error
            came = "" if first["type"] == "missing" else f" (got {first['input']!r})"
            raise ConfigError(f"{where}: {field}: {said}{came}.") from error

    @classmethod
    def read(cls: type[T], path: Path) -> T:
        """Read from a JSON file.

        Raises:
            ConfigError: when the file is missing, is not a JSON object or does not validate.
        """
        return cls.parse(read_object(path), str(path))

    def to_json(self) -> str:
        """Return indented JSON that `read` takes back."""
        return self.model_dump_json(indent=2) + "\n"


def _fields(kind: Any, path: Iterable[Any]) -> Iterable[str]:
    """Return the names that settings have, or those that lie in them under a path of names."""
    for name in path:
        kind = kind.model_fields[name].annotation
    return kind.model_fields  # type: ignore[no-any-return]


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, unchecked.

    Raises:
        ConfigError: when the file is missing or is not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a JSON object is expected, not {type(values).__name__}.")
    return values


class WindowRange(Settings):
    """The window sides that a model was made for, in pixels of the stage's output."""

    min_px: int = Field(gt=0)
    max_px: int = Field(gt=0)
    stride_px: int = Field(gt=0)
    overlap_px: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_px > self.max_px or self.min_px % self.stride_px or self.max_px % self.stride_px:
            raise ValueError("min_px <= max_px must hold and both must be multiples of stride_px")
        if 2 * self.overlap_px > self.min_px:
            raise ValueError("overlap_px may be at most half of min_px")
        return self


class LoraSpec(Settings):
    """LoRA of one stage. Source: METHOD («Generator»): rank 32, alpha 32, gaussian init."""

    rank: int = Field(default=32, gt=0)
    alpha: int = Field(default=32, gt=0)
    targets: tuple[str, ...] = (
        "conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", "to_q", "to_k", "to_v", "to_out.0",
    )  # fmt: skip


def _ascending(ratios: tuple[float, float]) -> tuple[float, float]:
    if not 1 <= ratios[0] <= ratios[1]:
        raise ValueError("two ratios with 1 <= least <= most are accepted")
    return ratios


Ratios = Annotated[tuple[float, float], AfterValidator(_ascending)]


class ModelConfig(Settings):
    """The contents of `tudsr.json`: all that a loader needs beside the diffusers folders.

    `r_px` is the native resolution R, in pixels; t1 and t2 are timesteps of the scheduler's training schedule (0 to
    999); `m_range` is the span of the first upsampling ratio that stage 1 was trained for, `n_range` the second's;
    ratios up to `once_up_to` are made in one pass, where figures say that this model is better so (1: METHOD's rule).
    """

    format_version: Literal[1] = 1
    name: str
    backbone: str
    r_px: int = Field(gt=0)
    windows: WindowRange
    m_range: Ratios = (1.0, 4.0)
    n_range: Ratios = (1.0, 2.0)
    once_up_to: float = Field(default=1.0, ge=1)
    t1: int = Field(default=200, ge=0, le=999)
    t2: int = Field(default=50, ge=0, le=999)
    lora: LoraSpec = LoraSpec()
    prompt: str = ""
    base_model: str = ""
    licence: str
    sha256: dict[str, str] = Field(default_factory=dict)
    training: list[dict[str, Any]] = Field(default_factory=list)

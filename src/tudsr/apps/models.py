"""`tudsr info` and `tudsr models`: what a model is, make one, check one."""

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tudsr.config import ModelConfig
from tudsr.errors import ConfigError, ModelError
from tudsr.find import CONFIG_NAME, find_model, verify_model

_BYTES_PER_MB = 1_000_000
_RECORDED = ("stage", "step", "hours", "photos", "commit")


def describe(name: str) -> dict[str, Any]:
    """Return what a model says of itself, with its folder, its size on disk and its parameter counts.

    Raises:
        ModelError: when it is not there or a weight file cannot be read.
    """
    folder = find_model(name)
    config = ModelConfig.read(folder / CONFIG_NAME)
    files = sorted(folder.rglob("*.safetensors"))
    return {
        "folder": str(folder),
        **config.model_dump(mode="json"),
        "weights_mb": round(sum(path.stat().st_size for path in files) / _BYTES_PER_MB, 2),
        "parameters": {path.relative_to(folder).as_posix(): _count(path) for path in files},
    }


def describe_lines(facts: dict[str, Any]) -> list[str]:
    """Return `describe`'s facts for people, one a line; hashes and the runs' settings are left to JSON."""
    windows, lora = facts["windows"], facts["lora"]
    lines = [
        f"{facts['name']} ({facts['backbone']}), format {facts['format_version']}",
        f"folder      {facts['folder']}",
        f"licence     {facts['licence']}",
        f"base        {facts['base_model'] or '–'}",
        f"resolution  R = {facts['r_px']} px; windows {windows['min_px']} to {windows['max_px']} px, multiples of "
        f"{windows['stride_px']}, overlap {windows['overlap_px']} px",
        f"ratios      M {_span(facts['m_range'])}, N {_span(facts['n_range'])}, "
        f"once up to x{facts['once_up_to']:g}; timesteps t1 = {facts['t1']}, t2 = {facts['t2']}",
        f"LoRA        rank {lora['rank']}, alpha {lora['alpha']}",
        f"weights     {facts['weights_mb']} MB",
    ]
    lines += [f"            {count:>13,}  {file}" for file, count in facts["parameters"].items()]
    for entry in facts["training"]:
        known = [f"{key} {entry[key]}" for key in _RECORDED if key in entry] + entry.get("notes", [])
        mixed = ["the adapter mixed with another one"] if "interpolated" in entry else []
        lines.append(f"training    {', '.join(known + mixed)}")
    return lines


def init(
    name: str, base: str | None, vae: str | None, out: Path, *, random_weights: bool, seed: int, dtype: str
) -> list[str]:
    """Make a model folder and return what to say of it.

    Raises:
        ConfigError: for an unknown backbone, or one that has no base to take.
        ModelError, InputError: see `models.init_sd21` and `models.init_random`.
    """
    from tudsr import models  # only here: torch and diffusers take seconds to import
    from tudsr.backbones import blueprint
    from tudsr.backbones.sd21 import HUB_ID
    from tudsr.device import DTYPES

    blueprint(name)  # an unknown name is said first
    if random_weights:
        for option, given in (("--base", base), ("--vae", vae)):
            if given is not None:
                raise ConfigError(f"{option} and --random-weights were both given; one of them is accepted.")
        models.init_random(name, out, seed=seed, dtype=DTYPES[dtype])
        said = f"{name} with random weights (seed {seed}): its pictures mean nothing until it is trained."
    elif name == "sd21":
        _, said = models.init_sd21(base or HUB_ID, out, dtype=DTYPES[dtype], vae=vae)
    else:
        raise ConfigError(f"{name} has no base model to start from; --random-weights makes one to train.")
    return [said, str(out)]


def verify(name: str) -> list[str]:
    """Hash a model's weight files.

    Returns:
        What to say: how many files are as listed.

    Raises:
        ModelError: naming each file that is not what tudsr.json lists.
    """
    wrong = verify_model(name)
    if wrong:
        raise ModelError(f"{name}: {len(wrong)} weight files are not what {CONFIG_NAME} lists: {'; '.join(wrong)}.")
    count = len(ModelConfig.read(find_model(name) / CONFIG_NAME).sha256)  # as many as are there, or some were wrong
    return [f"{name}: {count} weight files, all as {CONFIG_NAME} lists them."]


def to_json(facts: dict[str, Any]) -> str:
    """Return indented JSON."""
    return json.dumps(facts, indent=2, ensure_ascii=False)


def _span(values: list[float]) -> str:
    return f"{values[0]:g} to {values[1]:g}"


def _count(path: Path) -> int:
    try:
        with safe_open(path, framework="np") as file:
            return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}).") from error

"""What a run leaves to be resumed from: collected from its parts, compared with the settings, put back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tudsr.checkpoint import atomic_path
from tudsr.data.photos import find_photos, manifest_hash
from tudsr.errors import ConfigError
from tudsr.train.config import TrainConfig
from tudsr.train.ema import Ema
from tudsr.train.photos import RunPhotos
from tudsr.train.tasks import Task

STATE_NAME = "state.pt"
LOCAL = frozenset({"model", "data", "out", "pairs", "weights_dir", "init_discriminator"})
"""Paths of one machine, not part of what a run is."""

# Not among them: val_count and val_crop_px, which say what photos are trained on, and val_scale, since it and
# val_crop_px say what figures the best model's are compared with.
FREE = ("steps", "val_every", "log_every", "checkpoint_every", "workers", "cache_mb")
"""Settings that a resumed run may change. The steps so far would have been the same, except that with lr_end below 1
the learning rate depends on `steps`, which `check_same` notes."""


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Save a training state atomically (tensors and plain values only)."""
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: Path) -> dict[str, Any]:
    """Load what `save_state` wrote; nothing but tensors and plain values is accepted from the file.

    Raises:
        ConfigError: when it is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each part of the unpickler and of the archive has its own
        raise ConfigError(f"{path}: not the state of a run, or damaged; begin anew in another folder.") from error


def previous_state(out: Path, *, resume: bool) -> dict[str, Any] | None:
    """Return the state of the run in a folder, or None when there is none.

    Raises:
        ConfigError: when there is one, but it is not to be resumed.
    """
    path = out / STATE_NAME
    if not path.exists():
        return None
    if not resume:
        raise ConfigError(f"{out}: holds a run already; add --resume to go on, or give another folder.")
    return load_state(path)


def identity(config: TrainConfig, photos: RunPhotos, model_sha256: Mapping[str, str], processes: int) -> dict[str, Any]:
    """Return what makes a run the one it is, as plain values.

    Args:
        config: resolved settings.
        photos: of the run; their names and sizes count, as reading them all takes long.
        model_sha256: weight file → hash, of the model that the run starts from.
        processes: how many train together.
    """
    values = config.model_dump(mode="json", exclude=set(LOCAL))
    if config.pairs is not None:
        values["pairs_sha256"] = manifest_hash(find_photos(config.pairs), config.pairs)
    used = photos.validation + (photos.training if config.pairs is None else [])
    return {
        "config": values,
        "photos": manifest_hash(used, config.data, contents=False),
        "model_sha256": dict(model_sha256),
        "processes": processes,
    }


def check_same(state: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compare a state's identity with the run's that is to go on from it.

    Returns:
        Notes for the user on what changes all the same.

    Raises:
        ConfigError: naming the first setting that differs and is not in FREE.
    """
    then = state["identity"]
    values, wanted = ({**side["config"], "the number of processes": side["processes"]} for side in (then, now))
    for key in sorted(values.keys() & wanted.keys() - set(FREE)):
        if values[key] != wanted[key]:
            raise ConfigError(
                f"{key} is {wanted[key]!r}, but the run to resume was made with {values[key]!r}; what may change is "
                f"{', '.join(FREE)}."
            )
    if then["model_sha256"] != now["model_sha256"]:
        raise ConfigError("model: its weights are not those that the run to resume started from.")
    if then.get("photos", now["photos"]) != now["photos"]:  # states of earlier versions do not tell
        raise ConfigError("data: its photos are not those that the run to resume was made with.")
    if values["steps"] == wanted["steps"] or wanted["lr_end"] == 1:
        return []
    return [
        f"steps is {wanted['steps']}, and was {values['steps']}: the learning rate now falls to "
        f"lr_end={wanted['lr_end']:g} by the new last step."
    ]


def collect(task: Task, optimizers: Mapping[str, torch.optim.Optimizer], ema: Ema) -> dict[str, Any]:
    """Return the part of a state that learns, and torch's random state."""
    state = {
        "rng": torch.get_rng_state(),
        "ema": ema.state_dict(),
        "nets": {name: [p.detach() for p in net] for name, net in task.nets.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
    }
    if task.net_d is not None:
        state["discriminator"] = task.net_d.trainable_state_dict()  # spectral norms' vectors too
    return state


@torch.no_grad()
def put_back(state: Mapping[str, Any], task: Task, optimizers: Mapping[str, torch.optim.Optimizer], ema: Ema) -> None:
    """Restore what `collect` returned, in place."""
    torch.set_rng_state(state["rng"])
    for name, net in task.nets.items():
        for parameter, value in zip(net, state["nets"][name], strict=True):
            parameter.copy_(value)
        optimizers[name].load_state_dict(state["optimizers"][name])
    if task.net_d is not None:
        task.net_d.load_trainable_state_dict(state["discriminator"])
    ema.load_state_dict(state["ema"])

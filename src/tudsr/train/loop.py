"""The training loop: data, steps, validation, checkpoints. The stage is data, not another loop."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tudsr.checkpoint import save_tensors
from tudsr.data.dataset import PhotoDataset
from tudsr.data.photos import PhotoReport, find_photos, manifest_hash, split_photos
from tudsr.device import DTYPES
from tudsr.errors import ConfigError, DataError
from tudsr.folder import load_model, save_model
from tudsr.train.config import TrainConfig
from tudsr.train.ema import Ema
from tudsr.train.objective import Seed
from tudsr.train.runlog import RunLog, commit, load_state, save_state
from tudsr.train.tasks import TASKS, Task, seeded_adapters
from tudsr.train.validate import Validation

STATE_NAME = "state.pt"
_LOCAL = {"model", "data", "out", "weights_dir", "init_discriminator"}  # paths of one machine, not part of a record
Progress = Callable[[int, int, dict[str, float]], None]


def train(config: TrainConfig, *, resume: bool = False, progress: Progress | None = None) -> dict[str, float]:
    """Run one stage to its end and write OUT/model (the averaged weights) and OUT/best (the best validated ones).

    Args:
        config: the run.
        resume: go on from OUT/state.pt if it is there.
        progress: called after each step with (step, steps, latest figures).

    Returns:
        The last figures.

    Raises:
        ConfigError, DataError, ModelError, WeightsError: before any work, in one sentence.
    """
    return Trainer(config, resume).run(progress or (lambda *_: None))


class Trainer:
    """One run. Everything random depends on (seed, step) only, so that a resumed run repeats it bit for bit."""

    def __init__(self, config: TrainConfig, resume: bool) -> None:
        state_path = config.out / STATE_NAME
        if state_path.exists() and not resume:
            raise ConfigError(f"{config.out}: holds a run already; add --resume to go on, or give another folder.")
        self.config, self.step, self.seconds = config, 0, 0.0
        self.best = float("inf")
        self.accelerator = Accelerator(mixed_precision=config.precision)
        self.photos, self.val_photos, report = _photos(config)
        self.skipped = 0
        torch.manual_seed(config.seed)
        device = self.accelerator.device
        self.model = load_model(config.model, device, DTYPES[config.base_dtype])
        seeded_adapters(self.model, config)
        self.task: Task = TASKS[config.stage](self.model, config, self.accelerator.autocast)
        for parameter in itertools.chain(*self.task.nets.values()):
            parameter.requires_grad_(True)
        self.optimizers = {name: self._optimizer(name) for name in self.task.nets}
        self.ema = Ema(self.task.nets["g"], config.ema)
        stride = self.model.config.windows.stride_px * config.n  # stage 2's first pass makes side / n
        self.validation = Validation(self.val_photos, config, device, stride) if self.val_photos else None
        if resume and state_path.exists():
            self._restore(load_state(state_path))
        self.log = RunLog(config.out, config.model_dump(mode="json"), self.step) if self._is_main else None
        if self.log and (report.broken or report.too_small):
            self.log.scalars(self.step, {"photos_left_out": len(report.broken) + len(report.too_small)})

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process

    def _optimizer(self, name: str) -> torch.optim.AdamW:
        c = self.config
        lr = c.lr if name == "g" else c.lr_d
        return torch.optim.AdamW(self.task.nets[name], lr=lr, weight_decay=c.weight_decay)

    def run(self, progress: Progress) -> dict[str, float]:
        """Train to the last step."""
        config = self.config
        figures: dict[str, Any] = {}
        self.model.backbone.unet.train()  # what gradient checkpointing looks at; there is no dropout in these nets
        batches = self._batches()
        while self.step < config.steps:
            begun = time.perf_counter()
            figures |= self._one_step(batches)
            self.step += 1
            self.seconds += time.perf_counter() - begun
            if self.log and self.step % config.log_every == 0:
                numbers = {key: float(value) for key, value in figures.items() if not key.startswith("val_")}
                self.log.scalars(self.step, numbers | {"seconds": round(self.seconds, 1)})
            if self.step % config.val_every == 0 or self.step == config.steps:
                figures |= self._validate()
            if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                self._save()
            progress(self.step, config.steps, figures)
        if self._is_main:
            self._export("model", figures)
        return {key: float(value) for key, value in figures.items()}

    def _batches(self) -> Iterator[dict[str, Any]]:
        """Yield micro-batches from the current step's first on; processes take turns, in order."""
        c, acc = self.config, self.accelerator
        per_step = c.accumulate * acc.num_processes
        dataset = PhotoDataset(
            self.photos, crop_px=c.crop_px, seed=c.seed, length=c.steps * per_step * c.batch, scales=c.scales,
            degradation=None if c.stage == 0 else c.degradation, group=c.batch, cache_mb=c.cache_mb, p_down=c.p_down,
        )  # fmt: skip
        groups = range(self.step * per_step + acc.process_index, c.steps * per_step, acc.num_processes)
        indices = [list(range(g * c.batch, (g + 1) * c.batch)) for g in groups]
        yield from DataLoader(
            dataset, batch_sampler=indices, num_workers=c.workers, worker_init_fn=_one_thread if c.workers else None,
            generator=torch.Generator(),  # else each start would draw from the global one, whose state is saved
        )  # fmt: skip

    def _one_step(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        c = self.config
        parts: dict[str, Any] = {}
        for _ in range(c.accumulate):
            batch = {k: v.to(self.accelerator.device) for k, v in next(batches).items()}
            self.skipped += int(batch["skipped"].sum())
            seed = Seed(c.seed, int(batch["index"][0]))
            for key, value in self.task.accumulate(batch, 1 / c.accumulate, seed).items():
                parts[key] = parts.get(key, 0) + value / c.accumulate
        for name, optimizer in self.optimizers.items():
            parameters = self.task.nets[name]
            sync_gradients(parameters, self.accelerator)
            parts[f"grad_{name}"] = nn.utils.clip_grad_norm_(parameters, c.clip)
            for group in optimizer.param_groups:
                group["lr"] = (c.lr if name == "g" else c.lr_d) * self._schedule()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        return parts | ({"photos_skipped": self.skipped} if self.skipped else {})

    def _schedule(self) -> float:
        """Return the factor on the learning rate: linear warm-up, then linear down to lr_end."""
        c = self.config
        warm = min(1.0, (self.step + 1) / max(1, c.warmup))
        done = max(0, self.step - c.warmup) / max(1, c.steps - c.warmup)
        return warm * (1 - (1 - c.lr_end) * done)

    def _validate(self) -> dict[str, float]:
        if self.validation is None or self.log is None:
            return {}
        with self.ema.applied():
            figures, grid = self.validation.run(self.task)
            if figures["val_score"] < self.best:
                self.best = figures["val_score"]
                self._export("best", figures)
        self.log.scalars(self.step, figures)
        self.log.samples(self.step, grid)
        return figures

    def _export(self, name: str, figures: dict[str, Any]) -> None:
        """Write a model folder of the averaged weights, and the discriminator beside it for a next run."""
        values = {key: round(float(v), 6) for key, v in figures.items() if key.startswith("val_")}
        record = {
            "stage": self.config.stage, "step": self.step, "hours": round(self.seconds / 3600, 3), "figures": values,
            "commit": commit(), "photos": len(self.photos), "photos_sha256": self._photos_hash(),
            "config": self.config.model_dump(mode="json", exclude=_LOCAL),
        }  # fmt: skip
        with self.ema.applied():
            save_model(self.config.out / name, self.model, torch.bfloat16, record)
        if self.task.net_d is not None:
            # Not in the folder itself, whose weight files are all listed in its tudsr.json.
            path = self.config.out / f"{name}_discriminator.safetensors"
            save_tensors(path, self.task.net_d.trainable_state_dict())

    def _photos_hash(self) -> str:
        if not hasattr(self, "_hash"):
            self._hash = manifest_hash(self.photos, self.config.data)
        return self._hash

    def _save(self) -> None:
        if not self._is_main:
            return
        state = {
            "step": self.step, "seconds": self.seconds, "best": self.best, "skipped": self.skipped,
            "seed": self.config.seed, "rng": torch.get_rng_state(), "ema": self.ema.state_dict(),
            "nets": {name: [p.detach() for p in net] for name, net in self.task.nets.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }  # fmt: skip
        if self.task.net_d is not None:
            state["discriminator"] = self.task.net_d.trainable_state_dict()  # spectral norms' vectors too
        save_state(self.config.out / STATE_NAME, state)

    @torch.no_grad()
    def _restore(self, state: dict[str, Any]) -> None:
        if state["seed"] != self.config.seed:
            raise ConfigError(f"seed is {self.config.seed}, but the run to resume was made with {state['seed']}.")
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.skipped = state["skipped"]
        torch.set_rng_state(state["rng"])
        for name, net in self.task.nets.items():
            for parameter, value in zip(net, state["nets"][name], strict=True):
                parameter.copy_(value)
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        if self.task.net_d is not None:
            self.task.net_d.load_trainable_state_dict(state["discriminator"])
        self.ema.load_state_dict(state["ema"])


def sync_gradients(parameters: list[nn.Parameter], accelerator: Accelerator) -> None:
    """Average gradients over processes, once per step, after the last chunk of the last micro-batch.

    One explicit all-reduce instead of DDP's hooks: those fire on every chunk's backward, and would have to be silenced
    on all but the last.
    """
    if accelerator.num_processes == 1:
        return
    grads: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    flat = accelerator.reduce(flat, reduction="mean")
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def _photos(config: TrainConfig) -> tuple[list[Any], list[Any], PhotoReport]:
    """Return training and validation photos that are large enough, and the report on the others."""
    from tudsr.data.photos import check_photos

    found = find_photos(config.data)
    named = [path for path in found if not any(part in path.as_posix() for part in config.exclude)]
    side = max(config.crop_px, config.val_crop_px or 0)
    usable, report = check_photos(named, side)
    if not config.val_count:
        return usable, [], report
    if len(usable) <= config.val_count:
        raise DataError(
            f"{config.data}: {len(usable)} usable photos, but val_count={config.val_count} are to be set aside; "
            "give more photos or --set val_count=0."
        )
    training, validation = split_photos(usable, config.val_count, seed=0, root=config.data)
    return training, validation, report


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)

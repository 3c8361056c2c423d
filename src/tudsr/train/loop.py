"""The training loop: data, steps, validation, checkpoints. The stage is data, not another loop."""

import itertools
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, is_initialized
from torch import Tensor, nn

from tudsr.checkpoint import replaced_folder, save_tensors
from tudsr.config import ModelConfig
from tudsr.data.photos import manifest_hash
from tudsr.device import DTYPES
from tudsr.errors import ConfigError, StoppedError, TudsrError
from tudsr.find import CONFIG_NAME, find_model
from tudsr.folder import load_model, save_model
from tudsr.machine import commit
from tudsr.train.batches import Batches
from tudsr.train.config import TrainConfig
from tudsr.train.ema import Ema
from tudsr.train.objective import Seed
from tudsr.train.photos import select_photos, write_photos
from tudsr.train.runlog import RunLog
from tudsr.train.state import STATE_NAME, check_same, collect, identity, previous_state, put_back, save_state
from tudsr.train.tasks import TASKS, Task, seeded_adapters
from tudsr.train.validate import Validation, validation_side_px

# The others wait for as long as the main process hashes photos, validates and writes models.
_PATIENCE = timedelta(hours=2)
Progress = Callable[[int, int, dict[str, float]], None]
Notes = Callable[[str], None]
Stop = Callable[[], bool]


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    notes: Notes | None = None,
    stop: Stop | None = None,
) -> dict[str, float]:
    """Run one stage to its end and write OUT/model (the averaged weights) and OUT/best (the best validated ones).

    Args:
        config: the run.
        resume: go on from OUT/state.pt if it is there; a finished run is left as it is.
        progress: called after each step with (step, steps, latest figures); figures are renewed every log_every steps.
        notes: called with lines worth showing, such as how many photos were left out.
        stop: asked after each step; where it, or another process's, says yes, the run ends there.

    Returns:
        The last figures.

    Raises:
        ConfigError, DataError, ModelError, WeightsError: before any work, in one sentence.
        StoppedError: after `stop` has said yes; there are a checkpoint and OUT/model of that step.
        TudsrError: when gradients are no longer finite; the last checkpoint is intact.
    """
    return Trainer(config, resume, notes or (lambda _: None)).run(
        progress or (lambda *_: None), stop or (lambda: False)
    )


class Trainer:
    """One run. Everything random depends on (seed, step) only, so that a resumed run repeats it bit for bit."""

    def __init__(self, config: TrainConfig, resume: bool, notes: Notes = lambda _: None) -> None:
        state = previous_state(config.out, resume=resume)
        self.config, self.step, self.saved, self.seconds = config, 0, 0, 0.0
        self.best, self.skipped = float("inf"), 0
        self.figures: dict[str, float] = {}
        self.accelerator = _accelerator(config.precision)
        settings = ModelConfig.read(find_model(config.model) / CONFIG_NAME)
        val_side_px = validation_side_px(config, settings.windows) if config.val_count else 0
        self.photos = select_photos(config)
        self.identity = identity(config, self.photos, settings.sha256, self.accelerator.num_processes)
        changes = check_same(state, self.identity) if state is not None else []
        torch.manual_seed(config.seed)
        device = self.accelerator.device
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.model = load_model(config.model, device, DTYPES[config.base_dtype])
        self.notes = seeded_adapters(self.model, config)
        self.task: Task = TASKS[config.stage](self.model, config, self.accelerator.autocast)
        for parameter in itertools.chain(*self.task.nets.values()):
            parameter.requires_grad_(True)
        self.optimizers = {
            name: torch.optim.AdamW(net, weight_decay=config.weight_decay) for name, net in self.task.nets.items()
        }
        self.ema = Ema(self.task.nets["g"], config.ema)
        self.batches = Batches(self.photos.training, config, self.accelerator)
        self.validation, self.log = None, None
        if self.photos.validation and self._is_main:
            self.validation = Validation(self.photos.validation, config, device, val_side_px)
        if state is not None:
            self._restore(state)
        if self._is_main:
            self.log = RunLog(config.out, config.model_dump(mode="json"), self.step)
            if state is None:
                write_photos(config.out, self.photos, config.data)
            for line in (self.photos.report.summary(), *self.notes, *changes):
                notes(line)

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process

    def run(self, progress: Progress, stop: Stop = lambda: False) -> dict[str, float]:
        """Train to the last step, or to the one after which somebody says stop."""
        config = self.config
        finished = self.step >= config.steps and self._is_exported()
        if self._is_main and not finished:
            # May take long, and nobody should wait for it at the first validation.
            self.photos_sha256 = manifest_hash(self.photos.training, config.data)
        self.accelerator.wait_for_everyone()
        if finished:
            return self.figures
        self.model.backbone.unet.train()  # what gradient checkpointing looks at; there is no dropout in these nets
        batches = self.batches.from_step(self.step)
        while self.step < config.steps:
            begun = time.perf_counter()
            parts = self._one_step(batches)
            self.step += 1
            self.seconds += time.perf_counter() - begun
            due = self._due(self.step)
            if "report" in due:
                self._report(parts)
            if "validate" in due:
                self._validate()
            if "save" in due:
                self._save()
            progress(self.step, config.steps, self.figures)
            if self.step < config.steps and self._any(stop()):
                self._refuse_if_not_finite(self.step)
                if "save" not in due:
                    self._save()
                self._end()
                where = config.out / "model"
                raise StoppedError(
                    f"Stopped after step {self.step} of {config.steps}; {where} is its, --resume goes on."
                )
        self._end()
        return self.figures

    def _end(self) -> None:
        if self._is_main:
            self._export("model")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _any(self, mine: bool) -> bool:
        """Say whether any process says yes."""
        return mine if self.accelerator.num_processes == 1 else self._sum(int(mine)) > 0

    def _due(self, step: int) -> set[str]:
        """Return what happens after a step; all of it after the last one."""
        c = self.config
        every = {"report": c.log_every, "validate": c.val_every, "save": c.checkpoint_every}
        return {what for what, steps in every.items() if step % steps == 0 or step == c.steps}

    def _one_step(self, batches: Iterator[dict[str, Any]]) -> dict[str, Tensor]:
        c = self.config
        parts: dict[str, Any] = {}
        for _ in range(c.accumulate):
            batch = next(batches)
            self.skipped += int(batch["skipped"].sum())
            seed = Seed(c.seed, int(batch["index"][0]))
            for key, value in self.task.accumulate(self.batches.on_device(batch), 1 / c.accumulate, seed).items():
                parts[key] = parts.get(key, 0) + value / c.accumulate
        for name, parameters in self.task.nets.items():
            sync_gradients(parameters, self.accelerator)
            parts[f"grad_{name}"] = nn.utils.clip_grad_norm_(parameters, c.clip)
        self._check_finite([parts[f"grad_{name}"] for name in self.task.nets])
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = (c.lr if name == "g" else c.lr_d) * self._schedule()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        return parts

    def _check_finite(self, norms: list[Tensor]) -> None:
        """Refuse to go on after gradients that are not finite, at the latest before anything is logged or saved."""
        self.finite &= torch.stack([norm.isfinite() for norm in norms]).all()
        # To look at the answer is to wait for the GPU: not at every step.
        if self.accelerator.device.type == "cpu" or self._due(self.step + 1):
            self._refuse_if_not_finite(self.step + 1)

    def _refuse_if_not_finite(self, step: int) -> None:
        if self.finite:
            return
        kept = f"and its last checkpoint, of step {self.saved}, is intact" if self.saved else "without a checkpoint"
        raise TudsrError(f"step {step}: the gradients are not finite any more; the run has stopped, {kept}.")

    def _report(self, parts: dict[str, Tensor]) -> None:
        """Turn figures into floats, which waits for the device, and log them."""
        rates = {f"lr_{name}": optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
        self.figures |= {key: float(value) for key, value in parts.items()} | rates
        skipped = self._sum(self.skipped)  # broken photos, of all processes
        self.figures |= {"photos_skipped": float(skipped)} if skipped else {}
        if self.log is not None:
            numbers = {key: value for key, value in self.figures.items() if not key.startswith("val_")}
            self.log.scalars(self.step, numbers | {"seconds": round(self.seconds, 1)})

    def _sum(self, mine: int) -> int:
        """Add one number of every process."""
        return int(self.accelerator.reduce(torch.tensor(mine, device=self.accelerator.device), reduction="sum"))

    def _schedule(self) -> float:
        """Return the factor on the learning rate: linear warm-up, then linear down to lr_end."""
        c = self.config
        warm = min(1.0, (self.step + 1) / max(1, c.warmup))
        done = max(0, self.step - c.warmup) / max(1, c.steps - c.warmup)
        return warm * (1 - (1 - c.lr_end) * done)

    def _validate(self) -> None:
        if self.validation is not None and self.log is not None:
            with self.ema.applied():
                found, grid = self.validation.run(self.task)
            self.figures |= found
            if found["val_score"] < self.best:
                self.best = found["val_score"]
                self._export("best")
            self.log.scalars(self.step, found)
            self.log.samples(self.step, grid)
        self.accelerator.wait_for_everyone()

    def _val_figures(self) -> dict[str, float]:
        return {key: value for key, value in self.figures.items() if key.startswith("val_")}

    def _export(self, name: str) -> None:
        """Write a model folder of the averaged weights, and the discriminator beside it for a next run."""
        record = {
            "stage": self.config.stage, "step": self.step, "hours": round(self.seconds / 3600, 3),
            "figures": {key: round(value, 6) for key, value in self._val_figures().items()},
            "commit": commit(), "photos": len(self.photos.training), "photos_sha256": self.photos_sha256,
            "config": self.identity["config"],
        } | ({"notes": self.notes} if self.notes else {})  # fmt: skip
        with self.ema.applied(), replaced_folder(self.config.out / name) as folder:
            save_model(folder, self.model, torch.bfloat16, record)
        if self.task.net_d is not None:
            # Not in the folder itself, whose weight files are all listed in its tudsr.json.
            path = self.config.out / f"{name}_discriminator.safetensors"
            save_tensors(path, self.task.net_d.trainable_state_dict())

    def _is_exported(self) -> bool:
        """Say whether OUT/model is of this very step, not of an earlier end that the run has gone beyond since."""
        path = self.config.out / "model" / CONFIG_NAME
        if not path.is_file():
            return False
        records = ModelConfig.read(path).training
        return bool(records) and records[-1].get("step") == self.step

    def _save(self) -> None:
        skipped = self._sum(self.skipped)
        if self._is_main:
            state = {
                "step": self.step, "seconds": self.seconds, "best": self.best, "skipped": skipped,
                "figures": self._val_figures(), "identity": self.identity,
            }  # fmt: skip
            save_state(self.config.out / STATE_NAME, state | collect(self.task, self.optimizers, self.ema))
        self.saved = self.step

    def _restore(self, state: dict[str, Any]) -> None:
        self.step = self.saved = state["step"]
        self.seconds, self.best, self.figures = state["seconds"], state["best"], state["figures"]
        self.skipped = state["skipped"] if self._is_main else 0  # the sum of all processes
        put_back(state, self.task, self.optimizers, self.ema)


def _accelerator(precision: str) -> Accelerator:
    """Set accelerate up, which holds on to a process's first precision."""
    if is_initialized() and (first := AcceleratorState().mixed_precision) != precision:
        raise ConfigError(
            f"precision is {precision!r}, but this process has trained with {first!r} before; a run of another "
            "precision needs a process of its own."
        )
    return Accelerator(mixed_precision=precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])


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

"""What an ablation consists of.

An arm is a chain of training phases that begins with a start model; the arms of one group are compared with each other
and are alike in all but what the question is about. Phases of one name are one phase: ablations share what they have in
common.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import FOLDED, SPLIT

from tudsr.config import ModelConfig
from tudsr.find import CONFIG_NAME, UNET_FILE

METRICS = ("psnr", "ssim", "lpips", "dists", "niqe")


@dataclass(frozen=True, kw_only=True)
class Start:
    """A model with fresh adapters: the base's weights, the prior's or random ones; the model's own rank or another."""

    name: str
    rank: int | None = None
    prior: bool = False
    random: bool = False


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One run of `tudsr train`; `settings` are those that the preset does not have, JSON values."""

    name: str
    stage: int
    start: "Start | Phase"
    settings: Mapping[str, Any]
    keeps_discriminator: bool = False

    @property
    def steps(self) -> int:
        """Steps of this phase alone."""
        return int(self.settings["steps"])

    def chain(self) -> tuple["Phase", ...]:
        """Return the phases from the start to this one."""
        return (*(self.start.chain() if isinstance(self.start, Phase) else ()), self)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where things lie; `prior` is a model of stage 0, which one ablation asks for."""

    runs: Path
    base: Path
    photos: Path
    test: Path
    prior: Path | None = None

    def folder(self, phase: Phase | Start) -> Path:
        """Return the folder of a phase's run."""
        return self.runs / "phases" / phase.name

    def model(self, phase: Phase | Start) -> Path:
        """Return the folder of the model that a phase leaves."""
        return self.folder(phase) / "model"


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """Photos, how they are degraded, and by what outputs are measured.

    `tiles` takes windows of the model's R only, `limit` the first so many photos only.
    """

    name: str
    folder: str
    scale: int
    preset: str = "light"
    metrics: tuple[str, ...] = METRICS
    tiles: bool = False
    limit: int | None = None

    @property
    def pairs(self) -> str:
        """Name of the folder of pairs."""
        return f"{self.folder}-{self.preset}-x{self.scale}"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is trained, by its last phase, and how it is run on each test set (M4, M2N2, …)."""

    name: str
    phase: Phase
    ways: Sequence[tuple[EvalSet, str]]
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A question and the arms that answer it; `note` says what a reader of the figures has to know."""

    title: str
    question: str
    steps: int
    arms: Sequence[Arm]
    note: str = ""

    def sets(self) -> list[EvalSet]:
        """Return the test sets, in order, once each."""
        return list(dict.fromkeys(eval_set for arm in self.arms for eval_set, _ in arm.ways))

    def on(self, eval_set: EvalSet) -> list[tuple[Arm, str]]:
        """Return the arms that are run on a test set, with their ways."""
        return [(arm, way) for arm in self.arms for found, way in arm.ways if found == eval_set]


def budget(arms: Sequence[Mapping[str, Any]], phases: Sequence[Mapping[str, Any]]) -> str:
    """Return how long the arms of each group learnt: what they have in common, which tells nothing, apart.

    Args:
        arms: as results.json has them.
        phases: likewise.
    """
    steps = {phase["name"]: phase["settings"]["steps"] for phase in phases}
    said: dict[str, list[str]] = {}
    for group in dict.fromkeys(arm["group"] for arm in arms):
        chains = [set(arm["phases"]) for arm in arms if arm["group"] == group]
        common = set.intersection(*chains)
        own = " or ".join(f"{n:,}" for n in sorted({sum(steps[name] for name in chain - common) for chain in chains}))
        shared = f"{sum(steps[name] for name in common):,} steps that the arms share, then {own}"
        said.setdefault((shared if common else f"{own} steps") + " an arm", []).append(group)
    return "; ".join(text + (f" ({', '.join(groups)})" if len(said) > 1 else "") for text, groups in said.items())


def origins(ablation: Ablation, place: Place) -> dict[str, Any]:
    """Return what results.json says of the models that arms begin from: the base, and the prior where one does."""
    starts = [arm.phase.chain()[0].start for arm in ablation.arms]
    base = ModelConfig.read(place.base / CONFIG_NAME)
    shape = ", for its shape only" if all(one.prior or one.random for one in starts if isinstance(one, Start)) else ""
    found: dict[str, Any] = {"base": f"{base.name}, UNet {base.sha256.get(UNET_FILE, 'unknown')[:12]}…{shape}"}
    if place.prior is not None and any(isinstance(one, Start) and one.prior for one in starts):
        config = ModelConfig.read(place.prior / CONFIG_NAME)
        found["prior"] = {"unet_sha256": config.sha256.get(UNET_FILE, "unknown"), "training": config.training}
    return found


def begins(results: Mapping[str, Any]) -> str:
    """Return the sentences about the models that arms begin from.

    Args:
        results: with what `origins` returns.
    """
    said = [f"Base: {results['base']}."]
    if "prior" in results:
        runs = [
            f"{one['step']:,} steps × {one['config']['batch']}, {one['config']['crop_px']}², commit {one['commit']}"
            for one in results["prior"]["training"]
        ]
        said.append(f"Prior: UNet {results['prior']['unet_sha256'][:12]}…, stage 0 for {'; then '.join(runs)}.")
    return " ".join(said)


def what_the_base_learnt(training: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of what is in a base's weights: not of what adapters.py moved out again into LoRA-1."""
    kept: list[dict[str, Any]] = []
    clean = 0
    for record in training:
        notes = record.get("notes", [])
        if FOLDED in notes:
            clean = len(kept)
        elif SPLIT in notes:
            del kept[clean:]
        elif record.get("stage") == 0 or record.get("config", {}).get("train") == "base":
            kept.append(record)
    return kept

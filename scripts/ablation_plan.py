"""What the ablations are: questions, arms and test sets, as data.

An arm is a chain of training phases that begins with a start model; the arms of one group are compared with each other
and are alike in all but what the question is about. Phases of one name are one phase: ablations share what they have in
common.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 0
SAMPLE_PHOTOS = [
    "spices-of-life", "oakland-zoo-otters", "lake-sherburne", "roman-colosseum", "motherboard-circuits",
    "budgie-branch", "perched-osprey",
]  # fmt: skip
"""The package's own sample photos, which are not trained on."""

METRICS = ("psnr", "ssim", "lpips", "lpips_vgg", "dists", "niqe")
_PREPARED = 5  # LoRA-1 learns so many times longer than the LoRA-2s that begin with it


@dataclass(frozen=True, kw_only=True)
class Start:
    """A model with fresh adapters: the base's own weights or random ones, the base's own rank or another."""

    name: str
    rank: int | None = None
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
    """Where things lie."""

    runs: Path
    base: Path
    photos: Path
    test: Path

    def folder(self, phase: Phase | Start) -> Path:
        """Return the folder of a phase's run."""
        return self.runs / "phases" / phase.name

    def model(self, phase: Phase | Start) -> Path:
        """Return the folder of the model that a phase leaves."""
        return self.folder(phase) / "model"


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """Photos, how they are degraded, and by what outputs are measured; `tiles` takes windows of the model's R only."""

    name: str
    folder: str
    scale: int
    preset: str = "light"
    metrics: tuple[str, ...] = METRICS
    tiles: bool = False

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


KODAK = EvalSet(name="kodak-light-x4", folder="kodak", scale=4)
KODAK_HEAVY = EvalSet(name="kodak-heavy-x4", folder="kodak", scale=4, preset="heavy")
CLIC = EvalSet(name="clic-light-x8", folder="clic", scale=8)
KODAK_TILES = EvalSet(name="kodak-light-x4-tiles", folder="kodak", scale=4, metrics=(*METRICS, "seams"), tiles=True)
CLIC_TILES = EvalSet(name="clic-light-x8-tiles", folder="clic", scale=8, metrics=(*METRICS, "seams"), tiles=True)

START = Start(name="start")


def _settings(steps: int, **changes: Any) -> dict[str, Any]:
    shared = {"seed": SEED, "val_count": 12, "checkpoint_every": 100, "exclude": SAMPLE_PHOTOS, "lr_end": 0.3}
    return shared | {"steps": steps, "warmup": max(1, steps // 20)} | changes


def _first(label: str, steps: int, start: Start = START, **changes: Any) -> Phase:
    """Stage 1 from a start model."""
    return Phase(name=f"{label}-{steps}", stage=1, start=start, settings=_settings(steps, **changes))


def _second(label: str, steps: int, start: Phase, stage: int = 2, **changes: Any) -> Phase:
    """Go on from a first phase, with its discriminator; stage 2, or stage 1 on crops of the same size and number."""
    settings = _settings(steps, **{"lr": 6e-4} | ({"batch": 4, "crop_px": 256} if stage == 1 else {}) | changes)
    name = f"{label}-{start.steps}+{steps}"
    return Phase(name=name, stage=stage, start=start, settings=settings, keeps_discriminator=True)


def twice(steps: int = 3000) -> Ablation:
    """Stage 1 and stage 2 against one stage that was trained for the whole ratio, as long in all."""
    first, second = steps - steps // 2, steps // 2
    ours = _second("stage_2_exact", second, _first("stage_1", first), loop="exact")

    def rival(ratio: int) -> Phase:
        scales = {"fixed": {str(ratio): 1.0}}
        begun = _first(f"m{ratio}_first", first, scales=scales)
        return _second(f"m{ratio}_second", second, begun, stage=1, scales=scales)

    return Ablation(
        title="twice against once",
        steps=steps,
        question="At equal steps, crops and rank: are two passes (M2N2, M4N2) better than one (M4, M8) whose adapter "
        "was trained for just that ratio?",
        arms=[
            Arm(name="twice", phase=ours, ways=[(KODAK, "M2N2"), (CLIC, "M4N2")]),
            Arm(name="once_x4", phase=rival(4), ways=[(KODAK, "M4")]),
            Arm(name="once_x8", phase=rival(8), ways=[(CLIC, "M8")]),
        ],
        note="«Twice» spreads its stage 1 over ratios of 1 to 4 and its stage 2 over ×4 and ×8; each rival learns one "
        "ratio only.",
    )


def loop(steps: int = 3000) -> Ablation:
    """Stage 2's looped chunks, each with a loss of its own, against the exact gradient of the blended picture."""
    first, second = steps - steps // 2, steps // 2
    stage_1 = _first("stage_1", first)
    ways = [(KODAK, "M2N2"), (KODAK_TILES, "M2N2"), (CLIC_TILES, "M4N2")]
    return Ablation(
        title="loop A against loop B",
        steps=steps,
        question="Does the exact loop (B) leave weaker seams than the paper's loop (A), and at what price in quality?",
        arms=[
            Arm(name=name, phase=_second(f"stage_2_{name}", second, stage_1, loop=name), ways=ways)
            for name in ("paper", "exact")
        ],
        note="Sets named «tiles» are run with windows of at most the model's R, the side of the training's chunks; the "
        "other with the model's own windows.",
    )


def discriminator(steps: int = 300) -> Ablation:
    """D frozen in G's step against D collecting G's gradients, the relatives' mistake; the paper's loss_gan."""
    return Ablation(
        title="the discriminator in the generator's step",
        steps=steps,
        question="Does it matter that D is frozen while G learns, instead of keeping the gradients of G's loss?",
        arms=[
            Arm(name=how, phase=_first(f"d_{how}", steps, loss_gan=0.5, d_in_g_step=how), ways=[(KODAK, "M4")])
            for how in ("frozen", "contaminated")
        ],
        note="Paper loop; loss_gan is the paper's 0.5 rather than the preset's 0.1, so that there is something to see.",
    )


def losses(steps: int = 300) -> Ablation:
    """Perceptual losses, one at a time, beside the same MAE and GAN."""
    # about 0.85 each at the validation figures of version 1 (DISTS .34, LPIPS-Alex .47); EA-DISTS sums two DISTS
    weights = {"ea_dists": 1.25, "dists": 2.5, "lpips_vgg": 1.8, "lpips_alex": 1.8}
    return Ablation(
        title="perceptual losses",
        steps=steps,
        question="Which of EA-DISTS, DISTS, LPIPS-VGG and LPIPS-Alex, beside the same MAE and GAN, makes the best "
        "pictures?",
        arms=[
            Arm(name=name, phase=_first(f"loss_{name}", steps, losses={name: w, "mae": 0.5}), ways=[(KODAK, "M4")])
            for name, w in weights.items()
        ],
        note="Each arm is favoured by the metric that was its loss (marked °). The weights bring the losses to about "
        "one size; that of EA-DISTS and LPIPS-VGG is an estimate.",
    )


def degradation(steps: int = 300) -> Ablation:
    """What training photos are degraded by; measured on both kinds."""
    mixes = {"light": {"light": 1.0}, "heavy": {"heavy": 1.0}, "mix": {"light": 0.8, "heavy": 0.2}}
    return Ablation(
        title="degradation",
        steps=steps,
        question="Is a model that learnt from light, heavy or mixed degradation better on lightly and on heavily "
        "degraded pictures?",
        arms=[
            Arm(
                name=name,
                phase=_first(f"degradation_{name}", steps, degradation={"weights": weights}),
                ways=[(KODAK, "M4"), (KODAK_HEAVY, "M4")],
            )
            for name, weights in mixes.items()
        ],
    )


def adapters(steps: int = 300) -> Ablation:
    """The rank of LoRA-1; and what LoRA-2 begins with."""
    stage_1 = _first("stage_1", _PREPARED * steps)
    begins = {"lora_2_from_zero": "keep", "lora_2_from_lora_1": "from_stage_1"}
    ranks = [
        Arm(
            name=f"rank_{rank}",
            phase=_first(f"rank_{rank}", steps, Start(name=f"start-rank_{rank}", rank=rank)),
            ways=[(KODAK, "M4")],
            group="rank",
        )
        for rank in (16, 64)
    ]
    seconds = [
        Arm(
            name=name,
            phase=_second(name, steps, stage_1, init_adapter=how),
            ways=[(KODAK, "M2N2"), (CLIC, "M4N2")],
            group="LoRA-2",
        )
        for name, how in begins.items()
    ]
    return Ablation(
        title="adapters",
        steps=steps,
        question="Does a LoRA of rank 64 do better than one of 16? Should LoRA-2 begin at zero or as LoRA-1?",
        arms=[*ranks, *seconds],
        note=f"Both LoRA-2s stand on one LoRA-1, which had {_PREPARED} times as many steps. Alpha is the rank.",
    )


def prior(steps: int = 300) -> Ablation:
    """The base's weights from diffusion training against random ones; LoRA-1 learning, or the base itself."""
    starts = {"prior": START, "random": Start(name="start-random", random=True)}
    learns: dict[str, dict[str, Any]] = {"lora": {}, "whole": {"train": "base", "lr": 4e-4}}
    return Ablation(
        title="the diffusion prior",
        steps=steps,
        question="Does it help that the base learnt to predict noise before it learnt to enlarge?",
        arms=[
            Arm(
                name=f"{name}_{how}",
                phase=_first(f"{name}_{how}", steps, start, **changes),
                ways=[(KODAK, "M4")],
                group=how,
            )
            for how, changes in learns.items()
            for name, start in starts.items()
        ],
        note="«lora»: only LoRA-1 learns, and the random base stays random; «whole»: all of the base learns, from "
        "either start. The prior's own training is not counted in the budget.",
    )


ABLATIONS: dict[str, Callable[..., Ablation]] = {
    "twice": twice,
    "loop": loop,
    "discriminator": discriminator,
    "losses": losses,
    "degradation": degradation,
    "adapters": adapters,
    "prior": prior,
}
"""Name → function (steps) returning the ablation; steps are those of each arm, less what its note says is prepared."""

"""What the ablations are: their questions, arms and test sets, as data."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ablation_parts import METRICS, Ablation, Arm, EvalSet, Phase, Start

SEED = 0
SAMPLE_PHOTOS = [
    "spices-of-life", "oakland-zoo-otters", "lake-sherburne", "roman-colosseum", "motherboard-circuits",
    "budgie-branch", "perched-osprey",
]  # fmt: skip
"""The package's own sample photos, which are not trained on."""

LOSSES = {"mae": 1, "detail": 1, "grid_4": 16, "dists": 2, "lpips_alex": 1}
"""What LoRA-1 of the embedded model began with (scripts/train_tiny.sh)."""

_PREPARED = 4  # LoRA-1 learns so many times longer than the LoRA-2s that begin with it

KODAK = EvalSet(name="kodak-light-x4", folder="kodak", scale=4, limit=12)
KODAK_VGG = replace(KODAK, metrics=(*METRICS, "lpips_vgg"))
KODAK_HEAVY = replace(KODAK, name="kodak-heavy-x4", preset="heavy")
KODAK_TILES = replace(KODAK, name="kodak-light-x4-tiles", metrics=(*METRICS, "seams", "seam_step"), tiles=True)
CLIC = EvalSet(name="clic-light-x8", folder="clic", scale=8)

START = Start(name="start")


def _settings(steps: int, **changes: Any) -> dict[str, Any]:
    shared = {
        "seed": SEED, "val_count": 4, "checkpoint_every": 100, "exclude": SAMPLE_PHOTOS, "batch": 6, "lr_end": 0.1,
        "ema": 0.98, "losses": LOSSES, "loss_gan": 0.05, "lr_d": 3e-4, "jitter_px": 32,
    }  # fmt: skip
    return shared | {"steps": steps, "warmup": max(1, steps // 20)} | changes


def _first(label: str, steps: int, start: Start = START, **changes: Any) -> Phase:
    """Stage 1 from a start model."""
    return Phase(name=f"{label}-{steps}", stage=1, start=start, settings=_settings(steps, **changes))


def _second(label: str, steps: int, start: Phase, stage: int = 2, **changes: Any) -> Phase:
    """Go on from a first phase, with its discriminator; stage 2, or stage 1 on crops of the same size and number."""
    crops = {"batch": 2, "crop_px": 256, "loss_crop_px": 128, "loss_crops": 2, "loop": "exact", "lr": 6e-4}
    name = f"{label}-{start.steps}+{steps}"
    return Phase(
        name=name, stage=stage, start=start, settings=_settings(steps, **crops | changes), keeps_discriminator=True
    )


def _parts(steps: int) -> tuple[int, int]:
    """Split a budget: two thirds for the first phase."""
    second = max(1, steps // 3)
    return steps - second, second


def twice(steps: int = 600) -> Ablation:
    """Stage 1 and stage 2 against one stage that was trained for the whole ratio, as long in all."""
    first, second = _parts(steps)
    ours = _second("stage_2_exact", second, _first("stage_1", first))

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
        "ratio only. The base that all begin from had learnt to restore at ratios of up to 4.",
    )


def loop(steps: int = 600) -> Ablation:
    """Stage 2's looped chunks, each with a loss of its own, against the exact gradient of the blended picture."""
    first, second = _parts(steps)
    stage_1 = _first("stage_1", first)
    ways = [(KODAK, "M2N2"), (KODAK_TILES, "M2N2")]
    return Ablation(
        title="loop A against loop B",
        steps=steps,
        question="Does the exact loop (B) leave weaker seams than the paper's loop (A), and at what price in quality?",
        arms=[
            Arm(
                name=name,
                phase=_second(f"loop_{name}", second, stage_1, loop=name, loss_crop_px=crop_px, loss_crops=4),
                ways=ways,
            )
            for name, crop_px in (("paper", None), ("exact", 128))
        ],
        note="The deep losses and D see four crops of 128² of each picture in both: in A its four chunks, in B random "
        "ones across the chunks' borders. Sets named «tiles» are run with windows of at most the model's R, the side "
        "of the training's chunks; the other with the model's own windows. A seam figure of 1 or less is no seam, and "
        "counts as 1 in differences.",
    )


def discriminator(steps: int = 100) -> Ablation:
    """D frozen in G's step against D collecting G's gradients, the relatives' mistake; the paper's loss_gan."""
    return Ablation(
        title="the discriminator in the generator's step",
        steps=steps,
        question="Does it matter that D is frozen while G learns, instead of keeping the gradients of G's loss?",
        arms=[
            Arm(name=how, phase=_first(f"d_{how}", steps, loss_gan=0.5, d_in_g_step=how), ways=[(KODAK, "M4")])
            for how in ("frozen", "contaminated")
        ],
        note="Paper loop; loss_gan is the paper's 0.5 rather than the 0.05 of the other ablations, so that there is "
        "something to see.",
    )


def losses(steps: int = 100) -> Ablation:
    """Perceptual losses, one at a time, beside the same other losses."""
    # about 0.85 each at the validation figures of version 1 (DISTS .34, LPIPS-Alex .47); EA-DISTS sums two DISTS
    others = {key: weight for key, weight in LOSSES.items() if key not in ("dists", "lpips_alex")}
    weights = {"ea_dists": 1.25, "dists": 2.5, "lpips_vgg": 1.8, "lpips_alex": 1.8}
    return Ablation(
        title="perceptual losses",
        steps=steps,
        question="Which of EA-DISTS, DISTS, LPIPS-VGG and LPIPS-Alex, beside the same pixel losses and GAN, makes the "
        "best pictures?",
        arms=[
            Arm(name=name, phase=_first(f"loss_{name}", steps, losses=others | {name: w}), ways=[(KODAK_VGG, "M4")])
            for name, w in weights.items()
        ],
        note="Each arm is favoured by the metric that was its loss (marked °). The weights bring the losses to about "
        "one size; that of EA-DISTS and LPIPS-VGG is an estimate.",
    )


def degradation(steps: int = 100) -> Ablation:
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
        note="All arms begin from --base. The one that ships had learned 7,900 steps of stage 1 (12 crops each) on "
        "light 0.8 and heavy 0.2; what an arm is named after is what it learned from after those.",
    )


def adapters(steps: int = 100) -> Ablation:
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
            ways=[(KODAK, "M2N2")],
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


def prior(steps: int = 100) -> Ablation:
    """The base's weights from diffusion training against random ones; LoRA-1 learning, or the base itself."""
    starts = {"prior": Start(name="start-prior", prior=True), "random": Start(name="start-random", random=True)}
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
        "either start. The prior (--prior) is a model of stage 0 only, and its training is not counted in the budget.",
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

"""Run the ablations with `tiny`: train every arm, measure it, write down what came out.

    python scripts/ablations.py RUNS [--only NAME] [--photos DIR] [--test DIR] [--base MODEL] [--prior MODEL]
        [--steps N] [--dry-run]

What they are stands in ablation_plan.py. Start it again to go on where it stopped: finished phases and measurements are
not repeated. RUNS/phases holds the training runs, RUNS/sets the test pairs, RUNS/NAME/results.json the figures,
RUNS/NAME/page.md a page for docs/experiments, RUNS/NAME/ablation-NAME.webp its pictures, as docs/images has them,
RUNS/NAME/reports/SET/index.html all pictures.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ablation_parts import Ablation, Arm, EvalSet, Phase, Place, Start, what_the_base_learnt
from ablation_plan import ABLATIONS, SEED
from ablation_results import differing, gather, page, write_montage

from tudsr import lora
from tudsr.apps.degrade import run_degrade
from tudsr.apps.evaluate import run_eval
from tudsr.apps.train import run_training
from tudsr.checkpoint import replaced_folder, sha256_file, weight_hashes, write_text
from tudsr.config import LoraSpec, ModelConfig, read_object
from tudsr.data.photos import find_photos, manifest_hash
from tudsr.errors import ConfigError, TudsrError
from tudsr.eval.methods import ABLATION
from tudsr.eval.record import RESULTS_JSON
from tudsr.eval.report import EvalConfig
from tudsr.find import CONFIG_NAME, UNET_FILE, find_model
from tudsr.folder import Model, load_backbone, save_model
from tudsr.train.config import TrainConfig

PHASE_NAME = "phase.json"

# Two cores, DISTS + LPIPS-Alex + GAN, docs/experiments/2026-11-23-tiny-v1.md: 1.18 s for 6 x 128², 3.15 s for 3 x 256².
_SECONDS_PER_PX = {1: 12e-6, 2: 16e-6}


def config_of(phase: Phase, place: Place, model: Path | None = None) -> TrainConfig:
    """Return a phase's resolved settings; `model` stands in for a start that is not there yet.

    Raises:
        TudsrError: when the settings or the model cannot be used.
    """
    settings = dict(phase.settings)
    if phase.keeps_discriminator:
        settings["init_discriminator"] = str(place.folder(phase.start) / "model_discriminator.safetensors")
    return TrainConfig.assemble(
        stage=phase.stage, model=model or place.model(phase.start), data=place.photos, out=place.folder(phase),
        file=None, overrides=[f"{key}={json.dumps(value)}" for key, value in settings.items()],
    )  # fmt: skip


def ensure(phase: Phase | Start, place: Place, photos_sha256: str) -> None:
    """Have a phase finished, and before it those that it starts from.

    Raises:
        ConfigError: when its folder holds another phase of this name.
        TudsrError: when it cannot be run.
    """
    if isinstance(phase, Start):
        base = ModelConfig.read(source(phase, place) / CONFIG_NAME).sha256.get(UNET_FILE)
        _claim(place.folder(phase), {"base": base, "rank": phase.rank, "random": phase.random})
        if not is_finished(phase, place):
            make_start(phase, place)
        return
    ensure(phase.start, place, photos_sha256)
    identity = {"stage": phase.stage, "start": phase.start.name, "settings": phase.settings, "photos": photos_sha256}
    _claim(place.folder(phase), identity)
    if not is_finished(phase, place):
        print(f"{phase.name}: {phase.steps} steps of stage {phase.stage} from {phase.start.name}", flush=True)
        run_training(config_of(phase, place), resume=True)


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Note what a folder is for, or refuse it when it is for something else."""
    path, wanted = folder / PHASE_NAME, json.loads(json.dumps(identity))
    if not path.is_file():
        write_text(path, json.dumps(wanted, indent=2) + "\n")
        return
    found = read_object(path)
    if found != wanted:
        keys = ", ".join(differing([found, wanted]))
        raise ConfigError(f"{folder}: was made with another {keys}; name another RUNS folder for another experiment.")


def is_finished(phase: Phase | Start, place: Place) -> bool:
    """Say whether a phase has left its model, of its last step."""
    path = place.model(phase) / CONFIG_NAME
    if not path.is_file():
        return False
    return isinstance(phase, Start) or ModelConfig.read(path).training[-1].get("step") == phase.steps


def source(start: Start, place: Place) -> Path:
    """Return the folder of the model whose UNet, or UNet's shape, a start has.

    Raises:
        ConfigError: when it is not a `tiny`; for the prior, when none was given or it learnt more than stage 0.
    """
    option, folder = ("--prior", place.prior) if start.prior else ("--base", place.base)
    if folder is None:
        raise ConfigError("--prior: an arm begins from a model of stage 0, and none was given.")
    config = ModelConfig.read(folder / CONFIG_NAME)
    if config.backbone != "tiny":
        raise ConfigError(f"{option} {folder}: its backbone is {config.backbone}; the ablations are made for tiny.")
    if start.prior and any(record.get("stage") != 0 for record in config.training):
        raise ConfigError(f"--prior {folder}: it was trained beyond the prior; a model of stage 0 is expected.")
    return folder


def make_start(start: Start, place: Place) -> None:
    """Write a start model: a UNet, or a random one of its shape, with fresh adapters.

    The random one is what `tudsr models init --random-weights` makes, where a prior begins.

    Raises:
        ConfigError: see `source`.
    """
    origin_folder = source(start, place)
    config = ModelConfig.read(origin_folder / CONFIG_NAME)
    backbone, scheduler = load_backbone(origin_folder, torch.float32, None)
    if start.random:
        torch.manual_seed(SEED)
        backbone.unet = type(backbone.unet).from_config(backbone.unet.config)
    spec = LoraSpec(rank=start.rank, alpha=start.rank, targets=config.lora.targets) if start.rank else config.lora
    torch.manual_seed(SEED)  # equal adapters, whatever was drawn for the base
    for stage in lora.STAGES:
        lora.attach(backbone.unet, stage, spec)
    origin = "random weights" if start.random else config.base_model
    records = [] if start.random else what_the_base_learnt(config.training)
    settings = config.model_copy(update={"lora": spec, "base_model": origin, "training": records})
    with replaced_folder(place.model(start)) as folder:
        save_model(folder, Model(settings, backbone, scheduler), torch.float32)


def make_view(arm: Arm, way: str, eval_set: EvalSet, place: Place, out: Path) -> Path:
    """Write a copy of an arm's model that says of itself what its plan should be, so that a report runs it that way.

    Args:
        arm: whose last phase is finished.
        way: a key of the report's ABLATION other than stage 2 alone.
        eval_set: says whether windows are to be no larger than R.
        place: where things lie.
        out: the copy's folder.
    """
    request = ABLATION[way]
    assert request.stage != 2, "stage 2 alone is no arm's way"
    m, n = (request.m, request.n) if request.stage == "both" else (request.scale, 1.0)
    with replaced_folder(out) as folder:
        shutil.copytree(place.model(arm.phase), folder, dirs_exist_ok=True)
        config = ModelConfig.read(folder / CONFIG_NAME)
        most = config.r_px if eval_set.tiles else config.windows.max_px
        windows = config.windows.model_copy(update={"max_px": most})
        changes = {"name": arm.name, "m_range": (1.0, m), "n_range": (1.0, n), "windows": windows}
        write_text(folder / CONFIG_NAME, config.model_copy(update=changes).to_json())
    return out


def measure(name: str, ablation: Ablation, eval_set: EvalSet, place: Place) -> dict[str, Any]:
    """Return the report on an ablation's arms on a test set, made now unless it is there already."""
    pairs, own = place.runs / "sets" / eval_set.pairs, place.runs / name
    print("\n".join(run_degrade(place.test / eval_set.folder, pairs, eval_set.preset, eval_set.scale, SEED)))
    views = [
        str(make_view(arm, way, eval_set, place, own / "views" / eval_set.name / arm.name))
        for arm, way in ablation.on(eval_set)
    ]
    options = {
        "lq": pairs / "lq", "gt": pairs / "gt", "scale": eval_set.scale, "model": views, "metrics": eval_set.metrics,
        "out": own / "reports" / eval_set.name, "dtype": "fp32", "limit": eval_set.limit,
    }  # fmt: skip
    config = EvalConfig.parse(options, name)
    return finished_report(config) or run_eval(config)


def finished_report(config: EvalConfig) -> dict[str, Any] | None:
    """Return a report that is there, when it is whole and of just these models, metrics and pictures."""
    if not (config.out / RESULTS_JSON).is_file() or not (config.out / "index.html").is_file():
        return None
    found = read_object(config.out / RESULTS_JSON)
    hashes = [weight_hashes(path) | {CONFIG_NAME: sha256_file(path / CONFIG_NAME)} for path in map(Path, config.model)]
    same = (
        [method["sha256"] for method in found["methods"] if method["kind"] == "model"] == hashes
        and tuple(found["metrics"]) == config.metrics
        and {picture["lq"]["sha256"] for picture in found["pictures"]}
        == set(map(sha256_file, find_photos(config.lq)[: config.limit]))
    )
    return found if same else None


def run(name: str, ablation: Ablation, place: Place, photos_sha256: str) -> dict[str, Any]:
    """Train and measure an ablation's arms; write its pictures and its page; write and return its results.

    Raises:
        TudsrError: when a phase or a measurement cannot be made; what is finished stays.
    """
    for arm in ablation.arms:
        ensure(arm.phase, place, photos_sha256)
    reports = {eval_set.name: measure(name, ablation, eval_set, place) for eval_set in ablation.sets()}
    results = gather(name, ablation, place, reports)
    write_text(place.runs / name / RESULTS_JSON, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write_text(place.runs / name / "page.md", page(results))
    folders = {place.runs / found["report"]: reports[key] for key, found in results["sets"].items()}
    write_montage(place.runs / name / f"ablation-{name}.webp", folders)
    return results


def _seconds_of(phase: Phase, batch: int, crop_px: int) -> float:
    """Return a rough estimate of a phase's seconds on two CPU cores."""
    return phase.steps * batch * crop_px**2 * _SECONDS_PER_PX[phase.stage]


def outline(name: str, ablation: Ablation, place: Place, counted: set[str]) -> tuple[list[str], float]:
    """Return what an ablation would run, and the estimated seconds of its phases that are neither done nor counted."""
    lines, total = [f"{name}: {ablation.question}"], 0.0
    for arm in ablation.arms:
        ways = ", ".join(f"{way} on {eval_set.name}" for eval_set, way in arm.ways)
        lines.append(f"  {arm.name}{f' ({arm.group})' if arm.group else ''}: {ways}")
        for phase in arm.phase.chain():
            config = config_of(phase, place, place.base)
            seconds, done = _seconds_of(phase, config.batch, config.crop_px), is_finished(phase, place)
            state = "done" if done else "counted above" if phase.name in counted else f"about {seconds / 60:.0f} min"
            amount = f"{phase.steps} steps x {config.batch} of {config.crop_px} px"
            lines.append(f"    {phase.name}: stage {phase.stage} from {phase.start.name}, {amount}, {state}")
            total += 0 if done or phase.name in counted else seconds
            counted.add(phase.name)
    return lines, total


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--only", nargs="+", default=list(ABLATIONS), metavar="NAME", help=f"of {', '.join(ABLATIONS)}")
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/train"))
    parser.add_argument("--test", type=Path, default=Path("../shared/data/test"), help="holds kodak and clic")
    parser.add_argument("--base", default="tiny", help="model whose UNet all begin from; its adapters are not used")
    parser.add_argument("--prior", help="model of stage 0, for the ablation «prior»")
    parser.add_argument("--steps", type=int, help="of each arm, at least 2; default: each ablation's own")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be run, and about how long")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; an error that the user can mend is one sentence and exit code 2."""
    args = arguments(argv)
    try:
        _main(args)
    except TudsrError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def _main(args: argparse.Namespace) -> None:
    unknown = [name for name in args.only if name not in ABLATIONS]
    if unknown:
        raise ConfigError(f"--only {unknown[0]}: not an ablation; known ones: {', '.join(ABLATIONS)}.")
    if args.steps is not None and args.steps < 2:
        raise ConfigError(f"--steps {args.steps}: at least 2 are expected, as some arms have two phases.")
    prior = find_model(args.prior) if args.prior else None
    place = Place(runs=args.runs, base=find_model(args.base), photos=args.photos, test=args.test, prior=prior)
    chosen = {name: ABLATIONS[name](*([] if args.steps is None else [args.steps])) for name in args.only}
    for phase in (arm.phase.chain()[0] for ablation in chosen.values() for arm in ablation.arms):
        source(phase.start, place)
    counted: set[str] = set()
    outlines = [outline(name, ablation, place, counted) for name, ablation in chosen.items()]  # checks all settings
    for lines, seconds in outlines:
        print("\n".join([*lines, f"  in all about {seconds / 3600:.1f} h of two CPU cores, without measuring", ""]))
    if args.dry_run:
        return
    photos_sha256 = manifest_hash(find_photos(args.photos), args.photos)
    for name, ablation in chosen.items():
        results = run(name, ablation, place, photos_sha256)
        print("\n".join([*results["verdict"], str(args.runs / name / "page.md")]), flush=True)


if __name__ == "__main__":
    sys.exit(main())

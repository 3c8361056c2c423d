"""The command `tudsr`. Only typer is imported here: torch and all else wait until a command needs them."""

import io
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from tudsr import __version__
from tudsr.errors import ConfigError, TudsrError

app = typer.Typer(
    help="Enlarge photographs x4, x8 and beyond by twice upsampling and diffusing (TUDSR).",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's help takes longer to import than all the rest
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models_app, name="models", help="Make and check model folders.")

Model = Annotated[str, typer.Option(help="Embedded name (tiny), model folder, or hub id (owner/name).")]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where to compute.")]
Dtype = Annotated[Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Precision of the networks.")]
Color = Annotated[Literal["wavelet", "adain", "none"], typer.Option(help="Colour fix against the input.")]
Fidelity = Annotated[float, typer.Option(min=0, max=1, help="1: true to the input and soft; 0: sharp.")]
Memory = Annotated[str | None, typer.Option(metavar="SIZE", help="May be taken, e.g. 2GB.  [default: what is free]")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrule one setting.")]
_OUTPUTS = "Outputs of something else; a seconds.json there, {stem: seconds}, times it."
Outputs = Annotated[list[str] | None, typer.Option(metavar="NAME=DIR", help=_OUTPUTS)]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else there.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tudsr {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it.")] = False,
) -> None:
    pass


@app.command()
def upscale(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Pictures and folders, by path or URL.")],
    output: Annotated[str, typer.Option("--output", "-o", help="A file (for one input file) or a folder.")],
    scale: Annotated[float | None, typer.Option(help="Ratio, at least 1.  [default: 8]")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Size of the output instead of a scale.")] = None,
    model: Model = "tiny",
    m: Annotated[float | None, typer.Option("--m", help="Ratio of stage 1 by hand.")] = None,
    n: Annotated[float | None, typer.Option("--n", help="Ratio of stage 2 by hand.")] = None,
    t1: Annotated[int | None, typer.Option(help="Timestep of stage 1.")] = None,
    t2: Annotated[int | None, typer.Option(help="Timestep of stage 2.")] = None,
    stage: Annotated[Literal["both", "1", "2"], typer.Option(help="One stage alone, for ablation.")] = "both",
    tile_px: Annotated[int | None, typer.Option(help="Side of the windows.")] = None,
    overlap_px: Annotated[int | None, typer.Option(help="Overlap of the windows.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Windows run together.  [default: the device's]")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    vae: Annotated[Literal["windows", "whole"], typer.Option(help="What the autoencoder sees at once.")] = "windows",
    color: Color = "wavelet",
    fidelity: Fidelity = 0.0,
    memory: Memory = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Re-read the base's weights after each pass instead of copying them.")
    ] = False,
    graphs: Annotated[bool, typer.Option("--graphs", help="On CUDA: record a window's work once.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Also write bicubic and ours side by side, here.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo outputs that exist.")] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This process, or Ray's workers.")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray cluster: auto or HOST:PORT; none: a new one here.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Of Ray.  [default: what it has room for]")] = None,
    split: Annotated[
        bool | None,
        typer.Option("--split/--no-split", help="Ray's workers share each picture.  [default: where there is one]"),
    ] = None,
) -> None:
    """Enlarge pictures and folders of pictures.

    Folders are searched at every depth and their structure is kept. Exit code 0: all done; 1: some pictures of several
    failed, or all, each named on stderr; 2: nothing could be begun, or the only picture failed.
    """
    from tudsr.apps.remote import plan_tasks

    tasks, folder = plan_tasks(inputs, output)  # a wrong path is said before torch takes seconds to import
    from tudsr.apps.engines import upscale_all
    from tudsr.apps.upscale import Run, make_request

    options = {
        "m": m, "n": n, "t1": t1, "t2": t2, "stage": stage if stage == "both" else int(stage), "tile_px": tile_px,
        "overlap_px": overlap_px, "batch": batch, "vae": vae, "color": color, "fidelity": fidelity,
        "low_memory": low_memory, "graphs": graphs,
    }  # fmt: skip
    run = Run(
        model=model, device=device, dtype=dtype, threads=threads, overwrite=overwrite, as_json=as_json, quiet=quiet,
        compare=compare, memory=memory, engine=engine, address=address, workers=workers, split=split,
    )  # fmt: skip
    raise typer.Exit(1 if upscale_all(tasks, folder, make_request(scale, size, options), run) else 0)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="Embedded name, folder or hub id.")], as_json: AsJson = False
) -> None:
    """Say what a model is: its sizes, ratios, licence and training."""
    from tudsr.apps.models import describe, describe_lines, to_json

    facts = describe(model)
    typer.echo(to_json(facts) if as_json else "\n".join(describe_lines(facts)))


@models_app.command("init")
def models_init(
    name: Annotated[str, typer.Argument(help="Backbone: sd21 or tiny.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    base: Annotated[str | None, typer.Option(help="Folder or hub id of SD2.1-base.")] = None,
    vae: Annotated[str | None, typer.Option(help="Folder or hub id of another autoencoder, as taesd.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="True shapes, random weights.")] = False,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the weights on disk.")] = "fp32",
) -> None:
    """Make a TUDSR model folder from SD2.1-base, or with random weights."""
    from tudsr.apps.models import init

    typer.echo("\n".join(init(name, base, vae, out, random_weights=random_weights, seed=seed, dtype=dtype)))


@models_app.command("verify")
def models_verify(model: Annotated[str, typer.Argument(help="Embedded name, folder or hub id.")]) -> None:
    """Compare every weight file's SHA-256 with what tudsr.json lists."""
    from tudsr.apps.models import verify

    typer.echo("\n".join(verify(model)))


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder of sharp photos.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    stage: Annotated[int | None, typer.Option(min=0, max=2, help="0: a small backbone's prior; else 1, or 2.")] = None,
    model: Annotated[str | None, typer.Option(help="As in upscale; else the file's, or tiny.")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON file of settings.")] = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in OUT stopped.")] = False,
    estimate_t: Annotated[bool, typer.Option("--estimate-t", help="Estimate the timestep and stop.")] = False,
    more: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="More of --set.")] = None,
) -> None:
    """Train one stage of a model, or estimate the timestep that suits a degradation."""
    from tudsr.apps.train import run_estimate, run_training
    from tudsr.train.config import TrainConfig

    wishes = [*(overrides or []), *(more or [])]
    if estimate_t:
        if config is not None or resume or stage not in (None, 1):
            raise ConfigError("--estimate-t is for stage 1: no --config, no --resume; --set scale, count, degradation.")
        typer.echo("\n".join(run_estimate(model or "tiny", data, out, wishes)))
        return
    settings = TrainConfig.assemble(stage=stage, model=model, data=data, out=out, file=config, overrides=wishes)
    run_training(settings, resume=resume)
    typer.echo(str(out / "model"))


@app.command("eval")
def evaluate(
    lq: Annotated[Path, typer.Option(help="Folder of inputs.")],
    out: Annotated[Path, typer.Option(help="Folder of the report.")],
    scale: Annotated[float, typer.Option(help="Ratio of the outputs to the inputs, at least 1.")],
    gt: Annotated[Path | None, typer.Option(help="Folder of true pictures, paired with the inputs by name.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Embedded name, folder or hub id; may come again.")] = None,
    outputs: Outputs = None,
    metrics: Annotated[str | None, typer.Option(help="Names with commas between, pyiqa's too.")] = None,
    ablate: Annotated[bool, typer.Option("--ablate", help="M4, N4, M2N2, M8, N8 and M4N2 of one model.")] = False,
    ways: Annotated[str | None, typer.Option(help="Some of these, of the same scale; for example M4,M2N2.")] = None,
    fidelity: Annotated[str, typer.Option(help="As of upscale, or several with commas between.")] = "0",
    weights: Annotated[Path | None, typer.Option(help="Folder of the metrics' networks.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many pictures only.")] = None,
    pictures: Annotated[int, typer.Option(min=0, help="On the page at most; those that differ most.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Measure models and foreign outputs side by side, beside bicubic.

    Writes results.json, results.csv and index.html to the report's folder. Pictures that cannot be used are named and
    left out.
    """
    from tudsr.apps.evaluate import make_config, run_eval, table_lines

    options = {
        "lq": lq, "gt": gt, "scale": scale, "model": tuple(model or ()), "ablate": ablate, "out": out,
        "ways": tuple(way.strip() for way in (ways or "").split(",") if way.strip()),
        "fidelity": tuple(fidelity.split(",")), "weights": weights, "device": device, "dtype": dtype,
        "threads": threads, "limit": limit, "pictures": pictures,
    }  # fmt: skip
    results = run_eval(make_config(outputs or (), metrics, options))
    if as_json:
        typer.echo((out / "results.json").read_text(encoding="utf-8"), nl=False)
    else:
        typer.echo("\n".join([*table_lines(results), str(out / "index.html")]))


@app.command()
def degrade(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Folder of sharp photos.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the set: gt, lq and degraded.json.")],
    preset: Annotated[Literal["light", "heavy", "camera"], typer.Option(help="How.")],
    scale: Annotated[int, typer.Option(min=1, help="Ratio of the photos to their degraded partners.")],
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
) -> None:
    """Make a paired test set from sharp photos, the same bytes every time under constraints.txt."""
    from tudsr.apps.degrade import run_degrade

    typer.echo("\n".join(run_degrade(source, out, preset, scale, seed)))


@app.command()
def plan(
    width: Annotated[int, typer.Argument(metavar="W", min=1, help="Width of the picture, in pixels.")],
    height: Annotated[int, typer.Argument(metavar="H", min=1, help="Its height.")],
    scale: Annotated[float | None, typer.Option(help="Ratio, at least 1.  [default: 8]")] = None,
    model: Model = "tiny",
    memory: Memory = None,
    rate: Annotated[float | None, typer.Option(help="TFLOP/s of the model here, as bench measures it.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Say what an enlargement would take, without running it: windows, work, memory, seconds.

    Without --rate the seconds follow from a second of matrix products, for models and devices whose share of that rate
    has been measured.
    """
    from tudsr.apps.models import to_json
    from tudsr.apps.plan import make_plan, plan_lines

    facts = make_plan(width, height, scale, model=model, memory=memory, rate=rate, device=device, dtype=dtype)
    typer.echo(to_json(facts) if as_json else "\n".join(plan_lines(facts)))


@app.command()
def bench(
    model: Model = "tiny",
    sizes: Annotated[str, typer.Option(metavar="WxH,...", help="Of the inputs, commas between.")] = "256x256",
    scale: Annotated[float, typer.Option(help="Ratio, at least 1.")] = 8.0,
    repeat: Annotated[int, typer.Option(min=1, help="Timed runs of each size, after one warm-up.")] = 5,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure seconds, peak memory and TFLOP/s, beside this machine's own matrix product in the same precision."""
    from tudsr.apps.bench import bench_lines, run_bench
    from tudsr.apps.models import to_json

    found = run_bench(model, sizes, scale, repeat=repeat, device=device, dtype=dtype, threads=threads)
    typer.echo(to_json(found) if as_json else "\n".join(bench_lines(found)))


def _stop(process: int, number: int, _frame: object) -> None:
    """End by an exception: whoever ends this from outside does not mean that the picture in work kills it."""
    if os.getpid() == process:
        sys.exit(128 + number)
    signal.signal(number, signal.SIG_DFL)  # a process that this one made has nothing to note
    os.kill(os.getpid(), number)


def main() -> None:
    """Run the command; an error that the user can mend is one sentence on stderr and exit code 2 (Ctrl-C: 130)."""
    signal.signal(signal.SIGTERM, partial(_stop, os.getpid()))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names are bytes, and not all of them are text
    try:
        app()
    except TudsrError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # of the machine: a permission, a name too long, a full disk
        if error.strerror is None:
            raise
        typer.echo(f"Error: {error.filename or 'the disk'}: cannot be used ({error.strerror}).", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""A whole report with a very small random model: figures, records, skipping, resuming."""

import csv
import hashlib
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio
from typer.testing import CliRunner

from tudsr.apps.cli import app
from tudsr.apps.evaluate import make_config, table_lines
from tudsr.errors import ConfigError, InputError
from tudsr.eval import measure, record
from tudsr.eval.metrics import METRICS as METRIC_ENTRIES
from tudsr.eval.report import EvalConfig, evaluate
from tudsr.pipeline import TUDSR

METRICS = "psnr", "ssim", "niqe", "lr_consistency", "seams", "seam_step"


@pytest.fixture
def data(tmp_path, photos):
    """Three pairs, x2, of 44x40 px, the true pictures a pixel too large; and a peer's outputs, one too small."""
    for index, path in enumerate(sorted(photos.iterdir())[:3]):
        with Image.open(path) as photo:
            gt = photo.crop((0, 0, 89, 81))
            lq = photo.crop((0, 0, 88, 80)).resize((44, 40), Image.Resampling.BICUBIC)
            peer = lq.resize((88, 80) if index else (87, 80), Image.Resampling.NEAREST)
        for folder, picture in {"gt": gt, "lq": lq, "peer": peer}.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            picture.save(tmp_path / folder / f"p{index}.png")
    return tmp_path


@pytest.fixture
def pages(monkeypatch):
    """Replace the page's writer; returns what it was called with."""
    calls = []
    monkeypatch.setattr(record, "write_page", lambda results, out, max_pictures: calls.append((results, out)))
    return calls


@pytest.fixture
def run(data, model_folder, pages, monkeypatch):
    """Return a function (**changes) -> (results, what was said); the code's commit is known."""
    monkeypatch.setenv("TUDSR_COMMIT", "0123456789ab")

    def evaluated(notes=None, **changes):
        said = []
        values = {
            "lq": data / "lq", "gt": data / "gt", "scale": 2, "model": (str(model_folder),), "out": data / "report",
            "outputs": {"peer": data / "peer"}, "metrics": METRICS, "device": "cpu", "dtype": "fp32",
        } | changes  # fmt: skip
        config = EvalConfig.parse({k: v for k, v in values.items() if v is not None}, "test")
        return evaluate(config, notes or said.append, lambda done, total, what: None), said

    return evaluated


def y(path):
    with Image.open(path) as image:
        return rgb2ycbcr(np.asarray(image)[:80, :88])[..., 0]


def test_the_whole_report(run, data, pages, model_folder):
    results, said = run()
    report = data / "report"
    assert json.loads((report / "results.json").read_text()) == json.loads(json.dumps(results))
    assert pages == [(results, report)]
    ours = "throw-away M1N2"
    assert [method["name"] for method in results["methods"]] == ["bicubic", ours, "peer"]
    assert [method["kind"] for method in results["methods"]] == ["bicubic", "model", "outputs"]
    assert [picture["name"] for picture in results["pictures"]] == ["p0", "p1", "p2"]
    assert list(results["metrics"]) == list(METRICS)
    assert results["metrics"]["psnr"]["range"] == [0.0, None]
    assert (results["format"], results["scale"], results["ablation"]) == (1, 2.0, None)
    assert results["config"]["metrics"] == list(METRICS)

    picture = results["pictures"][1]
    assert picture["lq"]["size"] == [44, 40]
    assert picture["lq"]["sha256"] == hashlib.sha256((data / "lq/p1.png").read_bytes()).hexdigest()
    assert picture["outputs"]["peer"] == str(data / "peer/p1.png")
    for method, path in picture["outputs"].items():
        assert picture["outputs_sha256"][method] == hashlib.sha256((report / path).read_bytes()).hexdigest()
    assert results["pictures"][0]["outputs_sha256"]["peer"]  # of the wrong size, but named
    assert picture["outputs"][ours] == f"outputs/{ours}/p1.png"
    for method, path in picture["outputs"].items():
        expected = peak_signal_noise_ratio(y(report / path), y(data / "gt/p1.png"), data_range=255)
        assert picture["figures"][method]["psnr"] == pytest.approx(expected, abs=1e-4)
    assert picture["figures"][ours]["seams"] > 0
    assert picture["figures"]["bicubic"]["seams"] is None
    assert picture["figures"][ours]["seam_step"] is None  # 88x80 px leave the low-pass no room

    method = results["methods"][1]
    values = [p["figures"][ours]["ssim"] for p in results["pictures"]]
    mean = method["means"]["ssim"]
    assert mean["mean"] == pytest.approx(np.mean(values))
    assert min(values) <= mean["low"] <= mean["mean"] <= mean["high"] <= max(values)
    assert mean["count"] == 3
    seconds = [p["seconds"][ours] for p in results["pictures"]]
    assert method["seconds_per_picture"] == pytest.approx(np.mean(seconds))
    assert method["seconds_per_mp"] == pytest.approx(np.sum(seconds) / (3 * 88 * 80 / 1e6))
    assert results["methods"][2]["seconds_per_mp"] is None
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert method["sha256"][weights] == hashlib.sha256((model_folder / weights).read_bytes()).hexdigest()


def test_what_fails_is_said_and_the_rest_measured(run, data):
    (data / "lq/p2.png").write_bytes(b"no picture")
    results, said = run()
    assert [picture["name"] for picture in results["pictures"]] == ["p0", "p1"]
    reasons = [(one["file"].rsplit("/", 1)[1], one["reason"]) for one in results["skipped"]]
    assert any(file == "p2.png" and "not a picture" in reason for file, reason in reasons)
    assert any(file == "p0.png" and "peer: differs in size" in reason for file, reason in reasons)
    assert sum("NIQE" in reason for _, reason in reasons) == 5  # too small for it, but for no other metric
    assert len(said) == len(results["skipped"])
    peer = results["methods"][2]
    assert results["pictures"][0]["figures"]["peer"] == dict.fromkeys(METRICS)
    assert peer["means"]["psnr"]["count"] == 1
    assert "niqe" not in peer["means"]


def test_the_command_goes_on_without_a_truth_and_one_of_two_peers_that_cannot_be_read(data):
    """With the real page, which shows every output that is named."""
    shutil.copytree(data / "peer", data / "rival")
    for name in ("gt/p0.png", "rival/p1.png"):
        (data / name).write_bytes(b"no picture")
    options = {"lq": data / "lq", "gt": data / "gt", "out": data / "report", "scale": 2, "metrics": "psnr,ssim"}
    peers = [f"--outputs={name}={data / name}" for name in ("peer", "rival")]
    result = CliRunner().invoke(app, ["eval", *(f"--{name}={value}" for name, value in options.items()), *peers])
    assert result.exit_code == 0, result.output
    results = json.loads((data / "report/results.json").read_text())
    truth, output = [(one["file"], one["reason"]) for one in results["skipped"]]
    assert result.stderr.splitlines() == [": ".join(truth), ": ".join(output)]
    assert truth[0] == str(data / "lq/p0.png")
    assert f"{data / 'gt/p0.png'}: not a picture" in truth[1]
    assert output[0] == str(data / "rival/p1.png")
    assert output[1].startswith(f"rival: {data / 'rival/p1.png'}: not a picture")

    assert [picture["name"] for picture in results["pictures"]] == ["p1", "p2"]
    counts = {method["name"]: method["means"]["psnr"]["count"] for method in results["methods"]}
    assert counts == {"bicubic": 2, "peer": 2, "rival": 1}
    unread, read = (picture["figures"] for picture in results["pictures"])
    assert unread["rival"] == {"psnr": None, "ssim": None}
    assert read["rival"] == read["peer"]
    assert (data / "report/index.html").is_file()


def test_the_csv_says_the_same(run, data):
    results, _ = run()
    with (data / "report/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert list(rows[0]) == ["picture", "method", *METRICS, "seconds"]
    for row in rows:
        picture = next(p for p in results["pictures"] if p["name"] == row["picture"])
        for name in METRICS:
            value = picture["figures"][row["method"]][name]
            assert row[name] == ("" if value is None else str(value))


def test_without_true_pictures_the_default_is_what_needs_none(run):
    results, _ = run(gt=None, metrics=None)
    assert list(results["metrics"]) == ["niqe", "lr_consistency"]
    assert results["pictures"][0]["gt"] is None
    assert results["methods"][0]["means"]["lr_consistency"]["count"] == 3


def test_asking_for_what_needs_true_pictures_without_any_is_an_error(run, data):
    with pytest.raises(InputError, match="--metrics psnr,ssim: these compare with true pictures"):
        run(gt=None)
    assert not (data / "report").exists()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"metrics": ("psnr", "nonsense")}, ConfigError, "'nonsense'"),
        ({"metrics": ()}, InputError, "names none"),
        ({"ablate": True}, InputError, "x4 or 8"),
        ({"scale": 4, "ways": ("M4", "M8")}, InputError, "at x4 M4, N4, M2N2 can be asked for"),
        ({"ablate": True, "scale": 4, "model": ()}, InputError, "0 models"),
        ({"scale": 4, "ways": ("M4",), "model": ()}, InputError, "add --model"),
        ({"fidelity": (0.0, 0.5), "model": ()}, InputError, "add --model"),
        ({"scale": 0.5}, ConfigError, "scale"),
        ({"scale": 3}, InputError, "no picture is left"),
        ({"outputs": {"bicubic": "peer"}}, InputError, "taken"),
    ],
)
def test_mistakes_are_said_before_any_work(run, data, monkeypatch, changes, error, words):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(error, match=words):
        run(**changes)
    assert not (data / "report").exists()


def test_a_report_among_the_pictures_is_refused(run, data):
    with pytest.raises(InputError, match="among the pictures"):
        run(out=data / "lq" / "report")


@pytest.fixture
def runs(monkeypatch):
    """Count the model's runs."""
    seen = []
    real = TUDSR.upscale_picture

    def counted(self, picture, request, progress=None):
        seen.append(request)
        return real(self, picture, request, progress)

    monkeypatch.setattr(TUDSR, "upscale_picture", counted)
    return seen


def test_finished_outputs_are_taken_up_and_others_are_not(run, data, runs):
    first, _ = run(metrics=("psnr",))
    assert len(runs) == 4  # three pictures, and the first one once more to warm up
    again, _ = run(metrics=("psnr",))
    assert len(runs) == 4
    assert again["pictures"] == first["pictures"]  # the seconds too

    folder = data / "report/outputs/throw-away M1N2"
    (folder / "p1.png").write_bytes((folder / "p2.png").read_bytes())
    with Image.open(data / "lq/p2.png") as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(data / "lq/p2.png")
    run(metrics=("psnr",))
    assert len(runs) == 7  # p1 was changed, p2's input too; and a warm-up


@pytest.mark.parametrize(("commit", "again"), [("0123456789ab+", 8), ("0123456789ab", 2)])
def test_a_killed_report_does_not_measure_again_what_it_had_measured(run, data, monkeypatch, commit, again):
    """Three pictures by three methods, one of another size; it dies of the seventh output."""
    monkeypatch.setenv("TUDSR_COMMIT", commit)
    wanted, _ = run(metrics=("psnr",))
    shutil.rmtree(data / "report")
    own, calls = measure._measure, []

    def counted(*arguments, **named):
        calls.append(arguments)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return own(*arguments, **named)

    monkeypatch.setattr(measure, "_measure", counted)
    with pytest.raises(KeyboardInterrupt):
        run(metrics=("psnr",))
    calls[:] = [None] * 7
    results, _ = run(metrics=("psnr",))
    assert len(calls) - 7 == again
    assert [one["figures"] for one in results["pictures"]] == [one["figures"] for one in wanted["pictures"]]
    calls[:] = [None] * 7
    run(metrics=("psnr", "niqe"))
    assert len(calls) - 7 == 8, "another metric is measured of all"


@pytest.mark.parametrize(("commit", "times"), [("0123456789ab+", 2), ("0123456789ab", 1), ("unknown", 1)])
def test_outputs_of_code_without_a_name_are_made_anew(run, runs, monkeypatch, commit, times):
    """An installed package's commit is unknown, but its version is not."""
    monkeypatch.setenv("TUDSR_COMMIT", commit)
    for _ in range(2):
        run(metrics=("psnr",), limit=1)
    assert len(runs) == 2 * times  # each time a warm-up and the output


def test_outputs_mean_their_colours_as_the_inputs_do(run, data):
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, mode in (("p0", "RGB"), ("p1", "L")):
        with Image.open(data / f"lq/{name}.png") as picture:
            picture.convert(mode).save(data / f"lq/{name}.png", icc_profile=icc)
    results, _ = run(metrics=("psnr",), limit=2)
    for picture, mode in zip(results["pictures"], ("RGB", "L"), strict=True):  # grey stays grey, as in tudsr upscale
        for method in ("bicubic", "throw-away M1N2"):
            with Image.open(data / "report" / picture["outputs"][method]) as output:
                assert (output.mode, output.info.get("icc_profile")) == (mode, icc)


def test_a_report_does_not_measure_what_it_writes_over(run, data):
    ours = data / "report/outputs/throw-away M1N2"
    ours.mkdir(parents=True)
    (ours / "p0.png").write_bytes(b"before")
    with pytest.raises(InputError, match="throw-away M1N2: lies among the outputs"):
        run(outputs={"before": ours})
    assert (ours / "p0.png").read_bytes() == b"before"


def test_foreign_outputs_bring_their_times(run, data):
    (data / "peer/seconds.json").write_text('{"p1": 2, "p2": 0.5, "other": 9}')
    results, said = run(metrics=("psnr",))
    assert [picture["seconds"]["peer"] for picture in results["pictures"]] == [None, 2, 0.5]
    method = results["methods"][2]
    assert method["seconds_per_picture"] == 1.25
    assert method["seconds_per_mp"] == pytest.approx(2.5 / (2 * 88 * 80 / 1e6))
    assert not any("seconds.json" in line for line in said)


def test_the_networks_of_metrics_have_their_hash(run, tmp_path, monkeypatch):
    entry = replace(METRIC_ENTRIES["dists"], load=lambda folder: lambda sr, gt: 0.5)
    monkeypatch.setitem(METRIC_ENTRIES, "dists", entry)
    (tmp_path / "vgg16_conv.safetensors").write_bytes(b"weights")
    results, _ = run(metrics=("dists", "psnr"), limit=1, weights=tmp_path)
    digest = hashlib.sha256(b"weights").hexdigest()
    assert results["metrics"]["dists"]["sha256"] == {"vgg16_conv.safetensors": digest}
    assert "sha256" not in results["metrics"]["psnr"]


def test_another_model_of_the_same_name_is_run_anew(run, data, runs, model_folder):
    run(metrics=("psnr",), limit=1)
    other = data / "other"
    shutil.copytree(model_folder, other)
    config = json.loads((other / "tudsr.json").read_text())
    (other / "tudsr.json").write_text(json.dumps(config | {"t1": 100}))
    run(metrics=("psnr",), limit=1, model=(str(other),))
    assert len(runs) == 4


def test_two_models_of_one_name_stand_side_by_side(run, model_folder):
    results, _ = run(metrics=("psnr",), limit=1, model=(str(model_folder), str(model_folder)))
    assert [m["name"] for m in results["methods"]] == ["bicubic", "throw-away M1N2", "throw-away M1N2 (2)", "peer"]


def test_the_ablation_measures_all_six_and_compares_those_of_the_scale(run, data):
    for path in (data / "gt").iterdir():
        with Image.open(path) as photo:
            gt = photo.crop((0, 0, 176 - 88, 80)).resize((176, 160))
        gt.save(path)
    results, _ = run(metrics=("psnr", "lr_consistency"), limit=1, ablate=True, scale=4, outputs={})
    names = [f"throw-away {way}" for way in ("M4", "N4", "M2N2", "M8", "N8", "M4N2")]
    assert results["ablation"] == names
    figures = results["pictures"][0]["figures"]
    assert all(figures[name]["lr_consistency"] is not None for name in names)
    assert [figures[name]["psnr"] is not None for name in names] == [True] * 3 + [False] * 3
    assert list(results["pictures"][0]["outputs"]) == ["bicubic", *names[:3]]
    with Image.open(data / "report/outputs" / names[5] / "p0.png") as output:
        assert output.size == (352, 320)


def test_a_picture_that_the_model_cannot_do_is_said(run, data, monkeypatch):
    with Image.open(data / "lq/p1.png") as image:
        refused = image.getpixel((0, 0))
    real = TUDSR.upscale_picture

    def sometimes(self, picture, request, progress=None):
        if tuple(picture.pixels[0, :, 0, 0].add(1).mul(127.5).round().int().tolist()) == refused:
            raise torch.OutOfMemoryError
        return real(self, picture, request, progress)

    monkeypatch.setattr(TUDSR, "upscale_picture", sometimes)
    results, _ = run(metrics=("lr_consistency",))
    assert results["methods"][1]["means"]["lr_consistency"]["count"] == 2
    (reason,) = [one["reason"] for one in results["skipped"] if one["file"] == str(data / "lq/p1.png")]
    assert reason == "throw-away M1N2: there is not enough memory for it"


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("x: can't allocate memory: y")],
    ids=["cuda", "python", "linux"],
)
def test_too_little_memory_for_a_metric_is_said_and_the_rest_measured(run, data, monkeypatch, error):
    calls = []

    def greedy(sr, gt):
        calls.append(sr)
        if len(calls) == 4:  # bicubic's and the model's outputs of three pictures, and two of the peer's
            raise error
        return 1.0

    monkeypatch.setitem(METRIC_ENTRIES, "ssim", replace(METRIC_ENTRIES["ssim"], load=lambda folder: greedy))
    results, _ = run(metrics=("ssim", "lr_consistency"))
    assert len(calls) == 8
    values = [(p["name"], name, of["ssim"]) for p in results["pictures"] for name, of in p["figures"].items()]
    assert [entry[:2] for entry in values if entry[2] is None] == [("p0", "peer"), ("p1", "throw-away M1N2")]
    assert results["pictures"][1]["figures"]["throw-away M1N2"]["lr_consistency"] > 0
    said = [one["reason"] for one in results["skipped"]]
    assert "throw-away M1N2: there is not enough memory for ssim of it" in said


def test_other_errors_of_torch_end_the_report(run, monkeypatch):
    def broken(sr, gt):
        raise RuntimeError("shapes do not match")

    monkeypatch.setitem(METRIC_ENTRIES, "ssim", replace(METRIC_ENTRIES["ssim"], load=lambda folder: broken))
    with pytest.raises(RuntimeError, match="shapes"):
        run(metrics=("ssim",))


def test_a_figure_of_the_whole_set_has_no_interval(run, monkeypatch):
    entry = replace(METRIC_ENTRIES["ssim"], name="whole", reference="set", load=lambda folder: lambda ours, truths: 7)
    monkeypatch.setitem(METRIC_ENTRIES, "whole", entry)
    results, _ = run(metrics=("psnr", "whole"))
    counts = [method["means"]["whole"] for method in results["methods"]]
    assert counts == [{"mean": 7.0, "low": None, "high": None, "count": count} for count in (3, 3, 2)]


def test_a_model_is_run_twice_only_once_for_all_seam_metrics(run, runs):
    run(metrics=("seams", "seam_step"), limit=1, outputs={})
    assert len(runs) == 4  # a warm-up, the output, and the two runs that are compared


def test_equal_pictures_have_no_psnr_but_a_report(run, data):
    for path in (data / "gt").iterdir():
        with Image.open(path) as photo:
            photo.crop((0, 0, 88, 80)).save(data / "peer" / path.name)
    results, _ = run(metrics=("psnr", "ssim"))
    assert results["pictures"][0]["figures"]["peer"] == {"psnr": None, "ssim": pytest.approx(1)}


def test_one_picture_has_means_without_intervals(run, data):
    results, _ = run(metrics=("psnr",), limit=1)
    mean = results["methods"][1]["means"]["psnr"]
    assert mean == {"mean": results["pictures"][0]["figures"]["throw-away M1N2"]["psnr"], "low": None, "high": None,
                    "count": 1}  # fmt: skip
    assert json.loads((data / "report/results.json").read_text())["methods"][1]["means"]["psnr"] == mean
    assert table_lines(results)[2].startswith(f"throw-away M1N2  {mean['mean']:.4f}")
    assert (data / "report/results.csv").read_text().count("\n") == 4


def test_a_report_without_any_figure_is_an_error_after_the_notes(run, data, pages):
    for path in (data / "peer").iterdir():
        path.rename(path.with_name(f"other_{path.name}"))
    said = []
    with pytest.raises(InputError, match=r"no figure could be had of peer; no report is written\."):
        run(model=None, metrics=("psnr",), notes=said.append)
    assert sum("no output of peer of this name" in line for line in said) == 3
    assert not pages
    assert {path.name for path in (data / "report").iterdir()} == {"outputs"}


def test_bicubic_alone_may_have_no_figure_either(run):
    with pytest.raises(InputError, match="no figure could be had of bicubic"):
        run(model=None, outputs=None, metrics=("niqe",))  # the pictures are too small for it


@pytest.mark.parametrize("name", ["index.html", "results.json", "results.csv"])
def test_a_folder_in_the_way_of_a_reports_file_is_said_before_any_work(run, data, runs, name):
    (data / "report" / name).mkdir(parents=True)
    with pytest.raises(InputError, match=f"report/{name}: the report's file is to be written here, and it is a folder"):
        run()
    assert not runs
    assert [path.name for path in (data / "report").iterdir()] == [name]


@pytest.mark.parametrize("name", ["report", "report/outputs"])
def test_a_file_in_the_way_of_a_reports_folder_is_said_before_any_work(run, data, runs, name):
    (data / name).parent.mkdir(exist_ok=True)
    (data / name).write_bytes(b"a file")
    with pytest.raises(InputError, match=f"{name}: a folder to write to is expected, and .*{name} is a file"):
        run()
    assert not runs
    assert (data / name).read_bytes() == b"a file"


def test_a_metric_says_below_what_all_is_equally_good(run):
    results, _ = run(metrics=("psnr", "seams"), limit=1)
    assert results["metrics"]["seams"]["floor"] == 1
    assert "floor" not in results["metrics"]["psnr"]


def test_the_table_stars_all_that_have_no_seam():
    seams = {"a": 0.8, "b": 0.95, "c": 1.01}
    methods = [
        {"name": name, "scale": 4, "means": {"seams": {"mean": mean, "count": 1}}, "seconds_per_mp": None,
         "trained_on": []}
        for name, mean in seams.items()
    ]  # fmt: skip
    results = {"metrics": {"seams": {"direction": "lower", "floor": 1.0}}, "methods": methods, "pictures": [{}]}
    assert [line.split()[1] for line in table_lines(results)[1:]] == ["0.8000*", "0.9500*", "1.0100"]


@pytest.mark.parametrize("share", ["2", "-0.1", "soft", "nan", ""])
def test_a_fidelity_that_is_none_is_said_by_its_option(data, share):
    options = {"lq": data / "lq", "scale": 2, "out": data / "report", "fidelity": ("0.5", share)}
    with pytest.raises(ConfigError, match=f"--fidelity {share!r}: a number from 0 to 1, or several"):
        make_config([], None, options)
    assert make_config([], None, options | {"fidelity": ("0", "0.5", "1")}).fidelity == (0, 0.5, 1)

"""pyiqa's metrics through a stand-in: names, directions, the licence, errors in words; one through pyiqa itself."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from tudsr.apps.cli import app
from tudsr.errors import ConfigError, InputError, WeightsError
from tudsr.eval.iqa import LICENCE, SET_METRICS, find_metric, measure_set
from tudsr.eval.metrics import METRICS, luma_full
from tudsr.eval.record import metric_record

CPU = torch.device("cpu")
SR, GT = torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), -1.0)


class Net:
    def __init__(self, name, lower_better, mode, score_range="", fn=None):
        self.name, self.lower_better, self.metric_mode, self.score_range = name, lower_better, mode, score_range
        self.fn = fn or (lambda *pictures: torch.stack([p.mean() for p in pictures]).sum())

    def __call__(self, *inputs):
        return self.fn(*inputs)


def too_small(*_):
    raise RuntimeError("kernel size can't be greater than the input")


NETS = {
    "musiq": Net("musiq", False, "NR", "~0, ~100"),
    "ahiq": Net("ahiq", True, "FR", "0, inf"),
    "clipiqa+": Net("clipiqa+", False, "NR"),
    "fid": Net("fid", True, "NR", fn=lambda a, b: torch.tensor(float(len(a) > 0 and len(b) > 0))),
    "inception_score": Net(
        "inception_score", False, "NR", "0, ~", lambda ours, _: {"inception_score_mean": 2.5, "inception_score_std": 9}
    ),
    "picky": Net("picky", False, "NR", fn=too_small),
    "four": Net("four", False, "FR", fn=lambda *_: (1.0, 2.0, 3.0, 4.0)),
}


@pytest.fixture
def pyiqa(monkeypatch):
    seen = []

    def create_metric(name, device):
        seen.append((name, device))
        if name == "broken":
            raise OSError("no network")
        if name == "lonely":
            raise ModuleNotFoundError("No module named 'bitsandbytes'")
        return NETS[name]

    module = SimpleNamespace(
        create_metric=create_metric,
        list_models=lambda: [*NETS, "psnr", "broken", "lonely"],
        __version__="0.1.14",
        seen=seen,
    )
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return module


def test_our_own_metrics_come_first(pyiqa):
    assert find_metric("psnr", CPU) is METRICS["psnr"]
    assert pyiqa.seen == []


def test_direction_range_and_reference_are_pyiqas(pyiqa):
    musiq, ahiq = find_metric("musiq", CPU), find_metric("ahiq", CPU)
    assert (musiq.direction, musiq.range, musiq.reference) == ("higher", (0.0, 100.0), "none")
    assert (ahiq.direction, ahiq.range, ahiq.reference) == ("lower", (0.0, float("inf")), "gt")
    assert find_metric("clipiqa+", CPU).range == (0.0, float("inf"))
    assert "0.1.14" in musiq.source
    assert "Noncommercial" in musiq.licence
    assert pyiqa.seen[0] == ("musiq", CPU)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("0, 1", (0, 1)),
        ("~-3, ~3", (-3, 3)),
        ("0, ~", (0, math.inf)),
        ("~, 2", (-math.inf, 2)),
        ("0, 2.5", (0, 2.5)),
        ("quality: 0, 1; rank: 0, 2; rank_prob: 0, 1", (0, math.inf)),  # fgresq_pair's: nothing that one pair says
        ("", (0, math.inf)),
    ],
)
def test_ranges_as_pyiqa_writes_them(pyiqa, monkeypatch, text, ends):
    monkeypatch.setitem(NETS, "musiq", Net("musiq", False, "NR", text))
    metric = find_metric("musiq", CPU)
    assert metric.range == ends
    assert json.loads(json.dumps(metric_record(metric, None), allow_nan=False))["range"] == [
        end if math.isfinite(end) else None for end in ends
    ]


def test_pictures_come_in_0_to_1_and_without_a_reference_where_none_is_meant(pyiqa):
    assert find_metric("musiq", CPU).load(None)(SR * 4, GT) == 1.0  # clamped
    assert find_metric("musiq", CPU).load(None)(SR, None) == pytest.approx(0.75)
    assert find_metric("ahiq", CPU).load(None)(SR, GT) == pytest.approx(0.75)


def test_a_picture_that_pyiqa_refuses_is_a_sentence(pyiqa):
    with pytest.raises(InputError, match="picky.*kernel size"):
        find_metric("picky", CPU).load(None)(SR, None)
    with pytest.raises(InputError, match="four.*tuple"):
        find_metric("four", CPU).load(None)(SR, GT)


def test_what_pyiqa_prints_leaves_stdout_alone(pyiqa, monkeypatch, capsys):
    def create_metric(name, device):
        print("Loading pretrained model")
        return Net(name, False, "NR", fn=lambda x: print("Computing") or x.mean())

    monkeypatch.setattr(pyiqa, "create_metric", create_metric)
    assert find_metric("musiq", CPU).load(None)(SR, None) == pytest.approx(0.75)
    assert capsys.readouterr() == ("", "Loading pretrained model\nComputing\n")


def test_a_set_is_measured_by_the_pictures_that_both_have(pyiqa, tmp_path):
    seen = {}

    def fn(outputs, truths):
        for folder in (outputs, truths):
            with Image.open(folder / "a.png") as image:
                seen[folder.name] = (sorted(p.name for p in folder.iterdir()), image.getpixel((0, 0)))
        return 7

    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "other.png")
    assert measure_set(fn, {"a": tmp_path / "a.png"}, {"a": lambda: GT, "b": lambda: SR}) == 7.0
    assert seen == {"outputs": (["a.png"], (9, 9, 9)), "truths": (["a.png"], (0, 0, 0))}
    fid = find_metric("fid", CPU)
    assert (fid.reference, fid.needs_gt, fid.direction) == ("set", True, "lower")
    assert fid.load(None)(tmp_path, tmp_path) == 1.0
    score = find_metric("inception_score", CPU)
    assert (score.reference, score.direction, score.load(None)(tmp_path, tmp_path)) == ("set", "higher", 2.5)


def test_a_name_that_nobody_knows(pyiqa):
    with pytest.raises(ConfigError, match=r"'psnrr' is not one of tudsr's metrics \(psnr, .*nor one of pyiqa's"):
        find_metric("psnrr", CPU)


def test_networks_that_cannot_be_loaded(pyiqa):
    with pytest.raises(WeightsError, match=r"'broken' cannot be loaded \(no network\)"):
        find_metric("broken", CPU)


def test_a_metric_whose_own_library_is_missing(pyiqa):
    with pytest.raises(WeightsError, match=r"'lonely' cannot be loaded \(No module named 'bitsandbytes'\)"):
        find_metric("lonely", CPU)


def test_the_command_says_the_licence_once_and_its_record_holds_it(pyiqa, photos, tmp_path):
    with Image.open(photos / "photo_0.png") as photo:
        for folder, picture in {"gt": photo, "lq": photo.reduce(2)}.items():
            (tmp_path / folder).mkdir()
            picture.save(tmp_path / folder / "a.png")
    options = {"lq": tmp_path / "lq", "gt": tmp_path / "gt", "out": tmp_path / "report", "device": "cpu"}
    options |= {"scale": 2, "metrics": "psnr,musiq,ahiq"}
    result = CliRunner().invoke(app, ["eval", *(f"--{name}={value}" for name, value in options.items())])
    assert result.exit_code == 0, result.output
    assert result.stderr == f"{LICENCE}\n"
    metrics = json.loads((tmp_path / "report/results.json").read_text())["metrics"]
    assert {name: metric.get("licence") for name, metric in metrics.items()} == {
        "psnr": None, "musiq": LICENCE, "ahiq": LICENCE,
    }  # fmt: skip


def gmsd(sr, gt):
    """Read Xue et al. 2014 plainly: Prewitt slopes of luma at half size, their similarity's standard deviation."""
    slopes = []
    for pixels in (sr, gt):
        luma = luma_full(pixels)[0, 0].round().numpy()
        half = (luma[::2, ::2] + luma[1::2, ::2] + luma[::2, 1::2] + luma[1::2, 1::2]) / 4
        slopes.append(np.hypot(*(ndimage.prewitt(half, axis, mode="constant") / 3 for axis in (0, 1))))
    a, b = slopes
    return ((2 * a * b + 170) / (a**2 + b**2 + 170)).std(ddof=1)


def test_a_metric_of_the_real_pyiqa():
    real = pytest.importorskip("pyiqa")
    metric = find_metric("gmsd", CPU)
    assert (metric.direction, metric.reference, metric.range) == ("lower", "gt", (0, 1))
    assert real.__version__ in metric.source
    y, x = torch.meshgrid(torch.arange(48) / 5, torch.arange(64) / 4, indexing="ij")
    gt = torch.stack([torch.sin(x), torch.cos(x * y / 9), torch.sin(y)])[None] * 0.8
    sr = (gt + 0.3 * torch.randn(gt.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    assert metric.load(None)(sr, gt) == pytest.approx(gmsd(sr, gt), rel=1e-3)
    assert metric.load(None)(gt, gt) == pytest.approx(0, abs=1e-6)
    assert {"fid", "inception_score"} < SET_METRICS & set(real.list_models())


def test_without_pyiqa_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ConfigError, match=r"'musiq'.*pip install tudsr\[iqa\]"):
        find_metric("musiq", CPU)

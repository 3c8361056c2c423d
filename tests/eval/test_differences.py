"""What scripts/differences.py prints of a report, and what the ablations say of figures that need no more."""

import json
import sys
from pathlib import Path

import pytest

NAMES = ("adapters", "ablation_parts", "ablation_plan", "ablation_results", "differences")


@pytest.fixture
def scripts(monkeypatch):
    """Return the scripts' modules by name; none of them stays imported."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: __import__(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


def report(seams, psnr):
    """Build what `tudsr eval` reports of two methods, a and b."""
    figures = [{"a": {"seams": x, "psnr": v}, "b": {"seams": y, "psnr": w}}
               for (x, y), (v, w) in zip(seams, psnr, strict=True)]  # fmt: skip
    return {
        "metrics": {"seams": {"direction": "lower", "floor": 1.0}, "psnr": {"direction": "higher"}},
        "methods": [{"name": name, "trained_on": []} for name in "ab"],
        "pictures": [{"figures": of} for of in figures],
    }


def printed(scripts, monkeypatch, capsys, tmp_path, found):
    (tmp_path / "results.json").write_text(json.dumps(found))
    monkeypatch.setattr(sys, "argv", ["differences.py", str(tmp_path / "results.json"), "b", "a"])
    scripts["differences"].main()
    return capsys.readouterr().out.splitlines()


def test_no_seam_is_no_better_than_another_no_seam(scripts, monkeypatch, capsys, tmp_path):
    level = [(0.86, 0.87), (0.8, 0.9), (0.5, 1.0), (0.9, 0.99), (0.7, 0.71)]
    found = report(level, [(20, 21)] * 5)
    seams, psnr = scripts["ablation_results"].compare(found, "a", "b")
    assert (seams.better, psnr.better) == (None, "b")
    assert seams.text() == "seams (0.752 against 0.894; +0 [+0, +0])"
    assert printed(scripts, monkeypatch, capsys, tmp_path, found) == [
        "| | seams | psnr |", "|---|---|---|", "| b less a | +0.000 [+0.000, +0.000] | **+1.00** [+1.00, +1.00] |",
    ]  # fmt: skip
    worse = report([(x, 1.1) for x, _ in level], [(20, 21)] * 5)
    (seams, _) = scripts["ablation_results"].compare(worse, "a", "b")
    assert seams.better == "a"
    assert seams.interval.mean == pytest.approx(0.1)  # not of what lies below 1


def test_one_picture_has_a_difference_without_an_interval(scripts, monkeypatch, capsys, tmp_path):
    found = report([(1.2, 1.1)], [(20, 21)])
    assert printed(scripts, monkeypatch, capsys, tmp_path, found)[2] == "| b less a | -0.100 | +1.00 |"
    first, _ = scripts["ablation_results"].compare(found, "a", "b")
    assert first.text() == "seams (1.2 against 1.1; +0.1)"
    (sentence,) = scripts["ablation_results"].verdict("x", found, [["a", "b"]])
    assert sentence == "x: too few pictures to compare a with b in seams, psnr."


def test_the_page_names_what_arms_begin_from(scripts, tmp_path, model_folder):
    parts, plan = scripts["ablation_parts"], scripts["ablation_plan"]
    config = json.loads((model_folder / "tudsr.json").read_text())
    learnt = {"stage": 0, "step": 700, "commit": "0123456789ab", "config": {"batch": 16, "crop_px": 128}}
    (tmp_path / "prior").mkdir()
    prior = config | {"sha256": {"unet/diffusion_pytorch_model.safetensors": "fe" * 32}, "training": [learnt]}
    (tmp_path / "prior/tudsr.json").write_text(json.dumps(prior))
    place = parts.Place(runs=tmp_path, base=model_folder, photos=tmp_path, test=tmp_path, prior=tmp_path / "prior")
    found = parts.origins(plan.prior(), place)
    assert found["prior"] == {"unet_sha256": "fe" * 32, "training": [learnt]}
    assert parts.begins(found).endswith(
        "…, for its shape only. Prior: UNet fefefefefefe…, stage 0 for 700 steps × 16, 128², commit 0123456789ab."
    )
    others = parts.origins(plan.twice(), place)
    assert others.keys() == {"base"}
    assert "shape" not in parts.begins(others)

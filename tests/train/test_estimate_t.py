"""The mid-timestep on data whose signal-to-noise ratio is known."""

import hashlib
import json
import shutil
import sys

import pytest
import torch
from PIL import Image

from tudsr.errors import ConfigError, DataError
from tudsr.train import estimate_t
from tudsr.train.estimate_t import estimate, match_snr


def pairs(alpha_bar: float, count: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (gt, lq) of equal size whose latents differ as much as noise at alpha_bar makes them differ."""
    rng = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        gt, noise = torch.randn(2, 1, 3, 32, 32, generator=rng, dtype=torch.float64)
        gt, noise = gt / gt.square().mean().sqrt(), noise / noise.square().mean().sqrt()
        # The latent is twice the pixels; noise of unit variance on it, over alpha, is this on the pixels.
        sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5 / 2
        made.append(((gt * 0.4).float(), (gt * 0.4 + noise * sigma).float()))
    return made


@pytest.mark.parametrize("t", [20, 50, 200, 700])
def test_the_right_t_comes_out(make_model, t):
    net = make_model().backbone
    found = match_snr(net, pairs(net.alphas_cumprod[t].item()))
    assert abs(found.t - t) <= 1
    assert found.count == 5
    assert found.spread_db == pytest.approx(0, abs=1e-3)
    assert found.curve_db[t].item() == pytest.approx(found.snr_db, abs=0.1)


def test_the_curve_falls_and_its_value_is_the_schedules(make_model):
    net = make_model().backbone
    curve = match_snr(net, pairs(0.5, 1)).curve_db
    assert curve.shape == (1000,)
    assert (curve.diff() < 0).all()
    alpha_bar = net.alphas_cumprod[200].item()
    power = (2 * 0.4) ** 2
    assert curve[200].item() == pytest.approx(
        10 * torch.tensor(power * alpha_bar / (1 - alpha_bar)).log10().item(), abs=1e-3
    )


def test_the_mean_over_pictures_is_in_decibels(make_model):
    net = make_model().backbone
    near, far = (net.alphas_cumprod[t].item() for t in (50, 700))
    levels = [match_snr(net, pairs(a, 1)).snr_db for a in (near, far)]
    both = match_snr(net, pairs(near, 1) + pairs(far, 1))
    assert both.snr_db == pytest.approx(sum(levels) / 2, abs=1e-4)
    assert both.spread_db == pytest.approx(abs(levels[0] - levels[1]) / 2**0.5, abs=1e-3)


def test_files_are_written(model_folder, photos, tmp_path):
    found, _ = estimate(model_folder, photos, tmp_path / "out", scale=4.0, count=3)
    values = json.loads((tmp_path / "out" / "estimate_t.json").read_text())
    assert (values["t"], values["pictures"], values["scale"]) == (found.t, 3, 4.0) == (found.t, found.count, 4.0)
    assert 0 < found.t < 999
    harder, plotted = estimate(model_folder, photos, tmp_path / "out", scale=8.0, count=3)
    assert harder.t > found.t
    pytest.importorskip("matplotlib")
    assert plotted
    assert (tmp_path / "out" / "estimate_t.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_no_plot_is_claimed(model_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    _, plotted = estimate(model_folder, photos, tmp_path, count=1)
    assert not plotted
    assert [path.name for path in tmp_path.iterdir()] == ["estimate_t.json"]


def test_photos_that_are_too_small_are_left_out(model_folder, photos, tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (63, 80)).save(tmp_path / "data" / "0.png")
    with pytest.raises(DataError, match="short side below 64 px"):
        estimate(model_folder, tmp_path / "data", tmp_path / "out")
    (tmp_path / "data" / "1.png").write_bytes((photos / "photo_1.png").read_bytes())
    assert estimate(model_folder, tmp_path / "data", tmp_path / "out", count=1)[0].count == 1


def test_photos_are_chosen_by_their_names_hash_and_told_one_by_one(model_folder, photos, tmp_path, monkeypatch):
    for name in ("a", "b"):
        shutil.copytree(photos, tmp_path / "data" / name)
    names = [f"{folder}/photo_{i}.png" for folder in "ab" for i in range(6)]
    wanted = sorted(names, key=lambda name: hashlib.sha256(f"0:{name}".encode()).digest())[:5]
    assert {name[0] for name in wanted} == {"a", "b"}
    chosen, told = [], []

    def crops(paths, **settings):
        chosen.extend(path.relative_to(tmp_path / "data").as_posix() for path in paths)
        return own(paths, **settings)

    own = estimate_t.ValidationSet
    monkeypatch.setattr(estimate_t, "ValidationSet", crops)
    data, out = tmp_path / "data", tmp_path / "out"
    first, _ = estimate(model_folder, data, out, count=5, progress=lambda *at: told.append(at))
    assert chosen == sorted(wanted)
    assert told == [(done, 5) for done in range(6)]
    again, _ = estimate(model_folder, data, out, count=5)
    assert (again.t, again.snr_db) == (first.t, first.snr_db)


def test_it_is_computed_where_a_run_would_be(model_folder, photos, tmp_path, monkeypatch):
    asked = []

    def load(model, device, dtype):
        asked.append((device, dtype))
        return own(model, torch.device("cpu"), dtype)

    own = estimate_t.load_model
    monkeypatch.setattr(estimate_t, "load_model", load)
    monkeypatch.setattr(estimate_t, "pick_device", lambda: torch.device("meta"))
    estimate(model_folder, photos, tmp_path, count=1)
    assert asked == [(torch.device("meta"), torch.float32)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": 0.5}, "scale is 0.5; a number of at least 1"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"count": 0}, "count is 0; at least 1"),
        ({"degradation": "rain"}, "'rain' is not a degradation; known ones: camera, heavy, light"),
    ],
)
def test_values_that_cannot_be_are_refused_before_any_work(changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        estimate("nowhere", tmp_path, tmp_path / "out", **changes)


def test_an_empty_folder_is_a_data_error(model_folder, tmp_path):
    with pytest.raises(DataError, match="no photo found"):
        estimate(model_folder, tmp_path, tmp_path / "out")

"""`tudsr eval` and `tudsr degrade` from the command line to the files."""

import json

import numpy as np
import pytest
from PIL import Image

from tudsr.apps.evaluate import make_config, table_lines
from tudsr.errors import ConfigError, InputError


@pytest.fixture
def sharp(tmp_path, photos):
    folder = tmp_path / "sharp"
    folder.mkdir()
    for path in sorted(photos.iterdir())[:2]:
        with Image.open(path) as photo:
            photo.crop((0, 0, 98, 82)).save(folder / path.name)
    return folder


def test_a_set_is_made_and_a_model_measured_on_it(call, sharp, model_folder):
    code, out, err = call("degrade", "--preset", "light", "--scale", 4, "--seed", 3, "sharp", "set")
    assert (code, err) == (0, "")
    assert out == "set: 2 pairs, light, x4, seed 3\n"
    (sharp.parent / "set/lq/photo_1.png").unlink()
    options = ["--lq", "set/lq", "--gt", "set/gt", "--scale", 4, "--model", model_folder, "--metrics", "psnr,ssim"]
    options += ["--outputs", "truth=set/gt", "--out", "report", "--device", "cpu", "--dtype", "fp32"]
    code, out, err = call("eval", *options)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["method", "psnr", "ssim", "s/MP"]
    assert [line.split()[0] for line in lines[1:4]] == ["bicubic", "throw-away", "truth"]
    assert lines[4] == "report/index.html"
    assert "photo_1.png: no input of this name" in err
    assert {"results.json", "results.csv", "index.html"} <= {path.name for path in (sharp.parent / "report").iterdir()}

    code, out, _ = call("eval", *options, "--json")
    assert code == 0
    results = json.loads(out)
    assert results == json.loads((sharp.parent / "report/results.json").read_text())
    assert [method["name"] for method in results["methods"]] == ["bicubic", "throw-away M2N2", "truth"]
    with Image.open(sharp.parent / "report" / results["pictures"][0]["outputs"]["throw-away M2N2"]) as output:
        assert (output.size, output.mode) == ((96, 80), "RGB")


def test_degrade_says_what_it_left_out(call, sharp):
    (sharp / "broken.png").write_bytes(b"no picture")
    code, out, _ = call("degrade", "sharp", "set", "--preset", "heavy", "--scale", 2)
    assert code == 0
    said = out.splitlines()
    assert said[0].startswith("skipped sharp/broken.png: ")
    assert said[1] == "set: 2 pairs, heavy, x2, seed 0"
    with Image.open("set/lq/photo_0.png") as lq, Image.open("set/gt/photo_0.png") as gt:
        assert (lq.size, gt.size) == ((49, 41), (98, 82))


MISTAKES = [
    (["eval", "--lq", "gone", "--scale", "4", "--out", "x"], "gone"),
    (["eval", "--lq", "sharp", "--scale", "4", "--out", "x", "--metrics", "psnr"], "--gt"),
    (["eval", "--lq", "sharp", "--scale", "0.5", "--out", "x"], "scale"),
    (["eval", "--lq", "sharp", "--scale", "4", "--out", "x", "--outputs", "peer"], "NAME=DIR"),
    (["eval", "--lq", "sharp", "--scale", "4", "--out", "x", "--model", "nowhere", "--metrics", "niqe"], "nowhere"),
    (["eval", "--lq", "sharp", "--scale", "4", "--out", "x", "--ablate", "--metrics", "niqe"], "--ablate"),
    (["eval", "--lq", "sharp", "--scale", "4", "--out", "x", "--metrics", "niqe", "--fidelity", "0,1.5"], "fidelity"),
    (["eval", "--lq", "sharp", "--out", "x"], "--scale"),
    (["degrade", "gone", "x", "--preset", "light", "--scale", "4"], "gone"),
    (["degrade", "sharp", "x", "--preset", "mild", "--scale", "4"], "mild"),
    (["degrade", "sharp", "x", "--preset", "light", "--scale", "0"], "--scale"),
]


@pytest.mark.usefixtures("sharp")
@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_mistakes_are_sentences_and_exit_code_2(arguments, words, call, tmp_path):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "x").exists()


def test_settings_come_from_the_options(tmp_path):
    options = {"lq": tmp_path, "scale": 4.0, "out": tmp_path / "x"}
    config = make_config(["a=x", "b = y/z=1"], " psnr, ,clipiqa+ ", options)
    assert {name: str(folder) for name, folder in config.outputs.items()} == {"a": "x", "b": "y/z=1"}
    assert config.metrics == ("psnr", "clipiqa+")
    assert make_config([], None, options).metrics is None
    with pytest.raises(InputError, match="'a' names x already"):
        make_config(["a=x", "a=y"], None, options)
    with pytest.raises(ConfigError, match="limit"):
        make_config([], None, options | {"limit": 0})


def test_the_table_marks_the_best_of_each_scale_and_what_was_a_loss():
    def method(name, seconds, count=2, scale=4, **means):
        return {
            "name": name,
            "scale": scale,
            "means": {key: {"mean": value, "count": count} for key, value in means.items()},
            "seconds_per_mp": seconds,
            "trained_on": ["dists"] if name == "ours" else [],
        }

    results = {
        "metrics": {"psnr": {"direction": "higher"}, "dists": {"direction": "lower"}},
        "methods": [
            method("bicubic", 0.01, psnr=25.0, dists=0.3),
            method("ours", None, psnr=np.float64(24), dists=0.1),
            method("peer", None, psnr=50.0, dists=0.01, count=1),  # it had the easy one only
            method("M8", None, scale=8, psnr=60.0, dists=0.2),
        ],
        "pictures": [{}, {}],
    }
    assert table_lines(results) == [
        "method   psnr         dists       s/MP",
        "bicubic  25.0000*     0.3000      0.01",
        "ours     24.0000      0.1000*°    –",
        "peer     50.0000 (1)  0.0100 (1)  –",
        "M8       60.0000*     0.2000*     –",
    ]

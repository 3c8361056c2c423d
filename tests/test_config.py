"""Settings: frozen, strict, and errors that name the field."""

import json

import pytest
from pydantic import ValidationError

from tudsr.backbones import BACKBONES, blueprint
from tudsr.config import LoraSpec, ModelConfig, WindowRange
from tudsr.errors import ConfigError

WINDOWS = {"min_px": 64, "max_px": 128, "stride_px": 16, "overlap_px": 32}
MODEL = {"name": "x", "backbone": "tiny", "r_px": 256, "windows": WINDOWS, "licence": "Apache-2.0"}


def test_defaults_are_the_methods():
    config = ModelConfig.parse(MODEL, "test")
    assert (config.t1, config.t2, config.lora.rank, config.lora.alpha) == (200, 50, 32, 32)
    assert (config.m_range, config.n_range, config.prompt) == ((1, 4), (1, 2), "")
    assert set(config.lora.targets) == {
        "conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", "to_q", "to_k", "to_v", "to_out.0",
    }  # fmt: skip


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        LoraSpec().rank = 8


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_blueprints_describe_valid_models_and_survive_json(name, tmp_path):
    config = ModelConfig.parse(blueprint(name).settings, name)
    assert config.backbone == name
    (tmp_path / "tudsr.json").write_text(config.to_json())
    assert ModelConfig.read(tmp_path / "tudsr.json") == config
    assert config.r_px % config.windows.stride_px == 0


def test_an_unknown_backbone_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'sdxl' is unknown; known ones: sd21, tiny"):
        blueprint("sdxl")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, r"here: 'colour' is not a setting; known ones: backbone, base_model"),
        ({"t1": 1000}, r"here: t1: .*less than or equal to 999.*got 1000"),
        ({"r_px": 0}, r"r_px: .*greater than 0"),
        ({"r_px": "wide"}, r"r_px: .*'wide'"),
        ({"format_version": 2}, "format_version"),
        ({"m_range": [1.0]}, "m_range"),
        ({"m_range": [1.0, float("inf")]}, r"m_range\.1: .*finite"),
        ({"m_range": [1.0, 0.5]}, "m_range: two ratios with 1 <= least <= most are accepted"),
        ({"n_range": [0.5, 2.0]}, "n_range: two ratios"),
        ({"lora": {"rank": 0}}, r"lora\.rank"),
        ({"windows": WINDOWS | {"min_px": 60}}, "windows: .*multiples of stride_px"),
        ({"windows": WINDOWS | {"min_px": 256}}, "windows: .*min_px <= max_px"),
        ({"windows": WINDOWS | {"overlap_px": 40}}, "windows: .*at most half of min_px"),
    ],
)
def test_wrong_values_name_the_field_and_what_came(change, words):
    with pytest.raises(ConfigError, match=words):
        ModelConfig.parse(MODEL | change, "here")


def test_a_missing_field_is_named():
    with pytest.raises(ConfigError, match=r"^here: licence: Field required\.$"):
        ModelConfig.parse({key: value for key, value in MODEL.items() if key != "licence"}, "here")


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(ConfigError, match=r"x\.json: cannot be read as JSON"):
        WindowRange.read(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        WindowRange.read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        WindowRange.read(path)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="a JSON object is expected, not list"):
        WindowRange.read(path)
    path.write_text(json.dumps(WINDOWS))
    assert WindowRange.read(path) == WindowRange(**WINDOWS)

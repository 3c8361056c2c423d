import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageCms
from typer.testing import CliRunner

from tudsr.apps.cli import app
from tudsr.apps.report import Result
from tudsr.errors import ConfigError, InputError, ModelError, TudsrError
from tudsr.request import Request

FIELDS = {"input", "output", "in_size", "out_size", "seconds", "peak_rss_mb", "model", "m", "n"}


def run(*arguments):
    return CliRunner().invoke(app, ["upscale", *map(str, arguments)])


def objects(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def size(path):
    with Image.open(path) as picture:
        return picture.size


def test_json_holds_one_true_object_and_nothing_else_is_on_stdout(bicubic, photo, tmp_path):
    source, target = photo(tmp_path / "a b é.PNG"), tmp_path / "x.png"
    result = run(source, "-o", target, "--json")
    assert result.exit_code == 0, result.output
    (found,) = objects(result)
    assert set(found) == FIELDS
    assert (found["input"], found["output"]) == (str(source), str(target))
    assert (found["in_size"], found["out_size"]) == ([12, 8], [96, 64])
    assert (found["model"], found["m"], found["n"]) == ("tiny", 4, 2)
    assert 0 < found["seconds"] < 60
    assert found["peak_rss_mb"] > 10
    assert size(target) == (96, 64)


def test_json_tells_of_the_gpu_where_there_is_one():
    sizes = {"in_size": (1, 1), "out_size": (8, 8), "m": 4, "n": 2}
    there = Result(input="a", output="b", seconds=1, peak_rss_mb=2, peak_gpu_mb=3, model="tiny", **sizes)
    assert json.loads(there.to_json())["peak_gpu_mb"] == 3
    assert set(json.loads(replace(there, peak_gpu_mb=None).to_json())) == FIELDS


def test_summary_line_goes_to_stderr(bicubic, photo, tmp_path):
    result = run(photo(tmp_path / "a.png"), "-o", tmp_path / "x.png", "--scale", 4)
    assert result.stdout == ""
    assert re.search(r"12x8 → 48x32 \(M 2, N 2\), [\d.]+ s, peak \d+ MB", result.stderr)


def test_quiet_says_nothing(bicubic, photo, tmp_path):
    assert run(photo(tmp_path / "a.png"), "-o", tmp_path / "x.png", "-q").output == ""


def test_folder_keeps_structure_and_reports_each(bicubic, photo, tmp_path):
    names = ["a.JPG", "deep/er/b c.png", "日本.webp"]
    for name in names:
        photo(tmp_path / "in" / name)
    result = run(tmp_path / "in", "-o", tmp_path / "out", "--json", "--scale", "2.5")
    assert sorted(o["input"] for o in objects(result)) == sorted(str(tmp_path / "in" / n) for n in names)
    assert all(size(tmp_path / "out" / name) == (30, 20) for name in names)
    assert all(o["out_size"] == [30, 20] for o in objects(result))


def test_a_broken_picture_is_reported_and_the_rest_goes_on(bicubic, photo, tmp_path):
    photo(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"not a picture")
    photo(tmp_path / "in/c.png")
    result = run(tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    assert [o["output"] for o in objects(result)] == [str(tmp_path / "out/a.png"), str(tmp_path / "out/c.png")]
    assert "b.png" in result.stderr
    assert "1 of 3 pictures could not be enlarged" in result.stderr
    assert not (tmp_path / "out/b.png").exists()


def test_a_broken_single_picture_is_an_error(bicubic, tmp_path):
    (tmp_path / "b.png").write_bytes(b"not a picture")
    assert isinstance(run(tmp_path / "b.png", "-o", tmp_path / "x.png").exception, InputError)


def test_finished_outputs_are_kept_unless_overwrite(bicubic, photo, tmp_path):
    for name in "ab":
        photo(tmp_path / f"in/{name}.png")
    photo(tmp_path / "out/a.png", 5, 5)
    result = run(tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0
    assert [o["input"] for o in objects(result)] == [str(tmp_path / "in/b.png")]
    assert "exists already, not redone" in result.stderr
    assert size(tmp_path / "out/a.png") == (5, 5)
    assert len(objects(run(tmp_path / "in", "-o", tmp_path / "out", "--json", "--overwrite"))) == 2
    assert size(tmp_path / "out/a.png") == (96, 64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scale", 0.5], "at least 1"),
        (["--model", "nothere"], "nothere"),
        (["--m", 4, "--n", 2, "--scale", 16], "do not make x16"),
        (["--tile-px", 101], "tile_px is 101"),
    ],
)
def test_wrong_options_are_refused_though_there_is_nothing_left_to_do(photo, tmp_path, options, words):
    photo(tmp_path / "out/a.png", 5, 5)
    result = run(photo(tmp_path / "a.png"), "-o", tmp_path / "out", *options)
    assert isinstance(result.exception, TudsrError)
    assert words in str(result.exception)


def test_options_reach_the_model(bicubic, photo, tmp_path):
    before = torch.get_num_threads()
    source = photo(tmp_path / "a.png")
    options = "--model M --device cpu --dtype bf16 --m 2 --n 1.5 --t1 9 --t2 8 --tile-px 64 --overlap-px 8 --batch 3"
    try:
        result = run(source, "-o", tmp_path / "x.png", *options.split(), "--color", "adain", "--threads", 1, "--json")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    (r,) = bicubic.requests
    assert bicubic.loaded == ("M", "cpu", "bf16")
    assert (r.scale, r.m, r.n, r.t1, r.t2, r.tile_px, r.overlap_px) == (None, 2, 1.5, 9, 8, 64, 8)
    assert (r.batch, r.color, r.stage) == (3, "adain", "both")
    assert objects(result)[0]["out_size"] == [36, 24]


def test_size_is_width_by_height_and_stage_is_a_number(bicubic, photo, tmp_path):
    run(photo(tmp_path / "a.png"), "-o", tmp_path / "x.png", "--size", "50x40", "--stage", "1")
    assert size(tmp_path / "x.png") == (50, 40)
    assert bicubic.requests[0].stage == 1


def test_too_small_a_size_fails_only_the_picture_it_is_too_small_for(bicubic, photo, tmp_path):
    photo(tmp_path / "in/a.png", 100, 100)
    photo(tmp_path / "in/b.png")
    result = run(tmp_path / "in", "-o", tmp_path / "out", "--size", "50x40", "--json")
    assert result.exit_code == 1
    assert [o["input"] for o in objects(result)] == [str(tmp_path / "in/b.png")]
    assert f"{tmp_path / 'in/a.png'}: The target size 50x40 is smaller" in result.stderr


def test_a_timestep_without_a_pass_fails_only_the_picture_that_has_none(bicubic, photo, tmp_path):
    """To one size some pictures are brought in one pass and others in two."""
    photo(tmp_path / "in/a.png", 20, 20)
    photo(tmp_path / "in/b.png", 100, 100)
    photo(tmp_path / "in/c.png", 20, 20)
    result = run(tmp_path / "in", "-o", tmp_path / "out", "--size", "120x120", "--t2", 30, "--json")
    assert result.exit_code == 1
    assert [Path(o["input"]).name for o in objects(result)] == ["a.png", "c.png"]
    assert "b.png: t2 is 30, but there is no pass of stage 2" in result.stderr


@pytest.mark.parametrize(("size", "said"), [("80x40", True), ("60x40", False), ("61x40", False)])
def test_other_proportions_are_said(bicubic, photo, tmp_path, size, said):
    photo(tmp_path / "a.png", 15, 10)
    result = run(tmp_path / "a.png", "-o", tmp_path / "b.png", "--size", size)
    assert result.exit_code == 0
    assert ("is stretched, by 5.333 in width and 4 in height" in result.stderr) is said


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (["--scale", 0.5], InputError, "scale"),
        (["--scale", "nan"], Exception, "scale"),
        (["--scale", 8, "--size", "9x9"], InputError, "both given"),
        (["--size", "9"], InputError, "WIDTHxHEIGHT"),
        (["--size", "0x9"], InputError, "WIDTHxHEIGHT"),
        (["--scale", 8, "--m", 2, "--n", 2], InputError, "do not make"),
        (["--stage", 1, "--m", 2], InputError, "stage 1 alone"),
        (["--stage", 1, "--m", 2, "--size", "90x90"], InputError, "stage 1 alone"),
        (["--n", 0.5, "--size", "90x90"], InputError, "n is 0.5"),
        (["--memory", "lots"], InputError, "'lots'"),
        (["--t1", 1000], ConfigError, "t1"),
        (["--tile-px", 0], ConfigError, "tile_px"),
        (["--compare", "x"], InputError, "suffix"),
    ],
)
def test_contradictions_are_refused_before_any_picture(options, error, says, bicubic, photo, tmp_path):
    for name in "ab":
        photo(tmp_path / f"in/{name}.png")
    result = run(tmp_path / "in", "-o", tmp_path / "out", *options)
    assert isinstance(result.exception, error)
    assert says in str(result.exception)
    assert not (tmp_path / "out").exists()
    assert bicubic.requests == []


@pytest.mark.parametrize("options", [["--color", "x"], ["--batch", 0], ["--stage", 3], ["--device", "tpu"], ["--nope"]])
def test_usage_errors_exit_2(options, photo, tmp_path):
    assert run(photo(tmp_path / "a.png"), "-o", tmp_path / "x.png", *options).exit_code == 2


def test_unknown_model_is_said(photo, tmp_path):
    result = run(photo(tmp_path / "a.png"), "-o", tmp_path / "x.png", "--model", "nope")
    assert isinstance(result.exception, ModelError)
    assert "tiny" in str(result.exception)


def test_compare_lays_bicubic_and_ours_side_by_side(bicubic, photo, tmp_path):
    source = photo(tmp_path / "a.png", 40, 30)
    result = run(source, "-o", tmp_path / "x.png", "--compare", tmp_path / "both.png", "--scale", 4)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "both.png") as both, Image.open(tmp_path / "x.png") as ours:
        header, gap = both.height - ours.height, both.width - 2 * ours.width
        assert header > 0
        assert gap > 0
        left = both.crop((0, header, ours.width, both.height))
        right = both.crop((ours.width + gap, header, both.width, both.height))
        assert right.tobytes() == ours.tobytes()
        assert left.tobytes() == ours.tobytes()  # the stand-in is bicubic itself
        assert len(both.crop((0, 0, both.width, header)).getcolors(10_000)) > 2  # something is written there


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_compare_keeps_the_inputs_colour_space(bicubic, tmp_path, mode):
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    icc = icc if mode == "RGB" else icc[:16] + b"GRAY" + icc[20:]
    Image.new(mode, (40, 30)).save(tmp_path / "a.png", icc_profile=icc)
    result = run(tmp_path / "a.png", "-o", tmp_path / "x.png", "--compare", tmp_path / "both.png", "--scale", 2)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "both.png") as both:
        assert both.info.get("icc_profile") == (icc if mode == "RGB" else None)


def test_compare_never_stands_on_input_output_or_many(bicubic, photo, tmp_path):
    source, target = photo(tmp_path / "a.png"), tmp_path / "x.png"
    assert "input or the output" in str(run(source, "-o", target, "--compare", source).exception)
    assert "input or the output" in str(run(source, "-o", target, "--compare", target).exception)
    photo(target)
    assert "--overwrite" in str(run(source, "-o", target, "--compare", tmp_path / "c.png").exception)
    assert "give one" in str(run(source, target, "-o", tmp_path / "o", "--compare", tmp_path / "c.png").exception)
    mine = photo(tmp_path / "holiday.png")
    before = mine.read_bytes()
    assert "another name" in str(run(source, "-o", tmp_path / "y.png", "--compare", mine).exception)
    assert mine.read_bytes() == before


def test_an_output_too_large_for_its_format_is_refused_before_the_work(bicubic, photo, tmp_path):
    source = photo(tmp_path / "in/a.png")  # 12 x 8
    result = run(source, "-o", tmp_path / "x.webp", "--size", "16384x8")
    assert isinstance(result.exception, InputError)
    assert "16384x8 pixels came; WEBP holds at most 16383 a side" in str(result.exception)
    result = run(source, "-o", tmp_path / "x.png", "--size", "8192x8", "--compare", tmp_path / "both.webp")
    assert re.search(r"both.webp: 16\d{3}x\d+ pixels came; WEBP holds", str(result.exception))
    assert bicubic.requests == []
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_output_beyond_every_limit_is_refused_before_the_pictures(bicubic, photo, tmp_path):
    for name in "ab":
        photo(tmp_path / f"in/{name}.png")
    result = run(tmp_path / "in", "-o", tmp_path / "out", "--scale", 2e6)
    assert isinstance(result.exception, InputError)
    assert "too large; at most 1048576 a side" in str(result.exception)


SHORT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
]


@pytest.mark.parametrize("error", SHORT_OF_MEMORY, ids=["python", "cuda", "linux", "windows"])
def test_too_little_memory_is_one_sentence_and_the_rest_goes_on(bicubic, photo, tmp_path, monkeypatch, error):
    enlarge = bicubic.upscale_picture

    def short(picture, *rest):
        if picture.width == 50:
            raise error
        return enlarge(picture, *rest)

    monkeypatch.setattr(bicubic, "upscale_picture", short)
    photo(tmp_path / "in/a.png", 50)
    photo(tmp_path / "in/b.png")
    result = run(tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    assert [o["input"] for o in objects(result)] == [str(tmp_path / "in/b.png")]
    assert "a.png: there is not enough memory for it; a smaller --batch or --tile-px" in result.stderr
    alone = run(tmp_path / "in/a.png", "-o", tmp_path / "x.png")
    assert isinstance(alone.exception, InputError)


def test_other_errors_of_torch_keep_their_traceback(bicubic, photo, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(bicubic, "upscale_picture", broken)
    assert type(run(photo(tmp_path / "a.png"), "-o", tmp_path / "x.png").exception) is RuntimeError


def test_fidelity_changes_the_file_and_is_0_unless_asked(model_folder, photo, tmp_path):
    source, made = photo(tmp_path / "a.png", 24, 20), {}
    for name, options in {"none": [], "0": ["--fidelity", 0], "1": ["--fidelity", 1]}.items():
        target = tmp_path / f"{name}.png"
        result = run(source, "-o", target, "--model", model_folder, "--scale", 4, "--dtype", "fp32", *options)
        assert result.exit_code == 0, result.output
        with Image.open(target) as picture:
            made[name] = picture.convert("RGB").tobytes()
    assert made["none"] == made["0"]
    assert made["1"] != made["0"]


@pytest.mark.parametrize(
    ("share", "says"),
    [(-0.1, "Input should be greater than or equal to 0"), (1.5, "Input should be less than or equal to 1")],
)
def test_fidelity_out_of_range_is_one_sentence_and_exit_code_2(bicubic, photo, tmp_path, share, says):
    result = run(photo(tmp_path / "a.png"), "-o", tmp_path / "x.png", "--fidelity", share)
    assert result.exit_code == 2
    assert f"Invalid value for '--fidelity': {says}" in result.stderr
    assert bicubic.requests == []


def test_one_ratio_by_hand_keeps_eightfold(bicubic, photo, tmp_path):
    run(photo(tmp_path / "a.png"), "-o", tmp_path / "x.png", "--m", 2)
    assert size(tmp_path / "x.png") == (96, 64)
    (request,) = bicubic.requests
    assert request == Request.of({"m": 2})

"""The report's page without a browser: what is embedded, what is chosen, and that no name becomes markup."""

import base64
import html.parser
import io
import json
import re
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from tudsr.eval.page import script_json, write_page
from tudsr.eval.page_pictures import difference_map, differing_windows, load_views, webp_uri


class Page(html.parser.HTMLParser):
    """Collects the elements and what is inside the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


def written(results, folder, **options):
    path = write_page(results, folder, **options)
    assert path == folder / "index.html"
    page = Page(path.read_text(encoding="utf-8"))
    return page, json.loads(page.scripts[0])


def decoded(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def test_one_file_and_no_address_to_fetch_from(make_results, tmp_path):
    page, _ = written(make_results(tmp_path), tmp_path)
    addresses = [(tag, key) for tag, attrs in page.tags for key in attrs if key in ("src", "href", "action", "srcset")]
    assert addresses == [("link", "href")]  # the empty icon, which keeps browsers from asking for one
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert "@@" not in text
    assert not list(tmp_path.glob(".*"))


def test_names_stay_data(make_results, tmp_path):
    results = make_results(tmp_path)
    page, data = written(results, tmp_path)
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in page.tags]
    assert [p["name"] for p in data["pictures"]] == [p["name"] for p in results["pictures"]]


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "\u2028", "ü", "@@STYLE@@", "\\u003c"])
def test_json_in_a_script_comes_back(text):
    inside = script_json({"name": text})
    assert "<" not in inside
    assert json.loads(inside) == {"name": text}


def test_places_to_fill_are_not_looked_for_in_the_data(make_results, tmp_path):
    results = make_results(tmp_path)
    results["methods"][0]["path"] = "@@SCRIPT@@"
    _, data = written(results, tmp_path)
    assert data["methods"][0]["path"] == "@@SCRIPT@@"


def test_figures_that_are_not_finite_become_none(make_results, tmp_path):
    _, data = written(make_results(tmp_path), tmp_path)
    assert [method["means"]["niqe"]["mean"] for method in data["methods"]] == [None, 4.61, None]


def test_the_set_is_described(make_results, tmp_path):
    results = make_results(tmp_path)
    results["pictures"][1]["gt"] = None
    results["pictures"][2]["lq"]["size"] = [9, 8]
    _, data = written(results, tmp_path)
    assert data["set"] == {"count": 3, "with_gt": 2, "lq_sizes": [[9, 8], [24, 16]]}


def test_crops_are_the_methods_own_pixels(make_results, tmp_path):
    _, data = written(make_results(tmp_path), tmp_path)
    view = data["pictures"][0]["views"][1]
    original = np.asarray(Image.open(tmp_path / "outputs/1/0.png"))
    np.testing.assert_array_equal(decoded(view["crops"][0]), original)
    assert decoded(view["whole"]).shape == original.shape


def test_long_pictures_are_brought_down(make_results, tmp_path):
    results = make_results(tmp_path)
    results["pictures"] = results["pictures"][:1]
    for path in results["pictures"][0]["outputs"].values():
        Image.new("RGB", (1500, 500), "teal").save(tmp_path / path)
    _, data = written(results, tmp_path)
    (picture,) = data["pictures"]
    assert decoded(picture["views"][0]["whole"]).shape == (341, 1024, 3)
    assert [decoded(crop).shape for crop in picture["views"][0]["crops"]] == [(192, 192, 3)] * 3


def test_views_are_methods_then_gt_and_the_input_unless_bicubic_is_a_method(make_results, tmp_path):
    results = make_results(tmp_path)
    views, notes = load_views(results["pictures"][0], results, tmp_path)
    assert ([view.kind for view in views], notes) == (["method", "method", "method", "gt"], [])
    results["methods"] = results["methods"][1:]
    views, _ = load_views(results["pictures"][0], results, tmp_path)
    assert [view.name for view in views] == ["tiny M2N2", "peer", "GT", "LQ, bicubic"]
    assert views[-1].pixels.shape == (64, 96, 3)


def test_a_true_picture_that_the_scale_does_not_divide_is_cropped_as_it_was_to_measure(make_results, tmp_path):
    results = make_results(tmp_path)
    gt = np.random.default_rng(0).integers(0, 256, (66, 99, 3), dtype=np.uint8)
    Image.fromarray(gt).save(tmp_path / "gt/0.png")
    views, notes = load_views(results["pictures"][0], results, tmp_path)
    assert ([view.kind for view in views], notes) == (["method", "method", "method", "gt"], [])
    np.testing.assert_array_equal(views[-1].pixels, gt[:64, :96])


def test_what_cannot_be_shown_is_said(make_results, tmp_path):
    results = make_results(tmp_path)
    (tmp_path / "outputs/1/0.png").write_bytes(b"no picture")
    Image.new("RGB", (95, 64)).save(tmp_path / "outputs/2/0.png")
    _, data = written(results, tmp_path)
    assert [view["name"] for view in data["pictures"][0]["views"]] == ["bicubic", "GT"]
    assert len(data["notes"]) == 2
    assert "95x64 pixels came, 96x64" in data["notes"][1]


def test_too_many_pictures_leave_those_that_differ_most(make_results, tmp_path):
    results = make_results(tmp_path)
    for path in results["pictures"][1]["outputs"].values():
        Image.new("RGB", (96, 64), "teal").save(tmp_path / path)  # no difference at all
    _, data = written(results, tmp_path, max_pictures=2)
    assert [picture["name"] for picture in data["pictures"]] == [results["pictures"][i]["name"] for i in (0, 2)]
    assert data["notes"][0].startswith("2 of 3 pictures are shown")
    assert data["set"]["count"] == 3


def test_a_page_without_pictures(make_results, tmp_path):
    _, data = written(make_results(tmp_path), tmp_path, max_pictures=0)
    assert data["pictures"] == []


def test_difference_is_the_mean_over_pairs_and_channels():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(4)]
    expected = np.mean([np.abs(x.astype(float) - y).mean(2) for x, y in combinations(pictures, 2)], axis=0)
    np.testing.assert_allclose(difference_map(pictures), expected, rtol=1e-6)
    assert difference_map(pictures[:1]).max() == 0


def test_windows_lie_where_the_difference_is():
    difference = np.zeros((600, 900), np.float32)
    difference[320:400, 640:720] = 3
    difference[0:64, 0:64] = 2
    difference[500:600, 0:40] = 1
    windows = differing_windows(difference)
    for window, (y, x) in zip(windows, [(360, 680), (32, 32), (550, 20)], strict=True):
        assert window.y0 <= y < window.y1
        assert window.x0 <= x < window.x1
        assert (window.height, window.width) == (192, 192)


@pytest.mark.parametrize(
    ("height", "width", "count"), [(1, 1, 1), (64, 96, 1), (192, 500, 2), (384, 384, 3), (512, 512, 3), (2000, 193, 3)]
)
def test_windows_never_overlap_and_are_as_many_as_there_is_room_for(height, width, count):
    middle = np.hypot(*np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j])
    windows = differing_windows((2 - middle).astype(np.float32))  # the worst case: most difference in the middle
    assert len(windows) == count
    for window in windows:
        assert 0 <= window.y0 < window.y1 <= height
        assert 0 <= window.x0 < window.x1 <= width
    for one, two in combinations(windows, 2):
        apart = one.y1 <= two.y0 or two.y1 <= one.y0 or one.x1 <= two.x0 or two.x1 <= one.x0
        assert apart


def test_a_colour_profile_is_kept():
    body = webp_uri(np.zeros((4, 4, 3), np.uint8), icc=b"a profile", quality=90).partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(body))).info["icc_profile"] == b"a profile"

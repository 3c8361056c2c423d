"""The report's page in a real headless Chromium: slider, sorting, keys, hostile names, and a phone's width."""

import re
import shutil
from types import SimpleNamespace

import pytest

from tudsr.eval.page import write_page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
if CHROMIUM is None:
    pytest.skip("no chromium or google-chrome on this machine", allow_module_level=True)
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def open_page(browser, make_results, tmp_path):
    """Return a function (change, context options) -> page; errors and requests are checked at the end."""
    opened = []

    def open_one(change=lambda results: None, **options):
        results = make_results(tmp_path)
        change(results)
        path = write_page(results, tmp_path)
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        page, seen = context.new_page(), SimpleNamespace(problems=[], requests=[])
        page.on("console", lambda message: seen.problems.append(message.text))
        page.on("pageerror", lambda error: seen.problems.append(str(error)))
        page.on("dialog", lambda dialog: (seen.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(path.as_uri())
        opened.append((context, seen, path.as_uri()))
        return page

    yield open_one
    for context, seen, address in opened:
        context.close()
        assert seen.problems == []
        assert [url for url in seen.requests if not url.startswith("data:")] == [address]


def clip(page):
    """Return where the whole picture is cut, in percent from the left."""
    text = page.eval_on_selector("#whole img.right", "image => getComputedStyle(image).clipPath")
    return float(re.fullmatch(r"inset\(0px 0px 0px ([\d.]+)%\)", text)[1])


def until(page, reached):
    """Wait for it: browsers decode pictures, and hand a finger's moves on by frames, in their own time."""
    for _ in range(500):
        if reached():
            return
        page.wait_for_timeout(20)  # page.wait_for_function uses eval, which the page forbids
    raise AssertionError("not within ten seconds")


def await_clip(page, percent, within):
    until(page, lambda: abs(clip(page) - percent) <= within)


def column(page, number):
    return [
        row.split("\n")[0].strip() for row in page.locator(f"#table tbody tr > :nth-child({number})").all_inner_texts()
    ]


def test_the_slider_follows_the_mouse(open_page):
    page = open_page()
    assert clip(page) == 50
    stage = page.locator("#whole .stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, y)
    await_clip(page, 25, within=0.5)
    page.mouse.move(box["x"] - 50, y)  # outside: the drag goes on, up to the edge
    await_clip(page, 0, within=0)
    page.mouse.up()
    page.mouse.move(box["x"] + box["width"] / 2, y)
    assert clip(page) == 0


def test_the_slider_obeys_touch(open_page):
    page = open_page(has_touch=True)
    stage = page.locator("#crops .stage").first
    stage.scroll_into_view_if_needed()
    size = stage.bounding_box()
    stage.tap(position={"x": size["width"] * 0.75, "y": size["height"] / 2})
    await_clip(page, 75, within=1)  # one slider for the whole picture and the crops


def test_a_finger_draws_the_slider_across_a_phone(open_page):
    page = open_page(has_touch=True)
    page.set_viewport_size({"width": 360, "height": 740})
    stage = page.locator("#whole .stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box["x"] + box["width"] <= 360

    def touch(kind, share):
        points = [] if share is None else [{"x": box["x"] + share * box["width"], "y": box["y"] + box["height"] / 2}]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    finger = page.context.new_cdp_session(page)  # a page's own touchscreen can only tap
    touch("touchStart", 0.5)
    for share in (0.45, 0.3, 0.2):
        touch("touchMove", share)
    await_clip(page, 20, within=1)
    touch("touchEnd", None)
    handle = page.locator("#whole .handle").bounding_box()
    assert handle["x"] + handle["width"] / 2 == pytest.approx(box["x"] + 0.2 * box["width"], abs=2)


def test_the_slider_and_pictures_obey_keys(open_page):
    page = open_page()
    slider = page.get_by_role("slider")
    page.keyboard.press("ArrowRight")
    assert clip(page) == 52
    page.keyboard.press("Shift+ArrowLeft")
    assert clip(page) == 42
    assert slider.get_attribute("aria-valuenow") == "42"
    for _ in range(6):
        page.keyboard.press("Shift+ArrowLeft")
    assert clip(page) == 0

    name = page.locator("#picture-name")
    page.keyboard.press("ArrowDown")  # nothing of the comparison has the focus: the page scrolls
    assert "1 of 3" in name.inner_text()
    page.keyboard.press("j")
    assert "2 of 3" in name.inner_text()
    slider.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert "3 of 3" in name.inner_text()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("k")
    assert "1 of 3" in name.inner_text()
    assert page.locator("#strip [aria-pressed=true]").count() == 1


def test_each_scale_has_a_front_of_its_own(open_page):
    fronts = "document.querySelectorAll('#plot .front').length"
    assert open_page().evaluate(fronts) == 1
    assert open_page(lambda results: results["methods"][1].update(scale=8)).evaluate(fronts) == 2


def test_any_two_views_can_be_compared(open_page):
    page = open_page()
    options = page.locator("#right option").all_inner_texts()
    assert [text.split(maxsplit=1)[1] for text in options] == ["bicubic", "tiny M2N2", "peer", "GT"]
    assert page.locator("#whole .tag").all_inner_texts() == ["bicubic", "tiny M2N2"]
    sources = "[...document.querySelectorAll('#whole img')].map(image => image.src)"
    left, right = page.evaluate(sources)
    page.locator("#left").select_option(index=3)
    page.keyboard.press("Escape")
    page.get_by_role("slider").focus()
    page.keyboard.press("3")
    assert page.locator("#whole .tag").all_inner_texts() == ["GT", "peer"]
    assert not set(page.evaluate(sources)) & {left, right}
    page.keyboard.press("Shift+Digit1")
    page.keyboard.press("2")
    assert page.evaluate(sources) == [left, right]
    page.keyboard.press("x")
    assert page.evaluate(sources) == [right, left]
    loaded = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    until(page, lambda: page.evaluate(loaded))


def test_a_picture_without_the_chosen_views_shows_two_others(open_page):
    def lack(results):
        del results["pictures"][1]["outputs"]["bicubic"], results["pictures"][1]["outputs"]["tiny M2N2"]

    page = open_page(lack)
    page.keyboard.press("j")
    assert page.locator("#whole .tag").all_inner_texts() == ["peer", "GT"]
    page.keyboard.press("k")
    assert page.locator("#whole .tag").all_inner_texts() == ["bicubic", "tiny M2N2"]


def test_help_opens_and_closes(open_page):
    page = open_page()
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("?")
    assert page.get_by_role("dialog").count() == 0


def test_sorting_goes_both_ways(open_page):
    page = open_page()
    head = page.locator("#table thead th")
    assert page.locator("#table [aria-sort]").count() == 0
    head.nth(1).get_by_role("button").click()
    assert column(page, 2) == ["25.50", "24.25", "9.75"]  # as numbers, the best first
    assert head.nth(1).get_attribute("aria-sort") == "descending"
    head.nth(1).get_by_role("button").press("Enter")
    assert column(page, 2) == ["9.75", "24.25", "25.50"]
    assert head.nth(1).get_attribute("aria-sort") == "ascending"
    head.nth(2).get_by_role("button").click()
    assert column(page, 3) == ["0.1391", "0.1402", "0.2411"]  # lower is better
    assert head.nth(2).get_attribute("aria-sort") == "ascending"
    assert page.locator("#table [aria-sort]").count() == 1
    for _ in range(2):
        head.nth(3).get_by_role("button").click()
        assert column(page, 4) == ["4.610", "–", "–"]  # what has no figure stays below


def test_best_is_bold_and_trained_metrics_are_marked(open_page):
    page = open_page()
    weights = page.eval_on_selector_all(
        "#table .value",
        "values => values.filter(v => getComputedStyle(v).fontWeight >= 700).map(v => v.textContent)",
    )
    assert weights == ["25.50", "0.1391", "4.610"]
    assert page.locator("#table .mark").count() == 1
    assert "† " in page.locator("#legend").inner_text()


def test_intervals_stand_below_the_means(open_page):
    def fewer(results):
        results["methods"][1]["means"]["niqe"]["count"] = 2

    rows = open_page(fewer).locator("#table tbody tr").all()
    cells = [[cell.split() for cell in row.locator(".figure").all_inner_texts()[:3]] for row in rows]
    assert cells[0] == [["25.50", "22.95", "–", "25.50"], ["0.2411", "0.2170", "–", "0.2411"], ["–"]]
    assert cells[1][2] == ["4.610", "4.149", "–", "4.610", "(of", "2)"]
    assert all(row.locator("small").first.is_visible() for row in rows)


def test_all_below_a_floor_are_the_best(open_page):
    """DISTS has .2411, .1391 and .1402 here, bicubic being the fastest and the peer without a time."""

    def enough(results):
        results["metrics"]["dists"]["floor"] = 0.2
        results["methods"][0]["means"]["dists"]["mean"] = 0.19

    page = open_page(enough)
    assert page.locator("#table .best .value").all_inner_texts() == ["25.50", "0.1900", "0.1391", "4.610", "0.1402"]
    assert page.locator("#picture-table .best .value").all_inner_texts() == ["25.50", "0.1391", "4.610", "0.1402"]
    page.locator("#metric").select_option("dists")
    assert page.evaluate("document.querySelector('#plot .front').points.length") == 1  # slower and no better
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    better = page.locator("#metrics-table tbody td:nth-child(2)").all_inner_texts()
    assert better == ["higher", "lower, to 0.2", "lower"]


def test_one_picture_has_no_interval(open_page):
    def alone(results):
        for method in results["methods"]:
            for mean in method["means"].values():
                mean.update(low=None, high=None, count=1)
        del results["pictures"][1:]

    page = open_page(alone)
    assert page.locator("#table tbody .figure").all_inner_texts()[:2] == ["25.50", "0.2411"]
    assert page.locator("#plot circle").count() == 2
    assert page.locator("#plot .interval").count() == 0


def test_the_best_is_of_its_scale(open_page):
    def larger(results):
        results["methods"][2]["scale"] = 8

    page = open_page(larger)
    assert page.locator("#table .best .value").all_inner_texts() == ["25.50", "0.1391", "4.610", "9.75", "0.1402"]
    assert page.locator("#picture-table .best .value").all_inner_texts() == [
        "25.50", "0.1391", "4.610", "9.75", "0.1402",
    ]  # fmt: skip


def test_figures_of_the_picture(open_page):
    page = open_page()
    page.keyboard.press("j")
    values = page.locator("#picture-table .value").all_inner_texts()
    assert values == ["26.50", "1.2411", "–", "25.25", "1.1391", "5.610", "10.75", "1.1402", "–"]


def test_the_plot_leaves_out_what_has_no_time(open_page):
    page = open_page()
    assert page.locator("#plot circle").count() == 2
    assert "not drawn: peer" in page.locator("#plot-legend").inner_text()
    places = "[...document.querySelectorAll('#plot circle')].map(c => [c.cx.baseVal.value, c.cy.baseVal.value])"
    (x_fast, y_fast), (x_slow, y_slow) = page.evaluate(places)
    assert x_fast < x_slow
    assert y_fast < y_slow  # 25.5 dB above 24.25 dB
    page.locator("#metric").select_option("dists")
    (_, y_fast), (_, y_slow) = page.evaluate(places)
    assert y_fast > y_slow  # the lower DISTS above


def test_the_ablation_is_laid_out_by_scale(open_page):
    def ablate(results):
        ways = {"M4": (4, None), "N4": (None, 4), "M2N2": (2, 2), "M4N2": (4, 2)}
        model = results["methods"][1]
        results["methods"] += [
            model | {"name": name, "m": m, "n": n, "scale": (m or 1) * (n or 1)} for name, (m, n) in ways.items()
        ]
        results["ablation"] = list(ways)

    assert open_page().locator("#ablation").is_hidden()
    page = open_page(ablate)
    rows = [row.split()[:4] for row in page.locator("#ablation-table tbody tr").all_inner_texts()]
    assert rows == [["M4", "×4", "4", "–"], ["N4", "×4", "–", "4"], ["M2N2", "×4", "2", "2"], ["M4N2", "×8", "4", "2"]]
    assert page.locator("#ablation-table .block").count() == 2


def test_a_name_that_is_markup_stays_text(open_page):
    page = open_page()
    page.keyboard.press("j")
    assert "<img src=x onerror=alert(1)>" in page.locator("#picture-name").inner_text()
    assert "<img src=x onerror=alert(1)>: no partner" in page.locator("#left-out-list").inner_text()
    page.keyboard.press("j")
    assert "</script><script>alert(2)</script>" in page.locator("#picture-name").inner_text()
    assert page.locator("img:not([src^='data:'])").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_sideways_scrolling(open_page, scheme):
    def long_names(results):
        results["methods"][0]["kind"] = "model"  # so that the input is a view too
        results["pictures"][0]["name"] = "a" * 200

    page = open_page(long_names, color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for details in page.locator("details").all():
        details.locator("summary").click()
    page.keyboard.press("?")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 128 * 3) == (scheme == "dark")

"""The report in headless Chromium: what a reader sees and does."""

import re
import shutil

import pytest

from amq_onnx.report import report_page
from report.conftest import RUN

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the report of a result; at the end it may have asked for nothing, and complained of nothing."""
    contexts, wrong = [], []

    def open_page(result, **options):
        file = tmp_path / "report.html"
        file.write_text(report_page(result, RUN), encoding="utf-8")
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(60_000)  # two busy cores draw a thousand layers in more than ten seconds
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url == file.as_uri() or wrong.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector("#bits .main-svg")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def place_of(page, point, trace=0):
    """Where a point of the frontier is, in pixels of the window."""
    page.locator("#frontier").scroll_into_view_if_needed()
    return page.evaluate(
        """([trace, point]) => {
            const figure = document.getElementById("frontier");
            const { xaxis, yaxis } = figure._fullLayout;
            const { x, y } = figure.data[trace];
            const { left, top } = figure.getBoundingClientRect();
            return [left + xaxis._offset + xaxis.d2p(x[point]), top + yaxis._offset + yaxis.d2p(y[point])];
        }""",
        [trace, point],
    )


def test_a_point_of_the_frontier_tells_its_size_and_shows_its_plan(opened, hostile):
    page = opened(hostile)
    assert f"{hostile.bytes:,} bytes" in page.inner_text("#plan-title")
    assert "the file that was written" in page.inner_text("#plan-facts")
    number = 0
    point = hostile.frontier[number]
    place = place_of(page, number)
    page.mouse.move(*place)
    label = page.wait_for_selector("#frontier .hoverlayer .hovertext")
    assert f"{point.bytes:,} bytes" in label.text_content()
    assert f"{100 * point.bytes / hostile.float_bytes:.1f} % of float" in label.text_content()
    page.mouse.click(*place)
    assert f"{point.bytes:,} bytes" in page.inner_text("#plan-title")
    assert page.inner_text("#plan-command").endswith(f"--size {point.bytes}B")
    assert page.input_value("#size") == str(number)
    rows = page.locator("#plan-sites .site").all()
    widths = [*point.plan.weights.values(), *(site.bits for site in point.plan.activations.values())]
    assert [row.locator(".bits").inner_text().split()[0] for row in rows] == [str(bits) for bits in widths]
    assert rows[0].locator(".name").get_attribute("title") == next(iter(point.plan.weights))
    own = [*hostile.plan.weights.values(), *(site.bits for site in hostile.plan.activations.values())]
    assert page.locator("#plan-sites .differs").count() == sum(a != b for a, b in zip(widths, own, strict=True)) > 0
    # Back to the file itself.
    page.mouse.click(*place_of(page, 0, trace=2))
    assert f"{hostile.bytes:,} bytes" in page.inner_text("#plan-title")
    assert page.locator("#plan-sites .differs").count() == 0


def test_the_slider_goes_through_the_plans(opened, hostile):
    page = opened(hostile)
    page.focus("#size")
    for key, point in (
        ("Home", hostile.frontier[0]),
        ("ArrowRight", hostile.frontier[1]),
        ("End", hostile.frontier[-1]),
    ):
        page.keyboard.press(key)
        assert f"{point.bytes:,} bytes" in page.inner_text("#plan-title")


def test_channels_of_several_widths(opened, mixed):
    result, _ = mixed
    page = opened(result)
    said = page.locator("#plan-sites .bits").all_inner_texts()
    assert any(re.search(r"\d+ x \d", text) for text in said)


def test_names_are_shown_and_not_obeyed(opened, hostile):
    page = opened(hostile)
    assert page.locator("a, img, iframe").count() == 0
    labels = page.locator("#bits .ytick text").all_text_contents()
    assert labels[0] == "<script>alert(1)</script>"
    assert page.title() == "<b>model</b>.onnx, quantized"


@pytest.mark.parametrize("which", ["hostile", "large", "mixed"])
def test_a_telephone_shows_one_column(opened, request, which):
    result = request.getfixturevalue(which)
    page = opened(result[1] if which == "mixed" else result, viewport={"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for figure in page.locator(".figure").all():
        box = figure.locator(".main-svg").first.bounding_box()
        assert box["width"] > 250
        assert box["x"] + box["width"] <= 380
    lefts = {round(card.bounding_box()["x"]) for card in page.locator(".card").all()}
    assert len(lefts) == 1


def test_a_finger_scrolls_over_figures_and_taps_points(opened, hostile):
    page = opened(hostile, viewport={"width": 380, "height": 800}, has_touch=True, is_mobile=True)
    x, y = place_of(page, 0)
    page.touchscreen.tap(x, y)
    assert f"{hostile.frontier[0].bytes:,} bytes" in page.inner_text("#plan-title")
    before = page.evaluate("scrollY")
    finger = page.context.new_cdp_session(page)
    for kind, places in (("Start", [0]), ("Move", [-40, -80, -120, -160]), ("End", [None])):
        for moved in places:
            points = [] if moved is None else [{"x": x, "y": y + 100 + moved}]
            finger.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    page.wait_for_function("before => scrollY > before + 50", arg=before)


def test_no_button_leads_away(opened, hostile):
    page = opened(hostile)
    page.hover("#frontier")
    titles = [button.get_attribute("data-title") for button in page.locator("#frontier .modebar-btn").all()]
    assert titles == ["Zoom", "Pan", "Reset axes", "Download plot as a PNG"]


def test_dark_and_light_follow_the_reader(opened, hostile):
    page = opened(hostile, color_scheme="light")
    page.locator("#size").press("Home")

    def colours():
        return page.evaluate(
            """[getComputedStyle(document.body).backgroundColor,
                getComputedStyle(document.querySelector("#frontier .xtick text")).fill,
                getComputedStyle(document.querySelector("#frontier .scatterlayer .js-line")).stroke,
                document.getElementById("sensitivity").data[0].colorscale[0][1]]"""
        )

    light, shown = colours(), page.inner_text("#plan-title")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "before => getComputedStyle(document.querySelector('#frontier .xtick text')).fill !== before", arg=light[1]
    )
    dark = colours()
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert page.inner_text("#plan-title") == shown
    page.emulate_media(color_scheme="light")
    page.wait_for_function(
        "before => getComputedStyle(document.querySelector('#frontier .xtick text')).fill !== before", arg=dark[1]
    )
    assert colours() == light


def test_a_result_without_data(opened, mixed):
    page = opened(mixed[1])
    assert "give --data" in page.inner_text("main")
    assert page.locator("#prediction").count() == 0

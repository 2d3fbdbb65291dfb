"""The report in a real browser: charts are drawn, nothing is fetched, and it is legible in any width and colour, and on
paper.
"""

import re
import zlib

import pytest
from servers import eventually

from reports import run_folder
from reports.pages import report_files
from tests.unit.reports import run_folders

PHONE, TABLET, DESK = (390, "light"), (820, "dark"), (1440, "light")
ONCE_MORE = [(390, "dark"), (820, "light"), (1440, "dark")]
SHOWN = [(*each, False) for each in (PHONE, TABLET, DESK)]
SHOWN += [pytest.param(*each, True, marks=pytest.mark.slow) for each in [PHONE, TABLET, DESK, *ONCE_MORE]]

CHARTS = 7  # six on the run's time, and one by percentile
ALL_DRAWN = f"""() => document.querySelectorAll(".bk-Figure").length == {CHARTS}
  && Bokeh.index.roots.every(view => view.has_finished())"""
ALL_FIT = """() => Bokeh.documents.flatMap(document => document.roots()).every(root => {
  const drawn = Bokeh.index[root.id], place = drawn.el.parentElement;
  return drawn.bbox.width == place.clientWidth;
})"""
# What is seen of these colours where this filter is on them, as the browser itself has it.
SEEN = """(colours, filter) => colours.map(colour => {
  const context = document.createElement("canvas").getContext("2d");
  context.filter = filter;
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
})"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A rich one, with the widest tables: the open model, twenty workers, one of them replaced, some failures,
    conditions held and broken, and a label that wants to be a script."""
    folder = tmp_path_factory.mktemp("report") / "run"
    run_folders.write(
        folder,
        model="open",
        workers=20,
        killed_at_s=17.3,
        failures_per_s=2,
        noise=0.1,
        thresholds=("p99(response) > 2ms", "failures > 1%"),
        label="<script>document.title='taken over'</script> & co",
    )
    report_files.build(folder)
    return folder / run_folder.REPORT_HTML


@pytest.fixture(scope="module")
def show(browser, report):
    """The report, in one page that takes any width and colour: a test leaves it as it was. At the end no error was
    logged and nothing but the file was asked for."""
    complaints, requests = [], []
    with browser.new_context(offline=True) as context:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))

        def shown(width, scheme, *, anew=False):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            if anew or not requests:
                page.goto(report.as_uri())
                page.wait_for_function(ALL_DRAWN)
            page.wait_for_function(ALL_FIT)
            return page

        yield shown
    assert [text for text in complaints if "document idle" not in text] == []
    assert {url for url in requests if not url.startswith("data:")} == {report.as_uri()}


@pytest.mark.parametrize(("width", "scheme", "anew"), SHOWN)
def test_it_fits_and_is_legible(show, width, scheme, anew):
    """Whether it was opened like that, or a window was made larger and the night has come."""
    page = show(width, scheme, anew=anew)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "only tables may scroll sideways"
    charts = page.locator(".bk-Figure").all()
    assert len(charts) == CHARTS
    for chart in charts:
        assert width * 0.5 < chart.bounding_box()["width"] <= width
    ink, ground, labels, *lines = page.evaluate(
        f"""() => {{
          const {{color, backgroundColor}} = getComputedStyle(document.body);
          const {{filter}} = getComputedStyle(document.querySelector(".chart"));
          const labels = Bokeh.documents[0].roots()[0].below[0].major_label_text_color;
          const legend = [...document.querySelectorAll(".legend i")].map(key => getComputedStyle(key).borderTopColor);
          return [...({SEEN})([color, backgroundColor], "none"), ...({SEEN})([labels, ...legend], filter)];
        }}"""
    )
    assert contrast(ink, ground) > 10
    assert contrast(labels, ground) > 4.5
    assert len(lines) > 20
    assert min(contrast(line, ground) for line in lines) > 3


def contrast(*colours: list[int]) -> float:
    """Of two (red, green, blue), by WCAG 2.1: 1 to 21."""
    light, dark = sorted((luminance(colour) for colour in colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[int]) -> float:
    parts = [part / 255 for part in colour]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_what_a_label_says_is_shown_and_not_run(show):
    page = show(*PHONE)
    assert page.title().startswith("VALID: <script>")
    assert page.locator("h1").inner_text() == "<script>document.title='taken over'</script> & co"


def test_a_condition_that_was_broken_stands_out(show):
    page = show(*PHONE)
    rows = page.locator("tr").filter(has_text="failed")
    row = rows.filter(has_text="p99(response) > 2ms").locator("td").first
    colour, ink = row.evaluate("cell => [getComputedStyle(cell).color, getComputedStyle(document.body).color]")
    assert row.inner_text() == "failed"
    assert colour != ink
    assert row.bounding_box()["x"] + row.bounding_box()["width"] <= 390, "seen without scrolling, on a phone too"


def test_the_charts_share_one_axis_and_go_back_on_double_click(show):
    page = show(*TABLET)
    chart = page.locator(".bk-Figure").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    across = [box["x"] + box["width"] * share for share in (0.4, 0.6)]
    y = box["y"] + box["height"] / 2
    starts = "Bokeh.documents[0].roots().map(root => root.x_range.start)"

    def drag():
        page.mouse.move(across[0], y)
        page.mouse.down()
        page.mouse.move(across[1], y, steps=5)
        page.mouse.up()
        return page.evaluate(f"{starts}[0] > 5")

    def double_click():
        page.mouse.dblclick(sum(across) / 2, y)
        return page.evaluate(f"{starts}[0] == 0")

    # Whoever takes over 300 ms to begin to move, or to click again, has pressed, or clicked twice.
    eventually(drag, "it was dragged")
    page.wait_for_function(f"{starts}.length == {CHARTS - 1} && new Set({starts}).size == 1 && {starts}[0] > 5")
    eventually(double_click, "it was double-clicked")
    page.wait_for_function(f"{starts}.every(start => start == 0)")


def test_pointing_at_an_event_tells_it(show, expect):
    page = show(*DESK)
    chart = page.locator(".bk-Figure").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    x = page.evaluate("Bokeh.index[Bokeh.documents[0].roots()[0].id].frame.x_scale.compute(17.3)")
    y = box["y"] + 60
    page.mouse.move(box["x"] + x - 20, y)
    page.mouse.move(box["x"] + x, y, steps=4)
    tooltip = page.locator(".bk-Tooltip").get_by_text("was killed by signal 9")
    expect(tooltip.first).to_be_visible()


def test_pointing_at_a_latency_tells_its_band(show, expect):
    page = show(*DESK)
    chart = page.locator(".bk-Figure").nth(1)
    chart.scroll_into_view_if_needed()
    x, y, low, high = page.evaluate(
        """() => {
          const root = Bokeh.documents[0].roots()[1], {frame} = Bokeh.index[root.id];
          const line = root.renderers.find(renderer => renderer.name?.startsWith("long, response"));
          const {x, y, low, high} = line.data_source.data;
          return [frame.x_scale.compute(x[8]), frame.y_scale.compute(y[8]), low[8], high[8]];
        }"""
    )
    box = chart.bounding_box()
    page.mouse.move(box["x"] + x - 20, box["y"] + y)
    page.mouse.move(box["x"] + x, box["y"] + y, steps=4)
    tooltip = page.locator(".bk-Tooltip").get_by_text(f"{low:,.0f} to {high:,.0f}")
    expect(tooltip.first).to_be_visible()


def test_pointing_at_one_chart_draws_a_line_through_all_of_one_axis(show):
    page = show(*TABLET)
    chart = page.locator(".bk-Figure").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tools = "Bokeh.documents[0].roots().flatMap(root => root.toolbar.tools)"
    lines = f"{tools}.filter(tool => tool.type == 'CrosshairTool').map(tool => tool.overlay)"
    page.wait_for_function(f"{lines}.length == {CHARTS - 1} && new Set({lines}).size == 1 && {lines}[0].location > 0")


def test_all_processes_are_there_when_they_are_asked_for(show, expect):
    page = show(*TABLET)
    workers = page.get_by_role("row").filter(has_text=re.compile(r"^\s*worker \d+"))
    expect(workers).to_have_count(6)
    page.get_by_text("All 24 processes").click()
    expect(workers).to_have_count(6 + 21)
    page.get_by_text("All 24 processes").click()
    expect(workers).to_have_count(6)


def test_on_paper_it_is_light_and_nothing_is_cut_off(show):
    page = show(*TABLET)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    style = "name => getComputedStyle(document.querySelector(name))"
    assert page.evaluate(f"({style})('body').backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(f"({style})('.chart').filter") == "none"
    paper = page.locator("body").bounding_box()
    for wide in page.locator(".chart, .bk-Canvas, table").locator("visible=true").all():
        box = wide.bounding_box()
        assert box["x"] >= paper["x"]
        assert box["x"] + box["width"] <= paper["x"] + paper["width"] + 1
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")


def test_all_charts_are_printed_even_by_who_does_not_wait_for_them(browser, report):
    """As `chromium --print-to-pdf` does once the page is loaded."""
    with browser.new_context(offline=True) as context:
        page = context.new_page()
        page.goto(report.as_uri(), wait_until="load")
        paper = page.pdf(prefer_css_page_size=True)
    assert sum(len(set(pixels)) > 1 for pixels in images(paper)) == CHARTS


IMAGE = re.compile(rb"<<([^<>]*/Subtype\s*/Image[^<>]*/Length (\d+)[^<>]*)>>\s*stream\r?\n")


def images(pdf: bytes) -> list[bytes]:
    """The pixels of each that has a mask of transparency beside it: in our PDF, of each layer of a chart."""
    found = [image for image in IMAGE.finditer(pdf) if b"/SMask" in image[1]]
    return [zlib.decompress(pdf[image.end() : image.end() + int(image[2])]) for image in found]

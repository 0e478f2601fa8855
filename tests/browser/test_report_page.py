"""The report in a real browser: nothing leaves the machine, nothing fails, all is drawn, fits and can be saved."""

import csv
import io
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from support.browser import CHROMIUM, open_browser
from support.hostile_text import ALL, HEBREW, LONG, NAME, write_hostile_study
from support.synthetic_activations import OVERLAPPING, write_hidden_seeds, write_hidden_study
from support.synthetic_alignments import DPO, SFT, write_all
from support.synthetic_constrained import NOTHING_HOLDS, ConstrainedRuns, write_constrained_study, write_seeds
from support.synthetic_watched import LOST_BEFORE, watch_stage, write_trajectory

from safety_subspaces.artefacts.text import MOST_CHARACTERS, shown
from safety_subspaces.report.command import report

# Six panels and a logarithmic axis, and steps that are wide under a heatmap.
WATCHED = replace(LOST_BEFORE, steps=(0, 3, 40, 600, 12000), overlap=(0.3, 0.4, 0.4, 0.4, 0.4))
ALL_OPEN = "document.querySelectorAll('details').forEach(each => { each.open = true })"
NOT_DRAWN = "[...document.querySelectorAll('.chart:not([data-drawn])')]"
PATIENCE = 300  # tenths of a second

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
]


@pytest.fixture(scope="module")
def page_url(tmp_path_factory):
    held = ConstrainedRuns(fractions=(0.1, 0.25, 0.5), seed_noise=0.5)
    folder = write_constrained_study(tmp_path_factory.mktemp("runs") / "organism-0", held)
    watch_stage(folder / "contaminated", WATCHED)
    write_trajectory(folder, str(folder / "contaminated"), "contaminated")
    return report(str(folder)).path.resolve().as_uri()


@pytest.fixture(scope="module")
def seeds_url(tmp_path_factory):
    held = replace(NOTHING_HOLDS, fractions=(0.1, 0.25, 0.5), seed_noise=0.5)
    return report(write_seeds(tmp_path_factory.mktemp("runs"), held)).path.resolve().as_uri()


@pytest.fixture(scope="module")
def organisms_url(tmp_path_factory):
    return report(write_all(tmp_path_factory.mktemp("runs"), [SFT, DPO], 2, ("overlap",))).path.resolve().as_uri()


@pytest.fixture(scope="module")
def hidden_url(tmp_path_factory):
    return report(str(write_hidden_study(tmp_path_factory.mktemp("runs") / "organism-0"))).path.resolve().as_uri()


@pytest.fixture(scope="module")
def hidden_seeds_url(tmp_path_factory):
    folders = write_hidden_seeds(tmp_path_factory.mktemp("runs"), replace(OVERLAPPING, seed_noise=0.02))
    return report(folders).path.resolve().as_uri()


@pytest.fixture(scope="module")
def hostile_url(tmp_path_factory):
    return report(str(write_hostile_study(tmp_path_factory.mktemp("runs") / "organism-0"))).path.resolve().as_uri()


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


def until(page, truth):
    """Wait for an expression to be true; the page's policy forbids what Playwright's own waiting evaluates in it."""
    for _ in range(PATIENCE):
        if page.evaluate(truth):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"never true: {truth}")


@pytest.fixture(scope="module")
def opened(browser, page_url):
    """Open the page at a width, and all that it has unless it is folded; every request and complaint is kept.

    A page that is opened in the usual way is opened once: drawing its charts takes seconds.
    """
    pages = {}

    def open_page(width, url=page_url, folded=False, **options):
        if not folded and not options:
            if (width, url) not in pages:
                pages[width, url] = make(width, url, folded)
            return pages[width, url]
        page = make(width, url, folded, **options)
        pages[len(pages)] = page
        return page

    def make(width, url, folded, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda line: line.type in ("error", "warning") and page.complaints.append(line.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(url)
        if not folded:
            page.evaluate(ALL_OPEN)
            for _ in range(PATIENCE):  # charts are drawn as they come into view
                left = page.evaluate(f"{NOT_DRAWN}.map((each, at) => at || each.scrollIntoView()).length")
                if not left:
                    break
                page.wait_for_timeout(50)
            assert not left
        return page

    yield open_page
    for page in pages.values():
        page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_drawn_fits_and_asks_for_nothing(opened, page_url, width):
    page = opened(width)
    assert [url for url in page.requests if url != page_url and not url.startswith(("data:", "blob:"))] == []
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.evaluate("[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('.trace, .hm').length)")
    # The constraint, a watched run with two heatmaps, three fine-tunes, two against energy and utility and one against
    # energy alone, an overlap, losses of free and held runs
    assert len(drawn) == 13
    assert min(drawn) > 0
    assert page.evaluate("window.broken") is None


def test_charts_fit_their_column_on_a_phone(opened):
    page = opened(390)
    widths = page.evaluate(
        "[...document.querySelectorAll('.chart .main-svg')].map(svg => svg.getBoundingClientRect().right)"
    )
    assert max(widths) <= 390


def test_the_energy_share_switches_the_overlap_chart(opened):
    page = opened(1280)
    shown = """[...document.querySelectorAll('#overlap .chart')].map(chart =>
        [...new Set(chart.data.filter(t => t.meta && t.visible === true).map(t => t.meta.energy))])"""
    assert page.evaluate(shown) == [[0.9]]
    page.select_option("#overlap select.choice", "0.5")
    until(page, f"JSON.stringify({shown}) === '[[0.5]]'")
    assert page.complaints == []


def test_dark_paper_gets_light_ink_in_the_charts(opened):
    inks = [
        opened(1280, color_scheme=scheme).evaluate("document.querySelector('.chart').layout.font.color")
        for scheme in ("light", "dark")
    ]
    assert inks == ["#1b1f24", "#e4e7eb"]


def test_answers_show_escaped_text(opened):
    page = opened(1280)
    assert "</script><script>" in page.inner_text("#generations blockquote")


def test_a_page_of_hostile_texts_runs_nothing_and_shows_them_as_they_are(opened, hostile_url):
    page = opened(1280, url=hostile_url)
    assert [url for url in page.requests if url != hostile_url and not url.startswith(("data:", "blob:"))] == []
    assert page.complaints == []
    assert page.evaluate("window.broken") is None
    assert (
        page.evaluate("document.querySelectorAll('body img, iframe, object, .chart a, .chart tspan[style]').length")
        == 0
    )
    text = page.evaluate("document.body.textContent")
    assert shown(ALL) in text
    assert shown(NAME) in text
    assert LONG[:MOST_CHARACTERS] in text
    assert LONG[: MOST_CHARACTERS + 1] not in text
    cells = page.evaluate("[...document.querySelectorAll('#models tbody td:first-child')].map(cell => cell.innerText)")
    assert shown(NAME) in cells
    legends = page.evaluate("[...document.querySelectorAll('.legendtext')].map(each => each.textContent)")
    assert any(shown(NAME) in legend for legend in legends)


# Where each character of the first element that holds a name lies, and the whole text: of what is set around it.
PLACES = """name => {
  const holds = each => each.textContent.includes(name) && each.textContent.length < 1000;
  return [...document.querySelectorAll('p, dd, summary')].filter(holds).map(each => {
    const walker = document.createTreeWalker(each, NodeFilter.SHOW_TEXT), places = [];
    while (walker.nextNode()) for (let at = 0; at < walker.currentNode.length; at++) {
      const range = document.createRange();
      range.setStart(walker.currentNode, at); range.setEnd(walker.currentNode, at + 1);
      const box = range.getBoundingClientRect();
      places.push([walker.currentNode.data[at], box.left, box.top]);
    }
    return places;
  });
}"""


def test_text_from_right_to_left_moves_none_of_its_neighbours(opened, hostile_url):
    page = opened(1280, url=hostile_url)
    found = page.evaluate(PLACES, HEBREW)
    assert len(found) > 20
    turned = 0
    for places in found:
        for (first, left, top), (second, right, below) in pairwise(places):
            if first in HEBREW and second in HEBREW:
                turned += right < left
            elif below == top and not {first, second} & set(HEBREW):
                assert right >= left, (first, second)
    assert turned > 20  # the letters themselves are set from right to left


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_over_seeds_is_drawn_fits_and_asks_for_nothing(opened, seeds_url, width):
    page = opened(width, url=seeds_url)
    assert [url for url in page.requests if url != seeds_url and not url.startswith(("data:", "blob:"))] == []
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelectorAll('.chart').length") == 1


def boxes(page, chart, *parts):
    """Where parts of a chart lie, all at one moment: what is drawn elsewhere may move the chart."""
    return page.evaluate(
        "([id, parts]) => { const chart = document.getElementById(id);"
        " return parts.map(part => part === ':scope' ? chart : chart.querySelector(part))"
        ".map(each => each.getBoundingClientRect().toJSON()) }",
        [f"chart-{chart}", parts],
    )


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_two_organisms_is_drawn_fits_and_its_legends_lie_on_nothing(opened, organisms_url, width):
    page = opened(width, url=organisms_url)
    assert [url for url in page.requests if url != organisms_url and not url.startswith(("data:", "blob:"))] == []
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.evaluate("[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('.trace').length)")
    assert len(drawn) == 2 * (6 + 1)  # of each organism two of three fine-tunes, and an overlap
    assert min(drawn) > 0
    for chart in ("organism-0-energy-0", "overlap-organism-1-main"):
        legend, plot = boxes(page, chart, ".legend", ".draglayer .xy .nsewdrag")
        assert legend["bottom"] <= plot["top"] + 1
        assert legend["right"] <= width


@pytest.mark.parametrize("width", [390, 1280])
def test_the_legend_of_the_constraint_does_not_lie_on_the_chart(opened, width):
    page = opened(width)
    legend, plot = boxes(page, "constraint", ".legend", ".draglayer .xy .nsewdrag")
    assert legend["bottom"] <= plot["top"] + 1
    assert legend["right"] <= width


@pytest.mark.parametrize("width", [390, 1280])
def test_legends_and_steps_of_a_watched_run_lie_on_nothing(opened, width):
    page = opened(width)
    numbers = ("", 2, 3, 4, 5, 6)
    parts = [part for n in numbers for part in (f".legend{n}", f".draglayer .x{n}y{n} .nsewdrag")]
    chart, *found = boxes(page, "watching-0", ":scope", *parts)
    above = chart["top"] - 1
    for legend, plot in zip(found[::2], found[1::2], strict=True):
        assert above <= legend["top"] < legend["bottom"] <= plot["top"] + 1
        assert legend["right"] <= width
        above = plot["bottom"]
    every = "[...document.querySelectorAll('#chart-watching-0{}')].map(each => each.getBoundingClientRect().toJSON())"
    for chart in ("", "-layers-0", "-layers-1"):
        labels = page.evaluate(every.format(f"{chart} .xaxislayer-above text"))
        assert len(labels) > 3
        ends = sorted((label["left"], label["right"]) for label in labels)
        assert all(right < left for (_, right), (left, _) in pairwise(ends))


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("seeds", [False, True])
def test_the_sections_on_hidden_states_are_drawn_fit_and_their_legends_lie_on_nothing(
    opened, hidden_url, hidden_seeds_url, width, seeds
):
    url = hidden_seeds_url if seeds else hidden_url
    page = opened(width, url=url)
    assert [asked for asked in page.requests if asked != url and not asked.startswith(("data:", "blob:"))] == []
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.evaluate("[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('.trace, .hm').length)")
    # Four of activations, two of each of two negatives, two interventions, a loss; over seeds one of steering.
    assert len(drawn) == (9 if seeds else 11)
    assert min(drawn) > 0
    boxes = "[...document.querySelectorAll('#{} {}')].map(each => each.getBoundingClientRect().toJSON())"
    charts = page.evaluate("[...document.querySelectorAll('.chart')].filter(c => c.layout.annotations).map(c => c.id)")
    assert len(charts) == (9 if seeds else 10)
    for chart in charts:
        titles = page.evaluate(boxes.format(chart, ".annotation-text"))
        legends = page.evaluate(boxes.format(chart, "g.legend"))
        assert titles
        for legend in legends:
            assert legend["right"] <= width
            assert legend["bottom"] <= min(title["top"] for title in titles) + 1


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_the_page_opens_with_its_answer_and_all_else_is_a_link_away(opened, page_url, width):
    page = opened(width, folded=True)
    assert page.evaluate("document.querySelectorAll('details[open].section').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelectorAll('.answer').length") == 1
    tiles = page.evaluate("[...document.querySelectorAll('.tiles li')].map(each => each.innerText)")
    assert 4 <= len(tiles) <= 6
    assert all("n = " in tile for tile in tiles)
    assert page.evaluate("document.querySelector('.opening .chart').id").startswith("chart-energy-")
    page.evaluate("document.querySelector('.opening .chart').scrollIntoView()")
    until(page, "document.querySelector('.opening .chart').dataset.drawn === 'true'")
    page.evaluate("location.hash = '#overlap'")
    until(page, "document.querySelector('#overlap details.section').open")
    page.evaluate("location.hash = '#term-overlap'")
    until(page, "document.querySelector('#glossary details').open")
    assert page.complaints == []


# Kept from the first line of the page on: when the library of charts was there.
LIBRARY_READ = """Object.defineProperty(window, 'Plotly', {
  configurable: true,
  set(library) {
    window.libraryRead = performance.now();
    Object.defineProperty(window, 'Plotly', { value: library, writable: true });
  },
})"""
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint').map(paint => paint.startTime)"
LOADS = 10


def test_the_text_stands_within_a_second_and_before_the_library_of_charts_is_read(browser, page_url):
    paints = []
    for _ in range(LOADS):  # other work on the machine only ever adds to the time: one undisturbed load tells
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.add_init_script(LIBRARY_READ)
        page.goto(page_url)
        until(page, "window.libraryRead !== undefined")
        (paint,) = page.evaluate(FIRST_PAINT)
        assert paint < page.evaluate("window.libraryRead")
        page.close()
        paints.append(paint)
        if paint < 1000:
            break
    assert min(paints) < 1000


@pytest.mark.parametrize("hash", ["#100%", "#%E4", "#nothing", "#overlap"])
def test_no_link_to_the_page_keeps_its_scripts_from_running(browser, page_url, hash):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(page_url + hash)
    page.evaluate("document.querySelector('.opening .chart').scrollIntoView()")
    until(page, "document.querySelector('.opening .chart').dataset.drawn === 'true'")
    assert page.evaluate("document.querySelectorAll('.contents button').length") == 1
    assert page.evaluate("document.querySelectorAll('.opening .export button').length") == 3
    assert complaints == []
    page.close()


def test_numbers_in_the_cells_of_a_heatmap_are_shown_and_not_their_template(opened, hidden_url):
    page = opened(1280, url=hidden_url)
    texts = "[...document.querySelectorAll('.chart {}')].map(each => each.textContent)"
    assert [text for text in page.evaluate(texts.format("text")) if "%{" in text] == []
    cells = page.evaluate(texts.format(".heatmap-label"))
    assert cells
    assert all(re.fullmatch(r"[+-]\d\.\d\d", cell) for cell in cells)


def test_nothing_is_shared_and_no_bar_of_plotly_is_drawn(opened):
    page = opened(1280)
    assert page.evaluate("document.querySelectorAll('.modebar-btn, [data-title*=hare]').length") == 0


def saved(page, button):
    with page.expect_download() as download:
        button.click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def test_charts_and_tables_can_be_saved_with_all_their_digits(opened, page_url):
    page = opened(1280)
    figure = page.locator("figure").first.locator(".export button")
    files = {name.rpartition(".")[2]: content for name, content in (saved(page, figure.nth(at)) for at in range(3))}
    assert files["svg"].startswith(b"<svg")
    assert files["png"].startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO(files["csv"].decode())))
    assert {row["y_name"] for row in rows} == {"Harm score", "Refusal margin (nats)"}
    shown = page.evaluate("document.querySelector('.opening .chart').calcdata.flat().map(point => point.y)")
    levels = page.evaluate("document.querySelector('.opening .chart').layout.shapes.map(line => [line.name, line.y0])")
    assert {float(row["y"]) for row in rows} <= {*shown, *(level for _, level in levels)}
    table = page.locator("#models .export").first.locator("button")
    files = [saved(page, table.nth(at)) for at in range(3)]
    kept = {name.rpartition(".")[2]: content.decode() for name, content in files}
    rows = list(csv.DictReader(io.StringIO(kept["csv"])))
    assert rows[0]["model"] == "base"
    assert float(rows[0]["utility ±"]) > 0
    assert kept["tex"].count("\\\\") == len(rows) + 1
    assert kept["md"].count("\n") == len(rows) + 2
    assert [url for url in page.requests if url != page_url and not url.startswith(("data:", "blob:"))] == []


def rows_of(page, section):
    """The numbers of the first chart of a section, as they are saved."""
    buttons = page.locator(f"#{section} figure").first.locator(".export button")
    _, content = saved(page, buttons.nth(2))
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_the_numbers_of_a_chart_say_panel_axes_choice_and_chance(opened, hidden_url):
    page = opened(1280)
    overlaps = rows_of(page, "overlap")
    assert {row["energy"] for row in overlaps} == {"0.5", "0.9"}
    assert {"useful - harmful: chance", "useful - harmful: matched chance"} <= {row["series"] for row in overlaps}
    assert {row["value"] for row in overlaps if row["x_name"] == "layer" and row["y"]} == {"0", "1", "2", "3"}
    runs = rows_of(page, "constraint")
    assert {(row["panel"], row["y_name"]) for row in runs} == {("1", "Harm score"), ("2", "Refusal margin (nats)")}
    assert {row["x_name"] for row in runs if row["x"]} == {"Utility"}
    assert [row["y"] for row in runs if row["series"] == "aligned" and row["panel"] == "1"]
    probes = rows_of(opened(1280, url=hidden_url), "probes")
    assert {"Accuracy, without erasure", "AUC, without erasure"} <= {row["panel"] for row in probes}
    assert {row["x_name"] for row in probes} == {"layer"}
    assert {"chance", "linear, control task", "linear"} <= {row["series"] for row in probes}


def test_latex_has_minus_signs_in_mathematics_and_no_character_that_it_reads_otherwise(opened):
    page = opened(1280)
    compared = page.locator("#models details.section > details").nth(1).locator(".export button")
    content = saved(page, compared.nth(1))[1].decode()
    cells = [cell for line in content.splitlines() if "&" in line for cell in line.removesuffix(r" \\").split(" & ")]
    assert re.search(r"\$-\d+\.\d\d\$ to \$[+-]\d+\.\d\d\$", content)
    assert "$<$ $.001$" in cells
    outside = [part for cell in cells for part in cell.split("$")[::2]]
    assert not [part for part in outside if re.search(r"[<>|]|[-+]\d", part)]


def test_hostile_names_stay_text_in_what_is_saved(opened, hostile_url):
    page = opened(1280, url=hostile_url)
    buttons = page.locator("#models .export").first.locator("button")
    (_, table), (_, latex), (_, markdown) = (saved(page, buttons.nth(at)) for at in range(3))
    cells = [cell for row in csv.reader(io.StringIO(table.decode())) for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=@" and cell]
    assert b"<script" not in markdown.replace(b"\\<", b"")
    assert b"\\textbackslash" in latex or b"\\_" in latex


def test_paper_has_every_section_and_cuts_nothing(opened):
    page = opened(1280, folded=True)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 1000})
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    until(page, f"{NOT_DRAWN}.length === 0")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    wide = "[...document.querySelectorAll('.main-svg, table')].map(each => each.getBoundingClientRect().right)"
    assert max(page.evaluate(wide)) <= 701
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details[open].section').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_bars_a_reader_with_a_keyboard_or_a_screen_reader(opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is in the extra")
    found = axe.Axe().run(opened(1280, color_scheme=scheme)).response["violations"]
    assert [(each["id"], each["impact"]) for each in found if each["impact"] in ("serious", "critical")] == []

"""The report in a real browser: nothing leaves the machine, nothing fails, everything is drawn and fits."""

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
ALL_DRAWN = "[...document.querySelectorAll('.chart')].every(chart => chart.dataset.drawn === 'true')"

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


@pytest.fixture
def opened(browser, page_url):
    """Open the page at a width; every request and complaint is kept."""
    pages = []

    def open_page(width, url=page_url, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda line: line.type in ("error", "warning") and page.complaints.append(line.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(url)
        page.wait_for_function(ALL_DRAWN, timeout=60_000)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_drawn_fits_and_asks_for_nothing(opened, page_url, width):
    page = opened(width)
    assert [url for url in page.requests if url != page_url and not url.startswith(("data:", "blob:"))] == []
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.evaluate("[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('.trace, .hm').length)")
    # The constraint, a watched run with two heatmaps, three fine-tunes, an overlap, losses of free and held runs
    assert len(drawn) == 10
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
    page.wait_for_function(f"JSON.stringify({shown}) === '[[0.5]]'")
    assert page.complaints == []


def test_dark_paper_gets_light_ink_in_the_charts(opened):
    inks = [
        opened(1280, color_scheme=scheme).evaluate("document.querySelector('.chart').layout.font.color")
        for scheme in ("light", "dark")
    ]
    assert inks == ["#1b1f24", "#e4e7eb"]


def test_folded_answers_open_and_show_escaped_text(opened):
    page = opened(1280)
    page.click("#generations summary")
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
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
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
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
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


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_two_organisms_is_drawn_fits_and_its_legends_lie_on_nothing(opened, organisms_url, width):
    page = opened(width, url=organisms_url)
    assert [url for url in page.requests if url != organisms_url and not url.startswith(("data:", "blob:"))] == []
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.evaluate("[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('.trace').length)")
    assert len(drawn) == 2 * (3 + 1)  # of each organism three fine-tunes and an overlap
    assert min(drawn) > 0
    for chart in ("organism-0-energy-0", "overlap-organism-1-main"):
        legend, plot = (
            page.evaluate(f"document.querySelector('#chart-{chart} {part}').getBoundingClientRect().toJSON()")
            for part in (".legend", ".draglayer .xy .nsewdrag")
        )
        assert legend["bottom"] <= plot["top"] + 1
        assert legend["right"] <= width


@pytest.mark.parametrize("width", [390, 1280])
def test_the_legend_of_the_constraint_does_not_lie_on_the_chart(opened, width):
    page = opened(width)
    legend, plot = (
        page.evaluate(f"document.querySelector('#chart-constraint {part}').getBoundingClientRect().toJSON()")
        for part in (".legend", ".draglayer .xy .nsewdrag")
    )
    assert legend["bottom"] <= plot["top"] + 1
    assert legend["right"] <= width


@pytest.mark.parametrize("width", [390, 1280])
def test_legends_and_steps_of_a_watched_run_lie_on_nothing(opened, width):
    page = opened(width)
    boxes = "[...document.querySelectorAll('#chart-watching-0{}')].map(each => each.getBoundingClientRect().toJSON())"
    above = page.evaluate(boxes.format(""))[0]["top"] - 1
    for number in ("", 2, 3, 4, 5, 6):
        parts = f" .legend{number}", f" .draglayer .x{number}y{number} .nsewdrag"
        legend, plot = (page.evaluate(boxes.format(part))[0] for part in parts)
        assert above <= legend["top"] < legend["bottom"] <= plot["top"] + 1
        assert legend["right"] <= width
        above = plot["bottom"]
    for chart in ("", "-layers-0", "-layers-1"):
        labels = page.evaluate(boxes.format(f"{chart} .xaxislayer-above text"))
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

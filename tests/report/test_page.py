import json
import os
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs_version
from support.synthetic_alignments import DPO, SFT, write_all
from support.synthetic_study import ENERGY_EXPLAINS_ALL, HOSTILE, STAGES, World, write_study

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.report.command import report
from safety_subspaces.report.pages.studies import read_page
from safety_subspaces.report.parts.glossary import Glossary
from safety_subspaces.report.parts.page import GENERATOR, SEARCHED_HEAD, is_page, make_chart
from safety_subspaces.report.parts.table import Table, duration


class Elements(HTMLParser):
    """Collects the tags of a page, outside of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("runs") / "organism-0", World(unscored_rows=5))
    return report(str(folder)).path.read_text()


def test_the_page_lies_in_the_study_and_is_replaced(tmp_path):
    folder = write_study(tmp_path / "s", analyses=("evaluate",))
    path = report(str(folder)).path
    assert path == folder / "report" / "index.html"
    assert report(str(folder)).path == path
    assert [entry.name for entry in path.parent.iterdir()] == ["index.html"]
    assert report(str(folder), str(tmp_path / "other.html")).path == tmp_path / "other.html"


def test_a_page_that_was_written_elsewhere_is_replaced(tmp_path):
    folder = write_study(tmp_path / "s", analyses=("evaluate",))
    path = tmp_path / "pages" / "other.html"
    assert report(str(folder), str(path)).path == report(str(folder), str(path)).path == path
    assert is_page(path)


def test_the_studys_own_page_of_an_earlier_version_is_replaced(tmp_path):
    folder = write_study(tmp_path / "s", analyses=("evaluate",))
    page = folder / "report" / "index.html"
    page.parent.mkdir()
    page.write_text("a page without a generator")
    report(str(folder))
    assert is_page(page)


def test_a_file_that_is_no_page_is_not_written_over(tmp_path):
    folder = write_study(tmp_path / "s", analyses=("evaluate",))
    notes = tmp_path / "notes.html"
    for text in ("my notes", "", "x" * SEARCHED_HEAD + GENERATOR):
        notes.write_text(text)
        with pytest.raises(InputError, match="not written over"):
            report(str(folder), str(notes))
        assert notes.read_text() == text


@pytest.mark.parametrize("out", ["folder", "new/", "notes/page.html", ""])
def test_a_folder_or_a_path_through_a_file_is_refused(tmp_path, monkeypatch, out):
    folder = write_study(tmp_path / "s", analyses=("evaluate",))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes").write_text("my notes")
    with pytest.raises(InputError, match=r"expected a (file|folder) to write"):
        report(str(folder), out)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "notes", "s"]


def test_without_fine_tunes_the_page_names_the_training_that_analyses_need(tmp_path):
    text = report(str(write_study(tmp_path / "s", analyses=("evaluate",), stages=("base", "aligned")))).path.read_text()
    assert "configs/organism/useful.yaml" in text
    assert "python analyze.py project --base" not in text


def test_the_page_asks_no_host_for_anything(page):
    for tag, attributes in Elements(page).tags:
        assert not (tag == "script" and "src" in attributes)
        assert tag not in ("img", "iframe", "object")
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "default-src 'none'" in page
    assert "@import" not in page.split("</style>")[0]


def test_the_library_of_charts_is_inlined_once_at_the_version_that_figures_are_made_for(page):
    assert re.findall(r"plotly\.js \(cartesian - minified\) v([\d.]+)", page) == [get_plotlyjs_version()]
    assert len(page) < 3_000_000


def test_a_chart_that_the_library_cannot_draw_is_refused_by_its_trace():
    with pytest.raises(InputError, match="chart cube has a trace scatter3d; a page draws bar, box"):
        make_chart("cube", "", "", go.Figure(go.Scatter3d(x=[0], y=[0], z=[0])).update_layout(height=100))


def test_templates_of_a_chart_stay_ours_and_the_texts_that_they_show_stay_text():
    cells = {"z": [[1.0]], "text": [["<b>%{z}</b>"]], "texttemplate": "%{text}", "hovertemplate": "%{z}<extra></extra>"}
    drawn = json.loads(make_chart("cells", "", "", go.Figure(go.Heatmap(cells)).update_layout(height=100)).json)
    (trace,) = drawn["data"]
    assert trace["texttemplate"] == "%{text}"
    assert trace["hovertemplate"] == "%{z}<extra></extra>"
    assert trace["text"] == [["&lt;b>%&#123;z}&lt;/b>"]]


def test_terms_are_linked_once_a_section_and_the_glossary_has_those_alone():
    glossary, seen = Glossary(), set()
    html = glossary.linked(escape("Alignment's subspace: overlap & overlap <b> margin-free"), seen)
    assert html.count('href="#term-overlap"') == 1
    assert html.count('href="#term-alignment-subspace"') == 1
    assert "&lt;b&gt;" in html
    assert "term-refusal-margin" not in html
    assert [term.name for term in glossary.terms()] == ["alignment subspace", "overlap"]
    assert 'href="#term-refusal-margin"' in glossary.heading("margin")
    assert glossary.linked(Markup("<code>overlap</code>"), set()) == "<code>overlap</code>"


def test_a_cell_keeps_the_digits_that_it_does_not_show(page):
    assert re.search(r'data-value="\d\.\d{10,}" data-error="0\.\d{10,}">\d\.\d\d±0\.\d\d<', page)


def test_every_section_of_the_navigation_exists(page):
    tags = Elements(page).tags
    anchors = [a["href"][1:] for tag, a in tags if tag == "a" and a.get("href", "").startswith("#")]
    assert set(anchors) <= {a.get("id") for _, a in tags}
    assert {"models", "constraint", "energy", "selectivity", "overlap", "limits", "provenance"} <= set(anchors)


def test_hostile_text_is_escaped_everywhere(page):
    assert HOSTILE not in page
    assert "&lt;/script&gt;&lt;script&gt;window.broken" in page
    assert not any(tag == "img" for tag, _ in Elements(page).tags)


def test_unscored_answers_are_shown_as_such_and_missing_numbers_as_no_number(page):
    assert "unscored · <bdi>no verdict in the judge&#39;s answer</bdi>" in page
    assert ">nan<" not in page
    assert "nan±" not in page


def test_a_study_with_one_analysis_gives_a_page_that_names_the_commands_for_the_rest(tmp_path):
    text = report(str(write_study(tmp_path / "s", analyses=("evaluate",)))).path.read_text()
    assert "python analyze.py project" in text
    assert "python analyze.py overlap" in text
    assert "python analyze.py evaluate --models" not in text


def test_a_study_without_stages_or_without_charts_is_still_a_page(tmp_path):
    text = report(str(write_study(tmp_path / "s", analyses=("evaluate",), stages=()))).path.read_text()
    assert "python train.py fit" not in text  # the models were trained elsewhere
    assert 'id="plotly-js"' not in text


def test_projections_that_were_not_evaluated_say_how_to_evaluate_them(tmp_path):
    text = report(str(write_study(tmp_path / "s", evaluated=False))).path.read_text()
    assert "--evaluate true" in text
    assert 'id="chart-energy-kept"' in text


def test_other_analyses_are_shown_as_tables(tmp_path):
    text = report(str(write_study(tmp_path / "s", analyses=("evaluate", "atlas")))).path.read_text()
    assert "atlas / main" in text


def test_a_missing_study_is_one_error(tmp_path):
    with pytest.raises(InputError, match="make demo"):
        report(str(tmp_path / "none"))


def test_provenance_has_commit_command_and_short_hashes(page):
    assert "c0ffeec0ffee with changes" in page
    assert "train.py fit --config configs/organism/base.yaml" in page
    assert "abababababab<" in page
    assert "a zero update has no direction" in page


def test_terminal_text_fits_the_width_and_has_every_model(tmp_path):
    made = report(str(write_study(tmp_path / "s", ENERGY_EXPLAINS_ALL)))
    for width in (80, 110, 200):
        lines = made.to_text(width).splitlines()
        assert len(lines) <= 25
        assert max(len(line) for line in lines if not line.startswith(("  python ", "report: "))) <= width
        assert {line.split()[0] for line in lines if line} >= {*STAGES}
        assert "- Alignment was learnt." in lines
        assert lines[-1] == f"report: {made.path}"
    assert "random-energy" in str(made.tables)


def test_the_terminal_summary_names_the_next_step(tmp_path):
    made = report(str(write_study(tmp_path / "s", analyses=())))
    assert made.missing[0].startswith("python analyze.py evaluate")
    assert made.missing[0] in str(made)
    assert {command.split()[2] for command in made.missing} >= {"evaluate", "project", "overlap"}


@pytest.mark.parametrize("count", [1, 3])
def test_a_page_of_one_study_and_of_several_has_the_same_sections(tmp_path, count):
    folders = [str(write_study(tmp_path / f"organism-{seed}", World(seed=seed))) for seed in range(count)]
    page = report(folders)
    text = page.path.read_text()
    assert is_page(page.path)
    for anchor in ("runs", "models", "energy", "selectivity", "overlap", "limits", "provenance"):
        assert f'<section id="{anchor}"' in text
    assert ">nan<" not in text
    assert not re.search(r"\bnan\b", re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL).lower())
    assert max(len(line) for line in str(page).splitlines() if not line.startswith("  python ")) <= 110
    if count > 1:
        assert page.path == tmp_path / "study" / "report" / "index.html"
        assert "3 studies that differ in their seed" in text
        assert "writes its own page" in text


def test_two_alignments_stand_beside_each_other_with_sections_of_their_own(tmp_path):
    folders = write_all(tmp_path, [SFT, DPO], 2, ("overlap",))
    page = read_page(folders)
    assert page.parts[0].name == "Side by side"
    assert len(page.parts) == 3
    anchors = [section.anchor for part in page.parts for section in part.sections]
    assert len(anchors) == len(set(anchors))
    names = [chart.name for part in page.parts for section in part.sections for chart, _ in section.charts]
    assert len(names) == len(set(names))
    assert "Side by side" in next(iter(page.tables))


def test_a_table_gives_way_in_its_text_columns_alone():
    table = Table(("name", "value"), (("a" * 40, "1.25"), ("b", "-10.50")), note="words " * 10)
    lines = table.to_text(width=40).splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[2].endswith("  1.25")
    assert "…" in lines[2]
    assert lines[3].endswith("-10.50")


def test_durations_are_written_for_people():
    assert [duration(s) for s in (54.2, 185, 7800, None)] == ["54 s", "3 min 05 s", "2 h 10 min", "-"]


def test_the_page_says_nothing_of_home_folders_users_and_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "homes" / "zebedee"))
    monkeypatch.setenv("LOGNAME", "zebedee")
    monkeypatch.setenv("MY_API_KEY", "zz-Very7Secret9Key-of-42")
    folder = write_study(tmp_path / "homes" / "zebedee" / "s", analyses=("evaluate",))
    for path in (*folder.rglob("manifest.json"), *folder.rglob("result.json")):
        record = json.loads(path.read_text())
        origin = record.get("provenance", record)
        said = ["--a", str(folder / "deep"), "--b=/home/florence/c", "/scratch/zebedee/d", os.environ["MY_API_KEY"]]
        origin["command"] = ["x.py", *said]
        record["inputs"] = [{"path": str(folder / "model"), "sha256": None}]
        path.write_text(json.dumps(record))
    text = report(str(folder)).path.read_text()
    assert "--a ~/s/deep --b=~/c /scratch/~/d ***MY_API_KEY***" in text
    assert "~/s/model" in text
    for known in ("zebedee", "florence", "Very7Secret"):
        assert known not in text

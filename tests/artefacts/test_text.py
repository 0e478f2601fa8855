"""What texts of others can do to a table, a spreadsheet, a terminal or TensorBoard: nothing."""

import csv
import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hostile_text import ALL, HALF, LONG, MARKDOWN, MARKUP, TERMINAL
from tensorboard.plugin_util import markdown_to_safe_html
from torch.utils.tensorboard import SummaryWriter

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.results import ResultFolder
from safety_subspaces.artefacts.study import read_study
from safety_subspaces.artefacts.text import MOST_CHARACTERS, as_cell, as_code, encodable_value, from_cell, shown
from safety_subspaces.training.board import config_text, hyperparameters

FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://example.invalid")', "＝1+1"]
NUMBERS = ["-0.1", "+5", "-1e-3", "-.5", "-inf", "nan", "-2."]


@given(st.text(st.characters(codec=None)))
def test_what_is_shown_moves_no_cursor_and_can_be_written_anywhere(text):
    seen = shown(text)
    seen.encode("utf-8")
    assert not [sign for sign in seen if (ord(sign) < 32 and sign not in "\t\n") or 0x7F <= ord(sign) < 0xA0]
    assert not set(seen) & set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")


def test_letters_of_every_script_stay_and_what_is_too_long_is_cut():
    text = "Grüße, שלום, 你好, می‌خواهم, 👩‍🔬\n\tindented"
    assert shown(text) == text
    assert shown("a\x1b[2Jb\u202ec\ud800") == "a\\x1b[2Jb\\u202ec\\ud800"
    assert len(shown(LONG)) < MOST_CHARACTERS + 50
    assert "990,000 more characters" in shown(LONG)


@given(st.text() | st.sampled_from(FORMULAS + NUMBERS) | st.from_regex(r"\A'*[=+\-@]?[0-9a]*\Z"))
def test_a_cell_gives_back_what_was_put_into_it(text):
    assert from_cell(as_cell(text)) == text


@pytest.mark.parametrize("sign", ["+", "-", "=", "@"])
def test_a_sign_alone_is_no_formula(sign):
    assert as_cell(sign) == sign


def test_texts_that_a_spreadsheet_would_run_are_text_in_the_csv_and_unchanged_in_the_parquet(tmp_path):
    table = pd.DataFrame({"=name": [*FORMULAS, *NUMBERS], "value": -0.5})
    with ResultFolder(tmp_path / "out", "mine", {}, []) as folder:
        folder.write_table(table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "table.parquet"), table)
    with (tmp_path / "out" / "table.csv").open(encoding="utf-8", newline="") as stream:
        head, *rows = list(csv.reader(stream))
    assert head == ["'=name", "value"]
    assert [row[0] for row in rows] == [f"'{text}" for text in FORMULAS] + NUMBERS
    assert {row[1] for row in rows} == {"-0.5"}


def test_a_table_that_is_read_from_its_csv_alone_has_its_names_again(tmp_path):
    out = tmp_path / "study" / "analysis" / "evaluate" / "main"
    with ResultFolder(out, "evaluate", {"models": {}}, []) as folder:
        folder.write_table(pd.DataFrame({"model": ["=1+1", "-0.1", "plain"], "utility": [-0.5, 0.5, 1.0]}))
    (out / "table.parquet").unlink()
    models = read_study(tmp_path / "study").models
    assert list(models["model"]) == ["=1+1", "-0.1", "plain"]
    assert list(models["utility"]) == [-0.5, 0.5, 1.0]


def test_half_a_surrogate_pair_in_a_table_is_written_as_its_escape(tmp_path):
    with ResultFolder(tmp_path / "out", "mine", {}, []) as folder:
        folder.write_table(pd.DataFrame({"text": pd.Series([HALF], dtype=object)}))
    assert list(pd.read_parquet(tmp_path / "out" / "table.parquet")["text"]) == ["cut \\ud83d"]
    assert list(pd.read_csv(tmp_path / "out" / "table.csv")["text"]) == ["cut \\ud83d"]
    with pytest.raises(InputError, match="UTF-8"):
        ResultFolder(tmp_path / "out", "mine", {"models": {HALF: "path"}}, [])
    assert encodable_value(json.loads('{"a": ["\\ud83d", 1], "\\ud83d": null}')) == {
        "a": ["\\ud83d", 1],
        "\\ud83d": None,
    }


@pytest.mark.parametrize("text", [MARKUP, MARKDOWN, ALL, LONG, TERMINAL, f"```\n{MARKDOWN}", f"\n\n{MARKDOWN}"])
def test_tensorboard_shows_a_text_as_it_is(text, tmp_path):
    code = as_code(text)
    html = markdown_to_safe_html(f"**answer**\n\n{code}")
    assert [tag for tag in ("<img", "<a ", "<h1", "<li", "<b>") if tag in html] == []
    assert len(html) < 20 * MOST_CHARACTERS
    writer = SummaryWriter(str(tmp_path))
    writer.add_text("answers", code, 0)
    writer.close()


def test_settings_and_hyperparameters_of_a_run_can_be_logged_whatever_they_hold():
    config = {"data": {"path": ALL, "prefix": LONG}}
    config_text(config).encode()
    values = hyperparameters({"config": config, "parts": []})
    assert all(len(str(value).encode()) < 2 * MOST_CHARACTERS for value in values.values())

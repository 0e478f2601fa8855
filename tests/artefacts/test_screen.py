"""Tables in a terminal: as wide as it is, few columns, numbers whole, texts as text."""

import pandas as pd
import pytest
from rich.cells import cell_len

from safety_subspaces.artefacts.screen import MOST_COLUMNS, MOST_ROWS, View, frame_text, table_text

DRAWS = pd.DataFrame(
    {
        "tuned": ["useful"] * 4,
        "subspace": ["top", "random", "random", "random"],
        "draw": pd.array([0, 0, 1, 2], dtype="Int64"),
        "energy_kept": [0.5, 0.1, 0.2, 0.3],
        "harm_score": [1.0, 2.0, float("nan"), 4.0],
        "harm_score_stderr": [0.25, 0.5, float("nan"), 0.5],
        "judge": ["phrases"] * 4,
        "nothing": [float("nan")] * 4,
    }
)
BY_SUBSPACE = View(
    ("energy_kept", "nothing", "harm_score", "absent"), "What it means.", ("tuned", "subspace"), over="draws"
)


def test_rows_that_differ_in_their_draw_are_one_line_with_mean_and_standard_deviation() -> None:
    header, _, top, random, note = frame_text(DRAWS, BY_SUBSPACE).splitlines()
    assert header.split() == ["tuned", "subspace", "energy_kept", "harm_score"]
    assert top.split() == ["useful", "top", "0.5", "1"]
    assert random.split() == ["useful", "random", "0.20±0.10", "3.0±1.4"]
    assert note == "What it means. Means ± standard deviation over draws. Judge: phrases."


def test_rows_of_their_own_have_the_standard_error_that_stands_beside_a_measure() -> None:
    text = frame_text(DRAWS.iloc[:2], BY_SUBSPACE)
    assert "1.00±0.25" in text
    assert "± one standard error." in text
    renamed = View(("energy_kept",), "", errors=(("energy_kept", "harm_score_stderr"),))
    assert "0.50±0.25" in frame_text(DRAWS, renamed)


def test_a_view_chooses_rows_and_shows_all_where_none_is_left() -> None:
    for level, lines in ((0.25, 2), (9, 4)):
        view = View(("draw", "energy_kept"), "", where=lambda table, level=level: table["energy_kept"] > level)
        assert len(frame_text(DRAWS, view).splitlines()) == 2 + lines + len(["Judge: phrases."])


def test_a_table_without_a_view_shows_its_first_columns_and_rows() -> None:
    wide = pd.DataFrame({f"c{number}": range(MOST_ROWS + 5) for number in range(MOST_COLUMNS + 2)})
    lines = frame_text(wide).splitlines()
    assert len(lines[0].split()) == MOST_COLUMNS
    assert len(lines) == MOST_ROWS + 3
    assert lines[-1] == "5 more lines are in the table on disk."
    assert frame_text(wide.iloc[:0]).splitlines()[0].split() == [f"c{number}" for number in range(MOST_COLUMNS)]


@pytest.mark.parametrize("width", [30, 60, 110])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width: int) -> None:
    rows = [("日本語" * 20, "x" * 50, "123456789.25", "0.5±0.1"), ("b", "", "-", "1.5±0.1")]
    text = table_text(("name", "text", "value", "measure"), rows, (True, True, False, False), width)
    lines = text.splitlines()
    assert all(cell_len(line) <= width for line in lines)
    numbers = [column for column in ("value", "measure") if f" {column}" in lines[0]]
    assert ("123456789.25" in lines[2]) == ("value" in numbers)
    assert len(numbers) == 2 or "Too narrow for: " in text
    assert ("…" in lines[2]) or width == 30


def test_a_file_has_each_line_whole() -> None:
    (line,) = table_text(("name", "value"), [("long name " * 30, "1")], (True, False)).splitlines()[2:]
    assert line.split() == [*["long", "name"] * 30, "1"]


def test_texts_are_no_markup_no_links_and_no_lines_of_their_own() -> None:
    hostile = "[red]x[/] :smile: \x1b[31m \u202e a\nb https://example.invalid"
    lines = table_text(("[bold]n", "v"), [(hostile, "1")], (True, False)).splitlines()
    assert lines[0].startswith("[bold]n")
    assert lines[2].startswith("[red]x[/] :smile: \\x1b[31m \\u202e a\\nb https://example.invalid")
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [(0.12345, 0.0123, "0.123±0.012"), (22.913, 0.54, "22.91±0.54"), (1e-14, 2e-15, "1e-14±2e-15"), (7.0, 0.0, "7±0"),
     (1234.5, 120.0, "1234±120"), (float("nan"), 1.0, "-"), (0.5, float("nan"), "0.5")],
)  # fmt: skip
def test_a_number_has_the_digits_that_its_error_leaves(value: float, error: float, said: str) -> None:
    frame = pd.DataFrame({"name": ["a", "b"], "x": [value, 1.0], "x_stderr": [error, 0.5]})
    assert frame_text(frame, View(("name", "x"), "")).splitlines()[2].split() == ["a", said]

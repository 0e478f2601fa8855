"""The documents' numbers are written out of tables by a script, and the simulated rates are rates."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from support.tiny import ROOT

SCRIPT = runpy.run_path(str(ROOT / "docs" / "write_numbers.py"))
KEPT = {
    "about": {"studies": 2, "seeds": [0, 1], "machine": "a machine", "torch": "2", "date": "a day", "commit": "abc"},
    "tables": {"Models": {"columns": ["model", "harm"], "rows": [["a|b", "1.00±0.02"]], "note": "A note."}},
    "said": {"models": ["One thing.", "Another."]},
}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "study.json").write_text(json.dumps(KEPT))
    (tmp_path / "rates.csv").write_text('claim,rate\n"one, two",0.05\n')
    monkeypatch.setitem(SCRIPT["filled"].__globals__, "TABLES", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("mark", "lines"),
    [
        ("study | about", ["Seeds 0, 1 (2 studies); a machine, torch 2; a day, commit abc."]),
        ("study | said | models", ["- One thing.", "- Another."]),
        ("study | table | Models", ["| model | harm |", "| --- | --- |", "| a/b | 1.00±0.02 |", "", "A note."]),
        ("rates | csv", ["| claim | rate |", "| --- | --- |", "| one, two | 0.05 |"]),
    ],
)
def test_a_place_between_marks_is_written_anew_and_the_rest_is_left(tables: Path, mark: str, lines: list[str]) -> None:
    begin, end = f"Before.\n<!-- numbers: {mark} -->\n", "<!-- end of numbers -->\nAfter.\n"
    new = SCRIPT["filled"](f"{begin}an old number\n{end}")
    assert new == begin + "\n".join(lines) + f"\n{end}"
    assert SCRIPT["filled"](new) == new


def test_simulated_rates_are_summed_up_by_claim_and_power_by_world(tables: Path) -> None:
    columns = "claim,where,what is said,rate,95 % interval,nominal,studies,date\n"
    rows = ["a,one,x,0.010,0.0 to 0.1,0.05,400,d", "a,two,x,0.060,0.0 to 0.1,0.05,400,d", "a,two,y,0.020,-,0.05,9,d"]
    power = ["a,three,x,0.800,0.7 to 0.9,power,400,d", "a,three,y,0.100,0.0 to 0.2,power,400,d"]
    (tables / "nulls.csv").write_text(columns + "\n".join([*rows, *power]) + "\n")
    rates = SCRIPT["written"]("nulls | rates").splitlines()
    assert rates[2:] == ["| a | 2 | 3 | 0.020 | 0.060 (0.0 to 0.1): x; two | 0.05 | d |"]
    found = SCRIPT["written"]("nulls | power").splitlines()
    assert found[2:] == ["| a | three | x 0.800 (0.7 to 0.9); y 0.100 (0.0 to 0.2) |"]


@pytest.mark.parametrize("mark", ["study | table | None", "study | said | none", "study | chart"])
def test_a_mark_for_what_no_table_holds_is_an_error(tables: Path, mark: str) -> None:
    with pytest.raises(KeyError):
        SCRIPT["filled"](f"<!-- numbers: {mark} -->\n<!-- end of numbers -->")


def test_every_scenario_of_nothing_says_something_of_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from benchmarks import null_studies

    found = null_studies.scenarios()
    assert found
    for where in found:
        scenario = null_studies.scenario_at(*where)
        if scenario.slow_start:
            continue
        (said,) = null_studies.simulate(where, range(1))
        assert said, scenario.world
        assert all(value in (0, 1) or value != value for value in said.values()), scenario.world
        assert scenario.studies >= 400 or scenario.why_fewer, scenario.world
        # As often as it is allowed to is not too often; always is.
        assert not any(flag for flag, _ in null_studies.rows_of(scenario, [said]))
        always = [{"said": 1.0}] * 400
        assert [flag for flag, _ in null_studies.rows_of(scenario, always)] == [scenario.nominal is not None]


def test_the_pages_that_are_said_to_be_filled_are_those_that_are() -> None:
    filled = {page.relative_to(ROOT).as_posix() for page in SCRIPT["PAGES"] if SCRIPT["MARK"].search(page.read_text())}
    assert set(re.findall(r"``(docs/\S+\.md|README\.md)``", SCRIPT["__doc__"])) == filled
    target = re.search(r"^docs-numbers:.*## (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert target is not None
    assert set(re.findall(r"\S+\.md|README", target[1])) == {Path(page).name for page in filled}

"""Progress: one line a job."""

import io

import pytest

from safety_subspaces.artefacts.progress import Bar


def test_a_bar_within_another_is_told_behind_it() -> None:
    drawn = io.StringIO()
    outer = Bar(total=2, desc="evaluate", file=drawn, mininterval=0)
    outer.set_postfix_str("one", refresh=False)
    for _ in Bar(range(3), desc="harmful", file=drawn, leave=False):
        pass
    outer.update()
    outer.close()
    states = drawn.getvalue().split("\r")
    assert any("evaluate" in state and "one, harmful 2/3" in state for state in states)
    assert "harmful" not in states[-1]
    assert "\n" not in drawn.getvalue()[:-1]
    alone = io.StringIO()
    list(Bar(range(2), desc="next", file=alone))  # the first has ended: this one has a line
    assert "next: 100%" in alone.getvalue()


def test_a_job_that_breaks_leaves_its_line_to_the_next() -> None:
    with pytest.raises(ZeroDivisionError):
        sum(1 / each for each in Bar(range(2), file=io.StringIO()))
    drawn = io.StringIO()
    list(Bar(range(1), desc="next", file=drawn))
    assert "next" in drawn.getvalue()


def test_a_quiet_process_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bar, "quiet", True)
    drawn = io.StringIO()
    assert list(Bar(range(3), file=drawn)) == [0, 1, 2]
    assert drawn.getvalue() == ""

import math

from safety_subspaces.findings.finding import Finding, Words, decide
from safety_subspaces.report.parts.verdict import (
    by_verdict,
    corrected_p_words,
    estimate_words,
    family_words,
    finding_words,
)

WORDS = Words("more", "less", "not shown")


def found(*ps, **facts):
    return decide(Finding("t", "asked", str(p), estimate=1.0, p=p, words=WORDS, **facts) for p in ps)


def test_a_verdict_stands_with_its_subjects_and_the_largest_of_their_p():
    rows = found(0.001, 0.01, 0.6)
    assert list(by_verdict(rows)) == [("more", "0.001, 0.01", "p .020"), ("not shown", "0.6", "")]
    assert family_words(rows) == "3 tests"
    assert family_words(found(0.5)) == "1 test"
    assert family_words(rows.head(0)) == ""


def test_an_estimate_is_said_with_what_is_known_of_it():
    (row,) = (row for _, row in found(0.01, low=0.5, high=1.5).iterrows())
    assert estimate_words(row, more="two seeds") == "+1.00 (95 % +0.50 to +1.50, two seeds)"
    assert estimate_words(row) == "+1.00 (95 % +0.50 to +1.50)"
    assert finding_words(row, 1) == "+1.0 (95 % +0.5 to +1.5, p .010, of 1 test): more"
    (row,) = (row for _, row in found(math.nan).iterrows())
    assert estimate_words(row) == "+1.00"
    assert finding_words(row) == "+1.00: unknown"
    assert estimate_words(row.replace(1.0, math.nan)) == "not known"


def test_a_p_is_said_with_the_tests_that_it_is_corrected_for():
    assert corrected_p_words({"p_adjusted": 0.0123, "tests": 2}) == "p .012, of 2 tests"
    assert corrected_p_words({"p_adjusted": 0.0001, "tests": 1}) == "p < .001, of 1 test"
    assert corrected_p_words({"p_adjusted": 1.0, "tests": 3}) == "p 1.00, of 3 tests"
    assert corrected_p_words({"p_adjusted": math.nan, "tests": 0}) == ""
    (row,) = (row for _, row in found(0.01, low=0.5, high=1.5, unit="seeds", n=3).iterrows())
    assert finding_words(row) == "+1.00 (95 % +0.50 to +1.50, 3 seeds, p .010, of 1 test): more"

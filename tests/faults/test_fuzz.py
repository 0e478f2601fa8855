"""A sample of the wrong inputs that ``make faults`` reads more of: each is read, or refused by name, soon and small."""

import os

from fuzz import FAILED, fuzz
from fuzz_readers import READERS

INPUTS = 1000


def test_a_thousand_wrong_inputs_are_read_or_refused_by_name_soon_and_small() -> None:
    outcomes = fuzz(INPUTS, seed=0, jobs=min(2, os.cpu_count() or 1))
    assert [outcome.number for outcome in outcomes] == list(range(INPUTS))
    assert [outcome for outcome in outcomes if outcome.what == FAILED] == []
    assert {outcome.reader for outcome in outcomes} == set(READERS)
    refused = sum(outcome.what == "refused" for outcome in outcomes)
    assert INPUTS / 3 < refused < INPUTS  # they are wrong enough to be refused, and not all of them

"""Asserts that bad input is refused, and by what words."""

import re
from collections.abc import Callable

import pytest

from safety_subspaces.artefacts.errors import InputError


def refuse(call: Callable[[], object], *patterns: str) -> None:
    """Assert that a call raises an ``InputError`` whose message matches every pattern."""
    with pytest.raises(InputError) as refused:
        call()
    for pattern in patterns:
        assert re.search(pattern, str(refused.value)), f"{pattern!r} is not in {str(refused.value)!r}"

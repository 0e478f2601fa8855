"""How work on a list is shared out: in this process, or over the ranks of a run, which this package does not know."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
# Applies a function to a list and returns a result for each item, in order; the items may be shared out over ranks.
Spread = Callable[[Sequence[Item], Callable[[list[Item]], list[Result]]], list[Result]]


def in_this_process(items: Sequence[Item], compute: Callable[[list[Item]], list[Result]]) -> list[Result]:
    """Apply a function to a list in this process."""
    return compute(list(items))

"""Whether two numbers, texts or pages are the same but for the last digits of their numbers.

The same sums end in other digits on another processor, or with another library of linear algebra.
"""

import re
from html.parser import HTMLParser
from math import isclose, isnan
from typing import Any

# Orders of summation change float64 by 1e-13 of itself here, and the difference of two numbers near 1 by 1e-16; what a
# page prints has four digits.
RELATIVE, ABSOLUTE = 1e-6, 1e-15
NUMBER = re.compile(r"[-−+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")
# Elements whose content nobody reads.
UNREAD = ("script", "style")


def alike(one: Any, other: Any) -> bool:
    """Tell whether two values of a table, or two rows, are the same but for the last digits of their numbers."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE) or (isnan(one) and isnan(other))
    if isinstance(one, str) and isinstance(other, str):
        return one == other or _same_words(one, other)
    try:
        return one is other or bool(one == other)
    except (TypeError, ValueError):  # arrays, and pandas' missing value
        return False


def same_page(one: str, other: str) -> bool:
    """Tell whether two pages say the same, in their texts and in what their elements say of themselves."""
    return _same_words(_Text.of(one), _Text.of(other))


def _same_words(one: str, other: str) -> bool:
    if NUMBER.split(one) != NUMBER.split(other):
        return False
    return all(map(_same_number, NUMBER.findall(one), NUMBER.findall(other)))


def _same_number(one: str, other: str) -> bool:
    try:
        return one == other or alike(*(float(text.replace("−", "-").replace(",", "")) for text in (one, other)))
    except ValueError:  # a version or a date
        return False


class _Text(HTMLParser):
    """Collects the elements of a page with their attributes, and what a person reads in them."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self._unread = 0

    @classmethod
    def of(cls, page: str) -> str:
        """Return all of that as one text."""
        parser = cls()
        parser.feed(page)
        parser.close()
        return "\n".join(parser.said)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the element, and pass over the content of some."""
        self._unread += tag in UNREAD
        self.said += [tag, *(f"{name}={value}" for name, value in attrs)]

    def handle_endtag(self, tag: str) -> None:
        """Read on after such an element."""
        self._unread -= tag in UNREAD

    def handle_data(self, data: str) -> None:
        """Take a text."""
        if not self._unread:
            self.said.append(data)

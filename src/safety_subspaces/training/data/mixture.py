"""How much of a second source contaminates a first: "20 %" means two different things, so the share is always named."""

from typing import Literal

from safety_subspaces.artefacts.errors import InputError

ShareOf = Literal["total", "first"]


def contaminant_size(first: int, share: float, share_of: ShareOf) -> int:
    """Return how many examples of the second source to mix in.

    Of the *total*: ``n / (first + n) = share``. Of the *first*: ``n / first = share``. Twenty per cent beside 20,000 is
    5,000 by the one and 4,000 by the other, which is 16.7 % of the total.

    Raises:
        InputError: A share outside (0, 1) of the total, or not positive of the first.
    """
    if share_of == "total":
        if not 0 < share < 1:
            raise InputError(f"contamination share {share} of the total: expected a number between 0 and 1")
        return round(share * first / (1 - share))
    if share <= 0:
        raise InputError(f"contamination share {share} of the first source: expected a positive number")
    return round(share * first)

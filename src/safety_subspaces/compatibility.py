"""Whether two models can be compared at all: tensor by tensor, and token by token."""

from safety_subspaces.checkpoint import Checkpoint
from safety_subspaces.errors import InputError

MAX_DIFFERENCES = 5


def check_compatible(reference: Checkpoint, *others: Checkpoint) -> None:
    """Check that models can be compared tensor by tensor and token by token.

    Raises:
        InputError: Names or shapes differ (the first five differences are listed), or two tokenizers give a token
            different ids (the first is named).
    """
    vocabulary = reference.vocabulary()
    for other in others:
        differences = _shape_differences(reference, other)
        if differences:
            listed = "; ".join(differences[:MAX_DIFFERENCES])
            more = len(differences) - MAX_DIFFERENCES
            raise InputError(
                f"{reference.path} and {other.path} are not of one shape: {listed}"
                + (f"; and {more} more" if more > 0 else "")
                + ". Expected models that were fine-tuned from one another"
            )
        found = other.vocabulary()
        if vocabulary is not None and found is not None and vocabulary != found:
            raise InputError(
                f"the tokenizers of {reference.path} and {other.path} differ: "
                + _first_token_difference(vocabulary, found)
                + ". Rows of embeddings and head would stand for different tokens"
            )


def _shape_differences(reference: Checkpoint, other: Checkpoint) -> list[str]:
    mine, theirs = dict.fromkeys(reference.names), dict.fromkeys(other.names)
    differences = [f"{name} is not in {other.path}" for name in mine if name not in theirs]
    differences += [f"{name} is not in {reference.path}" for name in theirs if name not in mine]
    for name in mine:
        if name in theirs and reference.shape(name) != other.shape(name):
            differences.append(f"{name} is {reference.shape(name)} and {other.shape(name)}")
    return differences


def _first_token_difference(first: dict[str, int], second: dict[str, int]) -> str:
    differing = [token for token in {**first, **second} if first.get(token) != second.get(token)]
    token = min(differing, key=lambda token: min(first.get(token, 2**31), second.get(token, 2**31)))
    ids = ("missing" if found is None else f"id {found}" for found in (first.get(token), second.get(token)))
    return f"token {token!r} is {' and '.join(ids)}"

"""Whether two models can be compared at all: tensor by tensor, and token by token."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.weights.checkpoint import Checkpoint
from safety_subspaces.weights.names import part_of, type_of

MAX_DIFFERENCES = 5
# Types of tensors of which a row stands for a token.
BY_TOKEN = ("embeddings", "head")

logger = logging.getLogger(__name__)


def check_compatible(reference: Checkpoint, *others: Checkpoint, tensors: Sequence[str] = ()) -> None:
    """Check that models can be compared tensor by tensor and token by token, as far as they are compared.

    Args:
        reference: The model that the others are compared with.
        *others: They.
        tensors: Patterns of the tensors that are compared, as :func:`select_tensors`; all by default.

    Raises:
        InputError: Names or shapes differ (the first five differences are listed), or two tokenizers give a token
            different ids (the first is named) where embeddings or heads are compared.
    """
    for other in others:
        names = select_tensors(tuple(dict.fromkeys((*reference.names, *other.names))), tensors)
        differences = _shape_differences(reference, other, set(names))
        if differences:
            listed = "; ".join(differences[:MAX_DIFFERENCES])
            more = len(differences) - MAX_DIFFERENCES
            raise InputError(
                f"{reference.path} and {other.path} are not of one shape: {listed}"
                + (f"; and {more} more" if more > 0 else "")
                + ". Expected models that were fine-tuned from one another"
                + _other_names(reference, other)
            )
        if any(type_of(name) in BY_TOKEN for name in names):
            _check_tokens(reference, other)


def _check_tokens(reference: Checkpoint, other: Checkpoint) -> None:
    """Refuse tokenizers that give a token different ids, or an id different tokens; tokens of one alone are told."""
    vocabulary, others = reference.vocabulary(), other.vocabulary()
    if vocabulary is None or others is None or vocabulary == others:
        return
    alone = [(vocabulary, others, reference.path), (others, vocabulary, other.path)]
    moved = any(vocabulary[token] != others[token] for token in vocabulary.keys() & others.keys())
    for own, its, path in alone:
        added = {token: index for token, index in own.items() if token not in its}
        if moved or set(added.values()) & set(its.values()):
            raise InputError(
                f"the tokenizers of {reference.path} and {other.path} differ: "
                + _first_token_difference(vocabulary, others)
                + ". Rows of embeddings and head would stand for different tokens"
            )
        if added:
            first = min(added, key=lambda token: added[token])
            logger.warning(
                "%d tokens are in %s alone, %r (id %d) first: their rows are compared with rows that the other model "
                "does not use. Leave embeddings and head out by tensors where they matter",
                len(added), path, first, added[first],
            )  # fmt: skip


def _other_names(reference: Checkpoint, other: Checkpoint) -> str:
    """Say so where two models have as many weights of each shape, under other names."""
    shapes = [Counter(model.shape(name) for name in model.names) for model in (reference, other)]
    if shapes[0] != shapes[1] or set(reference.names) == set(other.names):
        return ""
    return (
        ". Their weights have the same shapes under other names: one may be the other, converted. Load both with "
        "transformers and save_pretrained them, so that their names agree"
    )


def compared_names(*checkpoints: Checkpoint) -> tuple[str, ...]:
    """Return the weights by which models are compared: those of the first, and ties that another one has untied.

    Tied weights count once, as long as they are one in every model.
    """
    names = dict.fromkeys(checkpoints[0].names)
    for checkpoint in checkpoints[1:]:
        names |= dict.fromkeys(name for name in checkpoint.names if name in checkpoints[0].full.ties)
    return tuple(names)


def _shape_differences(reference: Checkpoint, other: Checkpoint, compared: set[str]) -> list[str]:
    differences = []
    for first, second in ((reference, other), (other, reference)):
        known = {*second.names, *second.full.ties}
        differences += [
            f"{name} is not in {second.path}" for name in first.names if name not in known and name in compared
        ]
    for name in compared_names(reference, other):
        shared = name in compared and name in {*other.names, *other.full.ties}
        if shared and reference.shape(name) != other.shape(name):
            differences.append(f"{name} is {reference.shape(name)} and {other.shape(name)}")
    return differences


def _first_token_difference(first: dict[str, int], second: dict[str, int]) -> str:
    differing = [token for token in {**first, **second} if first.get(token) != second.get(token)]
    token = min(differing, key=lambda token: min(first.get(token, 2**31), second.get(token, 2**31)))
    ids = ("missing" if number is None else f"id {number}" for number in (first.get(token), second.get(token)))
    return f"token {token!r} is {' and '.join(ids)}"


def select_tensors(names: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the names that match any of the patterns, in their order; all of them without a pattern.

    Args:
        names: Canonical names.
        patterns: ``fnmatch`` patterns of names (``*.mlp.*``), parts of them (``down_proj``), types (``q``, ``head``),
            or places (``layers.07``).

    Raises:
        InputError: A pattern matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matching = {n for n in names if pattern in (type_of(n), part_of(n), *n.split(".")) or fnmatchcase(n, pattern)}
        if not matching:
            types = dict.fromkeys(type_of(name) for name in names)
            raise InputError(
                f"no tensor matches {pattern!r}; expected a pattern of names such as {names[0]!r} (with * and ?), a "
                f"place such as {part_of(names[0])!r} or layers.00, or a type of {', '.join(types)}"
            )
        chosen |= matching
    return tuple(name for name in names if name in chosen or not patterns)


def coverage(checkpoints: Mapping[str, Checkpoint], used: Collection[str]) -> list[dict[str, str]]:
    """List every stored tensor of the checkpoints that is not used, with the reason.

    Args:
        checkpoints: The checkpoints by label; an adapter's or a snapshot's base is listed once, under its own path.
        used: Canonical names that are used.

    Returns:
        ``name`` (``<label>: <stored name>``) and ``reason`` of each.
    """
    entries: list[dict[str, str]] = []
    listed: set[Path] = set()
    for label, checkpoint in checkpoints.items():
        parts = [(label, checkpoint)]
        if checkpoint.full is not checkpoint:
            parts.append((f"{label}'s base {checkpoint.full.path}", checkpoint.full))
        for what, part in parts:
            location = part.location.resolve()
            if location in listed:
                continue
            listed.add(location)
            taken = {stored for name in used for stored in part.stored_of(name)}
            left = part.left_out if part is part.full else {}
            for stored in part.stored_names:
                if stored not in taken:
                    reason = left.get(stored, "not among the tensors that were asked for")
                    entries.append({"name": f"{what}: {stored}", "reason": reason})
    return entries

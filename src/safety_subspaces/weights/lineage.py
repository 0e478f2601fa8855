"""Whether models can be what they are given as: a base, a model aligned from it, and fine-tunes of that one.

Told from a few of their matrices, before anything else is computed. Weights that began apart have a cosine of nearly
nothing, those of a model and what was trained from it one of nearly one. Where base and aligned changed places, or a
fine-tune was trained from the base, its update takes back the whole of the alignment update, however long it is beside.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.weights.checkpoint import Checkpoint
from safety_subspaces.weights.names import layer_of

# Matrices that are looked at, spread over the network's depth.
MATRICES = 8
# Below this cosine of their weights two models share no ancestry. Organisms of two seeds have 0.00 to 0.02, a base and
# what was aligned from it 0.9 and more.
SHARED = 0.2
# A fine-tune that takes back this share of the alignment update was hardly trained from the aligned model; from half on
# it is nearer to the base. Trained from the base it takes back 1, and from the aligned model in our organisms 0 to 0.3.
TAKEN_BACK = 0.8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTune:
    """Where a fine-tune lies.

    Args:
        to_base: Its distance to the base, in units of the alignment update's length.
        to_aligned: That to the aligned model.
        taken_back: Share of the alignment update that its own takes back: ``-<t, a> / <a, a>``.
        shared: Cosine of its weights and the aligned model's.
    """

    to_base: float
    to_aligned: float
    taken_back: float
    shared: float


@dataclass(frozen=True)
class Lineage:
    """How some matrices of models stand to one another.

    Args:
        matrices: Their canonical names.
        shared: Cosine of the base's and the aligned model's weights.
        tuned: The fine-tunes by label.
    """

    matrices: tuple[str, ...]
    shared: float
    tuned: Mapping[str, FineTune]

    def swapped(self) -> str:
        """Say that fine-tunes were trained from the base, as where base and aligned changed places; else nothing."""
        reversing = {label: each for label, each in self.tuned.items() if each.taken_back > TAKEN_BACK}
        if not reversing or self.foreign():
            return ""
        said = ", ".join(
            f"{label} takes back {each.taken_back:.0%} of the alignment update, and is {each.to_base:.2g} of its "
            f"lengths from the base, {each.to_aligned:.2g} from the aligned model"
            for label, each in reversing.items()
        )
        return f"base and aligned look swapped, or fine-tunes were trained from the base: {said}"

    def foreign(self) -> str:
        """Say which models share no ancestry; else nothing."""
        return _foreign({"base": self.shared, **{label: each.shared for label, each in self.tuned.items()}}, "aligned")

    def summary(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self) | {"implausible": [said for said in (self.swapped(), self.foreign()) if said]}


def check_lineage(
    base: Checkpoint,
    aligned: Checkpoint,
    tuned: Mapping[str, Checkpoint],
    names: Sequence[str],
    any_lineage: bool = False,
) -> Lineage:
    """Look at a few matrices of models that can be compared, warn of what is not plausible, and refuse a swap.

    Args:
        base: The base.
        aligned: What was aligned from it.
        tuned: The fine-tunes of that by label.
        names: Canonical names of the weights that will be compared.
        any_lineage: Whether to go on, with a warning, where base and aligned look swapped.

    Raises:
        InputError: Base and aligned look swapped, or a fine-tune was trained from the base.
    """
    found = lineage(base, aligned, tuned, names)
    swapped = found.swapped()
    if swapped and not any_lineage:
        raise InputError(
            f"{swapped}. Got base {base.path} and aligned {aligned.path}; expected fine-tunes of the aligned one: "
            "change their places, or say --any_lineage true where this is meant"
        )
    for said in (swapped, found.foreign()):
        if said:
            logger.warning(said)
    return found


def check_related(
    reference: Checkpoint, others: Mapping[str, Checkpoint], names: Sequence[str], what: str
) -> list[str]:
    """Warn of models that share no ancestry with the one that their updates are counted from.

    Args:
        reference: That one.
        others: The models by label.
        names: Canonical names of the weights that will be compared.
        what: What the reference is called.

    Returns:
        What was said, if anything.
    """
    chosen = _spread([name for name in names if len(reference.shape(name)) == 2])
    sums = {label: torch.zeros(3, dtype=torch.float64) for label in others}
    for name in chosen:
        before = reference.read(name).double()
        for label, checkpoint in others.items():
            after = checkpoint.read(name).double()
            sums[label] += torch.stack([_inner(before, after), _inner(before, before), _inner(after, after)])
    said = _foreign({label: _cosine(*each) for label, each in sums.items()}, what)
    if said:
        logger.warning(said)
    return [said] if said else []


def lineage(base: Checkpoint, aligned: Checkpoint, tuned: Mapping[str, Checkpoint], names: Sequence[str]) -> Lineage:
    """Measure how models stand to one another, by up to :data:`MATRICES` matrices of their blocks.

    A weight that a fine-tune does not change says nothing of it, so that its own share of them counts.
    """
    chosen = _spread([name for name in names if len(base.shape(name)) == 2])
    between, of_base, of_aligned = (torch.zeros(len(chosen), dtype=torch.float64) for _ in range(3))
    length = torch.zeros_like(between)
    own = {label: torch.zeros(5, len(chosen), dtype=torch.float64) for label in tuned}
    for index, name in enumerate(chosen):
        before, after = base.read(name).double(), aligned.read(name).double()
        alignment = after - before
        between[index], length[index] = _inner(before, after), _inner(alignment, alignment)
        of_base[index], of_aligned[index] = _inner(before, before), _inner(after, after)
        for label, checkpoint in tuned.items():
            weight = checkpoint.read(name).double()
            update = weight - after
            own[label][:, index] = torch.stack(
                [
                    _inner(update, update),
                    _inner(weight - before, weight - before),
                    _inner(update, alignment),
                    _inner(weight, after),
                    _inner(weight, weight),
                ]
            )
    return Lineage(
        tuple(chosen),
        _cosine(between.sum(), of_base.sum(), of_aligned.sum()),
        {label: _placed(each, length, of_aligned) for label, each in own.items()},
    )


def _foreign(shared: Mapping[str, float], reference: str) -> str:
    apart = [
        f"{label} and {reference} have a cosine of {cosine:.2f}" for label, cosine in shared.items() if cosine < SHARED
    ]
    if not apart:
        return ""
    return (
        f"these models look unrelated: the weights of {', '.join(apart)}, where a model and what was trained from it "
        "have one of nearly 1; the difference of unrelated models is no update"
    )


def _placed(own: Tensor, length: Tensor, of_aligned: Tensor) -> FineTune:
    """Sum up a fine-tune over the matrices that it changes, or over all where it changes none."""
    changed = own[0] > 0
    changed = changed if bool(changed.any()) else torch.ones_like(changed)
    to_aligned, to_base, against, shared, weight = own[:, changed].sum(dim=1)
    unit = length[changed].sum()
    return FineTune(
        to_base=float((to_base / unit).sqrt()),
        to_aligned=float((to_aligned / unit).sqrt()),
        taken_back=float(-against / unit),
        shared=_cosine(shared, weight, of_aligned[changed].sum()),
    )


def _spread(names: Sequence[str]) -> list[str]:
    """Return up to :data:`MATRICES` names at even distances, of blocks where there are any."""
    inside = [name for name in names if layer_of(name) >= 0] or list(names)
    count = min(MATRICES, len(inside))
    return [inside[(2 * index + 1) * len(inside) // (2 * count)] for index in range(count)]


def _inner(first: Tensor, second: Tensor) -> Tensor:
    return torch.dot(first.flatten(), second.flatten())


def _cosine(inner: Tensor, first: Tensor, second: Tensor) -> float:
    return float(inner / (first * second).sqrt())

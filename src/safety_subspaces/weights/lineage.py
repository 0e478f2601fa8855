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
from jaxtyping import Float64
from torch import Tensor

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.weights.checkpoint import Checkpoint
from safety_subspaces.weights.names import layer_of

# Matrices that are looked at, spread over the network's depth, and how many at most are read to find as many that
# alignment has changed.
MATRICES, READ_AT_MOST = 8, 64
# Below this cosine of their weights two models share no ancestry: of those that began apart it is that of random
# vectors, of the demo's models 0.99.
SHARED = 0.2
# A fine-tune that takes back this share of the alignment update was hardly trained from the aligned model; from half on
# it is nearer to the base. The demo's take back -0.04 to 0.05, and 0.95 to 1.04 where base and aligned change places.
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
    grams = {label: torch.zeros(2, 2, dtype=torch.float64) for label in others}
    for name in _spread(reference, names)[:MATRICES]:
        before = reference.read(name).double()
        for label, checkpoint in others.items():
            grams[label] += _gram(before, checkpoint.read(name).double())
    said = _foreign({label: _cosine(gram[0, 1], gram[0, 0], gram[1, 1]) for label, gram in grams.items()}, what)
    if said:
        logger.warning(said)
    return [said] if said else []


def lineage(base: Checkpoint, aligned: Checkpoint, tuned: Mapping[str, Checkpoint], names: Sequence[str]) -> Lineage:
    """Measure how models stand to one another, by up to :data:`MATRICES` matrices that alignment has changed.

    A weight that a fine-tune does not change says nothing of it, so that its own share of them counts.
    """
    chosen: list[str] = []
    ends = torch.zeros(2, 2, dtype=torch.float64)
    own: dict[str, list[Tensor]] = {label: [] for label in tuned}
    for name in _spread(base, names):
        if len(chosen) == MATRICES:
            break
        before, after = base.read(name).double(), aligned.read(name).double()
        alignment = after - before
        if not bool(alignment.any()):
            continue
        chosen.append(name)
        ends += _gram(before, alignment)
        for label, checkpoint in tuned.items():
            own[label].append(_gram(before, alignment, checkpoint.read(name).double() - after))
    of_base, inner, of_alignment = ends[0, 0], ends[0, 1], ends[1, 1]
    shared = _cosine(of_base + inner, of_base, of_base + 2 * inner + of_alignment)
    return Lineage(tuple(chosen), shared, {label: _placed(grams) for label, grams in own.items()})


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


def _placed(grams: Sequence[Float64[Tensor, "3 3"]]) -> FineTune:
    """Sum up a fine-tune over the matrices that it changes, or over all where it changes none.

    Args:
        grams: Of each matrix the inner products of base, alignment update and the fine-tune's own.
    """
    changed = [gram for gram in grams if gram[2, 2] > 0] or grams
    (bb, ba, bt), (_, aa, at), (_, _, tt) = sum(changed, torch.zeros(3, 3, dtype=torch.float64))
    of_aligned, of_tuned = bb + 2 * ba + aa, bb + 2 * ba + aa + 2 * bt + 2 * at + tt
    return FineTune(
        to_base=float(((tt + 2 * at + aa) / aa).sqrt()),
        to_aligned=float((tt / aa).sqrt()),
        taken_back=float(-at / aa),
        shared=_cosine(of_aligned + bt + at, of_tuned, of_aligned),
    )


def _spread(model: Checkpoint, names: Sequence[str]) -> list[str]:
    """Return up to :data:`READ_AT_MOST` matrices, of blocks where there are any; every so many at even distances."""
    matrices = [name for name in names if len(model.shape(name)) == 2]
    inside = [name for name in matrices if layer_of(name) >= 0] or matrices
    count = min(READ_AT_MOST, len(inside))
    even = [inside[(2 * index + 1) * len(inside) // (2 * count)] for index in range(count)]
    stride = -(-count // MATRICES)
    return [name for start in range(stride) for name in even[start::stride]]


def _gram(*tensors: Tensor) -> Float64[Tensor, "n n"]:
    rows = torch.stack([tensor.flatten() for tensor in tensors])
    return rows @ rows.T


def _cosine(inner: Tensor, first: Tensor, second: Tensor) -> float:
    return float(inner / (first * second).sqrt())

"""First and second moments of hidden states, summed over batches: all that a subspace needs of any number of prompts.

Stored are the count, the mean and the scatter about it, in float64, so that neither many prompts nor a mean far from
the origin costs digits; memory is hidden x hidden for each layer, and some thousand buffered rows.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from safety_subspaces.algebra.eigen import gram_of_rows, numerical_rank_of, symmetric_eigh
from safety_subspaces.algebra.factors import Factors, no_factors
from safety_subspaces.artefacts.errors import InputError


@dataclass(frozen=True)
class StateMoments:
    """Moments of a set of vectors.

    Args:
        count: Number of vectors.
        mean: Their mean.
        scatter: ``sum_i (x_i - mean) (x_i - mean)^T``.
    """

    count: int
    mean: Float64[Tensor, " hidden"]
    scatter: Float64[Tensor, "hidden hidden"]

    def merged(self, other: "StateMoments") -> "StateMoments":
        """Return the moments of both sets together.

        Source: Chan, Golub and LeVeque, Stanford STAN-CS-79-773 (1979).
        """
        if not self.count or not other.count:
            return other if other.count else self
        total = self.count + other.count
        step = other.mean - self.mean
        weight = self.count * other.count / total
        scatter = (self.scatter + other.scatter).addr_(step, step, alpha=weight)
        return StateMoments(total, self.mean + step * (other.count / total), scatter)

    def factors(self, center: bool = False, share: float = 1.0) -> Factors:
        """Factorise the vectors: what :func:`~.capture.state_factors` returns of them one by one.

        Args:
            center: Whether their mean is taken out first.
            share: Share of the energy that the directions are to hold; all singular values are there.
        """
        gram = self.scatter.clone()
        if not center:
            gram.addr_(self.mean, self.mean, alpha=float(self.count))
        if not self.count or not gram.diagonal().any():
            return no_factors(gram.shape[0])
        values, vectors = symmetric_eigh(gram, share)
        # n vectors span at most n directions (n - 1 when centred); further ones come from the rounding of the sums.
        rank = min(numerical_rank_of(values), self.count - center)
        return Factors(vectors[:, :rank].float(), values[:rank].sqrt())


# Rows that are buffered at least before they are summed: at hidden 1024, 64 at a time take three times as long.
BUFFERED_ROWS = 4096


class MomentsBuilder:
    """Takes vectors in batches of any size and gives their moments.

    Args:
        hidden: Dimension of the vectors.
    """

    def __init__(self, hidden: int) -> None:
        self._hidden = hidden
        self._buffer: list[Float[Tensor, "any hidden"]] = []
        self._buffered = 0
        self._moments = no_moments(hidden)

    def add(self, rows: Float[Tensor, "prompt hidden"]) -> None:
        """Take a batch.

        Raises:
            InputError: A vector so far holds a NaN or an infinity; found when the buffer is summed.
        """
        if len(rows):
            self._buffer.append(rows)
            self._buffered += len(rows)
        if self._buffered >= max(BUFFERED_ROWS, self._hidden):
            self._fold()

    def moments(self) -> StateMoments:
        """Return the moments of all vectors so far.

        Raises:
            InputError: As :meth:`add`.
        """
        self._fold()
        return self._moments

    def _fold(self) -> None:
        if not self._buffer:
            return
        values = self._buffer[0].new_empty(self._buffered, self._hidden, dtype=torch.float64)
        moments = _moments_within(torch.cat(self._buffer, out=values))
        self._buffer, self._buffered = [], 0
        if not torch.isfinite(moments.mean).all():  # one bad number in any row
            raise InputError(
                "hidden states hold NaN or infinite numbers; load the model in float32 or bfloat16, or look for broken "
                "weights"
            )
        self._moments = self._moments.merged(moments)


def _moments_within(values: Float64[Tensor, "prompt hidden"]) -> StateMoments:
    """Return the moments of vectors, and overwrite them: a copy would take as long as their mean."""
    mean = values.mean(dim=0)
    values.sub_(mean)
    return StateMoments(len(values), mean.cpu(), gram_of_rows(values.T).cpu())


def no_moments(hidden: int) -> StateMoments:
    """Return the moments of no vector."""
    return StateMoments(0, torch.zeros(hidden).double(), torch.zeros(hidden, hidden).double())

"""Taking a label out of hidden states: linearly (LEACE), and its mean and covariance (quadratic), by concept-erasure.

Fitted on training prompts alone. LEACE leaves no linear probe better than chance on them, however it is trained; what
it leaves for a probe that is not linear is the point of measuring. Quadratic erasure makes the classes' means and
covariances the same, and moves each prompt by a map that its own label picks. Where states are not Gaussian the maps
themselves tell the label, also one that the states say nothing of: read a probe after it against control labels that
went through it as well, never against one half.
"""

from collections.abc import Callable
from typing import Literal, get_args

from jaxtyping import Float, Int
from torch import Tensor

from safety_subspaces.artefacts.errors import InputError

Erasure = Literal["none", "leace", "quadratic"]
Eraser = Callable[[Tensor, Tensor], Tensor]


def fit_erasure(kind: Erasure, states: Float[Tensor, "prompt hidden"], labels: Int[Tensor, " prompt"]) -> Eraser:
    """Fit an erasure in float64, with the package's shrinkage of covariances of few prompts.

    Args:
        kind: ``none``, ``leace`` or ``quadratic``.
        states: Of the training prompts.
        labels: 0 or 1.

    Returns:
        A function of states and labels; only the quadratic one looks at the labels.

    Raises:
        InputError: Another kind.

    Source: Belrose et al., arXiv 2306.03819 (LEACE); quadratic erasure by optimal transport to the barycentre, ibid.
    """
    if kind not in get_args(Erasure):
        raise InputError(f"erasure {kind!r}; expected one of {', '.join(get_args(Erasure))}")
    if kind == "none":
        return lambda values, _: values
    # A second's import that plain probes need not pay.
    from concept_erasure import LeaceFitter, QuadraticFitter

    values = states.double()
    if kind == "leace":
        linear = LeaceFitter.fit(values, labels.double()[:, None]).eraser
        return lambda given, _: linear(given.double())
    transport = QuadraticFitter.fit(values, labels).eraser
    return lambda given, own: transport(given.double(), own)

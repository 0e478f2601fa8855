"""Whether a label can be read off hidden states, linearly or not, on prompts that the probe has not seen.

Prompts that stand and fall together are never on both sides of a split; a probe is trained with labels drawn at random
for each group as well. A probe cannot predict these labels by remembering groups, as no group is on both sides: its
score on them is the chance level of the whole procedure, erasure included.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from safety_subspaces.algebra.statistics import jackknife_error, number_groups
from safety_subspaces.artefacts.errors import InputError

ProbeKind = Literal["linear", "rbf_svm", "mlp"]
Erasure = Literal["none", "leace", "quadratic"]
Eraser = Callable[[Tensor, Tensor], Tensor]
# Units of the hidden layer, and passes: enough to learn an exclusive or of two of 32 directions from 200 prompts.
MLP_UNITS, MLP_PASSES = 64, 200


@dataclass(frozen=True)
class Predictions:
    """What a probe says of prompts that it was not trained on.

    Args:
        score: Of label 1 above label 0, on the scale of the probe; NaN for a prompt that was in no test part.
        correct: 1 where the label was predicted rightly, else 0; NaN likewise.
    """

    score: NDArray[np.float64]
    correct: NDArray[np.float64]


def make_probe(kind: ProbeKind, seed: int) -> Any:
    """Return an untrained probe behind a standardisation of each coordinate: a pipeline of scikit-learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    probes: dict[ProbeKind, Any] = {
        "linear": LogisticRegression(max_iter=1000),
        "rbf_svm": SVC(kernel="rbf", gamma="scale", random_state=seed),
        "mlp": MLPClassifier(
            (MLP_UNITS,), solver="lbfgs", alpha=1e-2, max_iter=MLP_PASSES, max_fun=10 * MLP_PASSES, random_state=seed
        ),
    }
    return make_pipeline(StandardScaler(), probes[kind])


def fit_erasure(kind: Erasure, states: Float[Tensor, "prompt hidden"], labels: Int[Tensor, " prompt"]) -> Eraser:
    """Fit on training prompts what takes a label out of states, in float64, by the package concept-erasure.

    LEACE leaves no linear probe better than chance on them, however it is trained; what it leaves for a probe that is
    not linear is the point of measuring. Quadratic erasure makes the classes' means and covariances the same, and moves
    each prompt by a map that its own label picks. Where states are not Gaussian the maps themselves reveal the label,
    even one that the states do not encode: compare a probe after it with a probe of control labels that were erased in
    the same way, never with one half.

    Args:
        kind: ``none``, ``leace`` (linear) or ``quadratic`` (mean and covariance).
        states: Of the training prompts; covariances of few are shrunk as the package does.
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
        return lambda rows, _: linear(rows.double())
    transport = QuadraticFitter.fit(values, labels).eraser
    return lambda rows, classes: transport(rows.double(), classes)


def predict_held_out(
    states: Float[Tensor, "prompt hidden"],
    labels: Int[Tensor, " prompt"],
    splits: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    kind: ProbeKind,
    seed: int,
    erasure: Erasure = "none",
) -> Predictions:
    """Train on one side of each split, and predict the other.

    Args:
        states: One row a prompt.
        labels: 0 or 1.
        splits: Training and test prompts of each, as :func:`group_folds` makes them.
        kind: ``linear`` (logistic regression), ``rbf_svm`` or ``mlp`` (one hidden layer).
        seed: Seed of the MLP's start.
        erasure: Fitted on the training prompts, applied to both sides.
    """
    from sklearn.exceptions import ConvergenceWarning

    score, correct = (np.full(len(labels), nan) for _ in range(2))
    truth = labels.numpy()
    for train, test in splits:
        if len(set(truth[train].tolist())) < 2:
            continue
        erase = fit_erasure(erasure, states[train], labels[train])
        inputs = [erase(states[rows], labels[rows]).double().numpy() for rows in (train, test)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the passes are bounded on purpose
            probe = make_probe(kind, seed).fit(inputs[0], truth[train])
        predicted = probe.predict(inputs[1])
        score[test] = probe.decision_function(inputs[1]) if kind != "mlp" else probe.predict_proba(inputs[1])[:, 1]
        correct[test] = predicted == truth[test]
    return Predictions(score, correct)


def group_folds(
    labels: Int[Tensor, " prompt"], groups: Sequence[Hashable], folds: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Split prompts into folds of like shares of both labels, whole groups at a time.

    Raises:
        InputError: A label has fewer groups than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    numbers = number_groups(groups).numpy()
    for label in (0, 1):
        count = len(set(numbers[labels.numpy() == label].tolist()))
        if count < folds:
            raise InputError(f"label {label} has {count} groups of prompts, fewer than {folds} folds: ask for fewer")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(numbers)), labels.numpy(), numbers))


def control_labels(
    labels: Int[Tensor, " prompt"], groups: Sequence[Hashable], generator: torch.Generator
) -> Int[Tensor, " prompt"]:
    """Draw labels that tell nothing: one for each group, as many groups of each as there were.

    Source: Hewitt and Liang, arXiv 1909.03368.
    """
    numbers = number_groups(groups)
    count = int(numbers.max()) + 1
    group_labels = torch.zeros(count, dtype=labels.dtype).scatter_(0, numbers, labels)
    return group_labels[torch.randperm(count, generator=generator)][numbers]


def area_under_curve(predictions: Predictions, labels: Int[Tensor, " prompt"]) -> float:
    """Return the probability that a prompt of label 1 scores above one of label 0; 0.5 by chance, NaN without both."""
    from sklearn.metrics import roc_auc_score

    truth, known = labels.numpy(), ~np.isnan(predictions.score)
    if len(set(truth[known].tolist())) < 2:
        return nan
    return float(roc_auc_score(truth[known], predictions.score[known]))


def auc_with_error(
    predictions: Predictions, labels: Int[Tensor, " prompt"], groups: Sequence[Hashable]
) -> tuple[float, float]:
    """Return the area under the curve and its jackknife standard error over groups; probes are not trained again.

    All areas without one group come from sums over the pairs of prompts.
    """
    known = ~np.isnan(predictions.score)
    score, truth, numbers = predictions.score[known], labels.numpy()[known], number_groups(groups).numpy()[known]
    sides = [truth == 1, truth == 0]
    wins = np.sign(score[sides[0]][:, None] - score[sides[1]][None, :]) / 2 + 0.5
    members = [np.eye(numbers.max() + 1)[numbers[side]] for side in sides]  # (prompt, group)
    across = np.einsum("ig,ij,jg->g", members[0], wins, members[1], optimize=True)
    total = wins.sum() - members[0].T @ wins.sum(axis=1) - members[1].T @ wins.sum(axis=0) + across
    pairs = np.prod([len(part) - part.sum(axis=0) for part in members], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        left_out = total / pairs
    return (float(wins.mean()) if wins.size else nan), jackknife_error(left_out)

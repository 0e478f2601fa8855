"""Whether a label can be read off hidden states, linearly or not, on prompts that the probe has not seen.

Prompts that stand and fall together are never on both sides of a split; a probe is trained with labels drawn at random
for each group as well. A probe cannot predict these labels by remembering groups, as no group is on both sides: its
score on them is the chance level of the whole procedure, erasure included.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from safety_subspaces.algebra.statistics import (
    FEW_DISSENTERS,
    Groupings,
    clustered_jackknife_error,
    fewest_groups,
    number_groups,
    unanimous_error,
)
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.states.choices import Erasure, ProbeKind

Eraser = Callable[[Tensor, Tensor], Tensor]
# Coordinates that differ from prompt to prompt by at most so many units in the last place are one number: sums of the
# same terms in another order, as in batches of other sizes, end within about two.
SAME_ULPS = 4
# How much variance training adds at the most, in units of that over the tested prompts (:func:`refitted_error`).
MOST_OF_TRAINING = 2.0
# Units of the hidden layer, and passes: enough to learn an exclusive or of two of 32 directions from 200 prompts.
MLP_UNITS, MLP_PASSES = 64, 200


@dataclass(frozen=True)
class Predictions:
    """What a probe says of prompts that it was not trained on.

    Args:
        score: Of label 1 above label 0, on the scale of the probe; NaN for a prompt that was in no test part.
        correct: 1 where the label was predicted rightly, else 0; NaN likewise.
        probe: Number of the trained probe that predicted it: scores of two probes are on no common scale.
    """

    score: NDArray[np.float64]
    correct: NDArray[np.float64]
    probe: NDArray[np.int64]

    def of(self, rows: Sequence[int]) -> "Predictions":
        """Return what is said of some of the prompts."""
        return Predictions(self.score[rows], self.correct[rows], self.probe[rows])


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
    number = np.full(len(labels), -1)
    truth = labels.numpy()
    for place, (train, test) in enumerate(splits):
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
        number[test] = place
    return Predictions(score, correct, number)


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


def tells_nothing(states: Float[Tensor, "prompt hidden"], precision: torch.dtype) -> bool:
    """Tell whether the states of all prompts are the same but for rounding, so that no label can be read off them.

    Such is the embedding of the last token where every prompt ends in the same one. A probe would standardise the
    rounding, and might read from it in which batch a prompt was.

    Args:
        states: One row a prompt.
        precision: Type that the model reckoned in.
    """
    values = states.double()
    apart = values.max(dim=0).values - values.min(dim=0).values
    return bool((apart <= SAME_ULPS * torch.finfo(precision).eps * values.abs().max(dim=0).values).all())


def area_under_curve(predictions: Predictions, labels: Int[Tensor, " prompt"]) -> float:
    """Return the probability that a prompt of label 1 scores above one of label 0; 0.5 by chance, NaN without both.

    Counted over pairs of prompts that one probe has scored. Over pairs of two probes a score may rank above another for
    the probe's sake, which draws the area of few prompts towards 0.5 or below.
    """
    wins, compared = _wins(predictions, labels)[:2]
    return float(wins.sum() / compared.sum()) if compared.any() else nan


def auc_with_error(
    predictions: Predictions, labels: Int[Tensor, " prompt"], groupings: Groupings
) -> tuple[float, float]:
    """Return the area under the curve and its jackknife standard error over groups; probes are not trained again.

    Two groupings may cross, as in :func:`~safety_subspaces.algebra.statistics.clustered_error`. All areas without one
    group come from sums over the pairs of prompts. Where hardly a pair is lost, or won, because prompts of fewer than
    four groups are on the wrong side, the error is at least that of a share of 0 or 1 in as many groups.
    """
    wins, compared, of_side = _wins(predictions, labels)

    def without_each(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        members = [np.eye(numbers.max() + 1)[numbers[rows]] for rows in of_side]  # (prompt, group)
        counts = []
        for pairs in (wins, compared):
            across = np.einsum("ig,ig->g", members[0], pairs @ members[1])
            counts.append(pairs.sum() - pairs.sum(axis=1) @ members[0] - pairs.sum(axis=0) @ members[1] + across)
        with np.errstate(invalid="ignore", divide="ignore"):
            left_out: NDArray[np.float64] = counts[0] / counts[1]
        return left_out

    known = np.flatnonzero(predictions.probe >= 0)
    kept = [[keys[row] for row in known.tolist()] for keys in groupings]
    area, error = area_under_curve(predictions, labels), clustered_jackknife_error(without_each, kept, len(known))
    amiss = (compared > 0) & (wins < 1 if area >= 0.5 else wins > 0)
    wrong = [rows[amiss.any(axis=1 - side)] for side, rows in enumerate(of_side)]
    few = min(fewest_groups([[keys[row] for row in rows] for keys in kept]) for rows in wrong) < FEW_DISSENTERS
    return area, max(error, unanimous_error(fewest_groups(kept))) if few else error


def refitted_error(stderr: float, tested: int, trained: float) -> float:
    """Return the standard error of a probe trained anew, from that over the tested prompts for the probe as it is.

    ``stderr sqrt(1 + tested / trained)``. Over k folds, which test all prompts and train on ``(k - 1) / k`` of them, it
    is Nadeau and Bengio's correction, ``(1 / k + 1 / (k - 1)) s^2``, with ``stderr^2`` in the place of ``s^2 / k``: so
    few folds have no good variance, groups do. Their argument is that a prompt moves the score as much by being trained
    on as by being tested. On simulated states (8 to 96 dimensions, 30 to 110 groups, areas of 0.5 to 0.95) the variance
    over the tested prompts alone was 0.51 to 0.68 of the true one, and its 95 % intervals held 80 to 87 %; with the
    correction, of 2.25 for five folds, 92 to 98 %. Where far more prompts are tested than trained on the argument gives
    too much: with a tenth trained on and the rest tested 1.0 to 2.7 times the variance was needed, so the factor ends
    at ``1 + MOST_OF_TRAINING``.

    Args:
        stderr: Standard error over the tested prompts.
        tested: How many prompts are tested in all.
        trained: How many a probe is trained on.

    Source: Nadeau and Bengio, Machine Learning 52 (2003), section 3.
    """
    return stderr * sqrt(1 + min(tested / trained, MOST_OF_TRAINING)) if trained else nan


def _wins(
    predictions: Predictions, labels: Int[Tensor, " prompt"]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[NDArray[np.int64]]]:
    """Pairs of a prompt of label 1 and one of label 0: which the first wins, which one probe has scored; and rows.

    Rows are those among the prompts that were tested, of each label.
    """
    known = predictions.probe >= 0
    score, probe, truth = predictions.score[known], predictions.probe[known], labels.numpy()[known]
    rows = [np.flatnonzero(truth == label) for label in (1, 0)]
    compared = (probe[rows[0]][:, None] == probe[rows[1]][None, :]).astype(float)
    wins = (np.sign(score[rows[0]][:, None] - score[rows[1]][None, :]) / 2 + 0.5) * compared
    return wins, compared, rows

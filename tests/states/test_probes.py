"""A planted direction is found, an exclusive or only by probes that are not linear, and chance labels by none."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from safety_subspaces.algebra.statistics import unanimous_error
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.states.probes import (
    Predictions,
    area_under_curve,
    auc_with_error,
    control_labels,
    fit_erasure,
    group_folds,
    make_probe,
    predict_held_out,
    refitted_error,
    tells_nothing,
)

# Another CPU's rounding moves a trained probe as another draw does: bounds lie some five standard deviations over seeds
# away from the mean. At chance the accuracy on 240 prompts has one of 0.032.
HIDDEN, COUNT = 12, 240
KINDS = ["linear", "rbf_svm", "mlp"]


def planted(kind: str, seed: int = 0, count: int = COUNT):
    """States with a shift of the mean by the label, an exclusive or of two signs, or nothing.

    The exclusive or is Gaussian for each label, two coordinates alike or opposite: it lies in the covariances alone.
    """
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(count, HIDDEN, generator=generator)
    labels = torch.arange(count) % 2
    if kind == "linear":
        states[:, 0] += 4 * labels
    elif kind == "exclusive or":
        common = 3 * torch.randn(count, generator=generator)
        states[:, 0], states[:, 1] = common, common * (2 * labels - 1)
        states += 0.3 * torch.randn(count, HIDDEN, generator=generator)
    return states, labels


def accuracy(states, labels, kind, erasure="none", groups=None, seed=0) -> float:
    groups = list(range(len(labels))) if groups is None else groups
    found = predict_held_out(states, labels, group_folds(labels, groups, 4, seed), kind, seed, erasure)
    return float(np.nanmean(found.correct))


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_direction_is_told_and_leace_takes_it_out(kind) -> None:
    states, labels = planted("linear")
    assert accuracy(states, labels, kind) > 0.88  # the best rule has 0.977; 0.96 ± 0.015 over 40 seeds
    assert accuracy(states, labels, kind, "leace") < 0.66  # 0.50 ± 0.035


def test_an_exclusive_or_is_not_linear_and_stays_after_linear_erasure() -> None:
    states, labels = planted("exclusive or", count=480)
    # Over 24 seeds: 0.49 ± 0.03 and, after quadratic erasure, 0.51 ± 0.03 and 0.52 ± 0.03.
    assert accuracy(states, labels, "linear") < 0.64
    # 0.74 ± 0.02 and 0.89 ± 0.02; after LEACE 0.73 ± 0.02 and 0.82 ± 0.04.
    for kind, least in (("rbf_svm", 0.64), ("mlp", 0.8)):
        assert accuracy(states, labels, kind) > least
        assert accuracy(states, labels, kind, "leace") > 0.64
        assert accuracy(states, labels, kind, "quadratic") < 0.64


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_tell_nothing_are_told_at_chance(kind) -> None:
    values = [accuracy(*planted("nothing", seed), kind, seed=seed) for seed in range(3)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.08)  # 0.019 is the standard deviation of three


@pytest.mark.parametrize("kind", KINDS)
def test_groups_that_are_near_copies_do_not_leak(kind) -> None:
    """Labels drawn for each group: splits that ignore the groups would score near 1."""
    groups = [row // 4 for row in range(COUNT)]
    labels = torch.tensor([group % 2 for group in groups])
    values = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        # More dimensions than groups: even a linear probe knows each group again.
        states = torch.randn(60, 96, generator=generator).repeat_interleave(4, dim=0)
        states += 0.01 * torch.randn(states.shape, generator=generator)
        assert accuracy(states, labels, kind) > 0.95  # the leak that is avoided; 1.00 at each of 40 seeds
        values.append(accuracy(states, labels, kind, groups=groups))
    assert np.mean(values) < 0.75  # 0.50 ± 0.05: a single one has 0.09


def test_leace_leaves_no_linear_probe_anything_on_what_it_was_fitted_on() -> None:
    states, labels = planted("linear")
    erased = fit_erasure("leace", states, labels)(states, labels)
    means = [erased[labels == label].mean(dim=0) for label in (0, 1)]
    torch.testing.assert_close(*means, rtol=0, atol=1e-8)  # the theorem: no mean difference, no linear information
    fitted = make_probe("linear", 0).fit(erased.numpy(), labels.numpy())
    assert fitted.score(erased.numpy(), labels.numpy()) <= 0.55


def test_quadratic_erasure_makes_means_and_covariances_the_same() -> None:
    states, labels = planted("exclusive or")
    erased = fit_erasure("quadratic", states, labels)(states, labels)
    parts = [erased[labels == label] for label in (0, 1)]
    before = [states[labels == label].double().T.cov() for label in (0, 1)]
    torch.testing.assert_close(parts[0].mean(dim=0), parts[1].mean(dim=0), rtol=0, atol=1e-6)
    left = (parts[0].T.cov() - parts[1].T.cov()).norm() / (before[0] - before[1]).norm()
    assert left < 0.2  # covariances are shrunk before they are matched: 0.127 ± 0.007 over 200 seeds, 0.148 at most


def test_control_labels_are_one_for_each_group_and_as_many_of_each() -> None:
    labels = torch.tensor([1, 1, 0, 0, 1, 0])
    groups = ["a", "a", "b", "b", "c", "d"]
    drawn = [control_labels(labels, groups, torch.Generator().manual_seed(seed)) for seed in range(20)]
    for found in drawn:
        assert found[0] == found[1]
        assert found[2] == found[3]
        assert int(found[[0, 2, 4, 5]].sum()) == 2
    assert len({tuple(found.tolist()) for found in drawn}) > 3


@pytest.mark.parametrize("probes", [1, 3])
def test_areas_and_their_errors_are_those_of_leaving_groups_out_one_by_one(probes) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 60)
    labels = torch.from_numpy(truth)
    score = rng.normal(size=60).round(1) + truth  # with ties
    probe = rng.integers(0, probes, 60)
    score += 10 * probe  # scales of their own
    groups, others = ([int(number) for number in rng.integers(0, 15, 60)] for _ in range(2))

    def area(kept) -> float:
        parts = [kept & (probe == one) for one in range(probes)]
        pairs = [int(truth[part].sum()) * int((1 - truth[part]).sum()) for part in parts]
        return np.average([roc_auc_score(truth[part], score[part]) for part in parts], weights=pairs)

    def variance(keys) -> float:
        left_out = np.array([area(np.array([own != key for own in keys])) for key in sorted(set(keys))])
        return (len(left_out) - 1) / len(left_out) * ((left_out - left_out.mean()) ** 2).sum()

    found = Predictions(score, np.zeros(60), probe)
    value, stderr = auc_with_error(found, labels, [groups])
    assert value == pytest.approx(area(np.ones(60, bool))) == area_under_curve(found, labels)
    assert stderr == pytest.approx(np.sqrt(variance(groups)))
    single, both = (variance(groups), variance(others)), variance(list(zip(groups, others, strict=True)))
    _, two_way = auc_with_error(found, labels, [groups, others])
    assert two_way == pytest.approx(np.sqrt(max(sum(single) - both, *single)))


def test_the_area_of_a_perfect_probe_is_not_certain() -> None:
    labels = torch.arange(40) % 2
    groups = [[row // 2 for row in range(40)]]
    perfect = Predictions(labels.numpy().astype(float), np.ones(40), np.zeros(40, int))
    assert auc_with_error(perfect, labels, groups) == (1.0, unanimous_error(20))
    score = perfect.score.copy()
    score[0] = 2.0  # one prompt on the wrong side does not make it more certain
    area, error = auc_with_error(Predictions(score, perfect.correct, perfect.probe), labels, groups)
    assert area == 0.95
    assert error >= unanimous_error(20)


def test_states_that_are_the_same_but_for_rounding_tell_nothing_and_others_do() -> None:
    row = torch.randn(32, generator=torch.Generator().manual_seed(0))
    same = row.repeat(20, 1)
    shaken = same * (1 + torch.finfo(torch.float32).eps * torch.randint(-1, 2, same.shape))
    assert tells_nothing(same, torch.float32)
    assert tells_nothing(shaken, torch.float32)
    coarse = same * (1 + torch.finfo(torch.bfloat16).eps * torch.randint(-1, 2, same.shape))
    assert tells_nothing(coarse, torch.bfloat16)
    assert not tells_nothing(coarse, torch.float32)
    one = same.clone()
    one[3, 5] *= 1.001  # one prompt, one coordinate, however large the others are
    one[:, 0] = 1e4
    assert not tells_nothing(one, torch.float32)


def test_intervals_hold_for_probes_that_are_trained_anew() -> None:
    """Groups of like prompts and a weak direction; the true area is that of probes of as many prompts on fresh ones."""

    def drawn(seed: int, groups: int):
        rng = np.random.default_rng(seed)
        number = np.repeat(np.arange(groups), 1 + rng.poisson(2, groups))
        labels = number % 2
        states = rng.normal(size=(groups, 24))[number] + rng.normal(size=(len(number), 24))
        states[:, 0] += 1.5 * labels
        return torch.from_numpy(states), torch.from_numpy(labels), number.tolist()

    fresh, truth, _ = drawn(10_000, 1000)
    trained = [make_probe("linear", 0).fit(*(part.numpy() for part in drawn(20_000 + n, 44)[:2])) for n in range(40)]
    true_area = np.mean([roc_auc_score(truth, probe.decision_function(fresh.numpy())) for probe in trained])
    held = np.zeros(2)
    for seed in range(60):
        states, labels, groups = drawn(seed, 55)
        splits = group_folds(labels, groups, 5, seed)
        found = predict_held_out(states, labels, splits, "linear", seed)
        area, fixed = auc_with_error(found, labels, [groups])
        anew = refitted_error(fixed, len(labels), float(np.mean([len(train) for train, _ in splits])))
        held += [abs(area - true_area) <= 1.96 * error for error in (fixed, anew)]
    # 0.857 and 0.953 of 300 such studies; a share of 60 has a standard error of 0.045 and 0.027.
    assert held[0] / 60 < 0.98
    assert held[1] / 60 > 0.84


def test_fewer_groups_than_folds_are_refused() -> None:
    with pytest.raises(InputError, match="label 1 has 2 groups of prompts, fewer than 5 folds"):
        group_folds(torch.tensor([1, 1, 0, 0, 0, 0, 0, 0]), list(range(8)), 5, 0)

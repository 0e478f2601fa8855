"""What an erasure leaves where it was fitted, and what it tells of labels that mean nothing."""

import numpy as np
import pytest
import torch

from safety_subspaces.states.probes import area_under_curve, control_labels, fit_erasure, group_folds, predict_held_out


def drawn(count: int, hidden: int, seed: int = 0, spread: float = 2.0):
    """States whose directions differ in scale by ten to the spread, with a difference in means."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator, dtype=torch.float64))[0]
    scale = torch.logspace(0, -spread, hidden, dtype=torch.float64)
    states = torch.randn(count, hidden, generator=generator, dtype=torch.float64) * scale @ turn
    labels = torch.arange(count) % 2
    return states + 0.3 * labels[:, None] * torch.randn(hidden, generator=generator, dtype=torch.float64), labels


@pytest.mark.parametrize(("count", "hidden"), [(300, 12), (300, 96), (80, 96)])
def test_leace_leaves_no_least_squares_fit_even_with_fewer_prompts_than_directions(count, hidden) -> None:
    """Independent of the package: with equal means, the covariance with the label is zero, so is every linear fit."""
    states, labels = drawn(count, hidden)
    erased = fit_erasure("leace", states, labels)(states, labels)
    target = labels.double() - labels.double().mean()
    before, after = (((values - values.mean(dim=0)).T @ target).norm() for values in (states, erased))
    assert after < 1e-10 * before
    assert before > 1  # there was something to take out


def test_quadratic_erasure_writes_labels_that_mean_nothing_into_clusters_and_leace_does_not() -> None:
    """The map that a prompt's label picks moves each cluster to a place of its own, in held-out prompts too."""
    areas = {"none": [], "leace": [], "quadratic": []}
    for draw in range(6):
        generator = torch.Generator().manual_seed(draw)
        centres = 3 * torch.randn(10, 48, generator=generator)
        states = centres[torch.randint(0, 10, (240,), generator=generator)]
        states += 0.1 * torch.randn(states.shape, generator=generator)
        labels = control_labels(torch.arange(240) % 2, range(240), generator)
        splits = group_folds(labels, range(240), 4, 0)
        for erasure, found in areas.items():
            found.append(area_under_curve(predict_held_out(states, labels, splits, "mlp", 0, erasure), labels))
    means = {erasure: float(np.mean(found)) for erasure, found in areas.items()}
    assert means["none"] == pytest.approx(0.5, abs=0.1)
    assert means["leace"] == pytest.approx(0.5, abs=0.1)
    assert means["quadratic"] > 0.9

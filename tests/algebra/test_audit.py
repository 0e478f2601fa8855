"""The audit against actual rounding, float64 spectra and hand-made counts."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safety_subspaces.algebra.audit import (
    CLOSE_K,
    audit_update,
    condition,
    is_ill_conditioned,
    k_margin,
    rounding_energy,
    spectral_gap,
    summarise_audit,
)
from safety_subspaces.algebra.eigen import rank_of_energy
from safety_subspaces.algebra.factors import left_factors
from safety_subspaces.artefacts.errors import InputError

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-8, 1e-3, 0.02, 3.0])
def test_rounding_energy_is_that_of_actual_rounding(dtype, size) -> None:
    exact = size * gaussian(400, 300)  # at 1e-8 fp16 is all subnormal, or zero
    stored = exact.to(dtype)
    error = (stored.double() - exact).square().sum().item()
    if dtype == torch.float16 and size == 1e-8:  # below half of the least number all is lost, not a uniform remainder
        assert rounding_energy(stored) == pytest.approx(exact.numel() * 2.0**-48 / 12)
        return
    assert error / rounding_energy(stored) == pytest.approx(1, abs=0.02)


def test_rounding_of_subnormal_numbers_has_their_one_spacing() -> None:
    exact = 2e-5 * gaussian(300, 300)  # fp16 is normal from 6e-5 on
    stored = exact.half()
    error = (stored.double() - exact).square().sum().item()
    assert error / rounding_energy(stored) == pytest.approx(1, abs=0.02)
    assert rounding_energy(torch.zeros(5, dtype=torch.float16)) == pytest.approx(5 * 2.0**-48 / 12)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@given(exponent=st.integers(-20, 10), mantissa=st.floats(1, 1.99))
@settings(deadline=None, max_examples=30)
def test_the_spacing_is_the_distance_to_the_next_number(dtype, exponent, mantissa) -> None:
    value = torch.tensor([mantissa * 2.0**exponent], dtype=torch.float64).to(dtype)
    following = torch.nextafter(value, torch.tensor([math.inf], dtype=dtype))
    spacing = (following.double() - value.double()).item()
    assert rounding_energy(value) == pytest.approx(spacing**2 / 12, rel=1e-12)


def test_rounding_energy_adds_over_blocks_and_knows_the_stored_type() -> None:
    stored = gaussian(64, 48).bfloat16()
    blocks = sum(rounding_energy(block) for block in stored.split(10))
    assert rounding_energy(stored) == pytest.approx(blocks, rel=1e-12)
    assert rounding_energy(stored.float(), torch.bfloat16) == pytest.approx(blocks, rel=1e-12)
    assert rounding_energy(stored.double(), torch.bfloat16) == pytest.approx(blocks, rel=1e-12)
    assert rounding_energy(stored.float()) < 1e-8 * blocks


@pytest.mark.parametrize(("first", "second"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
@pytest.mark.parametrize("moved", [1e-2, 1e-4])
def test_rounding_share_is_that_of_the_difference_of_two_rounded_weights(first, second, moved) -> None:
    origin = 0.05 * gaussian(300, 300)
    tuned = origin + moved * gaussian(300, 300, seed=1)
    stored = tuned.to(first), origin.to(second)
    delta = stored[0].double() - stored[1].double()
    energy = delta.square().sum().item()
    actual = (delta - (tuned - origin)).square().sum().item() / energy
    noise = sum(rounding_energy(weight) for weight in stored)
    found = audit_update(torch.linalg.svdvals(delta), 300, noise).rounding_share
    # Where a weight moves by less than a spacing the two roundings are no longer independent.
    assert found == pytest.approx(actual, rel=0.02 if moved == 1e-2 or second == torch.float32 else 0.4)
    wide = sum(rounding_energy(weight.float(), dtype) for weight, dtype in zip(stored, (first, second), strict=True))
    assert wide == pytest.approx(noise)


def test_a_zero_update_has_no_rounding_share() -> None:
    assert math.isnan(audit_update(torch.zeros(0), 4, rounding_energy(gaussian(4, 4).half())).rounding_share)


def test_condition_is_that_of_the_gram_matrix_within_the_numerical_rank() -> None:
    matrix = gaussian(12, 9) * torch.logspace(0, -2, 9, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(matrix.T @ matrix)
    values = left_factors(matrix).singular_values
    assert condition(values) == pytest.approx((eigenvalues[0] / eigenvalues[-1]).item(), rel=1e-6)
    deficient = left_factors(gaussian(12, 3) @ gaussian(3, 9, seed=1)).singular_values
    assert deficient.numel() == 3
    assert condition(deficient) > 1e-4
    assert math.isnan(condition(values[:0]))
    assert not is_ill_conditioned(values)
    assert not is_ill_conditioned(values[:0])
    assert is_ill_conditioned(torch.tensor([1.0, 0.9e-3]))
    assert not is_ill_conditioned(torch.tensor([1.0, 1.1e-3]))


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=12), st.floats(0.01, 1))
@settings(deadline=None)
def test_a_rank_stays_when_its_share_moves_by_less_than_the_margin(sizes, share) -> None:
    values = torch.tensor(sorted(sizes, reverse=True), dtype=torch.float64)
    margin, k = k_margin(values, share), rank_of_energy(values, share)
    for step in (-0.99 * margin, 0.99 * margin):
        assert rank_of_energy(values, min(1.0, max(1e-9, share + step))) == k
    shares = values.square().cumsum(0) / values.square().sum()
    distances = [abs(share - shares[place].item()) for place in range(values.numel() - 1)]
    assert margin == pytest.approx(min(distances), abs=1e-12)  # to the nearest cut between two ranks


def test_margins_and_gaps_at_hand_made_spectra() -> None:
    values = torch.tensor([3.0, 2.0, 1.0])  # cumulative shares 9/14, 13/14, 1
    assert k_margin(values, 0.9) == pytest.approx(13 / 14 - 0.9)
    assert k_margin(values, 0.65) == pytest.approx(0.65 - 9 / 14)
    assert k_margin(values, 0.1) == pytest.approx(9 / 14 - 0.1)  # no rank is below one
    assert k_margin(values, 1.0) == pytest.approx(1 / 14)  # nor above three
    assert math.isnan(k_margin(values[:1], 0.5))
    assert math.isnan(k_margin(values[:0], 0.5))
    with pytest.raises(InputError, match="energy share"):
        k_margin(values, 1.5)
    assert spectral_gap(values, 1) == pytest.approx(1 / 3)
    assert spectral_gap(values, 2) == pytest.approx(1 / 3)
    assert math.isnan(spectral_gap(values, 0))
    assert math.isnan(spectral_gap(values, 3))


def test_a_small_gap_is_a_subspace_that_turns() -> None:
    """Davis and Kahan: the sine of the largest angle is at most the disturbance over the gap."""
    frame = torch.linalg.qr(gaussian(10, 10))[0]
    noise = gaussian(10, 10, seed=1)
    noise *= 1e-3 / torch.linalg.matrix_norm(noise, 2)
    for following, turns in ((0.5, False), (0.9995, True)):
        values = torch.tensor([1.0, 1.0, following, 0.1], dtype=torch.float64)
        matrix = frame[:, :4] @ torch.diag(values) @ torch.eye(4, 10, dtype=torch.float64)
        before, after = (left_factors(m).basis[:, :2].double() for m in (matrix, matrix + noise))
        sine = torch.linalg.matrix_norm(after - before @ (before.T @ after), 2).item()
        gap = spectral_gap(values, 2)
        assert sine <= 1e-3 / (gap - 1e-3) or gap < 2e-3
        assert (sine > 0.05) == turns


def test_an_audit_of_one_update_has_the_least_margin_and_gap() -> None:
    values = torch.tensor([3.0, 2.0, 1.0])
    audit = audit_update(values, full_rank=4, rounding=0.7, energies=[0.9, 0.1], ranks=[2])
    assert audit.rounding_share == pytest.approx(0.05)
    assert (audit.numerical_rank, audit.full_rank, audit.ill_conditioned) == (3, 4, False)
    assert audit.k_margin == pytest.approx(13 / 14 - 0.9)
    assert audit.spectral_gap == pytest.approx(1 / 3)
    empty = audit_update(values[:0], full_rank=4, rounding=0.7, energies=[0.9])
    assert empty.numerical_rank == 0
    assert all(math.isnan(x) for x in (empty.rounding_share, empty.condition, empty.k_margin, empty.spectral_gap))


def test_the_summary_counts_and_names_the_worst() -> None:
    plain = audit_update(torch.tensor([3.0, 2.0]), 2, rounding=0.0, energies=[0.5]).row()
    rows = [{"tensor": f"t{i}", "update": "u", **plain} for i in range(8)]
    for place in range(7):
        rows[place]["rounding_share"] = 0.02 + place / 100
    rows[0]["condition"] = 1e-7
    rows[1]["condition"] = math.nan
    rows[2]["numerical_rank"] = 1
    rows[3]["numerical_rank"] = 0  # a zero update is missing, not deficient
    rows[4]["k_margin"] = CLOSE_K / 2
    found = summarise_audit(rows)
    rounding = found["rounding"]
    assert (rounding["count"], rounding["n"], rounding["n_unknown"]) == (7, 8, 0)
    assert [entry["name"] for entry in rounding["worst"]] == ["u: t6", "u: t5", "u: t4", "u: t3", "u: t2"]
    assert found["ill_conditioned"]["worst"] == [{"name": "u: t0", "condition": 1e-7}]
    assert found["ill_conditioned"]["n_unknown"] == 1
    assert found["rank_deficient"] == {
        "threshold": 1.0, "count": 1, "n": 7, "n_unknown": 0, "worst": [{"name": "u: t2", "rank_share": 0.5}],
    }  # fmt: skip
    assert found["close_k"]["count"] == 1
    assert json.loads(json.dumps(found)) == found
    assert summarise_audit([])["updates"] == 0
    without_label = summarise_audit([{"tensor": "t", **plain, "rounding_share": 1.0}])
    assert without_label["rounding"]["worst"][0]["name"] == "t"

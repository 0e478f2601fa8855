"""Several alignments side by side: how selective the subspace of each is, and what its update is like.

*Selectivity* is the refusal margin of the fine-tune projected by the alignment subspace minus by random subspaces of
equal energy per tensor, signed so that positive is selective (away spares the margin, onto spends it), averaged over
methods, fractions and draws within a seed. Objectives make margins of very different size, so that alignments are
compared by its share of the margin that the fine-tune took away (aligned minus tuned). A seed is the unit of every
interval, and alignments of one seed share their base model: they are compared pair by pair.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import permutations
from math import factorial
from typing import Final

import numpy as np
import pandas as pd
from scipy import stats

from safety_subspaces.findings.comparisons import selectivity_by_draw
from safety_subspaces.findings.constrained import root_mean_square
from safety_subspaces.findings.intervals import TIE, Interval, Z, fisher_interval, over_seeds, t_interval
from safety_subspaces.findings.models import main_fine_tune
from safety_subspaces.findings.organisms import Organism
from safety_subspaces.findings.thresholds import SELECTIVE_SIGN

MEASURES: Final = ("selectivity", "lost_share", "harm_selectivity")
ERRORS: Final = {"selectivity": "selectivity_error", "lost_share": "lost_share_error"}
# What an alignment update is like, and where its model stands.
TRAITS: Final = ("norm", "stable_rank", "head_share", "aligned_margin")
# Fewer alignments than this give a rank correlation of 1 by luck too often.
LEAST_ALIGNMENTS: Final = 6
# Orders in which traits are dealt out: all of 7 alignments or fewer; a p of 0.01 is then known to 0.001.
PERMUTATIONS: Final = 9999
# Of a trait, beside the largest: sums of float64 agree to more.
DIGITS: Final = 12


def alignments_by_seed(organisms: Sequence[Organism]) -> pd.DataFrame:
    """Return a row for each alignment and seed.

    Columns: ``organism``, ``seed``, ``selectivity`` (nats), ``lost_share`` (the same as a share of the margin that the
    fine-tune took away), ``harm_selectivity`` (the same of the harm score), ``draws``, ``fractions``, the traits
    ``norm`` (Frobenius norm of the alignment update), ``stable_rank`` (mean over the blocks' matrices, weighted by
    energy), ``head_share`` (of its energy, in the output head) and ``aligned_margin`` (refusal margin of the aligned
    model), and ``tuned_margin``. Fractions are those that all alignments have. ``selectivity_error`` and
    ``lost_share_error`` are standard errors over prompts, which take two models' answers for independent and those of
    all fractions and draws for one. The fine-tune is that of :func:`judged_by`.
    """
    main = judged_by(organisms)
    fractions = _common_fractions(organisms, main)
    rows: list[dict[str, object]] = []
    for organism in organisms:
        seeds = organism.seeds
        margins = seeds.models.set_index(["seed", "model"])["refusal_margin"]
        aligned_margins = seeds.aligned.set_index("seed")["refusal_margin"]
        for seed in seeds.seeds:
            of_seed = seeds.projections[(seeds.projections["seed"] == seed)]
            chosen = of_seed[(of_seed["tuned"] == main) & of_seed["fraction"].isin(fractions)]
            differences = selectivity_by_draw(chosen)
            signs = differences["method"].map(SELECTIVE_SIGN).astype(float)
            update = seeds.alignment_updates
            selective = float((differences["refusal_margin"] * signs).mean())
            aligned, tuned = float(aligned_margins.get(seed, np.nan)), float(margins.get((seed, main), np.nan))
            lost, error = aligned - tuned if aligned > tuned else np.nan, _error_over_prompts(chosen)
            rows.append(
                {
                    "organism": organism.name,
                    "seed": seed,
                    "selectivity": selective,
                    "selectivity_error": error,
                    "lost_share": selective / lost,
                    "lost_share_error": error / lost,
                    "harm_selectivity": (-differences["harm_score"] * signs).mean(),
                    "draws": differences["draw"].nunique(),
                    "fractions": differences["fraction"].nunique(),
                    **_traits(update[update["seed"] == seed]),
                    "aligned_margin": aligned,
                    "tuned_margin": tuned,
                }
            )
    return pd.DataFrame(rows)


def judged_by(organisms: Sequence[Organism]) -> str:
    """Return the fine-tune that all alignments are judged by: of those swept in all, see :func:`main_fine_tune`."""
    return main_fine_tune(*(organism.seeds for organism in organisms))


def alignments_over_seeds(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each alignment, its measures averaged over seeds.

    Columns: ``organism``; each of ``MEASURES``, ``TRAITS`` and ``tuned_margin`` with ``_reach`` and ``_seeds``, as in
    :func:`~.intervals.over_seeds`; ``draws`` and ``fractions``, the most of a seed.
    """
    described = {"draws": "max", "fractions": "max"}
    return over_seeds(by_seed, ["organism"], (*MEASURES, *TRAITS, "tuned_margin"), described, ERRORS)


def changes(organisms: Sequence[Organism], by_seed: pd.DataFrame) -> pd.DataFrame:
    """Compare each alignment with the first of its objective, seed by seed.

    Returns:
        A row for each alignment that is not a first one: ``organism``, ``beside`` (that first one), the differences in
        each measure of ``MEASURES`` under its name (each an :class:`~.intervals.Interval`), and
        ``gap_share``: the mean change of ``lost_share`` as a share of the gap between the first alignments of the two
        objectives, 1 where the change alone makes the one as selective as the other; NaN without two objectives, or
        where the gap is not shown; and ``past_half``: the interval of the change beyond half of that gap, signed so
        that positive is beyond.
    """
    wide = by_seed.pivot_table(index="seed", columns="organism", values=list(MEASURES), dropna=False)
    firsts = first_of_each(organisms)
    rows = []
    for organism in organisms:
        first = firsts.get(objective_of(organism))
        if first is None or first == organism.name:
            continue
        moved = {m: t_interval(wide[m][organism.name] - wide[m][first]) for m in MEASURES}
        share, past_half = np.nan, t_interval(pd.Series(dtype=float))
        others = [name for name in firsts.values() if name != first]
        if others:
            shares = wide["lost_share"]
            apart = shares[others[0]] - shares[first]
            between = t_interval(apart)
            if between.sign:
                share = moved["lost_share"].mean / between.mean
                past_half = t_interval((shares[organism.name] - shares[first] - apart / 2) * between.sign)
        row = {"organism": organism.name, "beside": first, **moved, "gap_share": share, "past_half": past_half}
        rows.append(row)
    return pd.DataFrame(rows, columns=["organism", "beside", *MEASURES, "gap_share", "past_half"])


def gap(organisms: Sequence[Organism], by_seed: pd.DataFrame, measure: str) -> Interval:
    """Return a measure of the second objective minus that of the first, seed by seed; empty without two objectives."""
    names = list(first_of_each(organisms).values())
    if len(names) < 2:
        return t_interval(pd.Series(dtype=float))
    wide = by_seed.pivot_table(index="seed", columns="organism", values=measure, dropna=False)
    return t_interval(wide[names[1]] - wide[names[0]])


def by_measure(by_seed: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return each number of :func:`alignments_by_seed` with a row a seed and a column an alignment."""
    indexed = by_seed.set_index(["seed", "organism"])
    return {str(name): indexed[name].unstack() for name in indexed}


def paired(numbers: Mapping[str, pd.DataFrame], parts: Mapping[str, float], measure: str) -> tuple[Interval, pd.Series]:
    """Return a sum of alignments' measures, each by a factor: its interval over seeds, and each seed's.

    Args:
        numbers: As :func:`by_measure`.
        parts: The factor of each alignment: ``{"DPO": 1.0, "SFT": -1.0}`` is a difference.
        measure: One of ``MEASURES``.
    """

    def of(name: str) -> list[np.ndarray]:
        return [factor * numbers[name][alignment].to_numpy(float) for alignment, factor in parts.items()]

    values = pd.Series(np.sum(of(measure), axis=0))
    errors = pd.Series(np.linalg.norm(of(ERRORS[measure]), axis=0)) if measure in ERRORS else None
    return t_interval(values, errors), values


def trait_correlations(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's rho of the lost margin's share with each trait over alignments, a row a trait.

    Its p is over alignments: seeds repeat the same few alignments, and agree on how these happen to lie. Traits are
    dealt out anew to the alignments, the same way in every seed, in all orders or in ``PERMUTATIONS`` random ones.

    Columns: ``trait``; ``rho``, the mean over seeds of each seed's own on Fisher's z scale; ``low`` and ``high``, its
    95 % interval over alignments; ``seeds_low`` and ``seeds_high``, the t interval over seeds, of these alignments;
    ``p``; and the sample: ``alignments`` that every seed has, of the ``seeds`` that have six. NaN with fewer
    alignments, or where trait or share are all alike in a seed.

    Source: for the interval over alignments, Bonett and Wright, Psychometrika 65 (2000).
    """
    rows, numbers = [], by_measure(by_seed)
    for trait in TRAITS:
        is_known = numbers["lost_share"].notna() & numbers[trait].notna()
        seeds = is_known.index[is_known.sum(axis=1) >= LEAST_ALIGNMENTS]
        names = is_known.columns[is_known.loc[seeds].all()]
        shares, traits = (numbers[name].loc[seeds, names].to_numpy(float) for name in ("lost_share", trait))
        row = {"trait": trait, "alignments": len(names) if len(seeds) else 0, "seeds": len(seeds)}
        rows.append(row | _rank_correlation(traits, shares))
    return pd.DataFrame(rows)


def _rank_correlation(traits: np.ndarray, shares: np.ndarray) -> dict[str, float]:
    """Return rho with its intervals and its p; rows are seeds, columns alignments."""
    nothing = dict.fromkeys(("rho", "low", "high", "seeds_low", "seeds_high", "p"), np.nan)
    seeds, n = traits.shape
    if seeds == 0 or n < LEAST_ALIGNMENTS:
        return nothing
    # What differs by rounding is alike.
    alike = (np.round(values / (np.abs(values).max() or 1.0), DIGITS) for values in (traits, shares))
    ranks = [stats.rankdata(values, axis=1) for values in alike]
    if any((np.ptp(one, axis=1) == 0).any() for one in ranks):
        return nothing
    first, second = map(_standardised, ranks)
    over = fisher_interval(pd.Series((first * second).sum(axis=1)))
    z = float(np.arctanh(over.mean))
    reach = Z * float(np.sqrt((1 + over.mean**2 / 2) / (n - 3)))
    dealt, is_every = orders_of(n)
    sums = np.abs(sum(row[dealt] @ beside for row, beside in zip(first, second, strict=True)))
    reached = int((sums >= abs(float((first * second).sum())) - TIE * n).sum())
    p = reached / len(dealt) if is_every else (1 + reached) / (1 + len(dealt))
    ends = {"low": float(np.tanh(z - reach)), "high": float(np.tanh(z + reach))}
    return {"rho": over.mean, **ends, "seeds_low": over.low, "seeds_high": over.high, "p": p}


@cache  # the same for every trait of a page
def orders_of(n: int) -> tuple[np.ndarray, bool]:
    """Return orders of ``n`` things, a row an order, and whether these are all there are."""
    if factorial(n) <= PERMUTATIONS:
        return np.array(list(permutations(range(n)))), True
    return np.random.default_rng(0).permuted(np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1), False


def _standardised(ranks: np.ndarray) -> np.ndarray:
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.linalg.norm(centred, axis=1, keepdims=True))


def first_of_each(organisms: Sequence[Organism]) -> dict[str, str]:
    """Return the name of the first organism of each objective."""
    firsts: dict[str, str] = {}
    for organism in organisms:
        if organism.alignment is not None:
            firsts.setdefault(organism.alignment.objective, organism.name)
    return firsts


def objective_of(organism: Organism) -> str:
    """Return the objective of an alignment; empty where it is not known."""
    return "" if organism.alignment is None else organism.alignment.objective


def _error_over_prompts(projections: pd.DataFrame) -> float:
    """Return the standard error of a mean of top minus random-energy, which no number of fractions averages out."""
    kinds = [projections[projections["subspace"] == kind]["refusal_margin_stderr"] for kind in ("top", "random-energy")]
    return float(np.sqrt(sum(root_mean_square(errors) ** 2 for errors in kinds)))


def _common_fractions(organisms: Sequence[Organism], main: str) -> set[float]:
    shared: set[float] | None = None
    for organism in organisms:
        every = organism.seeds.projections
        rows = every[(every["tuned"] == main) & (every["subspace"] == "random-energy")]
        for _, of_seed in rows.groupby("seed"):
            fractions = set(of_seed["fraction"].astype(float))
            shared = fractions if shared is None else shared & fractions
    return shared or set()


def _traits(update: pd.DataFrame) -> dict[str, float]:
    """Return norm, stable rank and head share of one seed's update, from ``Seeds.alignment_updates``."""
    energy = update["energy"].astype(float)
    total = float(energy.sum())
    if total == 0:
        return {"norm": np.nan, "stable_rank": np.nan, "head_share": np.nan}
    matrices = update[(update["layer"] >= 0) & (update["type"] != "norm")]
    weights = matrices["energy"].astype(float)
    rank = float((matrices["stable_rank"].astype(float) * weights).sum() / weights.sum()) if weights.sum() else np.nan
    head = float(energy[update["type"] == "head"].sum() / total)
    return {"norm": total**0.5, "stable_rank": rank, "head_share": head}

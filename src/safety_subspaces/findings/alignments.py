"""Several alignments side by side: how selective the subspace of each is, and what its update is like.

*Selectivity* is the refusal margin of the fine-tune projected by the alignment subspace minus by random subspaces of
equal energy per tensor, signed so that positive is selective (away spares the margin, onto spends it), averaged over
methods, fractions and draws within a seed. Objectives make margins of very different size, so that alignments are
compared by its share of the margin that the fine-tune took away (aligned minus tuned). A seed is the unit of every
interval, and alignments of one seed share their base model: they are compared pair by pair.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from scipy import stats

from safety_subspaces.findings.comparisons import selectivity_by_draw
from safety_subspaces.findings.intervals import Interval, fisher_interval, over_seeds, t_interval
from safety_subspaces.findings.organisms import Organism
from safety_subspaces.findings.thresholds import SELECTIVE_SIGN

# The fine-tune that all alignments are judged by: it is both useful and harmful.
JUDGED_BY: Final = "contaminated"
MEASURES: Final = ("selectivity", "lost_share", "harm_selectivity")
# What an alignment update is like, and where its model stands.
TRAITS: Final = ("norm", "stable_rank", "head_share", "aligned_margin")
# Fewer alignments than this give a rank correlation of 1 by luck too often.
LEAST_ALIGNMENTS: Final = 6


def alignments_by_seed(organisms: Sequence[Organism]) -> pd.DataFrame:
    """Return a row for each alignment and seed.

    Columns: ``organism``, ``seed``, ``selectivity`` (nats), ``lost_share`` (the same as a share of the margin that the
    fine-tune took away), ``harm_selectivity`` (the same of the harm score), ``draws``, ``fractions``, the traits
    ``norm`` (Frobenius norm of the alignment update), ``stable_rank`` (mean over the blocks' matrices, weighted by
    energy), ``head_share`` (of its energy, in the output head) and ``aligned_margin`` (refusal margin of the aligned
    model), and ``tuned_margin``. Fractions are those that all alignments have.
    """
    fractions = _common_fractions(organisms)
    rows: list[dict[str, object]] = []
    for organism in organisms:
        seeds = organism.seeds
        margins = seeds.models.set_index(["seed", "model"])["refusal_margin"]
        margins = margins[~margins.index.duplicated()]
        for seed in seeds.seeds:
            of_seed = seeds.projections[(seeds.projections["seed"] == seed)]
            chosen = of_seed[(of_seed["tuned"] == JUDGED_BY) & of_seed["fraction"].isin(fractions)]
            differences = selectivity_by_draw(chosen)
            signs = differences["method"].map(SELECTIVE_SIGN).astype(float)
            update = seeds.alignment_updates
            selective = float((differences["refusal_margin"] * signs).mean())
            aligned, tuned = (float(margins.get((seed, model), np.nan)) for model in ("aligned", JUDGED_BY))
            rows.append(
                {
                    "organism": organism.name,
                    "seed": seed,
                    "selectivity": selective,
                    "lost_share": selective / (aligned - tuned) if aligned > tuned else np.nan,
                    "harm_selectivity": (-differences["harm_score"] * signs).mean(),
                    "draws": differences["draw"].nunique(),
                    "fractions": differences["fraction"].nunique(),
                    **_traits(update[update["seed"] == seed]),
                    "aligned_margin": aligned,
                    "tuned_margin": tuned,
                }
            )
    return pd.DataFrame(rows)


def alignments_over_seeds(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each alignment, its measures averaged over seeds.

    Columns: ``organism``; each of ``MEASURES``, ``TRAITS`` and ``tuned_margin`` with ``_reach`` and ``_seeds``, as in
    :func:`~.intervals.over_seeds`; ``draws`` and ``fractions``, the most of a seed.
    """
    described = {"draws": "max", "fractions": "max"}
    return over_seeds(by_seed, ["organism"], (*MEASURES, *TRAITS, "tuned_margin"), described)


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
        first = firsts.get(_objective(organism))
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


def trait_correlations(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's rho of the lost margin's share with each trait over alignments, a row a trait.

    Columns: ``trait``; ``rho``, the mean over seeds of each seed's own; ``low`` and ``high``, the 95 % t interval
    over seeds on Fisher's z scale; and the sample: ``alignments`` (the fewest of a seed) and ``seeds``. NaN with fewer
    than six alignments.
    """
    rows = []
    for trait in TRAITS:
        rhos, sizes = [], []
        for _, cell in by_seed.groupby("seed", sort=False):
            pair = cell[["lost_share", trait]].dropna().astype(float)
            sizes.append(len(pair))
            moves = len(pair) >= LEAST_ALIGNMENTS and np.ptp(pair[trait]) > 0 and np.ptp(pair["lost_share"]) > 0
            rhos.append(float(stats.spearmanr(pair[trait], pair["lost_share"]).statistic) if moves else np.nan)
        over = fisher_interval(pd.Series(rhos))
        described = {"alignments": min(sizes, default=0), "seeds": over.n}
        rows.append({"trait": trait, "rho": over.mean, "low": over.low, "high": over.high, **described})
    return pd.DataFrame(rows)


def first_of_each(organisms: Sequence[Organism]) -> dict[str, str]:
    """Return the name of the first organism of each objective."""
    firsts: dict[str, str] = {}
    for organism in organisms:
        if organism.alignment is not None:
            firsts.setdefault(organism.alignment.objective, organism.name)
    return firsts


def _objective(organism: Organism) -> str:
    return "" if organism.alignment is None else organism.alignment.objective


def _common_fractions(organisms: Sequence[Organism]) -> set[float]:
    shared: set[float] | None = None
    for organism in organisms:
        every = organism.seeds.projections
        rows = every[(every["tuned"] == JUDGED_BY) & (every["subspace"] == "random-energy")]
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

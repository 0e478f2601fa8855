"""Whether the energy that a projection keeps orders utility and harm, and how much lies in the alignment subspace."""

from collections.abc import Iterable
from math import isnan, nan
from typing import Any, Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.comparisons import COMPARED
from safety_subspaces.findings.finding import Finding, Words, decide, draws_needed
from safety_subspaces.findings.intervals import Interval
from safety_subspaces.findings.kept_energy import energy_beside_chance, interval_beside
from safety_subspaces.findings.models import Seeds
from safety_subspaces.findings.sweep_contrasts import BOTH, DRAWS, SEEDS, contrasts, difference_of
from safety_subspaces.findings.swept import energy_correlations, evaluated, swept
from safety_subspaces.findings.thresholds import LEAST_DIFFERENCE, STRONG, WEAK

TOPIC: Final = "energy"
INSIDE: Final = "energy in the alignment subspace"
ORDER: Final = "kept energy and the outcome"
AT_EQUAL: Final = "kinds at equal energy"
ALONE: Final = "kept energy alone"
# What energy is to explain: harm follows the margin, and jumps.
EXPLAINED: Final = {"refusal_margin": "refusal margin (nats)", "utility": "utility"}
MORE_ENERGY: Final = Words("more than random", "less than random", "no difference")
DIFFERENT: Final = Words("more", "less", "no difference")
SHOWN: Final = (DIFFERENT.above, DIFFERENT.below)


def energy(studies: Seeds) -> list[Finding]:
    """Ask of each fine-tune: is its energy in the alignment subspace, and does kept energy alone order the outcome.

    *In the alignment subspace*: the share of the update's energy, the mean over fractions, beside random subspaces of
    equal rank. One study: a rank among the draws, where these are enough for the family. Several seeds: a t-test of the
    difference from the expected share, over seeds.

    *Kept energy and the outcome*: Spearman's rho over every subspace, method (onto and away) and fraction, by measure.
    Of one study it is described. Over seeds it orders where the whole interval is beyond ``STRONG``, and does not where
    it is within ``WEAK``.

    *Kinds at equal energy*: each kind minus another, by each method, in ``EXPLAINED``. Over seeds these are tests, a
    family a fine-tune. *Kept energy alone*: what the two say together, by :func:`energy_verdict`.

    Returns:
        Findings in the order of these questions, by fine-tune; those on the outcome where anything was evaluated.
    """
    projections = swept(studies)
    found = _inside(projections)
    if evaluated(projections).empty:
        return found
    equal = contrasts(projections, "energy")
    for tuned, rows in energy_correlations(projections).groupby("tuned", sort=False):
        orders = [_order(row) for _, row in rows.iterrows()]
        differences = [_difference(row, m) for _, row in _alone(equal, str(tuned)).iterrows() for m in EXPLAINED]
        found += [*orders, *differences, _together(str(tuned), rows, differences)]
    return found


def energy_verdict(orders: Iterable[Interval], compared: int, differing: int) -> str:
    """Return ``alone``, ``not alone``, ``partly``, ``does not order`` or ``unknown``.

    Args:
        orders: Rank correlations of kept energy, of the measures that move, each signed by its own direction.
        compared: How many differences at equal energy were tested.
        differing: How many of these are shown, corrected for their number.
    """
    known = [order for order in orders if not np.isnan(order.mean)]
    if not known or any(np.isnan(order.low) for order in known):
        return "unknown"
    if min(order.low for order in known) >= STRONG:
        return ("not alone" if differing else "alone") if compared else "unknown"
    return "does not order" if max(order.high for order in known) < WEAK else "partly"


def _inside(projections: pd.DataFrame) -> list[Finding]:
    frame = energy_beside_chance(projections, ["tuned"])
    random = evaluated(projections[projections["subspace"] == "random"])
    evaluated_draws = random.groupby("tuned")["draw"].nunique()
    found = []
    for _, row in frame.iterrows():
        over, is_single = interval_beside(row), row["seeds"] == 1
        needed = draws_needed(len(frame))
        p = nan if is_single and over.n < needed else float(row["p"])
        why = f"not tested: {over.n} draws, {needed} needed" if is_single else "not tested: no spread"
        null = "top-k is one of the draws" if is_single else "the mean over seeds of the excess over chance is 0"
        found.append(
            Finding(
                TOPIC,
                INSIDE,
                str(row["tuned"]),
                "share of the energy, mean over fractions",
                estimate=over.mean,
                low=over.low,
                high=over.high,
                unit=DRAWS if is_single else SEEDS,
                n=over.n,
                null="" if isnan(p) else f"{null} (Haar-random subspaces of equal rank)",
                p=p,
                words=MORE_ENERGY,
                verdict=why,
                rule="rank of top-k among the draws" if is_single else "t over seeds",
                family=INSIDE,
                details=_plain(row, "energy_top", "energy_random", "chance_energy", "draws", "fractions")
                | {"draws_needed": needed, "evaluated": int(evaluated_draws.get(row["tuned"], 0))},
            )
        )
    return found


def _order(row: pd.Series) -> Finding:
    """Say of one measure whether kept energy orders it."""
    rho = _rho(row)
    is_single = isnan(rho.low)
    return Finding(
        TOPIC,
        ORDER,
        str(row["tuned"]),
        str(row["measure"]),
        estimate=rho.mean,
        low=rho.low,
        high=rho.high,
        unit=DRAWS if is_single else SEEDS,
        n=int(row["draws"]) if is_single else rho.n,
        verdict=_order_verdict(rho),
        rule=f"orders: interval beyond {STRONG}; does not: within {WEAK}",
        details=_plain(row, "draw_spread", "draws", "points", "models", "seeds"),
    )


def _order_verdict(rho: Interval) -> str:
    if isnan(rho.mean):
        return "not known: it does not move, or too little was scored"
    if isnan(rho.low):
        return "described: one seed"
    signed = _towards(rho)
    return "orders" if signed.low >= STRONG else "does not order" if signed.high < WEAK else "in part"


def _difference(row: pd.Series, measure: str) -> Finding:
    """Subtract one kind from another at equal energy, by one method."""
    over, unit = difference_of(row, measure), str(row["unit"])
    p = float(row[f"{measure}_difference_p"])
    return Finding(
        TOPIC,
        AT_EQUAL,
        f"{row['tuned']}: {row['subspace']} minus {row['other']}, {row['method']}",
        EXPLAINED[measure],
        estimate=over.mean,
        low=over.low,
        high=over.high,
        unit=unit,
        n=over.n,
        null="" if isnan(p) else "the mean over seeds is 0",
        p=p,
        words=DIFFERENT,
        least=LEAST_DIFFERENCE[measure],
        verdict="not tested: no spread" if unit == SEEDS and over.n > 1 else "not tested: one seed",
        rule=f"t over seeds, never surer than the prompts; at least {LEAST_DIFFERENCE[measure]}",
        family=f"{AT_EQUAL}, {row['tuned']}",
        details=_plain(row, "tuned", "subspace", "other", "method", "draws", "fractions", "left_out", "compared"),
    )


def _together(tuned: str, correlations: pd.DataFrame, differences: list[Finding]) -> Finding:
    """Say whether energy orders the outcome, and whether kinds differ where it is equal."""
    decided = decide(differences)
    compared, shown = int(decided["p"].notna().sum()), int(decided["verdict"].isin(SHOWN).sum())
    rhos = {str(row["measure"]): _rho(row) for _, row in correlations.iterrows()}
    verdict = energy_verdict([_towards(rho) for rho in rhos.values()], compared, shown)
    seeds = max(rho.n for rho in rhos.values())
    return Finding(
        TOPIC,
        ALONE,
        tuned,
        unit=SEEDS,
        n=seeds,
        verdict="described: one seed" if verdict == "unknown" and seeds == 1 else verdict,
        rule="alone: every measure that moves is ordered, and no difference at equal energy is shown",
        details={"compared": compared, "shown": shown, "measures": list(COMPARED)},
    )


def _alone(equal: pd.DataFrame, tuned: str) -> pd.DataFrame:
    """Keep the contrasts of one fine-tune by each method alone."""
    return equal[(equal["tuned"] == tuned) & (equal["method"] != BOTH)]


def _rho(row: pd.Series) -> Interval:
    return Interval(float(row["rho"]), float(row["low"]), float(row["high"]), int(row["seeds"]))


def _towards(rho: Interval) -> Interval:
    """Return a correlation with the sign of its own direction."""
    sign = -1 if rho.mean < 0 else 1
    low, high = sorted([sign * rho.low, sign * rho.high])
    return Interval(sign * rho.mean, low, high, rho.n)


def _plain(row: pd.Series, *names: str) -> dict[str, Any]:
    return {name: row[name].item() if hasattr(row[name], "item") else row[name] for name in names}

"""How much of a fine-tune's energy lies in the alignment subspace, beside random subspaces of equal rank.

The energies of many draws are cheap, and most draws have nothing else. The null is that of Haar-random subspaces: an
excess is also what two updates have that share nothing but the scales of their rows.
"""

from typing import Any, Final

import numpy as np
import pandas as pd

from safety_subspaces.findings.intervals import Interval, prediction_interval, rank_p_value, t_interval

KINDS: Final = ("top", "random")
COLUMNS: Final = (
    "energy_top", "energy_random", "chance_energy", "difference", "reach", "n", "p", "draws", "fractions", "seeds",
)  # fmt: skip


def energy_beside_chance(projections: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return how much more of each fine-tune's energy top-k holds than a random subspace of the same rank.

    Args:
        projections: As :func:`~.swept.swept`. Energies are those of *onto*, or what *away* leaves out.
        keys: ``tuned`` for the mean over fractions, or ``tuned`` and ``fraction``.

    Returns:
        A row for each of ``keys``: ``energy_top``, ``energy_random`` (mean of the draws) and ``chance_energy`` (its
        expectation, in closed form). Of several seeds ``difference`` is top minus the expectation (minus the mean of
        the draws where it is not known), ``reach`` half its t interval over ``n`` seeds, ``p`` that of the t-test. Of
        one study it is top minus the mean of the draws, ``reach`` half of where one more of ``n`` draws would fall, and
        ``p`` the rank of top among them; without draws it is top minus the expectation, and has neither.
        ``draws`` is the fewest of a seed that have every fraction, ``fractions`` how many all seeds have, ``seeds``
        their number.
    """
    inside = _inside(projections)
    rows = [dict(zip(keys, values, strict=True)) | _beside(cell) for values, cell in inside.groupby(keys, sort=False)]
    return pd.DataFrame(rows, columns=[*keys, *COLUMNS]).dropna(subset="energy_top").reset_index(drop=True)


def interval_beside(row: pd.Series) -> Interval:
    """Return the difference of :func:`energy_beside_chance` with its interval."""
    mean, reach = float(row["difference"]), float(row["reach"])
    return Interval(mean, mean - reach, mean + reach, int(row["n"]))


def _inside(projections: pd.DataFrame) -> pd.DataFrame:
    """Return the share of the energy inside each subspace: ``energy`` and what chance expects, once a subspace."""
    chosen = projections[projections["subspace"].isin(KINDS) & projections["method"].isin(("onto", "away"))]
    is_away = chosen["method"] == "away"
    shares = {
        name: chosen[column].mask(is_away, 1 - chosen[column])
        for name, column in (("energy", "energy_kept"), ("chance", "chance_energy"))
    }
    names = ["tuned", "fraction", "seed", "subspace", "draw"]
    frame = chosen[names].assign(is_away=is_away, **shares).sort_values("is_away", kind="stable")
    return frame.drop_duplicates(names)[[*names, "energy", "chance"]].sort_index()


def _beside(cell: pd.DataFrame) -> dict[str, Any]:
    """Compare top with random, the mean over the fractions that every seed has."""
    is_top = cell["subspace"] == "top"
    top = cell[is_top].pivot(index="seed", columns="fraction", values="energy").dropna(axis="columns")
    if top.empty:
        return {"energy_top": np.nan}
    of_shared = cell[cell["fraction"].isin(top.columns)]
    chance = of_shared[is_top].groupby("seed", sort=False)["chance"].agg(_mean_of_all)
    # What was determined in closed form, over all draws, is no draw.
    each = of_shared[~is_top & of_shared["draw"].notna()]
    drawn = each.pivot(index=["seed", "draw"], columns="fraction", values="energy")
    draws = drawn.reindex(columns=top.columns).dropna().mean(axis=1)
    by_seed = draws.groupby(level="seed").mean().reindex(top.index)
    means = top.mean(axis=1)
    counts = draws.groupby(level="seed").size().reindex(top.index, fill_value=0)
    if len(top) > 1:
        over = t_interval(means - chance.reindex(top.index).fillna(by_seed))
        p = over.p_value
    elif len(draws):
        over = prediction_interval(means.iloc[0] - draws.to_numpy(float))
        p = rank_p_value(float(means.iloc[0]), draws.to_numpy(float))
    else:
        over, p = Interval(float(means.iloc[0] - chance.iloc[0]), np.nan, np.nan, 0), np.nan
    return {
        "energy_top": means.mean(),
        "energy_random": by_seed.mean(),
        "chance_energy": chance.mean(),
        "difference": over.mean,
        "reach": over.reach,
        "n": over.n,
        "p": p,
        "draws": int(counts.min()),
        "fractions": top.shape[1],
        "seeds": len(top),
    }


def _mean_of_all(values: pd.Series) -> float:
    return float(values.mean(skipna=False))

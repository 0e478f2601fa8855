"""The tables of projected models, and of their selectivity."""

from safety_subspaces.artefacts.study import Study
from safety_subspaces.findings.comparisons import COMPARED, pool_draws, selectivity
from safety_subspaces.report.parts.columns import counts, differences, numbers, outcomes, short, table_of, text, texts
from safety_subspaces.report.parts.table import Table

COMPARED_SUBSPACES = ("top", "random-energy")


def projection_table(study: Study, subspaces: tuple[str, ...] | None = None) -> Table:
    """Every projected configuration, its draws pooled; of the named subspaces only, if any are named."""
    pooled = pool_draws(study.projections)
    columns = {
        "tuned": text("group"),
        **texts("subspace", "method"),
        "fraction": short("fraction"),
        "draws": counts("n_draws"),
        "energy": numbers("energy_kept", 3),
        "chance": numbers("chance_energy", 3),
        **outcomes(("utility", "harmful_rate", "harm_score", "refusal_margin"), "_error"),
        "unscored": counts("n_unscored"),
    }
    note = (
        "Energy: the share of the update's squared norm that is kept. Means over draws; ± the standard error over "
        "draws where there are two or more, else of the evaluation."
    )
    rows = pooled if subspaces is None else pooled[pooled["subspace"].isin(subspaces)]
    return table_of(rows, columns, 3, note)


def selectivity_table(study: Study) -> Table:
    """Top-k minus random subspaces of equal energy, with the error that the draws leave."""
    columns = {
        "tuned": text("group"),
        "method": text("method"),
        "fraction": short("fraction"),
        "draws": counts("refusal_margin_draws"),
        "energy top": numbers("energy_top", 3),
        "energy random": numbers("energy_random", 3),
        **differences(COMPARED, "_error"),
    }
    note = (
        "Top minus the mean of the random draws ± the error that the draws leave (their standard deviation / "
        "sqrt(draws); none with one draw). A selective subspace spares the margin when it is projected away (positive) "
        "and spends it when projected onto (negative)."
    )
    return table_of(selectivity(study.projections), columns, 2, note)

"""The tables that a terminal shows of a study."""

from safety_subspaces.artefacts.study import Study
from safety_subspaces.report.parts.table import TERMINAL_WIDTH
from safety_subspaces.report.sections.energy.tables import COMPARED_SUBSPACES, projection_table
from safety_subspaces.report.sections.models.tables import model_table

# A terminal shows a screenful; the page has every row.
TERMINAL_ROWS = 48


def terminal_tables(study: Study, width: int = TERMINAL_WIDTH) -> str:
    """Return the table of models and the table of projections as plain text, at most ``width`` wide."""
    parts = []
    if len(study.models):
        parts.append("Models\n" + model_table(study).to_text(width))
    if len(study.projections):
        table = projection_table(study)
        title = "Projections"
        if len(table.rows) > TERMINAL_ROWS:
            title += " (top-k and its control of equal energy; the page has every subspace)"
            table = projection_table(study, COMPARED_SUBSPACES)
        parts.append(f"{title}\n" + table.without("chance", "harmful", "unscored").to_text(width))
    return "\n\n".join(parts)

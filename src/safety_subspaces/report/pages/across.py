"""What a page and a terminal say of several studies: the findings of each organism, and the tables, from one place."""

from collections.abc import Sequence
from dataclasses import replace

from safety_subspaces.findings.intervals import Finding
from safety_subspaces.findings.organisms import Organism
from safety_subspaces.findings.sweeps import BOTH
from safety_subspaces.report.pages.hidden_states import (
    across_state_findings,
    across_state_terminal_tables,
    read_hidden_states,
)
from safety_subspaces.report.parts.table import NOTHING, Table
from safety_subspaces.report.sections.alignments.reading import alignments_table, read_alignments
from safety_subspaces.report.sections.constraint.reading import read_constrained_across
from safety_subspaces.report.sections.constraint.tables import constrained_across_table, differences_across_table
from safety_subspaces.report.sections.energy.reading_seeds import read_sweeps
from safety_subspaces.report.sections.energy.tables import correlations_table, selectivity_across_table
from safety_subspaces.report.sections.models.reading import read_learnt
from safety_subspaces.report.sections.models.tables import models_across_table
from safety_subspaces.report.sections.overlap.reading import read_overlaps_across
from safety_subspaces.report.sections.overlap.tables import overlaps_across_table

# The heading of what is said of the organisms side by side.
SIDE_BY_SIDE = "Side by side"


def organism_findings(organism: Organism) -> list[Finding]:
    """Return every finding on one organism over its seeds, in the order of the page."""
    seeds = organism.seeds
    swept = read_sweeps(seeds.projections, organism.name) if seeds.has_evaluated_projections else []
    overlaps = read_overlaps_across(seeds.overlaps, organism.name) if len(seeds.overlaps) else []
    states = across_state_findings(read_hidden_states(seeds.named), organism.name)
    return [read_learnt(seeds), *swept, *overlaps, *states, *read_constrained_across(seeds)]


def across_findings(organisms: Sequence[Organism]) -> dict[str, list[Finding]]:
    """Return the findings by organism, and of several what they show side by side."""
    findings = {organism.name: organism_findings(organism) for organism in organisms}
    together = read_alignments(organisms)
    return {**findings, SIDE_BY_SIDE: together} if together else findings


def across_tables(organisms: Sequence[Organism]) -> dict[str, Table]:
    """Return the tables of a terminal with their titles, those of the page that fit."""
    tables: dict[str, Table] = {}
    for organism in organisms:
        seeds, name = organism.seeds, organism.name
        if len(seeds.models):
            tables[f"Models, across seeds: {name}"] = models_across_table(seeds)
        if seeds.has_evaluated_projections:
            tables[f"Kept energy and the outcome: {name}"] = correlations_table(seeds.projections)
            tables[f"Top-k of alignment beside its controls: {name}"] = _main_rows(
                selectivity_across_table(seeds.projections).without("shared", "fractions", "draws")
            )
        if len(seeds.overlaps):
            tables[f"Overlap of useful and harmful: {name}"] = _as_named(overlaps_across_table(seeds.overlaps))
        states = across_state_terminal_tables(read_hidden_states(seeds.named))
        tables |= {f"{title}, across seeds: {name}": table for title, table in states.items()}
        tables[f"Training under a constraint, across seeds: {name}"] = constrained_across_table(seeds).without("seeds")
        tables[f"Beside the runs of the same seed: {name}"] = differences_across_table(seeds)
    if len(organisms) > 1:
        tables["Alignments side by side"] = alignments_table(organisms).without(
            "data", "examples", "rate/1e-3", "draws"
        )
    return tables


def _as_named(table: Table) -> Table:
    """Keep the pairs as they are named, where they have an overlap, and what they are judged by."""
    repeated, overlap = table.columns.index("one repeated"), table.columns.index("overlap")
    rows = tuple(row for row in table.rows if not row[repeated] and row[overlap] != NOTHING)
    return replace(table, rows=rows).without("one repeated", "chance", "minus floor", "tensors", "undefined")


def _main_rows(table: Table) -> Table:
    """Keep the rows of top-k with both methods together: a terminal has room for the verdict, the page has the rest."""
    pair, method = table.columns.index("pair"), table.columns.index("method")
    rows = tuple(row for row in table.rows if row[pair].startswith("top") and row[method] == BOTH)
    return replace(table, rows=rows)

"""The analyses of hidden states in one place: what page and terminal say, show and print of them, and over seeds.

A study without them has no section, no sentence and no table, and no next step towards them is named.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from safety_subspaces.findings.activations import Activations, read_activations
from safety_subspaces.findings.contracts import Named
from safety_subspaces.findings.intervals import Finding
from safety_subspaces.findings.probes import Probes, read_probes
from safety_subspaces.findings.steering import Steering, read_steering
from safety_subspaces.report.parts.section import Section
from safety_subspaces.report.parts.table import Table
from safety_subspaces.report.sections.activations.across import (
    read_space_across,
    space_across_section,
    space_across_table,
)
from safety_subspaces.report.sections.activations.reading import read_activation_space
from safety_subspaces.report.sections.activations.section import activations_section
from safety_subspaces.report.sections.probes.across import (
    probes_across_section,
    probes_across_terminal_table,
    read_probes_across,
)
from safety_subspaces.report.sections.probes.reading import read_probes_of
from safety_subspaces.report.sections.probes.section import probes_section
from safety_subspaces.report.sections.steering.across import (
    read_steering_across,
    steering_across_section,
    steering_across_terminal_table,
)
from safety_subspaces.report.sections.steering.reading import read_steering_of
from safety_subspaces.report.sections.steering.section import steering_section

# The subcommands whose main table has its place in a section.
COMMANDS: Final = ("activations", "probe", "steer")
# Rows that leave a terminal's table at about eight lines.
TERMINAL_ROWS: Final = 5


@dataclass(frozen=True)
class HiddenStates:
    """The three analyses of one study, or of the studies of several seeds under one another."""

    activations: Activations
    probes: Probes
    steering: Steering


def read_hidden_states(studies: Sequence[Named]) -> HiddenStates:
    """Read the analyses of some studies, each with the name of its seed.

    Raises:
        InputError: A table lacks a column that is required.
    """
    return HiddenStates(read_activations(studies), read_probes(studies), read_steering(studies))


def state_findings(states: HiddenStates) -> list[Finding]:
    """Return every finding on the hidden states of one study."""
    return [
        *read_activation_space(states.activations),
        *read_probes_of(states.probes),
        *read_steering_of(states.steering),
    ]


def state_sections(states: HiddenStates) -> list[Section]:
    """Return the sections of one study's page, those whose analysis was run."""
    sections = (
        activations_section(states.activations),
        probes_section(states.probes),
        steering_section(states.steering),
    )
    return [section for section in sections if section is not None]


def across_state_findings(states: HiddenStates, organism: str) -> list[Finding]:
    """Return every finding on the hidden states of one organism over its seeds."""
    return [
        *read_space_across(states.activations, organism),
        *read_probes_across(states.probes, organism),
        *read_steering_across(states.steering, organism),
    ]


def across_state_sections(states: HiddenStates, anchor: str) -> list[Section]:
    """Return the sections of one organism on the page over seeds."""
    sections = (
        space_across_section(states.activations, anchor),
        probes_across_section(states.probes, anchor),
        steering_across_section(states.steering, anchor),
    )
    return [section for section in sections if section is not None]


def across_state_terminal_tables(states: HiddenStates) -> dict[str, Table]:
    """Return the tables over seeds for a terminal: the first pair of prompt sets, and the reference model."""
    tables = {}
    if states.activations.views:
        table = space_across_table(states.activations).without("analysis", "position")
        tables["Activation space"] = _first_rows(table, "pair", table.rows[0][0])
    if len(states.probes.table):
        tables["Probes"] = probes_across_terminal_table(states.probes)
    if len(states.steering.selectivity):
        tables["Selectivity of steering"] = steering_across_terminal_table(states.steering)
    return tables


def _first_rows(table: Table, column: str, wanted: str) -> Table:
    """Keep the first rows with a cell, and say how many more there are."""
    index = table.columns.index(column)
    rows = [row for row in table.rows if row[index] == wanted][:TERMINAL_ROWS]
    more = len(table.rows) - len(rows)
    note = "± half the 95 % t interval over seeds." + (f" {more} more rows on the page." if more else "")
    return Table(table.columns, tuple(rows), table.text_columns, note)

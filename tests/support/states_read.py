"""Reads the analyses of hidden states of a synthetic study, or of its seeds, and what is said of one of them."""

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.organisms import read_organisms
from safety_subspaces.report.pages.hidden_states import (
    read_hidden_states,
    state_findings,
)


def states_of(folder):
    return read_hidden_states([("", read_study(folder))])


def seeds_of(folders):
    (organism,) = read_organisms(folders)
    return organism, read_hidden_states(organism.seeds.named)


def findings_of(states, topic):
    return [finding for finding in state_findings(states) if finding.topic == topic]

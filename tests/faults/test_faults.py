"""A sample of what ``make faults`` tries: kills, a failing machine, two at once; and that the harness sees faults."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import machine, together
from faults.cases import CASES, SUBSPACE, Case
from faults.kills import Reference, Stage, kill_after, kill_at, places
from faults.outcome import differences, outcome
from faults.session import staged

SEED = 0
OVER, MODELS, TRAINING = CASES["evaluate over another"], CASES["project with models"], CASES["training"]
CARELESS = Case("careless", Path(__file__).parent / "careless.py", ["{work}/out"])


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("faults")) as stage:
        yield stage


@pytest.fixture(scope="module")
def reference(stage: Stage) -> Callable[[Case], Reference]:
    """What each case does undisturbed, found once."""
    known: dict[str, Reference] = {}

    def refer(case: Case) -> Reference:
        if case.name not in known:
            known[case.name] = stage.refer(case)
        return known[case.name]

    return refer


@pytest.mark.parametrize("case", [OVER, MODELS, SUBSPACE, TRAINING], ids=lambda case: case.name)
def test_a_killed_command_ends_as_if_it_had_not_been(stage: Stage, reference, case: Case) -> None:
    undisturbed = reference(case)
    for operation in places(len(undisturbed.operations[0]), 2, SEED):
        trial = kill_at(stage, case, undisturbed, operation)
        assert trial.happened
        assert trial.problems == (), trial.place
    trial = kill_after(stage, case, undisturbed, undisturbed.seconds / 2)
    assert trial.problems == (), trial.place


@pytest.mark.parametrize("case", [OVER, MODELS, TRAINING], ids=lambda case: case.name)
def test_a_failing_machine_is_told_of_and_costs_nothing(stage: Stage, reference, case: Case) -> None:
    undisturbed = reference(case)
    (operation,) = places(len(undisturbed.operations[0]), 1, SEED)
    trial = machine.disk_full_at(stage, case, undisturbed, operation)
    assert trial.happened
    assert trial.problems == (), trial.place
    if case is not TRAINING:
        tried = [machine.read_only(stage, case, undisturbed), machine.folder_vanishes_at(stage, case, undisturbed, 5)]
        assert [trial for trial in tried if trial.problems] == []


def test_the_file_of_events_cannot_be_written(stage: Stage, reference) -> None:
    assert machine.events_refused(stage, TRAINING, reference(TRAINING)).problems == ()


@pytest.mark.parametrize("name", ["evaluate: one result", "overlap: one result", "training: one run folder"])
def test_two_at_once_make_no_mixture(stage: Stage, name: str) -> None:
    pair = together.PAIRS[name]
    wanted, seconds = together.in_turn(stage, pair)
    trial = together.at_once(stage, name, pair, wanted, 0.5 * seconds)
    assert trial.problems == ()


def test_two_that_share_a_cache_both_end_well(stage: Stage) -> None:
    pair = together.PAIRS["activations: one cache"]
    wanted, _ = together.in_turn(stage, pair)
    assert together.at_once(stage, "one cache", pair, wanted, 0.0).problems == ()


def test_the_harness_sees_a_command_that_writes_carelessly(stage: Stage, reference) -> None:
    undisturbed = reference(CARELESS)
    assert [line.split()[1] for line in undisturbed.operations[0]] == [
        *("os.mkdir", "open", "open", "open", "os.remove"),
    ]
    found = {n: " ".join(kill_at(stage, CARELESS, undisturbed, n).problems) for n in (1, 4)}
    assert found[1] == ""
    assert "neither whole" in found[4]
    assert "missing out/two" in found[4]
    assert "left .out.temporary" in found[4]
    vanished = machine.folder_vanishes_at(stage, CARELESS, undisturbed, 3).problems
    assert any("a traceback" in problem for problem in vanished)
    both = together.at_once(stage, "careless", (CARELESS, CARELESS), ({"out/one": "other"}, {}, {}), 0.0).problems
    assert both == ("work: left out/two", "work: other out/one")


def test_the_harness_ends_and_names_what_a_killed_command_leaves_running(stage: Stage, reference) -> None:
    parent = Case("parent", Path(__file__).parent / "careless.py", ["{work}/out", "--child"])
    stage.reset(parent)
    (running,) = stage.start(parent)
    stage.commands.wait(running)
    (left,) = stage.commands.orphans(grace=0.1)
    assert "sleep" in left
    assert stage.commands.children() == []


def test_outcomes_differ_in_what_counts_and_in_nothing_else(tmp_path: Path) -> None:
    for name, seconds, rate in (("one", 1.0, 0.5), ("two", 2.0, 0.5), ("three", 1.0, 0.25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(f'{{"wall_seconds": {seconds}, "summary": {{"rate": {rate}}}}}')
    one, two, three = (outcome(tmp_path / name) for name in ("one", "two", "three"))
    assert differences(one, two) == []
    assert differences(one, three) == ["other result.json"]
    (tmp_path / "two" / ".result.json.partial-7").write_text("")
    assert differences(one, outcome(tmp_path / "two")) == ["left .result.json.partial-7"]
    assert differences(outcome(tmp_path / "two"), one) == ["missing .result.json.partial-7"]


def test_kills_are_spread_over_a_command_and_chosen_by_the_seed() -> None:
    assert places(3, 5, SEED) == [1, 2, 3]
    chosen = places(100, 5, SEED)
    assert chosen == places(100, 5, SEED) != places(100, 5, SEED + 1)
    assert [(place - 1) // 20 for place in chosen] == [0, 1, 2, 3, 4]


def test_a_case_for_every_subcommand_that_writes() -> None:
    from safety_subspaces.command_line import ANALYSES

    tried = {case.arguments[0] for case in CASES.values() if not case.is_training}
    assert tried == {name.rpartition(".")[2] for name in ANALYSES.names()}

"""Two commands at once on one name: one wins and the other says so, or both end well; never a mixture."""

import time
from collections.abc import Sequence
from dataclasses import replace

from faults.cases import ACTIVATIONS, ANALYSES, RUBRIC, TRAININGS, Case, report_inside
from faults.kills import Stage, Trial, compared
from faults.machine import OURS

# How a command ends that found another at work.
REFUSED = 2


def elsewhere(case: Case) -> Case:
    """Return the same command with a result of its own, which shares what it caches."""
    arguments = [a.replace("{work}/out", "{work}/other") for a in case.arguments]
    return replace(case, arguments=arguments, out="other")


# What shares a name: a result folder, a run folder, a cache, a study.
PAIRS: dict[str, tuple[Case, Case]] = {
    **{f"{case.name}: one result": (case, case) for case in ANALYSES if case.earlier is None},
    **{f"{case.name}: one run folder": (case, case) for case in TRAININGS if case.ranks == 1},
    "activations: one cache": (ACTIVATIONS, elsewhere(ACTIVATIONS)),
    "judge over HTTP: one cache": (RUBRIC, elsewhere(RUBRIC)),
    "report: one study": (report_inside(), report_inside()),
}


def in_turn(stage: Stage, pair: Sequence[Case]) -> tuple[tuple[dict[str, str], ...], float]:
    """Run the two one after the other; return what they leave, and how long the first takes."""
    stage.reset(pair[0])
    seconds = []
    for case in pair:
        (finished,) = stage.wait(stage.start(case))
        assert finished.returncode == 0, finished.output
        seconds.append(finished.seconds)
    return stage.outcomes(), seconds[0]


def at_once(stage: Stage, name: str, pair: Sequence[Case], wanted: tuple[dict[str, str], ...], delay: float) -> Trial:
    """Start the second some time after the first, and compare what both leave with what they leave in turn."""
    stage.reset(pair[0])
    first = stage.start(pair[0])
    time.sleep(delay)
    second = stage.start(pair[1])
    finished = stage.wait([*first, *second])
    problems = [f"still runs: {process}" for process in stage.commands.orphans()]
    if all(each.returncode for each in finished):
        problems.append("none of them ended well")
    if pair[0].out != pair[1].out and any(each.returncode for each in finished):
        problems.append("one was refused, though each has a result of its own")
    for each in finished:
        refused = each.returncode == REFUSED and OURS.search(each.output) and "Traceback" not in each.output
        if each.returncode and not refused:
            problems.append(f"exit {each.returncode}: {each.output[-600:]}")
    return Trial(name, "two at once", f"{delay:.2f} s apart", (*problems, *compared(stage, wanted)))

"""Counts how often each verdict speaks where there is nothing, and where there is an effect that matters.

``python benchmarks/null_studies.py`` simulates every scenario of ``benchmarks/nulls/`` and writes
``docs/tables/null_studies.csv``, which ``docs/write_numbers.py`` writes into ``docs/verdicts.md``. A row is one thing
that can be said in one scenario: its rate with a 95 % binomial interval (Clopper and Pearson), beside the nominal rate,
or ``power``. It ends with 1 where an interval lies above its nominal rate. ``--only overlap`` takes the scenarios whose
claim or world has the word in it; ``--scale 0.1`` a tenth of the studies.
"""

import argparse
import csv
import importlib
import math
import os
import pkgutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one study a process and thread

from scipy import stats

from benchmarks import nulls

TABLE = ROOT / "docs" / "tables" / "null_studies.csv"
COLUMNS = ("claim", "where", "what is said", "rate", "95 % interval", "nominal", "studies")


def scenarios(word: str = "") -> list[tuple[str, int]]:
    """Return where each scenario stands: the name of its module and its place there."""
    found = []
    for info in pkgutil.iter_modules(nulls.__path__):
        module = importlib.import_module(f"benchmarks.nulls.{info.name}")
        named = [(place, scenario) for place, scenario in enumerate(module.SCENARIOS)]
        found += [(info.name, place) for place, one in named if word in f"{info.name} {one.claim} {one.world}"]
    return found


def scenario_at(module: str, place: int) -> nulls.Scenario:
    """Return a scenario by where it stands."""
    return importlib.import_module(f"benchmarks.nulls.{module}").SCENARIOS[place]


def simulate(where: tuple[str, int], seeds: range) -> list[dict[str, float]]:
    """Run some studies of a scenario."""
    scenario = scenario_at(*where)
    return [dict(scenario.run(seed)) for seed in seeds]


def rows_of(scenario: nulls.Scenario, said: list[dict[str, float]]) -> list[tuple[bool, dict[str, str]]]:
    """Return a row for each thing that can be said, and whether its rate is shown to be above the nominal one."""
    rows = []
    for what in dict.fromkeys(name for study in said for name in study):
        known = [study[what] for study in said if not math.isnan(study.get(what, math.nan))]
        if not known:
            continue
        spoke = round(sum(known))
        low, high = stats.binomtest(spoke, len(known)).proportion_ci(method="exact")
        too_often = scenario.nominal is not None and low > scenario.nominal
        row = {
            "claim": scenario.claim,
            "where": scenario.world,
            "what is said": what,
            "rate": f"{spoke / len(known):.3f}",
            "95 % interval": f"{low:.3f} to {high:.3f}",
            "nominal": "power" if scenario.nominal is None else f"{scenario.nominal:g}",
            "studies": f"{len(known)}{f' ({scenario.why_fewer})' if scenario.why_fewer else ''}",
        }
        rows.append((too_often, row))
    return rows


def main() -> None:
    """Simulate, write the table, and end with 1 where a verdict speaks too often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="scenarios with this word")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the studies")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    rows, failed = [], 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for where in scenarios(options.only):
            scenario = scenario_at(*where)
            count = max(1, round(scenario.studies * options.scale))
            lanes = [range(lane, count, options.jobs) for lane in range(options.jobs)]
            said = [study for lane in pool.map(simulate, [where] * len(lanes), lanes) for study in lane]
            for too_often, row in rows_of(scenario, said):
                failed += too_often
                rows.append(row)
                print(("TOO OFTEN " if too_often else "") + "; ".join(row.values()), flush=True)
    if not options.only and options.scale >= 1:
        TABLE.parent.mkdir(exist_ok=True)
        with TABLE.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()

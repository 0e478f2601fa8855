"""Counts how often each verdict speaks where there is nothing, and where there is an effect that matters.

``python benchmarks/null_studies.py`` simulates every scenario of ``benchmarks/nulls/`` and writes
``docs/tables/null_studies.csv``, which ``docs/write_numbers.py`` writes into ``docs/verdicts.md``. A row is one thing
that can be said in one scenario: its rate with a 95 % binomial interval (Clopper and Pearson), beside the nominal rate,
or ``power``. Studies have the seeds 0 to n - 1. It goes on where it was stopped: what the table has is not simulated
again without ``--again``. It ends with 1 where an interval lies above its nominal rate.

``--only overlap`` takes the scenarios whose claim or world has the word in it; ``--scale 0.1`` a tenth of the studies,
which are printed and not kept.
"""

import argparse
import csv
import importlib
import math
import os
import pkgutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one study a process and thread

from scipy import stats

from benchmarks import nulls

TABLE = ROOT / "docs" / "tables" / "null_studies.csv"
COLUMNS = ("claim", "where", "what is said", "rate", "95 % interval", "nominal", "studies", "date")


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
            "date": datetime.now(UTC).date().isoformat(),
        }
        rows.append((too_often, row))
    return rows


def kept_rows() -> list[dict[str, str]]:
    """Return the rows of the table as it stands."""
    if not TABLE.is_file():
        return []
    with TABLE.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def keep(rows: list[dict[str, str]]) -> None:
    """Write the table: the scenarios in their order; those that are gone are left out."""
    order = {(one.claim, one.world): place for place, one in enumerate(scenario_at(*where) for where in scenarios())}
    known = [row for row in rows if (row["claim"], row["where"]) in order]
    TABLE.parent.mkdir(exist_ok=True)
    new = TABLE.with_suffix(".new")
    with new.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(known, key=lambda row: order[row["claim"], row["where"]]))
    new.replace(TABLE)


def main() -> None:
    """Simulate, write the table, and end with 1 where a verdict speaks too often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="scenarios with this word")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the studies")
    parser.add_argument("--again", action="store_true", help="those that the table has as well")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    is_kept = options.scale >= 1
    rows, failed = kept_rows(), 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for where in scenarios(options.only):
            scenario = scenario_at(*where)
            mine = (scenario.claim, scenario.world)
            if is_kept and not options.again and mine in {(row["claim"], row["where"]) for row in rows}:
                continue
            count = max(1, round(scenario.studies * options.scale))
            lanes = [range(lane, count, options.jobs) for lane in range(options.jobs)]
            begun = time.monotonic()
            said = [study for lane in pool.map(simulate, [where] * len(lanes), lanes) for study in lane]
            rows = [row for row in rows if (row["claim"], row["where"]) != mine]
            for too_often, row in rows_of(scenario, said):
                failed += too_often
                rows.append(row)
                print(("TOO OFTEN " if too_often else "") + "; ".join(row.values()), flush=True)
            print(f"  {time.monotonic() - begun:.0f} s", flush=True)
            if is_kept:
                keep(rows)
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()

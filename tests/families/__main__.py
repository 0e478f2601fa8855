"""``make models``: tries every task with every architecture, and writes what came of it to docs/models.md."""

import argparse
import csv
import logging
import subprocess
import sys
import tempfile
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from families.configs import FAMILIES
from families.tasks import TASKS, Study, attempt
from support.tiny import ROOT

TABLE = ROOT / "docs" / "tables" / "models.csv"
COLUMNS = ("architecture", "task", "outcome", "said", "versions", "date")
VERSIONS = ("torch", "transformers", "peft")
# Characters of a refusal that are kept.
KEPT = 300


def main() -> None:
    """Try all that is asked for, a line each, and end with 1 where something is neither exact nor refused by name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", help="by default all, whose outcomes are then written")
    chosen = parser.parse_args().architectures or list(FAMILIES)
    if unknown := set(chosen) - set(FAMILIES):
        parser.error(f"unknown architecture {min(unknown)}; expected {', '.join(FAMILIES)}")
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    day = datetime.now(UTC).date().isoformat()
    rows = []
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            study = Study(name, Path(folder))
            for task in TASKS:
                outcome, said = attempt(study, task)
                said = said.replace(folder, "")[:KEPT]
                print(f"{name}: {task}: {outcome} ({said})", flush=True)
                rows.append(dict(zip(COLUMNS, (name, task, outcome, said, versions, day), strict=True)))
    if chosen == list(FAMILIES):
        with TABLE.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        subprocess.run([sys.executable, str(ROOT / "docs" / "write_numbers.py")], check=True)
    wrong = [row for row in rows if row["outcome"] == "wrong"]
    print(f"{len(wrong)} of {len(rows)} are neither exact nor refused by name")
    sys.exit(int(bool(wrong)))


if __name__ == "__main__":
    main()

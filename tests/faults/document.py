"""Writes docs/reliability.md from the counts of ``make faults`` and from the list of what was found and mended."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from faults.commands import ROOT

COUNTS_FILE = ROOT / "docs" / "reliability.json"
MENDED_FILE = Path(__file__).parent / "mended.yaml"
PROMISES = """# What holds when something breaks

Written by `make faults` from what it counted; the list of what was mended is `tests/faults/mended.yaml`.

## What is promised
- **Nothing is lost.** A command that is killed at any moment, by whatever means, is gone on with or begun again by the
  same command line, and ends in the files that it would have written undisturbed: byte for byte, but for times, memory
  and the commit. What stood under a result's name before stays there until the new one is whole.
- **Nothing is left behind.** The same command takes away what the killed one left, and never what another living
  process is writing. No process outlives its parent by more than half a minute.
- **A failing machine is told of.** A full disk, one that may not be written, a folder that vanishes, a worker that is
  killed: one message that begins with `error:`, an exit status that is not 0, within a minute.
- **Two at once** on one name: one wins and the other says so and ends with 2, or both end well; never a mixture.
- **Foreign bytes** are read, or refused by name: see [SECURITY.md](../SECURITY.md).

## What was tried
`make faults` does all of it (`make faults FAULTS=kills` a part; stopped, it goes on with what is left), `make test`
a sample. An audit hook counts the file operations of a command and kills it before the n-th; strace, where it is, kills
it at the n-th call that writes, which Rust and C make too; the other kills come at random times, by a seed. Then the
same command line runs again, and everything is compared: `tests/faults/outcome.py` says how.

One limit is known: Lightning logs a point of the loss just after it has written the checkpoint of the same step: a kill
between the two loses that point from TensorBoard, and nothing else.

Ranks that are started by hand have no launcher that ends them with the first that is lost. One that waits for others
which never come ends by itself after `--collective_timeout` (600 s by default; at least 180 s for the first meeting).
"""
HEADINGS = {
    "kills": "Kills",
    "machine": "A failing machine",
    "together": "Two at once",
    "make": "Targets of the Makefile",
}


def write_document(root: Path) -> None:
    """Write the page, from what has been counted so far."""
    counts = json.loads(COUNTS_FILE.read_text()) if COUNTS_FILE.is_file() else {}
    (root / "docs" / "reliability.md").write_text(document(counts, yaml.safe_load(MENDED_FILE.read_text()), root))


def document(counts: dict[str, Any], mended: list[dict[str, str]], root: Path) -> str:
    """Return the page."""
    parts = [PROMISES]
    parts += [f"### {heading}\n{table_of(counts[part])}" for part, heading in HEADINGS.items() if part in counts]
    if "fuzz" in counts:
        parts.append(f"### Foreign bytes\n{table_of_readers(counts['fuzz'])}")
    lines = [f"| {entry['what'].strip()} | `tests/{entry['test']}` |" for entry in mended]
    table = "\n".join(["| what happened | the test that would fail |", "| --- | --- |", *lines])
    parts.append(
        f"## Found and mended\n{len(mended)} kinds, each with a test that fails without the mend.\n\n{table}\n"
    )
    long_runs = root / "docs" / "long_runs.json"
    if long_runs.is_file():
        parts.append(f"## Long runs\n{table_of_runs(json.loads(long_runs.read_text()))}")
    if long_runs.with_suffix(".svg").is_file():
        parts.append("![memory, file handles and time over the runs](long_runs.svg)\n")
    return "\n".join(parts)


def table_of(part: dict[str, dict[str, dict[str, int]]]) -> str:
    """Return a row for each command and a column for each kind of disturbance, and the sums."""
    kinds = list(dict.fromkeys(kind for row in part.values() for kind in row))
    total: Counter[str] = Counter()
    failed = 0
    lines = [f"| | {' | '.join(kinds)} |", f"| --- |{' ---: |' * len(kinds)}"]
    for case, row in part.items():
        cells = [str(row[kind]["tried"]) if kind in row else "" for kind in kinds]
        lines.append(f"| {case} | {' | '.join(cells)} |")
        for kind, cell in row.items():
            total[kind] += cell["tried"]
            failed += cell["failed"]
    lines.append(f"| **all** | {' | '.join(str(total[kind]) for kind in kinds)} |")
    return f"{sum(total.values())} trials, {failed} failed.\n\n" + "\n".join(lines) + "\n"


def table_of_readers(fuzzed: dict[str, Any]) -> str:
    """Return how many inputs each reader was given."""
    outcomes = list(dict.fromkeys(outcome for counts in fuzzed["by_reader"].values() for outcome in counts))
    lines = [
        f"| {reader} | {' | '.join(str(counts.get(outcome, 0)) for outcome in outcomes)} |"
        for reader, counts in fuzzed["by_reader"].items()
    ]
    table = "\n".join([f"| reader | {' | '.join(outcomes)} |", f"| --- |{' ---: |' * len(outcomes)}", *lines])
    limits = "within five seconds (a whole page: twenty) and one GiB"
    return f"{fuzzed['inputs']} inputs, each read or refused by name, {limits}.\n\n{table}\n"


def table_of_runs(runs: dict[str, Any]) -> str:
    """Return by how much memory, file handles and time differ between the end and the start of each run."""
    lines = ["| run | what | change | spread |", "| --- | --- | ---: | ---: |"]
    for name, run in runs.items():
        length = next(f"{run[unit]:,} {unit}" for unit in ("steps", "prompts") if unit in run)
        for what, change in run["changes"].items():
            spread = run["spread"][what]
            lines.append(f"| {name}, {length} | {what.replace('_', ' ')} | {change:+.1%} | {spread:.1%} |")
    said = (
        "As `benchmarks/long_runs.py` measured and drew it: the last tenth against the early one, and how far all "
        "tenths lie apart. A change no larger than that spread is not told from what else the machine did."
    )
    return f"{said}\n\n" + "\n".join(lines) + "\n"

"""Writes numbers of the documents out of tables, so that these are not copied by hand.

Filled are ``docs/explanation/gradient.md``, ``docs/models.md``, ``docs/real.md`` and ``docs/verdicts.md``. Numbers of
other pages are of the date and run that stand beside them.

``python docs/write_numbers.py --keep study runs/organism-0 runs/organism-1`` reads studies and keeps what the documents
need of them in ``docs/tables/``: their findings (``study.csv``), and the tables and sentences of their page with seeds,
machine, date and commit (``study.json``). ``python docs/write_numbers.py`` fills every place between marks, and
``--check`` (in ``make lint``) fails where one is not what the tables say. Marks, each closed by ``end of numbers``::

    numbers: study | about            what was run, where and when
    numbers: study | table | TITLE    a table, as a terminal shows it
    numbers: study | said | ANCHOR    the headlines of a section, a line each
    numbers: null_studies | csv       a table that is kept as CSV
    numbers: null_studies | rates     of simulated studies: how often each claim is made where there is nothing
    numbers: null_studies | power     and where there is something
    numbers: models | outcomes        of architectures: which task is exact
    numbers: models | refusals        and what is refused, and why
"""

import argparse
import csv
import json
import platform
import re
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TABLES = ROOT / "docs" / "tables"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
MARK = re.compile(r"(<!-- numbers: ([^>]*?) -->\n).*?(<!-- end of numbers -->)", re.DOTALL)


def keep(name: str, folders: list[str]) -> None:
    """Read studies, and keep what the documents need of them."""
    sys.path.insert(0, str(ROOT / "src"))
    from safety_subspaces.report.pages.studies import read_page

    page = read_page(folders)
    TABLES.mkdir(exist_ok=True)
    page.findings.drop(columns=["details", "level"]).to_csv(TABLES / f"{name}.csv", index=False, float_format="%.4g")
    studies = [study for organism in page.organisms for study in organism.seeds.studies]
    seeds = sorted({seed for study in studies for seed in study.seeds})
    tables = {
        title: {"columns": table.columns, "rows": table.rows, "note": table.note}
        for title, table in page.tables.items()
    }
    said = {section.anchor: section.headlines for part in page.parts for section in part.sections}
    kept = {"about": {"studies": len(studies), **about(seeds)}, "tables": tables, "said": said}
    text = json.dumps(kept, indent=1, ensure_ascii=False)
    (TABLES / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def about(seeds: Sequence[int]) -> dict[str, Any]:
    """Return what numbers that are made now rest on: the seeds, the machine, versions and the commit."""
    sys.path.insert(0, str(ROOT / "src"))
    from safety_subspaces.artefacts.provenance import provenance

    made = provenance()
    return {
        "seeds": list(seeds),
        "machine": processor(),
        "torch": made["versions"].get("torch"),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": made["git"]["commit"][:12],
    }


def processor() -> str:
    """Return what the machine calls its processor."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0]}, {len(named)} cores" if named else platform.processor() or "unknown"


def filled(text: str) -> str:
    """Return a document with what its marks stand for.

    Raises:
        KeyError: A mark asks for what no table holds; it is named.
    """
    return MARK.sub(lambda found: f"{found[1]}{written(found[2])}\n{found[3]}", text)


def written(mark: str) -> str:
    """Return what stands at a mark."""
    name, kind, *rest = (part.strip() for part in mark.split("|"))
    if kind in READS_ROWS:
        with (TABLES / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return READS_ROWS[kind](rows)
    kept = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
    if kind == "about":
        made = kept["about"]
        seeds = ", ".join(map(str, made["seeds"])) + (f" ({made['studies']} studies)" if "studies" in made else "")
        return f"Seeds {seeds}; {made['machine']}, torch {made['torch']}; {made['date']}, commit {made['commit']}."
    if kind == "said":
        return "\n".join(f"- {line}" for line in kept["said"][rest[0]])
    if kind == "table":
        table = kept["tables"][rest[0]]
        return as_markdown(table["columns"], *table["rows"]) + (f"\n\n{table['note']}" if table["note"] else "")
    raise KeyError(f"mark {mark!r}: expected about, table, said, {', '.join(READS_ROWS)}")


def rates_of(rows: list[dict[str, str]]) -> str:
    """Return a row a claim, over all worlds without anything to find: how often it is made, and where most often."""
    lines = []
    for claim in dict.fromkeys(row["claim"] for row in rows):
        of_claim = [row for row in rows if row["claim"] == claim and row["nominal"] != "power"]
        if not of_claim:
            continue
        most = max(of_claim, key=lambda row: float(row["rate"]) - float(row["nominal"]))
        middle = statistics.median(float(row["rate"]) for row in of_claim)
        worlds = len({row["where"] for row in of_claim})
        counts = [claim, str(worlds), str(len(of_claim)), f"{middle:.3f}"]
        said = f"{most['rate']} ({most['95 % interval']}): {most['what is said']}; {most['where']}"
        lines.append([*counts, said, most["nominal"], most["date"]])
    columns = ["claim", "worlds", "things said", "median rate", "highest rate: what is said, where", "nominal", "date"]
    return as_markdown(columns, *lines)


def power_of(rows: list[dict[str, str]]) -> str:
    """Return a row a world that has something to find, with the rate of each thing that is said of it."""
    worlds: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["nominal"] == "power":
            said = f"{row['what is said']} {row['rate']} ({row['95 % interval']})"
            worlds.setdefault((row["claim"], row["where"]), []).append(said)
    return as_markdown(["claim", "where", "found in"], *([*world, "; ".join(said)] for world, said in worlds.items()))


def outcomes_of(rows: list[dict[str, str]]) -> str:
    """Return a row an architecture, with a cell for each task, and what was tried where."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    cells = {(row["architecture"], row["task"]): row["outcome"] for row in rows}
    names = list(dict.fromkeys(row["architecture"] for row in rows))
    table = as_markdown(["architecture", *tasks], *([name, *(cells[name, task] for task in tasks)] for name in names))
    exact = [float(row["said"]) for row in rows if row["outcome"] == "exact"]
    return (
        f"{table}\n\n{len(exact)} of {len(rows)} are exact: the largest error is {max(exact):.1e} of the largest "
        f"number, the median {statistics.median(exact):.1e}. {rows[0]['versions']}; {rows[0]['date']}."
    )


def refusals_of(rows: list[dict[str, str]]) -> str:
    """Return a line for each task and reason for which it is refused, with the architectures."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["outcome"] == "refused":
            # Without the names of single parameters and modules.
            said = re.sub(r"^(model\.[\w.]+(, | and )?)+: |\s*\([^)]*\)", "", row["said"])
            said = re.sub(r"\b[A-Z]\w*[a-z]\w*[A-Z]\w*\b", "a block", said).partition(". ")[0]
            lines.setdefault((row["task"], re.split(r": a multiple|; use hooks|: directions", said)[0]), []).append(
                row["architecture"]
            )
    return "\n".join(f"- **{task}**: {', '.join(names)}: {said}." for (task, said), names in lines.items())


def as_markdown(columns: list[str], *rows: list[str]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def csv_of(rows: list[dict[str, str]]) -> str:
    """Return a table as it is kept."""
    return as_markdown(list(rows[0]), *(list(row.values()) for row in rows))


READS_ROWS = {"csv": csv_of, "rates": rates_of, "power": power_of, "outcomes": outcomes_of, "refusals": refusals_of}


def main() -> None:
    """Keep the tables of studies, or write or check the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="NAME", help="keep what the documents need of the studies under this name")
    parser.add_argument("--check", action="store_true", help="fail where a document is not what the tables say")
    parser.add_argument("studies", nargs="*")
    options = parser.parse_args()
    if options.keep:
        keep(options.keep, options.studies)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text and options.check:
            sys.exit(f"{page.relative_to(ROOT)} is not what docs/tables say: python docs/write_numbers.py writes it")
        if new != text:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()

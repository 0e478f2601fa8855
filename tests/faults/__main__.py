"""``make faults``: breaks commands in every way it knows, says what came of each, and writes docs/reliability.md.

Stopped, the same command goes on with the trials that are left, and makes those again that failed.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from faults import makefile, parts
from faults.commands import ROOT
from faults.document import COUNTS_FILE, write_document
from faults.kills import Stage, Trial
from faults.session import staged

FUZZ_INPUTS = 20_000
# What a trial is about: other code makes all of them new.
CODE = ("src", "callbacks", "train.py", "analyze.py", "Makefile", "tests/faults", "tests/support")
PARTS: dict[str, Callable[[Stage, int, int], Iterator[parts.Attempt]]] = {
    "kills": parts.kills,
    "machine": parts.failing_machine,
    "together": parts.at_once,
    "make": makefile.attempts,
}


def main() -> None:
    """Try the parts that are asked for, count, and end with 1 where a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join((*PARTS, 'fuzz'))}; by default all")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "faults", help="where the trials are made")
    parser.add_argument("--seed", type=int, default=0, help="chooses the places where there are too many")
    parser.add_argument(
        "--most", type=int, default=parts.MOST_OPERATIONS, help="operations of one command that it is killed at"
    )
    options = parser.parse_args()
    chosen = options.parts or [*PARTS, "fuzz"]
    if unknown := set(chosen) - {*PARTS, "fuzz"}:
        parser.error(f"unknown part {min(unknown)}; expected {', '.join((*PARTS, 'fuzz'))}")
    options.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    if set(chosen) & set(PARTS):
        with staged(options.folder) as stage:
            for part in chosen:
                if part in PARTS:
                    failed += try_part(stage, part, options)
    if "fuzz" in chosen:
        failed += fuzz(options.folder)
    write_document(ROOT)
    print(f"{failed} failed; the counts are in {COUNTS_FILE.relative_to(ROOT)}")
    sys.exit(int(failed > 0))


def try_part(stage: Stage, part: str, options: argparse.Namespace) -> int:
    """Make the trials of a part that are not made yet, a line each; return how many of all failed."""
    record = options.folder / f"{part}.jsonl"
    code = code_sha256()
    made = [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []
    good = {(line["case"], line["name"]): line for line in made if line["code"] == code and not line["problems"]}
    lines = []
    with record.open("a") as stream:
        for attempt in PARTS[part](stage, options.seed, options.most):
            line = good.get((attempt.case, attempt.name))
            if line is None:
                trial = tried(attempt)
                line = {"name": attempt.name, **asdict(trial), "case": attempt.case, "code": code}
                tell(part, trial)
                stream.write(json.dumps(line) + "\n")
                stream.flush()
            lines.append(line)
            count(part, lines)
    return sum(bool(line["problems"]) for line in lines)


def tried(attempt: parts.Attempt) -> Trial:
    """Make a trial; one that breaks the harness has failed."""
    try:
        return attempt.make()
    except (AssertionError, TimeoutError, OSError) as error:
        return Trial(attempt.case, "harness", attempt.name, (f"{type(error).__name__}: {error}",))


def tell(part: str, trial: Trial) -> None:
    """Print one line for a trial, and what failed below it."""
    word = "FAILED" if trial.problems else "good" if trial.happened else "good, undisturbed"
    print(f"{part}: {trial.case}: {trial.kind}, {trial.place}: {word}", flush=True)
    for problem in trial.problems:
        print(f"    {problem}", flush=True)


def count(part: str, lines: list[dict]) -> None:
    """Keep the counts of a part beside those of the others."""
    counts = json.loads(COUNTS_FILE.read_text()) if COUNTS_FILE.is_file() else {}
    table: dict[str, dict[str, dict[str, int]]] = {}
    for line in lines:
        cell = table.setdefault(line["case"], {}).setdefault(line["kind"], {"tried": 0, "happened": 0, "failed": 0})
        cell["tried"] += 1
        cell["happened"] += line["happened"]
        cell["failed"] += bool(line["problems"])
    COUNTS_FILE.write_text(json.dumps({**counts, part: table}, indent=2) + "\n")


def fuzz(folder: Path) -> int:
    """Read mutated files with every reader; return how many of them failed."""
    written = folder / "fuzz.json"
    script = str(Path(__file__).with_name("fuzz.py"))
    command = [sys.executable, script, "--inputs", str(FUZZ_INPUTS), "--out", str(written)]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if written.is_file():
        counts = json.loads(COUNTS_FILE.read_text()) if COUNTS_FILE.is_file() else {}
        COUNTS_FILE.write_text(json.dumps({**counts, "fuzz": json.loads(written.read_text())}, indent=2) + "\n")
    return int(done.returncode != 0)


def code_sha256() -> str:
    """Return a hash of everything that a trial runs."""
    digest = hashlib.sha256()
    for name in CODE:
        path = ROOT / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()

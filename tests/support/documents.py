"""What the documents hold: their pages as the site has them, commands, Python, links and anchors."""

import re
import runpy
from functools import cache
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
SITE = runpy.run_path(str(ROOT / "docs" / "site_pages.py"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@cache
def pages() -> dict[str, str]:
    """Every page by its place in the repository; those that the site makes by the place that they have there."""
    written = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    made = {f"docs/{place}": text for place, text in SITE["made_pages"]().items()}
    notes = {f"docs/{place}" for place in SITE["NOTES"].values()}  # links in them are those of the file itself
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in written}
    return texts | {name: text for name, text in made.items() if name not in notes}


def blocks_of(text: str, language: str) -> list[str]:
    """The blocks of code of one language."""
    return [code for name, code in BLOCK.findall(text) if name == language]


def commands_of(text: str) -> list[str]:
    """The commands of a page, each as one line, without what is no command."""
    lines = "\n".join(blocks_of(text, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def links_of(text: str) -> list[tuple[str, str]]:
    """Links to other files and to anchors, but none to the web, in prose."""
    prose = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", text))
    found = re.findall(r"\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]*))?\)", prose)
    return [(target, anchor) for target, anchor in found if target or anchor]


def anchors_of(text: str) -> set[str]:
    """The anchors of a page's headings, and those that it sets itself."""
    prose = BLOCK.sub("", text)
    return {SITE["anchor_of"](heading) for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}


def undescribed(folder: Path, command: str) -> dict[str, list[str]]:
    """Columns of the tables of a result that docs/columns.yaml does not know, by table."""
    described = SITE["read_columns"]()
    tables = {path.stem: pd.read_parquet(path).columns for path in folder.glob("*.parquet")}
    unknown = {name: SITE["undescribed"](described, command, name, columns) for name, columns in tables.items()}
    return {name: columns for name, columns in unknown.items() if columns}

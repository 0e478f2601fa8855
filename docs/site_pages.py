"""The pages of the documentation site that are made of the repository, and what every page goes through.

MkDocs calls the functions whose names begin with ``on_`` (``hooks`` in ``mkdocs.yml``). They add a page of every
shipped configuration, of every column of every table and of each wing's modules, and take the notes for contributors
in. Links between these and the pages under ``docs/`` lead to one another, formulas become MathML, which needs no
script, and mermaid's picture of the wings a table.
"""

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
# Notes that lie beside the folder of the documentation, and where the site has them.
NOTES = {"CONTRIBUTING.md": "project/contributing.md", "SECURITY.md": "project/security.md"}
CONFIG_PAGE, COLUMN_PAGE = "reference/configurations.md", "reference/columns.md"
# Wings whose modules a notebook has use for.
WINGS = ("algebra", "weights", "states", "evaluation", "constraint", "training", "language", "findings")
FOLDERS = {
    "organism": "The embedded organism: the stages that `make demo` and `make study` train",
    "organism/analysis": "The embedded organism: its analyses",
    "examples": "Your own data",
    "deepspeed": "Several processes and GPUs: to lay over a stage's YAML",
    "real": "A real model from the package registry: the stages of `make real`",
    "real/analysis": "A real model: its analyses",
    "paper": "The paper's five models",
    "paper/analysis": "The paper's models: their analyses",
}
ABOUT_TABLES = """
Each subcommand of `analyze.py` writes its tables as Parquet, exact, with a CSV beside each for spreadsheets. A value
that does not exist is empty (NaN), never 0. `_stderr` is a standard error, `_low` and `_high` are the ends of a 95 %
interval, `n_…` counts.
"""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)([^$\n]+?)\$", re.DOTALL)
ARROW = re.compile(r"^\s*(\w+) --> (\w+)$", re.MULTILINE)
# What Sphinx writes before a name; the name is a link of its own here.
ROLE = re.compile(r":(?:func|class|mod|meth|attr|data):(?=<code)")


def config_page() -> str:
    """Return the page of every shipped YAML: what it is for, its command, and itself."""
    said = "Every YAML that comes with the suite, with its command. `--help` says what each option means."
    lines = ["# Configurations", "", said, ""]
    for folder, title in FOLDERS.items():
        lines += [f"## {title}", ""]
        for path in sorted((CONFIGS / folder).glob("*.yaml")):
            lines += [*_config(path), ""]
    return "\n".join(lines)


def _config(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    head = [line[1:].strip() for line in text.split("\n\n")[0].splitlines() if line.startswith("#")]
    commands = [line for line in head if line.startswith("python ")]
    yield f"### {path.relative_to(ROOT).as_posix()}"
    yield ""
    yield " ".join(line for line in head if line not in commands)
    yield from ["", "```bash", *commands, "```", ""]
    yield '??? note "The file"'
    yield from ["", "    ```yaml", *(f"    {line}".rstrip() for line in text.splitlines()), "    ```"]


def read_columns() -> dict[str, Any]:
    """Return what is written of tables and columns."""
    described: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "columns.yaml").read_text(encoding="utf-8"))
    return described


def columns_of(described: Mapping[str, Any], command: str, table: str) -> dict[str, tuple[str, str]]:
    """Return unit and meaning of each column of a table, in their order.

    Raises:
        KeyError: A column has none, or there is no such table; it is named.
    """
    about = described["tables"][command][table]
    names = re.sub(r"\+(\w+)", lambda found: described["groups"][found[1]], about["columns"]).split()
    return {name: _meaning(name, about.get("here", {}), described["columns"]) for name in names}


def undescribed(described: Mapping[str, Any], command: str, table: str, names: Iterable[str]) -> list[str]:
    """Return the columns of a table on disk that are described nowhere."""
    known = [re.sub(r"<\w+>", "*", name) for name in columns_of(described, command, table)]
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in known)]


def _meaning(name: str, *sources: Mapping[str, Any]) -> tuple[str, str]:
    for source in sources:
        for pattern, (unit, means) in source.items():
            if pattern == name or ("*" in pattern and fnmatchcase(name, pattern)):
                return str(unit), str(means)
    raise KeyError(f"column {name}: docs/columns.yaml has no meaning of it")


def column_page() -> str:
    """Return the page of every column of every table."""
    described = read_columns()
    lines = ["# Tables and columns", "", " ".join(ABOUT_TABLES.split()), ""]
    for command, tables in described["tables"].items():
        lines += [f"## {command}", ""]
        for table, about in tables.items():
            lines += [f"### {command}: {table}.parquet", "", f"Rows: {about['rows'][0].lower()}{about['rows'][1:]}", ""]
            lines += ["| column | unit | meaning |", "| --- | --- | --- |"]
            columns = columns_of(described, command, table)
            lines += [f"| `{name}` | {unit} | {means} |" for name, (unit, means) in columns.items()]
            lines.append("")
    return "\n".join(lines)


def wing_page(wing: str) -> str:
    """Return the page of one wing: mkdocstrings fills in what each module has."""
    folder = ROOT / "src" / "safety_subspaces" / wing
    notes = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (said,) = re.findall(rf"^\| `{wing}` \| (.+) \|$", notes, re.MULTILINE)
    lines = [f"# {wing}", "", f"{said[0].upper()}{said[1:]}.", ""]
    for path in sorted(folder.rglob("*.py")):
        module = ".".join(path.relative_to(folder.parent.parent).with_suffix("").parts).removesuffix(".__init__")
        if re.search(r"^(class|def|    def|@)", path.read_text(encoding="utf-8"), re.MULTILINE):
            lines += [f"## {module.removeprefix('safety_subspaces.')}", "", f"::: {module}", ""]
    return "\n".join(lines)


def made_pages() -> dict[str, str]:
    """Return the text of every page that is made, by its place under ``docs/``."""
    notes = {place: (ROOT / name).read_text(encoding="utf-8") for name, place in NOTES.items()}
    wings = {f"reference/python/{wing}.md": wing_page(wing) for wing in WINGS}
    return {CONFIG_PAGE: config_page(), COLUMN_PAGE: column_page(), **wings, **notes}


def linked(text: str, page: str) -> str:
    """Return a page whose links lead to where the site has what they mean.

    Args:
        text: The page, as it lies in the repository.
        page: Its place under ``docs/``.
    """
    written = {place: name for name, place in NOTES.items()}.get(page, f"docs/{page}")

    def lead(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(written), found[1]))
        if target.startswith("configs/"):
            place, anchor = CONFIG_PAGE, f"#{anchor_of(target)}"
        else:
            place, anchor = NOTES.get(target, target.removeprefix("docs/")), found[2] or ""
        return posixpath.relpath(place, posixpath.dirname(page)) + anchor

    return LINK.sub(lead, text)


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub and the site give a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", lambda found: found[1] or "", heading.strip().lower())
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain))


def with_formulas(text: str) -> str:
    """Return a page whose formulas, between dollars and outside of code, are MathML."""
    from latex2mathml.converter import convert

    def made(found: re.Match[str]) -> str:
        return str(convert(found[1] or found[2], display="block" if found[1] else "inline"))

    parts = CODE.split(text)
    return "".join(part if number % 2 else FORMULA.sub(made, part) for number, part in enumerate(parts))


def with_tables_for_pictures(text: str) -> str:
    """Return a page with a table in the place of mermaid's picture of what knows what."""

    def table(found: re.Match[str]) -> str:
        knows: dict[str, list[str]] = {}
        for above, below in ARROW.findall(found[0]):
            knows.setdefault(above, []).append(f"`{below}`")
        rows = [f"| `{above}` | {', '.join(below)} |" for above, below in knows.items()]
        return "\n".join(["| wing | knows |", "| --- | --- |", *rows])

    return re.sub(r"```mermaid\n.*?```", table, text, flags=re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    for place, text in made_pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Prepare a page's text."""
    text = linked(with_tables_for_pictures(markdown), page.file.src_uri)
    return with_formulas(text) if page.file.src_uri.startswith("explanation/") else text


def on_page_content(html: str, **_: Any) -> str:
    """Take the roles of Sphinx off the names in docstrings."""
    return ROLE.sub("", html)

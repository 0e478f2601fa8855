"""Draws the wings of ``src/safety_subspaces`` and what each knows, from the imports themselves, into CONTRIBUTING.md.

``python docs/draw_wings.py`` writes the picture; ``--check`` (in ``make lint``) fails where it is not that of the code.
"""

import sys
from collections import Counter
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- wings: drawn by docs/draw_wings.py -->", "<!-- end of wings -->"
PACKAGE = "safety_subspaces"


def arrows() -> Counter[tuple[str, str]]:
    """Count the imports from each wing to another; the callbacks count as one."""
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    graph = grimp.build_graph(PACKAGE, "callbacks", cache_dir=None)
    counted: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            pair = wing_of(module), wing_of(imported)
            if pair[0] != pair[1] and "" not in pair:
                counted[pair] += 1
    return counted


def wing_of(module: str) -> str:
    """Return the wing of a module; empty for the package itself."""
    first, *rest = module.split(".")
    return first if first != PACKAGE else (rest[0] if rest else "")


def without_detours(counted: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the arrows that no path of other arrows replaces: what a wing knows through another is not drawn."""
    known: dict[str, set[str]] = {}
    for above, below in counted:
        known.setdefault(above, set()).add(below)

    def reaches(start: str, goal: str) -> bool:
        return any(step == goal or reaches(step, goal) for step in known.get(start, ()))

    return sorted(
        (above, below)
        for above, below in counted
        if not any(other != below and reaches(other, below) for other in known[above])
    )


def picture() -> str:
    """Return the picture as Mermaid, between its marks."""
    drawn = [f"    {above} --> {below}" for above, below in without_detours(arrows())]
    return "\n".join([BEGIN, "```mermaid", "flowchart TD", *drawn, "```", END])


def main() -> None:
    """Write the picture, or check it."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = before + picture() + after
    if "--check" in sys.argv and made != page:
        sys.exit("the picture in CONTRIBUTING.md is not that of the code: run python docs/draw_wings.py")
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()

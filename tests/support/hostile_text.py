"""Texts that do something to the one who looks at them, and a study that is full of them."""

import json
import shutil
from pathlib import Path

import pandas as pd
import yaml

from support.synthetic_study import World, write_study

MARKUP = "<img src=x onerror=window.broken=1><b>bold</b><a href='javascript:window.broken=1'>a</a>%{y}&lt;i&gt;"
TERMINAL = (
    "\x1b[31mred\x1b[0m\x1b]8;;https://example.invalid\x07link\x1b]8;;\x07\x1b]0;title\x07\rover\x08\x9b2Jcleared"
)
OVERRIDE = "\u202eesrever\u2066in\u061c\u200f"
HEBREW = "\u05e9\u05dc\u05d5\u05dd"
HALF = "cut \ud83d"
MARKDOWN = "![seen](https://example.invalid/x.png) [a](https://example.invalid) # no heading\n# heading\n- item\n```\n"
LONG = "x" * 1_000_000
ALL = f"{MARKUP}{TERMINAL}{OVERRIDE}{HEBREW}{HALF}{MARKDOWN}"
# A folder's name may hold anything but a slash.
NAME = f"{OVERRIDE}{HEBREW}<img src=x onerror=window.broken=1><b>&lt;i&gt;%{{y}}\x1b[2J\x1b]0;title\x07\r\x9b2J"


def write_hostile_study(folder: Path, analyses: tuple[str, ...] = ("evaluate", "project", "overlap")) -> Path:
    """Write a study whose stages, models, tables, prompts, answers and records hold such texts."""
    write_study(folder, World(draws=1), analyses)
    names = {"useful": NAME, "contaminated": HEBREW}
    for stage, name in names.items():
        shutil.move(folder / stage, folder / name)
    for path in folder.rglob("manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["command"].append(ALL)
        manifest["inputs"].append({"path": ALL, "sha256": ALL})
        path.write_text(json.dumps(manifest))
    for path in folder.rglob("result.json"):
        result = json.loads(path.read_text())
        result["left_out"].append({"name": ALL, "reason": LONG})
        path.write_text(json.dumps(result))
    for path in folder.rglob("table.parquet"):
        table = pd.read_parquet(path)
        for name in {"model", "tuned", "first", "second"} & set(table.columns):
            table[name] = table[name].replace(names)
        table.to_parquet(path, index=False)
    for path in folder.glob("analysis/*/*/config.yaml"):
        arguments = yaml.safe_load(path.read_text())
        for given in arguments.values():
            for stage, name in names.items():
                if isinstance(given, dict) and given.pop(stage, None):
                    given[name] = str(folder / name / "model")
        path.write_text(yaml.safe_dump(arguments))
    evaluated = folder / "analysis" / "evaluate" / "main"
    line = {
        "model": NAME,
        "set": "harmful",
        "prompt": ALL,
        "answer": LONG,
        "score": 5.0,
        "reason": ALL,
        "reference": ALL,
    }
    (evaluated / "generations.jsonl").write_text(json.dumps(line) + "\n")
    other = folder / "analysis" / "atlas" / "main"
    other.mkdir(parents=True)
    pd.DataFrame({"part": [ALL.encode(errors="replace").decode(), LONG], "value": [0.5, -0.1]}).to_parquet(
        other / "table.parquet"
    )
    return folder

"""What the entry points print: texts of others as text, under any locale; files are UTF-8 whatever a terminal takes."""

import ast
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from support.hostile_text import ALL, NAME, TERMINAL, write_hostile_study
from support.tiny import ANALYZE, ROOT, TRAIN, run_command, save_tiny_model
from tqdm import tqdm

from safety_subspaces.artefacts import terminal
from safety_subspaces.artefacts.text import shown

# What may move a terminal's cursor, or be set otherwise than it stands; a bar's own moves are taken out before.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
BAR_MOVES = re.compile(r"\r(?=[^\r]*[0-9:]+[?%/]|\s*(\r|$))|\x1b\[A")
# An encoding that is not UTF-8, as a cluster's batch jobs have it where nothing sets LANG.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
IN_TURN = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
ORGANISM = ROOT / "configs" / "organism"


def test_a_study_of_hostile_names_is_printed_as_text(tmp_path: Path) -> None:
    folder = write_hostile_study(tmp_path / "study", ("evaluate",))
    done = run_command(ANALYZE, "report", "--study", folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert CONTROLS.search(done.stdout + done.stderr) is None
    assert shown(NAME)[:10] in done.stdout


def test_labels_and_errors_are_printed_as_text(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    label = f"{TERMINAL} \u202edna"
    options = ["--limit=2", "--max_new_tokens=2", f"--out={tmp_path / 'out'}"]
    done = run_command(ANALYZE, "evaluate", "--models", json.dumps({label: model}), *options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert shown(label) in done.stdout
    assert CONTROLS.search(done.stdout + BAR_MOVES.sub("", done.stderr)) is None
    assert list(pd.read_parquet(tmp_path / "out" / "table.parquet")["model"]) == [label]

    name = TERMINAL.replace("/", "")
    refused = run_command(ANALYZE, "report", "--study", f"{tmp_path}/{name}")
    assert refused.returncode == 2
    assert shown(name) in refused.stderr
    assert CONTROLS.search(refused.stderr) is None


def test_an_argument_that_is_no_utf8_is_refused_by_name(tmp_path: Path) -> None:
    refused = run_command(ANALYZE, "report", "--study", f"{tmp_path}/caf\udce9", new_interpreter=True)
    assert refused.returncode == 2
    assert refused.stderr.endswith("caf\\udce9 is no text in UTF-8; name files and labels in UTF-8\n")


def test_bars_move_the_cursor_and_their_labels_do_not() -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii", errors="strict")
    terminal.show_as_text(stream)
    for outer in tqdm(range(2), desc=ALL, file=stream, mininterval=0, ncols=900):
        for _ in tqdm(range(2), desc=f"ü{outer}", file=stream, mininterval=0, leave=False):
            pass
    stream.write(f"error: {ALL}\r\n")
    stream.flush()
    text = written.getvalue().decode("ascii")
    assert text.count("\x1b[A") >= 2
    moves = re.sub(r"\r|\x1b\[A", "", text)
    assert CONTROLS.search(moves) is None
    assert ascii(shown(ALL))[1:20] in text
    assert "\\xfc0:" in text


def test_a_run_its_evaluation_and_its_page_are_the_same_under_an_ascii_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a new interpreter, one for the three: what the locale does to Python it does at its start."""
    for name, value in ASCII.items():
        monkeypatch.setenv(name, value)
    config, prompts, study = tmp_path / "grün.yaml", tmp_path / "p.jsonl", tmp_path / "stüdie"
    pretrain = (ORGANISM / "pretrain.yaml").read_text(encoding="utf-8")
    config.write_text(f"# für später: ∆\n{pretrain}", encoding="utf-8")
    prompts.write_text('{"set": "harmful", "prompt": "Wie heißt ∆ \\ud800?"}\n', encoding="utf-8")
    written = study / "analysis" / "evaluate" / "main"
    small = ["hidden_size=16", "intermediate_size=32", "layers=1", "heads=2"]
    fit = [
        TRAIN, "fit", f"--config={config}", *(f"--model.init_args.source.init_args.{each}" for each in small),
        "--data.init_args.size=32", "--data.init_args.heldout_size=16", f"--study={study}",
    ]  # fmt: skip
    evaluate = [
        ANALYZE, "evaluate", "--models", json.dumps({"größe": f"{study}/base/model"}), f"--prompts={prompts}",
        "--judge=phrases", "--max_new_tokens=2", f"--out={written}",
    ]  # fmt: skip
    commands = [[*map(str, command)] for command in (fit, evaluate, [ANALYZE, "report", f"--study={study}"])]
    done = run_command("-c", IN_TURN, json.dumps(commands))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "gr\\xf6\\xdfe" in done.stdout
    assert "\\xb1" in done.stdout
    assert list(pd.read_csv(written / "table.csv", encoding="utf-8")["model"]) == ["größe"]
    assert list(yaml.safe_load((written / "config.yaml").read_text(encoding="utf-8"))["models"]) == ["größe"]
    assert "Wie heißt ∆" in json.loads((written / "generations.jsonl").read_text(encoding="utf-8"))["prompt"]
    assert "größe" in (study / "report" / "index.html").read_text(encoding="utf-8")


# What is opened as bytes whatever is said, and the texts of a package, which are UTF-8.
OTHER_FILES = ("archive", "gzip", "tarfile", "package")


def test_every_text_file_is_opened_with_its_encoding() -> None:
    """ruff's PLW1514 sees the calls on a literal `Path(...)` alone; a locale's encoding is met in any of them."""
    unnamed = []
    folders = [ROOT / "src", *(ROOT / name for name in ("callbacks", "studies", "benchmarks", "docs"))]
    files = [ROOT / "train.py", ROOT / "analyze.py", *(path for folder in folders for path in folder.rglob("*.py"))]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            is_method = isinstance(node.func, ast.Attribute)  # a plain `write_text` is the suite's own
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            is_binary = any(isinstance(mode, str) and re.fullmatch(r"[rwxa+]*b[rwxa+]*", mode) for mode in modes)
            named = any(keyword.arg == "encoding" for keyword in node.keywords)
            opens = name in ("open", "FileHandler") or (is_method and name in ("read_text", "write_text"))
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            if opens and owner not in OTHER_FILES and not is_binary and not named:
                unnamed.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert unnamed == []

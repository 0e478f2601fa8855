"""Rows are those of the named file as it is now, whatever its name and whatever was read before."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from support.refusal import refuse

from safety_subspaces.evaluation.prompt_sets import read_prompt_list
from safety_subspaces.language.sources import read_rows

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


def write_rows(path: Path, texts: list[str]) -> str:
    frame = pd.DataFrame({"prompt": texts, "response": texts})
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=path.suffix == ".jsonl")
    return str(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["data[ab]", "data*", "data?", "data{a,b}", "[!x]", "**"])
def test_a_pattern_in_a_name_is_a_part_of_the_name(tmp_path: Path, suffix: str, name: str) -> None:
    for other in ("dataa", "datab", "data", "x", "y"):
        write_rows(tmp_path / f"{other}{suffix}", ["another file's"])
    path = write_rows(tmp_path / f"{name}{suffix}", ["its own"])
    assert list(read_rows(path)["prompt"]) == ["its own"]
    inside = write_rows(tmp_path / f"in{name}" / f"rows{suffix}", ["inside"])
    assert list(read_rows(inside)["prompt"]) == ["inside"]
    if suffix == ".jsonl":
        assert read_prompt_list(path) == ["its own"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_rewritten_file_gives_its_new_rows_though_size_and_time_are_equal(tmp_path: Path, suffix: str) -> None:
    path = Path(write_rows(tmp_path / f"rows{suffix}", ["first"]))
    assert list(read_rows(str(path))["prompt"]) == ["first"]
    before = path.stat()
    write_rows(path, ["other"])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert list(read_rows(str(path))["prompt"]) == ["other"]


def test_rows_have_every_name_that_one_of_them_has_and_keep_their_kinds(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    last = {"prompt": "last\u2028line", "n": 2.5, "more": ["a"]}
    lines = [{"prompt": "2020-01-01", "n": 1}] * 10_001 + [last]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8-sig")
    rows = read_rows(str(path))
    assert (len(rows), rows.column_names) == (10_002, ["prompt", "n", "more"])
    assert rows[0] == {"prompt": "2020-01-01", "n": 1.0, "more": None}
    assert rows[10_001] == last


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"\xff\xfe"), ("a.jsonl", b"[" * 100_000), ("a.jsonl", b'{"prompt": "\\ud800"}'), ("a.jsonl", b"3"),
        ("a.jsonl", b'{"prompt": [1]}\n{"prompt": "a"}'), ("a.jsonl", b'{"prompt": ' + b"9" * 30 + b"}"),
        ("a.jsonl", b""),
        ("a.json", b'[{"prompt": "a"}, 3]'), ("a.json", b"{"), ("a.csv", b"\xff"), ("a.csv", b""), ("a.csv", b'a\n"b'),
        ("a.parquet", b"PAR1"), ("a.parquet", b"PAR1" + b"\x00" * 20 + b"\xff\xff\xff\x7fPAR1"), ("a.parquet", b""),
    ],
)  # fmt: skip
def test_what_is_no_table_of_rows_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refuse(lambda: read_rows(str(tmp_path / name)), f"{name} cannot be read", "expected rows as")

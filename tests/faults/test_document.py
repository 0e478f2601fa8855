import json
import re
from pathlib import Path

import yaml
from faults.document import MENDED_FILE, document
from support.tiny import ROOT

COUNTS = {
    "kills": {
        "evaluate": {"kill": {"tried": 3, "happened": 2, "failed": 0}},
        "training": {"kill": {"tried": 4, "happened": 4, "failed": 1}, "clock set back": {"tried": 1, "failed": 0}},
    },
    "fuzz": {"inputs": 7, "by_reader": {"GGUF": {"read": 3}, "JSON": {"read": 1, "refused": 3}}},
}


def test_every_mended_failure_names_a_test_that_is_there() -> None:
    for entry in yaml.safe_load(MENDED_FILE.read_text()):
        file, name = entry["test"].split("::")
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), entry["test"]


def test_the_page_tells_what_was_counted_and_what_was_mended(tmp_path: Path) -> None:
    page = document(COUNTS, [{"what": "It was lost.", "test": "a/test_b.py::test_c"}], tmp_path)
    assert "8 trials, 1 failed." in page
    assert "| training | 4 | 1 |" in page
    assert "| **all** | 7 | 1 |" in page
    assert "7 inputs" in page
    assert "| reader | read | refused |" in page
    assert "| GGUF | 3 | 0 |" in page
    assert "| It was lost. | `tests/a/test_b.py::test_c` |" in page
    assert "Long runs" not in page
    (tmp_path / "docs").mkdir()
    runs = {"training": {"steps": 3000, "changes": {"memory_bytes": 0.012}, "spread": {"memory_bytes": 0.02}}}
    (tmp_path / "docs" / "long_runs.json").write_text(json.dumps(runs))
    (tmp_path / "docs" / "long_runs.svg").touch()
    page = document(COUNTS, [], tmp_path)
    assert "| training, 3,000 steps | memory bytes | +1.2% | 2.0% |" in page
    assert "(long_runs.svg)" in page

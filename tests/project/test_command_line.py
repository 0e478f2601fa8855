"""A configuration that is wrong, or made to do harm, ends both entry points with one message, soon."""

import json
from pathlib import Path

import pytest
from support.tiny import ANALYZE, TRAIN, run_command

BOMB = "k0: &k0 [x, x]\n" + "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]\n" for n in range(1, 12))
WRONG = {
    "bomb": BOMB.encode(),
    "bomb in a text": json.dumps({"limit": BOMB}).encode(),
    "latin": b"out: \xe9\n",
    "deep": b"[" * 5000,
    "endless": b"models: &a {b: *a}\n",
    "no number": b"limit: !!int word\n",
    "code": b"out: !!python/object/apply:os.system [true]\n",
    "circle": b"out: ${judge}\njudge: ${out}\n",
    "unclosed": b"out: ${judge\n",
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("command", [(ANALYZE, "evaluate"), (TRAIN, "fit")], ids=["analyze", "train"])
def test_a_wrong_configuration_ends_with_one_message(tmp_path: Path, command: tuple[object, str], name: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_bytes(WRONG[name])
    done = run_command(*command, "--config", config, timeout=60)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr

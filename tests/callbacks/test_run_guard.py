"""A rank that waits for others which never come ends, and says so."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from support.tiny import ROOT

from callbacks import RunGuard, run_guard

ALONE = """
import sys, time
sys.path[:0] = [{root!r}, {src!r}]
from callbacks import RunGuard, run_guard
run_guard.LEAST_SECONDS_TO_JOIN = 0.5
RunGuard(0.2).expect({ranks})
time.sleep({sleeps})
"""


@pytest.mark.parametrize(("ranks", "status"), [(2, 1), (1, 0)])
def test_a_rank_that_waits_for_others_ends_in_time_and_one_alone_waits_for_none(ranks, status):
    script = ALONE.format(root=str(ROOT), src=str(ROOT / "src"), ranks=ranks, sleeps=60 if status else 1)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == status, done.stderr
    assert ("not all 2 ranks had joined after 0.5 s (--collective_timeout)" in done.stderr) == bool(status)


def test_ranks_that_have_joined_are_not_missed(monkeypatch):
    ended = []
    monkeypatch.setattr(run_guard, "LEAST_SECONDS_TO_JOIN", 0.3)
    monkeypatch.setattr(run_guard.ending, "end_at_once", ended.append)
    guard = RunGuard(0.1)
    guard.expect(2)
    guard.setup(SimpleNamespace(ckpt_path=None), None, "fit")
    time.sleep(0.5)
    assert not ended
    guard.expect(2)
    time.sleep(0.5)
    assert len(ended) == 1

"""A rank that is silent ends the others, in the time that was said; one that works long does not."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Rank 0 works alone while rank 1 waits in a collective that has no end of its own.
RANK = """
import os, sys, time
sys.path.insert(0, {source!r})
from datetime import timedelta
import torch.distributed as dist
from safety_subspaces.constraint.rank_watch import RankWatch
dist.init_process_group("gloo", rank=int(sys.argv[1]), world_size=2, timeout=timedelta(hours=1))
def lost(ranks):
    print("lost", ranks, flush=True)
    os._exit(7)
watch = RankWatch(2.0, lost)
watch.start()
print("ready", flush=True)
if dist.get_rank() == 0:
    time.sleep({alone})
dist.barrier()
watch.stop()
if dist.get_rank() == 0:
    time.sleep(3)  # needs the other no more
print("done", flush=True)
"""


def start_ranks(alone: float) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    code = RANK.format(source=str(ROOT / "src"), alone=alone)
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for rank in ranks:
        assert rank.stdout.readline() == "ready\n"
    return ranks


@pytest.mark.distributed
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_ends_the_other_in_the_time_that_was_said(stopped: int) -> None:
    ranks = start_ranks(alone=60)
    time.sleep(0.5)  # each has heard the other
    began = time.monotonic()
    ranks[stopped].send_signal(signal.SIGSTOP)
    said, _ = ranks[1 - stopped].communicate(timeout=60)
    assert said == f"lost [{stopped}]\n"
    assert time.monotonic() - began >= 1.5
    ranks[stopped].kill()
    ranks[stopped].communicate()


@pytest.mark.distributed
def test_a_rank_that_works_alone_for_longer_ends_nothing() -> None:
    ranks = start_ranks(alone=3)
    assert [rank.communicate(timeout=60)[0] for rank in ranks] == ["done\n"] * 2

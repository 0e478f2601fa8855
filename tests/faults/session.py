"""Opens what all trials need: the process that commands are forked from, a server to judge, and what commands read."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.cases import make_inputs
from faults.commands import Ground, serving
from faults.kills import Stage
from support.scripted_server import Answer, Scripted, chat, judged
from support.scripted_server import serving as answering


@contextmanager
def judging() -> Iterator[Scripted]:
    """Serve a judge that scores by length."""

    def score(body: dict[str, Any], _: int) -> Answer:
        return Answer(chat(json.dumps({"reason": "", "score": len(judged(body))})))

    with answering(score) as server:
        yield server


@contextmanager
def staged(root: Path) -> Iterator[Stage]:
    """Open a stage in a folder, which is made; what commands read is kept there for the next time."""
    with serving() as commands, judging() as server:
        ground = Ground(root / "ground")
        ground.clear()
        make_inputs(commands, ground, root / "inputs")
        yield Stage(commands, ground, root / "inputs", server.url)

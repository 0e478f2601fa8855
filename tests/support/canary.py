"""What a pickle calls when it is read in full: it leaves a folder behind, by which a test sees that code has run."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from safety_subspaces.training.checkpoints import COMPLETE


class Canary:
    """Pickles into a call that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def poison(shard: Path, canary: Path, state: dict[str, Any]) -> None:
    """Write a shard of ZeRO that would run code, in a checkpoint that says of itself that it is whole."""
    torch.save({**state, "extra": Canary(canary)}, shard)
    complete = shard.parents[1] / COMPLETE
    sizes = json.loads(complete.read_text())
    complete.write_text(json.dumps(sizes | {str(shard.relative_to(complete.parent)): shard.stat().st_size}))

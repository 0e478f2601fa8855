"""What one chooses of steering: the words that its command line takes, known without importing PyTorch."""

from dataclasses import dataclass
from typing import Literal

DirectionKind = Literal["mean_difference", "paired", "probe", "overlap", "basis"]
InterventionKind = Literal["addition", "ablation", "rotation"]


@dataclass(frozen=True)
class BasisSource:
    """A basis from a subspace file, to test the directions of a constraint or projection by steering too.

    Args:
        path: File of ``analyze.py subspace``.
        tensor: A weight that writes to the residual stream, of a left file; or one that reads it, of a right one.
        rank: How many of its leading directions.
    """

    path: str
    tensor: str
    rank: int = 1

"""Train a language model: ``python train.py fit --config configs/organism/useful.yaml``."""

import sys
from pathlib import Path

# A plain clone works without installing; `pip install -e .` makes this line idle.
sys.path.insert(0, str(Path(__file__).parent / "src"))

from safety_subspaces.programs.console import train

if __name__ == "__main__":
    train()

"""Analyse checkpoints: ``python analyze.py project --help``."""

import sys
from pathlib import Path

# A plain clone works without installing; `pip install -e .` makes this line idle.
sys.path.insert(0, str(Path(__file__).parent / "src"))

from safety_subspaces.programs.console import analyze

if __name__ == "__main__":
    analyze()

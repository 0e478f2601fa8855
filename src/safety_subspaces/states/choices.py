"""What one chooses of hidden states: the words that a command line takes, known without importing PyTorch."""

from typing import Literal

Position = Literal["last", "mean", "first_generated"]
Site = Literal["residual", "attention", "mlp"]
ProbeKind = Literal["linear", "rbf_svm", "mlp"]
Erasure = Literal["none", "leace", "quadratic"]
POSITIONS: tuple[Position, ...] = ("last", "mean", "first_generated")

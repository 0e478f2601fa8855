"""Thin torchmetrics shells: their states add up over batches and ranks by themselves."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from safety_subspaces.language.likelihood import NO_LOSS, token_log_probabilities


class TokenStatistics(Metric):
    """Loss, perplexity and accuracy of the next token, weighted by token over all batches and ranks.

    ``compute`` returns ``loss`` (mean nats a token), ``perplexity`` (its exponential, 1 or more) and ``token_accuracy``
    (share of tokens that are the most likely one, 0 to 1). Without a token all three are NaN.
    """

    full_state_update = False
    nats: Tensor
    correct: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Sums in float64: a float32 count stops growing at 2^24 tokens.
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Float[Tensor, "batch position vocabulary"], labels: Int[Tensor, "batch position"]) -> None:
        """Add a batch."""
        counted = labels[:, 1:] != NO_LOSS
        self.nats -= token_log_probabilities(logits, labels).sum(dtype=torch.float64)
        self.correct += ((logits[:, :-1].argmax(-1) == labels[:, 1:]) & counted).sum()
        self.tokens += counted.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return ``loss``, ``perplexity`` and ``token_accuracy``."""
        loss = self.nats / self.tokens
        return {"loss": loss, "perplexity": loss.exp(), "token_accuracy": self.correct / self.tokens}

"""Log-probabilities of given sequences: what preference optimisation trains on and the refusal margin measures."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Label of a position that does not count, as `torch.nn.functional.cross_entropy` has it.
NO_LOSS = -100


def token_log_probabilities(
    logits: Float[Tensor, "batch position vocabulary"], labels: Int[Tensor, "batch position"]
) -> Float[Tensor, "batch position-1"]:
    """Return ``log p(label_t | tokens before t)`` for each position but the first, 0 where it is ``NO_LOSS``."""
    targets = labels[:, 1:]
    flat = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=NO_LOSS, reduction="none"
    )
    return -flat.view_as(targets)


def sequence_log_probabilities(
    logits: Float[Tensor, "batch position vocabulary"], labels: Int[Tensor, "batch position"]
) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Return each sequence's summed log-probability, in nats, and the number of tokens in the sum."""
    return token_log_probabilities(logits, labels).sum(1), (labels[:, 1:] != NO_LOSS).sum(1)

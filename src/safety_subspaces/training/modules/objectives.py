"""The losses of the training stages, as pure functions of logits and log-probabilities."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safety_subspaces.language.likelihood import NO_LOSS


def next_token_loss(
    logits: Float[Tensor, "batch position vocabulary"], labels: Int[Tensor, "batch position"]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the next token, in nats, over the labels that count."""
    # The labels are shifted, not the logits, which are larger to copy.
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=NO_LOSS)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=NO_LOSS)


def preference_logits(
    policy: Float[Tensor, " rows"], reference: Float[Tensor, " rows"], beta: float
) -> Float[Tensor, " pairs"]:
    """Return ``beta * [(log pi/pi_ref)(chosen) - (log pi/pi_ref)(rejected)]`` for each pair.

    Args:
        policy: Log-probabilities under the trained model; chosen answers first, then the rejected.
        reference: The same under the model that training started from.
        beta: How strongly the trained model is held to the reference.
    """
    chosen, rejected = (policy - reference).chunk(2)
    return beta * (chosen - rejected)


def preference_loss(
    policy: Float[Tensor, " rows"],
    reference: Float[Tensor, " rows"],
    token_counts: Int[Tensor, " rows"],
    beta: float,
    nll_weight: float,
) -> Float[Tensor, ""]:
    """Return the loss of direct preference optimisation, with a likelihood term on the chosen answer.

    ``mean over pairs of [-log sigmoid(preference_logits) - nll_weight * log pi(chosen) / tokens(chosen)]``. The second
    term is the log-probability of a chosen token, first the mean over an answer and then over answers: each answer has
    the same weight, however long, where a mean over all chosen tokens would give long answers more. Without it DPO may
    lower the likelihood of both answers.

    Args:
        policy: Log-probabilities of whole answers under the trained model, in nats; chosen answers first, then the
            rejected.
        reference: The same under the model that training started from.
        token_counts: Tokens of each answer.
        beta: How strongly the trained model is held to the reference.
        nll_weight: Weight of the likelihood term.

    Source:
        arXiv 2305.18290 (DPO), section 4; arXiv 2404.19733, section 3 (the likelihood term).
    """
    margins = preference_logits(policy, reference, beta)
    chosen = len(margins)
    likelihood = (policy[:chosen] / token_counts[:chosen]).mean()
    return -torch.nn.functional.logsigmoid(margins).mean() - nll_weight * likelihood

"""Direct preference optimisation, the second way to align a model."""

from contextlib import nullcontext
from copy import deepcopy
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.likelihood import sequence_log_probabilities
from safety_subspaces.language.model import ModelSource
from safety_subspaces.training.data.batches import PREFERENCES, Batch
from safety_subspaces.training.modules.base import LanguageModelModule
from safety_subspaces.training.modules.metrics import TokenStatistics
from safety_subspaces.training.modules.objectives import preference_logits, preference_loss

# Key prefix of the frozen reference, which is loaded from the source and so is left out of checkpoints.
REFERENCE = "reference."


@final
class PreferenceOptimization(LanguageModelModule):
    """Trains on pairs of a chosen and a rejected answer; the reference is the model that training starts from.

    Logs ``train/loss``, ``train/preference_accuracy`` (share of pairs whose chosen answer gained more likelihood than
    the rejected one, 0 to 1), ``val/preference_accuracy``, and ``val/loss``, ``val/perplexity``, ``val/token_accuracy``
    of the chosen answers.

    Args:
        source: Where network and tokenizer come from.
        beta: How strongly the model is held to the reference.
        nll_weight: Weight of the likelihood of the chosen answers, a mean over answers of the mean over their tokens.
        settings: As :class:`LanguageModelModule`. With an adapter the reference is the frozen base under it.
    """

    batch_kind = PREFERENCES

    def __init__(
        self,
        source: ModelSource,
        beta: float = 0.1,
        nll_weight: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(source, **settings)
        if beta <= 0 or nll_weight < 0:
            raise InputError(f"beta {beta} and nll_weight {nll_weight}: expected positive and not negative")
        self.beta = beta
        self.nll_weight = nll_weight
        self.reference: Any = None
        self.strict_loading = False  # the reference is left out of checkpoints

    def describe(self) -> dict[str, Any]:
        """Say what is trained and from where."""
        facts, settings = super().describe(), {"beta": self.beta, "likelihood term": self.nll_weight}
        return facts | {"objective": facts["objective"] | {"name": "DPO", "settings": settings}}

    def configure_model(self) -> None:
        """Load the network, and for full fine-tuning a frozen copy of it."""
        super().configure_model()
        if self.adapter is None and self.reference is None:
            self.reference = deepcopy(self.language_model).eval().requires_grad_(False)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of a batch of pairs, chosen answers in its first half, weighted by its share of the step."""
        policy, reference, counts = self._log_probabilities(batch)
        loss = preference_loss(policy, reference, counts, self.beta, self.nll_weight) * batch["loss_weight"]
        self.log_training("train/loss", loss)
        self.log_training("train/preference_accuracy", self._accuracy(policy, reference) * batch["loss_weight"])
        return loss

    def _evaluation_step(self, batch: Batch, statistics: TokenStatistics, prefix: str) -> None:
        policy, reference, _ = self._log_probabilities(batch)
        chosen = len(policy) // 2
        if batch["loss_weight"] > 0:
            self.log(f"{prefix}/preference_accuracy", self._accuracy(policy, reference), batch_size=chosen)
        logits, labels = self.counted_logits(batch)
        statistics.update(logits[:chosen], labels[:chosen])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the reference out: it is loaded from the source."""
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if not name.startswith(REFERENCE)
        }

    def _log_probabilities(
        self, batch: Batch
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"], Int[Tensor, " rows"]]:
        policy, counts = sequence_log_probabilities(*self.response_logits(batch))
        without_adapter = self.language_model.disable_adapter() if self.reference is None else nullcontext()
        frozen = self.language_model if self.reference is None else self.reference
        with torch.no_grad(), without_adapter:
            reference, _ = sequence_log_probabilities(*self.response_logits(batch, frozen))
        return policy, reference, counts

    def _accuracy(self, policy: Float[Tensor, " rows"], reference: Float[Tensor, " rows"]) -> Float[Tensor, ""]:
        return (preference_logits(policy.detach(), reference, self.beta) > 0).float().mean()

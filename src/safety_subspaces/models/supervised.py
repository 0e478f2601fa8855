"""Supervised fine-tuning: next-token loss on the response."""

from typing import final

from torch import Tensor

from safety_subspaces.data.batches import Batch
from safety_subspaces.models.base import LanguageModelModule
from safety_subspaces.objectives import next_token_loss


@final
class SupervisedFineTuning(LanguageModelModule):
    """Trains on the tokens of the response; the prompt carries no loss.

    Logs ``train/loss`` (nats a token of the batch), ``val/loss``, ``val/perplexity`` and ``val/token_accuracy``
    (0 to 1), and the same under ``test/``.
    """

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the mean loss of the batch's response tokens."""
        loss = next_token_loss(*self.response_logits(batch))
        self.log_training("train/loss", loss)
        return loss

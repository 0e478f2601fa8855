"""Supervised fine-tuning: next-token loss on the response."""

from typing import Any, final

from torch import Tensor

from safety_subspaces.training.data.batches import Batch
from safety_subspaces.training.modules.base import LanguageModelModule
from safety_subspaces.training.modules.objectives import next_token_loss


@final
class SupervisedFineTuning(LanguageModelModule):
    """Trains on the tokens of the response; the prompt carries no loss.

    A step's gradient is that of the mean over all its response tokens, however it is cut into ranks and accumulated
    batches. Logs ``train/loss`` (nats a token of the step), ``val/loss``, ``val/perplexity`` and ``val/token_accuracy``
    (0 to 1), and the same under ``test/``.
    """

    def describe(self) -> dict[str, Any]:
        """Say what is trained and from where."""
        facts = super().describe()
        return facts | {"objective": facts["objective"] | {"name": "SFT"}}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the mean loss of the batch's response tokens, weighted by its share of the step's tokens."""
        loss = next_token_loss(*self.response_logits(batch)) * batch["loss_weight"]
        self.log_training("train/loss", loss)
        return loss

"""What the training modules share: the network, its adapter, the optimiser with its schedule, and validation."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import lightning as L
import torch
from jaxtyping import Float, Int
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_with_min_lr_schedule_with_warmup

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.likelihood import NO_LOSS
from safety_subspaces.language.model import ModelSource
from safety_subspaces.language.model_paths import check_model_path
from safety_subspaces.training.data.batches import RESPONSES, Batch, BatchKind
from safety_subspaces.training.modules.adapter import AdapterSettings, add_adapter
from safety_subspaces.training.modules.frozen_basis import FrozenBasisSettings, check_factors_are_exact
from safety_subspaces.training.modules.metrics import TokenStatistics


@dataclass
class CosineSchedule:
    """Linear warm-up, then a half cosine, both over optimizer steps.

    Args:
        warmup_fraction: Share of the steps that warm up.
        final_fraction: Share of the peak rate that is left at the end.
    """

    warmup_fraction: float = 0.03
    final_fraction: float = 0.0


class LanguageModelModule(L.LightningModule):
    """A causal language model under training; subclasses add the objective.

    That is a ``training_step``, and a ``batch_kind`` where it trains on something else than examples. The network
    is loaded in ``configure_model``, in float32 unless its source says otherwise, and really is in training mode:
    transformers hands models over in eval mode, and Lightning keeps what it is given.

    Args:
        source: Where network and tokenizer come from.
        adapter: LoRA settings, or those of a frozen basis; ``null`` trains every weight.
        optimizer: The optimizer, less its parameters.
        schedule: Warm-up and decay of the learning rate.
        gradient_checkpointing: Recompute activations in the backward pass: a third more time for much less memory.
    """

    batch_kind: ClassVar[BatchKind] = RESPONSES

    def __init__(
        self,
        source: ModelSource,
        adapter: AdapterSettings | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: CosineSchedule | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.source = source
        self.adapter = adapter
        self.optimizer = optimizer
        self.schedule = schedule or CosineSchedule()
        self.gradient_checkpointing = gradient_checkpointing
        if not 0 <= self.schedule.warmup_fraction < 1 or not 0 <= self.schedule.final_fraction <= 1:
            raise InputError(f"{self.schedule}: expected warmup_fraction in [0, 1) and final_fraction in [0, 1]")
        self.language_model: Any = None
        self._logged: dict[str, list[Tensor]] = {}
        self.validation_statistics = TokenStatistics()
        self.test_statistics = TokenStatistics()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the network."""
        return self.source.load_tokenizer()

    @property
    def bare_model(self) -> PreTrainedModel:
        """The network as transformers knows it, with the layers of its adapter in place."""
        network = self.language_model
        return network.get_base_model() if isinstance(network, PeftModel) else network

    def inputs(self) -> list[str]:
        """Return what the network is loaded from, and the file of a frozen basis."""
        basis = self.adapter.subspace if isinstance(self.adapter, FrozenBasisSettings) else None
        return [path for path in (self.source.path, basis) if path]

    def check_source(self) -> None:
        """Check that what the network is loaded from is there, before a run folder is made for it.

        Raises:
            InputError: It is not; the message says what to do.
        """
        if self.source.path:
            check_model_path(self.source.path)

    def describe(self) -> dict[str, Any]:
        """Say what is trained and from where; a subclass adds the short name and the settings of its objective."""
        rate = self.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0].get("lr")
        objective: dict[str, Any] = {"name": type(self).__name__, "learning_rate": rate, "settings": {}}
        return {"objective": objective, "starts_from": self.source.path}

    def configure_model(self) -> None:
        """Load the network and add the adapter; a second call does nothing."""
        if self.language_model is not None:
            return
        model: PreTrainedModel = self.source.load_model()
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable()
            if self.adapter is not None:
                model.enable_input_require_grads()
        network = model if self.adapter is None else add_adapter(model, self.adapter)
        self.language_model = network.train()

    def on_fit_start(self) -> None:
        """Refuse a precision in which a frozen basis is no longer what its file holds."""
        if isinstance(self.adapter, FrozenBasisSettings):
            check_factors_are_exact(self.language_model)

    def forward(self, input_ids: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position vocabulary"]:
        """Return the logits of right-padded sequences."""
        return self.language_model(input_ids=input_ids, use_cache=False).logits

    def response_logits(
        self, batch: Batch, network: Any = None
    ) -> tuple[Float[Tensor, "batch response vocabulary"], Int[Tensor, "batch response"]]:
        """Return logits and labels from the last token before any response on.

        The positions before carry no loss. Leaving them out saves the largest product of a model with a large
        vocabulary, and most of its memory.
        """
        first = max(batch["response_start"] - 1, 0)
        length = batch["input_ids"].shape[1] - first
        network = self.language_model if network is None else network
        logits = network(input_ids=batch["input_ids"], use_cache=False, logits_to_keep=length).logits
        # A network that knows no `logits_to_keep` may return all of them.
        return logits[:, -length:], batch["labels"][:, first:]

    def log_training(self, name: str, value: Tensor) -> None:
        """Log a value of the optimizer step: the mean over its batches, of all ranks and accumulated ones.

        Only at the steps that are written: logging each costs 2 % of a small step.

        Args:
            name: The tag.
            value: The batch's mean times its ``loss_weight``.
        """
        trainer: Any = self.trainer
        step = trainer.global_step + 1
        if step % trainer.log_every_n_steps and step < trainer.estimated_stepping_batches:
            return
        batches = self._logged.setdefault(name, [])
        batches.append(value.detach())
        if len(batches) == trainer.accumulate_grad_batches:
            mean = torch.stack(batches).mean()
            self.log(name, mean, prog_bar=name == "train/loss", sync_dist=trainer.world_size > 1)
            batches.clear()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer over the trainable parameters and its schedule by step."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_with_min_lr_schedule_with_warmup(
            optimizer,
            num_warmup_steps=int(self.schedule.warmup_fraction * steps),
            num_training_steps=steps,
            min_lr_rate=self.schedule.final_fraction,
        )
        # The name is the TensorBoard tag that LearningRateMonitor logs under.
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "train/learning_rate"},
        }

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Add a batch to the validation statistics."""
        self._evaluation_step(batch, self.validation_statistics, "val")

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Add a batch to the test statistics."""
        self._evaluation_step(batch, self.test_statistics, "test")

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and token accuracy over all batches and ranks."""
        self._log_statistics(self.validation_statistics, "val")

    def on_test_epoch_end(self) -> None:
        """Log loss, perplexity and token accuracy over all batches and ranks."""
        self._log_statistics(self.test_statistics, "test")

    def _evaluation_step(self, batch: Batch, statistics: TokenStatistics, prefix: str) -> None:
        statistics.update(*self.counted_logits(batch))

    def counted_logits(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "batch response vocabulary"], Int[Tensor, "batch response"]]:
        """Return logits and labels as :meth:`response_logits`; no label counts in a batch that only stands in."""
        logits, labels = self.response_logits(batch)
        return logits, labels if batch["loss_weight"] > 0 else torch.full_like(labels, NO_LOSS)

    def _log_statistics(self, statistics: TokenStatistics, prefix: str) -> None:
        if statistics.update_called:
            values = {f"{prefix}/{name}": value.float() for name, value in statistics.compute().items()}
            self.log_dict(values, sync_dist=self.trainer.world_size > 1)  # equal on all ranks; Lightning can't know
        statistics.reset()

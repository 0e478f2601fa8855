"""What every DataModule does alike: encode with the model's own tokenizer, check lengths, load in a seeded order."""

import logging
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import lightning as L
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.examples import CHAT, EncodedExample, Example, PreferencePair, PromptFormat
from safety_subspaces.language.prompting import check_template, encode_example, padding_id
from safety_subspaces.language.turns import warn_of_turns
from safety_subspaces.training.data.batches import (
    PREFERENCES,
    RESPONSES,
    BatchKind,
    Encoded,
    LengthBucketBatchSampler,
    PlannedItems,
    collate_planned,
    length_of,
)

logger = logging.getLogger(__name__)

Item = Example | PreferencePair
# A row of a source; of several items of one row also which.
RowKey = int | tuple[int, int]
Overlong = Literal["error", "drop", "truncate"]


class LanguageData(L.LightningDataModule):
    """Encodes what the LightningModule's batch kind asks for, and batches it by length.

    The tokenizer is that of the LightningModule, so that data and model cannot disagree.

    Args:
        batch_size: Examples in a batch of one process.
        max_length: Longest sequence, prompt and response together, in tokens.
        overlong: What to do with longer ones: ``error`` refuses them, ``drop`` leaves them out, ``truncate`` cuts the
            response (a prompt that is too long by itself is refused all the same). Counts are kept in ``counts``.
        template: ``chat`` for the tokenizer's chat template, or a prompt template by its name or import path.
        seed: Seed of the data and of their order.
        num_workers: Worker processes of the loader; 0 loads in the training process, which is enough for text.
        template_args: What the chat template is given beside the turns, such as ``{enable_thinking: false}``.
        control_tokens: Whether the text of a control token in the data is read as that token; by default it is text.
    """

    def __init__(
        self,
        batch_size: int,
        max_length: int,
        overlong: Overlong = "error",
        template: str = CHAT,
        seed: int = 0,
        num_workers: int = 0,
        template_args: dict[str, Any] | None = None,
        control_tokens: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1 or max_length < 2:
            raise InputError(f"batch_size {batch_size} and max_length {max_length}: expected at least 1 and at least 2")
        self.batch_size = batch_size
        self.max_length = max_length
        self.overlong = overlong
        self.form = PromptFormat(template, template_args or {}, control_tokens)
        self.seed = seed
        self.num_workers = num_workers
        self.counts: dict[str, int] = {}
        self._encoded: dict[str, list[Encoded]] = {}
        self._position = {"epoch": 0, "batches_done": 0}
        self._training_sampler: LengthBucketBatchSampler | None = None

    @abstractmethod
    def examples(self, split: Literal["train", "dev", "test"]) -> list[Encoded]:
        """Return what a split is made of, by ``encode`` and in a fixed order; ``dev`` validates. Empty where none is.

        Lengths are checked here, source by source, so that a share of a mixture is one of what is trained on.
        """

    def describe(self) -> dict[str, Any]:
        """Say what is trained on: the number of examples where it is known before they are read, the ``sources``.

        ``harmful`` says whether they hold harmful answers: ``True``, ``False``, or ``None`` where that is not known.
        """
        facts: dict[str, Any] = {"data": {"name": type(self).__name__, "examples": None}}
        return facts | {"trained_on": {"sources": [], "harmful": None}}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model that is trained."""
        assert self.trainer is not None
        return self.trainer.lightning_module.tokenizer

    @property
    def batch_kind(self) -> BatchKind:
        """What the model that is trained takes: examples, where it does not say."""
        assert self.trainer is not None
        return getattr(self.trainer.lightning_module, "batch_kind", RESPONSES)

    def setup(self, stage: str) -> None:
        """Draw, encode and check what this stage needs.

        Raises:
            InputError: Nothing to train on, or sequences beyond ``max_length`` where ``overlong`` is ``error``.
        """
        check_template(self.tokenizer, self.form.template)
        if stage == "fit":
            warn_of_turns(self.tokenizer, self.form.template, self.form.template_args)
        for split in {"fit": ("train", "dev"), "validate": ("dev",), "test": ("test",)}.get(stage, ()):
            if split in self._encoded:
                continue
            encoded = self.examples(split)  # type: ignore[arg-type]
            if not encoded and split == "train":
                raise InputError("the training data is empty; check its path, filter and limit")
            if not encoded and stage in ("validate", "test"):
                raise InputError(f"there is no {split} data to {stage} on; name a source for it, or raise heldout_size")
            self._encoded[split] = encoded
            if encoded:
                self.counts[split] = len(encoded)

    def encode(self, rows: Mapping[RowKey, Item], source: str, part: str) -> dict[RowKey, Encoded]:
        """Encode the rows of one source; what is too long is refused, left out or cut, as ``overlong`` says.

        Args:
            rows: Items by their row in the source.
            source: What the source is called in messages.
            part: What it is called in ``counts``: ``<part>_drop`` or ``<part>_truncate`` is how many were too long.

        Returns:
            The encoded rows that stay, in the same order.

        Raises:
            InputError: Pairs where examples are trained on or the reverse, rows beyond ``max_length`` where
                ``overlong`` is ``error``, no row that fits, or a prompt that leaves no room for its response.
        """
        self._check_kind(rows)
        encoded: dict[RowKey, Encoded] = {}
        longer: dict[RowKey, int] = {}
        for row, item in rows.items():
            code = self._encode_item(item)
            if length_of(code) > self.max_length:
                longer[row] = length_of(code)
                if self.overlong == "drop":
                    continue
                code = self._truncate(code, f"{source}, row {row}") if self.overlong == "truncate" else code
            encoded[row] = code
        if longer and self.overlong == "error":
            row = next(iter(longer))
            raise InputError(
                f"{source}: {len(longer)} of {len(rows)} examples are longer than max_length={self.max_length} tokens "
                f"(the first is row {row} with {longer[row]}, the longest has {max(longer.values())}); "
                "raise max_length, or say overlong: drop or overlong: truncate"
            )
        if rows and not encoded:
            raise InputError(f"{source}: all {len(rows)} examples are longer than max_length={self.max_length} tokens")
        if longer:
            logger.warning("%s: %d examples beyond %d tokens: %s", source, len(longer), self.max_length, self.overlong)
            self.counts[f"{part}_{self.overlong}"] = len(longer)
        return encoded

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training data.

        Lightning's own state of a loader is restored too late when the schedule asks for the number of steps, and a
        resumed run then begins its epoch again.
        """
        assert self.trainer is not None
        # The only use of Lightning's private loops: no public count leaves out a batch that was fetched but not trained
        # on, as there is one in a checkpoint that is saved on an exception.
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        return {"epoch": self.trainer.current_epoch, "batches_done": done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the position of a checkpoint; the training loader goes on behind it."""
        self._position = state_dict
        if self._training_sampler is not None:  # DeepSpeed restores after the loader was made
            self._training_sampler.resume(**state_dict)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of like length; the position is part of a checkpoint."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader | list:
        """The ``dev`` split in its own order; nothing where there is none."""
        return self._loader("dev", shuffle=False) if self._encoded.get("dev") else []

    def test_dataloader(self) -> DataLoader | list:
        """The ``test`` split in its own order; nothing where there is none."""
        return self._loader("test", shuffle=False) if self._encoded.get("test") else []

    def _loader(self, split: str, shuffle: bool) -> DataLoader:
        assert self.trainer is not None
        items = self._encoded[split]
        training = split == "train"
        sampler = LengthBucketBatchSampler(
            [length_of(item) for item in items],
            self.batch_size,
            self.seed,
            shuffle,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.trainer.accumulate_grad_batches if training else 1,
            [self.batch_kind.loss_terms(item) for item in items],
        )
        if training:
            sampler.resume(**self._position)
            self._training_sampler = sampler
        return DataLoader(
            PlannedItems(items),
            batch_sampler=sampler,  # type: ignore[arg-type]
            collate_fn=partial(collate_planned, pad_token_id=padding_id(self.tokenizer)),
            num_workers=self.num_workers,
        )

    def _check_kind(self, rows: Mapping[RowKey, Item]) -> None:
        kind, item = self.batch_kind, next(iter(rows.values()), None)
        if item is not None and not isinstance(item, kind.items):
            assert self.trainer is not None
            got = next(known.label for known in (RESPONSES, PREFERENCES) if isinstance(item, known.items))
            raise InputError(
                f"{type(self.trainer.lightning_module).__name__} trains on {kind.label}, but the data are {got}; use "
                "PreferenceOptimization with the organism's corpus 'preference' or a rejected_field, and "
                "SupervisedFineTuning with anything else"
            )

    def _encode_item(self, item: Item) -> Encoded:
        return tuple(encode_example(self.tokenizer, part, self.form) for part in self.batch_kind.sequences(item))

    def _truncate(self, item: Encoded, where: str) -> Encoded:
        longest = max(part.prompt_length for part in item)
        if longest >= self.max_length:
            raise InputError(
                f"{where}: the prompt alone has {longest} tokens, max_length is {self.max_length}: "
                "no response would be left to learn; raise max_length or say overlong: drop"
            )
        return tuple(EncodedExample(part.input_ids[: self.max_length], part.prompt_length) for part in item)

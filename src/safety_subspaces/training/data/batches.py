"""Batches of like length in a seeded order, and their padding; the order is the same on any machine.

One optimizer step may be cut into several batches: over the ranks, and over accumulated gradients. The examples of a
step and the weight of each in its loss do not depend on how it is cut.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from safety_subspaces.language.examples import EncodedExample, Example, PreferencePair
from safety_subspaces.language.likelihood import NO_LOSS

# Sorting within pools of sixteen batches saves most of the padding and still mixes long with short.
BATCHES_PER_POOL = 16


# One encoded item of a batch: one sequence for a response, two for a preference pair.
Encoded = tuple[EncodedExample, ...]


@dataclass(frozen=True)
class BatchKind:
    """The kind of items that an objective trains on; a LightningModule declares it as ``batch_kind``.

    Args:
        items: Class of the items.
        label: What they are called in messages.
        sequences: Returns an item as examples to encode, the same number for each. In a batch the first of all items
            come first, then the second of all.
        by_token: Whether the loss is a mean over response tokens; else over items.
    """

    items: type
    label: str
    sequences: Callable[[Any], tuple[Example, ...]]
    by_token: bool

    def loss_terms(self, item: Encoded) -> int:
        """Terms of an item in the loss; the first token of a sequence is never one."""
        return sum(len(part.input_ids) - max(part.prompt_length, 1) for part in item) if self.by_token else 1


def _chosen_and_rejected(pair: PreferencePair) -> tuple[Example, ...]:
    return Example(pair.prompt, pair.chosen), Example(pair.prompt, pair.rejected)


RESPONSES = BatchKind(Example, "examples", lambda example: (example,), by_token=True)
PREFERENCES = BatchKind(PreferencePair, "preference pairs", _chosen_and_rejected, by_token=False)


class Batch(TypedDict):
    """A padded batch.

    ``token_count`` counts real tokens, not padding; no label counts before position ``response_start``. The mean loss
    of the batch times ``loss_weight``, averaged over the batches of an optimizer step, is the mean over the step. A
    weight of 0 is that of a batch that stands in where a step has fewer examples than batches; it counts nowhere.
    """

    input_ids: Int[Tensor, "batch position"]
    labels: Int[Tensor, "batch position"]
    token_count: int
    response_start: int
    loss_weight: float


@dataclass(frozen=True)
class BatchPlan:
    """One batch of an optimizer step.

    Args:
        indices: Its examples.
        loss_weight: Its share of the step's loss terms, times the number of batches that the step is the mean of. A
            step in one batch has 1, a batch without an example of its own 0.
        stands_in: What such a batch is made of, an example of another one: a rank that does nothing would leave the
            others waiting in a collective.
    """

    indices: list[int]
    loss_weight: float
    stands_in: int = -1

    @property
    def rows(self) -> list[int]:
        """What is put into the batch."""
        return self.indices or [self.stands_in]


class LengthBucketBatchSampler(Sampler[BatchPlan]):
    """Yields batches of examples of like length, in an order drawn from the seed and the epoch.

    The examples of an optimizer step are the same for any number of ranks and of accumulated batches, as long as the
    product with ``batch_size`` is the same; each rank takes its share of every one of them. Every example is in one
    step of an epoch, whatever the last one has to be filled with.

    Args:
        lengths: Length of each example, in tokens.
        batch_size: Examples in a batch of one rank.
        seed: Seed of the order.
        shuffle: Whether to shuffle; else examples come in their own order.
        rank: This process.
        num_replicas: Number of processes.
        accumulate: Batches of one rank in an optimizer step.
        loss_terms: Terms of each example in the loss: response tokens, or 1 where the loss is a mean of examples.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        num_replicas: int = 1,
        accumulate: int = 1,
        loss_terms: Sequence[int] | None = None,
    ) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.num_replicas = num_replicas
        self.accumulate = accumulate
        self.loss_terms = [1] * len(self.lengths) if loss_terms is None else list(loss_terms)
        self.epoch = 0
        self._resume_epoch, self._resume_after = 0, 0
        self._drawn: tuple[int, list[list[int]]] | None = None
        self.sampler = self  # Lightning looks for `batch_sampler.sampler.set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def resume(self, epoch: int, batches_done: int) -> None:
        """Leave out the batches of this epoch that an interrupted run has trained on; later epochs are whole."""
        self._resume_epoch, self._resume_after = epoch, batches_done

    def __len__(self) -> int:
        """Number of batches of one rank in a whole epoch."""
        return len(self._steps()) * self.accumulate

    def __iter__(self) -> Iterator[BatchPlan]:
        done = self._resume_after if self.epoch == self._resume_epoch else 0
        for number in range(done, len(self)):
            step, part = divmod(number, self.accumulate)
            yield self._batch(self._steps()[step], part)

    def _batch(self, step: list[int], part: int) -> BatchPlan:
        parts = self.num_replicas * self.accumulate
        indices = step[part * self.num_replicas + self.rank :: parts]
        if not indices:
            return BatchPlan([], 0.0, step[0])
        if parts == 1:
            return BatchPlan(indices, 1.0)
        terms = sum(self.loss_terms[index] for index in indices)
        return BatchPlan(indices, parts * terms / sum(self.loss_terms[index] for index in step))

    def _steps(self) -> list[list[int]]:
        """The examples of each optimizer step of this epoch."""
        if self._drawn is None or self._drawn[0] != self.epoch:
            self._drawn = self.epoch, self._draw()
        return self._drawn[1]

    def _draw(self) -> list[list[int]]:
        parts = self.num_replicas * self.accumulate
        size = self.batch_size * parts
        indices = list(range(len(self.lengths)))
        if not self.shuffle:
            steps = [indices[i : i + size] for i in range(0, len(indices), size)]
        else:
            rng = random.Random(f"{self.seed} {self.epoch}")
            rng.shuffle(indices)
            steps = []
            for start in range(0, len(indices), size * BATCHES_PER_POOL):
                pool = sorted(indices[start : start + size * BATCHES_PER_POOL], key=self.lengths.__getitem__)
                steps += [pool[i : i + size] for i in range(0, len(pool), size)]
            rng.shuffle(steps)
        return steps


class PlannedItems(Dataset):
    """Encoded items, read a whole batch at a time: with its loss weight."""

    def __init__(self, items: Sequence[Encoded]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, plan: BatchPlan) -> tuple[list[Encoded], float]:
        """Return the items of a batch, and the weight of its loss."""
        return [self.items[index] for index in plan.rows], plan.loss_weight


def collate(items: Sequence[Encoded], pad_token_id: int, loss_weight: float = 1.0) -> Batch:
    """Pad sequences on the right to the longest; the first of all items come first, then the second of all, if any.

    No attention mask is needed in training: under a causal mask padding on the right reaches no earlier token, and its
    labels carry no loss. Without a mask PyTorch's fast causal attention applies.
    """
    sequences = [sequence for of_all in zip(*items, strict=True) for sequence in of_all]
    longest = max(len(sequence.input_ids) for sequence in sequences)
    input_ids = torch.full((len(sequences), longest), pad_token_id)
    labels = torch.full((len(sequences), longest), NO_LOSS)
    for row, sequence in enumerate(sequences):
        ids = torch.tensor(sequence.input_ids)
        input_ids[row, : len(ids)] = ids
        labels[row, sequence.prompt_length : len(ids)] = ids[sequence.prompt_length :]
    return Batch(
        input_ids=input_ids,
        labels=labels,
        token_count=sum(len(sequence.input_ids) for sequence in sequences),
        response_start=min(sequence.prompt_length for sequence in sequences),
        loss_weight=loss_weight,
    )


def collate_planned(planned: tuple[list[Encoded], float], pad_token_id: int) -> Batch:
    """Collate what :class:`PlannedItems` gives."""
    items, loss_weight = planned
    return collate(items, pad_token_id, loss_weight)


def length_of(item: Encoded) -> int:
    """Length in tokens that an item takes in a batch."""
    return max(len(sequence.input_ids) for sequence in item)

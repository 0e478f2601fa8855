"""Batches of like length in a seeded order, and their padding; the order is the same on any machine."""

import random
from collections.abc import Iterator, Sequence
from typing import TypedDict

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Sampler

from safety_subspaces.examples import EncodedExample, EncodedPair
from safety_subspaces.likelihood import NO_LOSS

# Sorting within pools of sixteen batches saves most of the padding and still mixes long with short.
BATCHES_PER_POOL = 16


class Batch(TypedDict):
    """A padded batch.

    ``token_count`` counts real tokens, not padding; no label counts before position ``response_start``.
    """

    input_ids: Int[Tensor, "batch position"]
    labels: Int[Tensor, "batch position"]
    token_count: int
    response_start: int


class LengthBucketBatchSampler(Sampler[list[int]]):
    """Yields lists of indices of like length, in an order drawn from the seed and the epoch.

    The global batches are the same for any number of ranks; each rank takes its share of every one of them.

    Args:
        lengths: Length of each example, in tokens.
        batch_size: Examples in a batch of one rank.
        seed: Seed of the order.
        shuffle: Whether to shuffle; else examples come in their own order.
        rank: This process.
        num_replicas: Number of processes.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.num_replicas = num_replicas
        self.epoch = 0
        self._resume_epoch, self._resume_after = 0, 0
        self.sampler = self  # Lightning looks for `batch_sampler.sampler.set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def resume(self, epoch: int, batches_done: int) -> None:
        """Leave out the batches of this epoch that an interrupted run has trained on; later epochs are whole."""
        self._resume_epoch, self._resume_after = epoch, batches_done

    def __len__(self) -> int:
        """Number of batches in a whole epoch."""
        return len(self._global_batches())

    def __iter__(self) -> Iterator[list[int]]:
        done = self._resume_after if self.epoch == self._resume_epoch else 0
        for batch in self._global_batches()[done:]:
            yield batch[self.rank :: self.num_replicas]

    def _global_batches(self) -> list[list[int]]:
        size = self.batch_size * self.num_replicas
        indices = list(range(len(self.lengths)))
        if not self.shuffle:
            batches = [indices[i : i + size] for i in range(0, len(indices), size)]
        else:
            rng = random.Random(f"{self.seed} {self.epoch}")
            rng.shuffle(indices)
            batches = []
            for start in range(0, len(indices), size * BATCHES_PER_POOL):
                pool = sorted(indices[start : start + size * BATCHES_PER_POOL], key=self.lengths.__getitem__)
                batches += [pool[i : i + size] for i in range(0, len(pool), size)]
            rng.shuffle(batches)
        # A rank without an example would leave the others waiting in a collective.
        return [batch for batch in batches if len(batch) >= self.num_replicas]


def collate_examples(examples: Sequence[EncodedExample], pad_token_id: int) -> Batch:
    """Pad examples on the right to the longest.

    No attention mask is needed in training: under a causal mask padding on the right reaches no earlier token, and its
    labels carry no loss. Without a mask PyTorch's fast causal attention applies.
    """
    longest = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), longest), pad_token_id)
    labels = torch.full((len(examples), longest), NO_LOSS)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.input_ids)
        input_ids[row, : len(ids)] = ids
        labels[row, example.prompt_length : len(ids)] = ids[example.prompt_length :]
    return Batch(
        input_ids=input_ids,
        labels=labels,
        token_count=sum(len(example.input_ids) for example in examples),
        response_start=min(example.prompt_length for example in examples),
    )


def collate_pairs(pairs: Sequence[EncodedPair], pad_token_id: int) -> Batch:
    """Stack all chosen answers over all rejected ones: rows ``[:n]`` and ``[n:]`` of one batch."""
    return collate_examples([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], pad_token_id)


def length_of(item: EncodedExample | EncodedPair) -> int:
    """Length in tokens that an item takes in a batch."""
    if isinstance(item, EncodedPair):
        return max(len(item.chosen.input_ids), len(item.rejected.input_ids))
    return len(item.input_ids)

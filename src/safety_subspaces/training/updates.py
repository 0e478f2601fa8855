"""What training has moved so far, one weight at a time, under any strategy: the masters less a reference.

The reference lies on disk, so that beside the run there is never more than one whole weight in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, final

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from safety_subspaces.algebra.update import FactorUpdate, StreamedUpdate, Update
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.tensors import TensorFile
from safety_subspaces.constraint.held import check_stored, store_tensors
from safety_subspaces.constraint.master import open_master
from safety_subspaces.constraint.targets import listed, select_names
from safety_subspaces.language.architecture import transposed_weights
from safety_subspaces.weights.checkpoint import Checkpoint
from safety_subspaces.weights.names import canonical_name
from safety_subspaces.weights.update_checkpoint import AdapterCheckpoint, open_checkpoint


@dataclass(frozen=True)
class _Weight:
    """A weight of the bare network, and the LoRA factors upon it."""

    parameter: nn.Parameter
    factors: tuple[nn.Parameter, nn.Parameter] | None = None  # lora_B (out, r) and lora_A (r, in)
    turned: bool = False  # kept as (in, out), as GPT-2's linear layers are
    scale: float = 1.0

    def oriented(self, value: Tensor) -> Tensor:
        """Return the weight, as it is kept, as ``(out, in)``."""
        return value.T if self.turned else value

    @property
    def is_trained(self) -> bool:
        return self.factors is not None or self.parameter.requires_grad


@final
class NetworkUpdate:
    """The update of a network in training; to be constructed after the strategy was set up, by all ranks together.

    Args:
        network: The network, with its adapter if it has one.
        reference: Folder of the model that the update counts from; ``None`` for the start of the run.
        types: Only these types of tensors.
        layers: Only these blocks.
        patterns: Only names that match one of these.

    Raises:
        InputError: A filter that matches nothing, or a reference of another model (the first five differences).
    """

    def __init__(
        self,
        network: nn.Module,
        reference: str | None = None,
        types: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        patterns: Sequence[str] | None = None,
    ) -> None:
        weights = _weights_of(network)
        chosen = select_names(weights, types, layers, patterns)
        # From the start of the run only what is trained has moved; from another model anything may have.
        self._weights = {name: weights[name] for name in chosen if reference is not None or weights[name].is_trained}
        if not self._weights:
            raise InputError("none of the chosen weights is trained, so none will move; widen types, layers, patterns")
        self._masters = {name: open_master(weight.parameter) for name, weight in self._weights.items()}
        self._checkpoint: Checkpoint | None = None
        self._start_file: Path | None = None
        if reference is not None:
            self._checkpoint = open_checkpoint(reference)
            self._check_shapes(self._checkpoint)

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of the weights, in the order of the network."""
        return tuple(self._weights)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers: float32, or float64 where weights are trained in it."""
        wide = any(weight.parameter.dtype == torch.float64 for weight in self._weights.values())
        return torch.float64 if wide else torch.float32

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight; of a linear map ``(out, in)``."""
        shape = tuple(self._masters[name].shape)
        return shape[::-1] if self._weights[name].turned else shape

    def keep_start(self, path: Path, sha256: str | None, writes: bool) -> str:
        """Take the weights as they are for the reference, and write them down; a run that goes on checks that file.

        An adapter starts from zero, so its weights need no file.

        Args:
            path: The file in the run folder.
            sha256: Its hash, where the run goes on.
            writes: Whether this rank reads and writes it.

        Returns:
            The file's hash, on all ranks.

        Raises:
            InputError: An adapter that does not start at zero; the file of a run that goes on is missing or another.
        """
        masters = {name: master for name, master in self._masters.items() if self._weights[name].factors is None}
        self._start_file = path
        if sha256 is not None:
            check_stored(path, sha256, list(masters), checks=writes)
            return sha256
        for name, weight in self._weights.items():
            if weight.factors is not None and all(bool(open_master(f).whole().any()) for f in weight.factors):
                raise InputError(
                    f"the adapter of {name} does not start at zero, so the start of the run is no model on disk; "
                    "name a reference"
                )
        shapes = {name: tuple(master.shape) for name, master in masters.items()}
        return store_tensors(path, shapes, lambda name: masters[name].whole(), writes, self.dtype)

    @torch.no_grad()
    def read(self, name: str, keeps: bool = True) -> Update | None:
        """Gather one weight and return its update; in factors where an adapter counts from the start of the run.

        Args:
            name: Canonical name of the weight.
            keeps: Whether this rank wants the update; otherwise it only takes part, and gets ``None``.

        Returns:
            An update to be used before training goes on: it may refer to the weight in training, not to a copy.
        """
        weight = self._weights[name]
        factors = None if weight.factors is None else self._gather_factors(weight)
        if factors is not None and self._checkpoint is None:
            return factors if keeps else None
        whole = weight.oriented(self._masters[name].whole())
        if not keeps:
            return None
        if factors is not None:
            whole = whole + factors.dense().to(whole)
        return StreamedUpdate(lambda: whole, self._opener(name), whole.shape, self.dtype)

    def _gather_factors(self, weight: _Weight) -> FactorUpdate:
        assert weight.factors is not None
        left, right = (open_master(factor).whole() for factor in weight.factors)
        return FactorUpdate(left, right, weight.scale)

    def _opener(self, name: str) -> Callable[[], Any]:
        """Opens a weight's reference, unread."""
        if isinstance(self._checkpoint, AdapterCheckpoint):
            merged = self._checkpoint.read(name)
            return lambda: merged
        if self._checkpoint is not None:
            return partial(self._checkpoint.full.open_slice, name)
        if self._weights[name].turned:
            return lambda: self._start.read(name).T
        return partial(self._start.open_slice, name)

    @cached_property
    def _start(self) -> TensorFile:
        assert self._start_file is not None, "the start of the run was not kept"
        return TensorFile(self._start_file)

    def _check_shapes(self, reference: Checkpoint) -> None:
        known = set(reference.names)
        problems = [f"{name} is not in it" for name in self._weights if name not in known]
        problems += [
            f"{name} is {self.shape(name)} and there {reference.shape(name)}"
            for name in self._weights
            if name in known and reference.shape(name) != self.shape(name)
        ]
        if problems:
            raise InputError(f"reference {reference.path} is of another model: {listed(problems)}")


def _weights_of(network: nn.Module) -> dict[str, _Weight]:
    """Every weight of the bare network by canonical name, each tied pair once unless an adapter unties it."""
    turned = set(map(canonical_name, transposed_weights(network)))
    adapted: dict[str, _Weight] = {}
    factors: set[int] = set()
    for module, layer in network.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        name = canonical_name(f"{module}.base_layer.weight")
        for adapter in layer.lora_A:
            pair = (layer.lora_B[adapter].weight, layer.lora_A[adapter].weight)
            factors |= {id(factor) for factor in pair}
            adapted[name] = _Weight(layer.get_base_layer().weight, pair, name in turned, layer.scaling[adapter])
    weights = {
        name: _Weight(parameter, turned=name in turned)
        for name, parameter in ((canonical_name(stored), each) for stored, each in network.named_parameters())
        if id(parameter) not in factors
    }
    return weights | adapted

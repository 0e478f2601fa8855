"""The float32 weights that an optimizer steps, whole or in the pieces that ZeRO leaves on each rank.

Under ZeRO a parameter is a working copy (in bf16, or empty between uses); the weight proper is a float32 *master*, cut
into contiguous pieces over the ranks. A constraint, a snapshot and an export must read and write the master.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.constraint.matrix import Piece


class MasterWeight(ABC):
    """The master of one parameter, as far as this rank owns it.

    Attributes:
        parameter: The parameter that the network holds.
        shape: Its whole shape.
        piece: What this rank owns of it, as a matrix of ``shape`` (a tensor that is not 2-D is one column).
    """

    is_sharded: bool

    def __init__(self, parameter: nn.Parameter, start: int, length: int) -> None:
        self.parameter = parameter
        self.shape = shape_of(parameter)
        matrix = (self.shape[0], self.shape[1]) if len(self.shape) == 2 else (self.shape.numel(), 1)
        self.piece = Piece(matrix, start, length)

    @abstractmethod
    def read(self) -> Float[Tensor, " length"]:
        """Return this rank's piece. It may share memory with the master: copy what has to last."""

    @abstractmethod
    def write(self, values: Float[Tensor, " length"]) -> None:
        """Set this rank's piece."""

    @abstractmethod
    def whole(self) -> Float[Tensor, "..."]:
        """Return the whole master in float32 (float64 where the weight is); all ranks must call it together."""

    @abstractmethod
    def publish(self) -> None:
        """Copy the master into the working weights, where no step of the optimizer does; all ranks together."""


@final
class WholeMaster(MasterWeight):
    """A parameter that every rank holds whole: one device, DDP, and what is frozen under ZeRO-1 and 2."""

    is_sharded = False

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__(parameter, 0, parameter.numel())

    def read(self) -> Float[Tensor, " length"]:
        """Return the weight, flat."""
        return self.parameter.detach().reshape(-1)

    def write(self, values: Float[Tensor, " length"]) -> None:
        """Set the weight, unless these values are its own memory."""
        if values.data_ptr() != self.parameter.data_ptr():
            self.parameter.data.copy_(values.view_as(self.parameter))

    def whole(self) -> Float[Tensor, "..."]:
        """Return the weight."""
        weight = self.parameter.detach()
        return weight if weight.dtype == torch.float64 else weight.float()

    def publish(self) -> None:
        """Do nothing: the weight is its own master."""


@final
class FlatMaster(MasterWeight):
    """A parameter under ZeRO-1 or 2: its master is a run inside the flat partition of one or several ranks."""

    is_sharded = True

    def __init__(self, parameter: nn.Parameter) -> None:
        # `None` on a rank whose partition holds nothing of this parameter.
        self._mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        address = None if self._mapping is None else self._mapping.lp_fragment_address
        super().__init__(parameter, address.start if address else 0, address.numel if address else 0)

    def read(self) -> Float[Tensor, " length"]:
        """Return the run."""
        if self._mapping is None:
            return torch.zeros(0, device=self.parameter.device)
        return self._mapping.get_hp_fragment().detach().view(-1)

    def write(self, values: Float[Tensor, " length"]) -> None:
        """Set the run; DeepSpeed copies it into the working weights behind the optimizer's step."""
        if self._mapping is not None and values.data_ptr() != self._mapping.get_hp_fragment().data_ptr():
            self._mapping.get_hp_fragment().data.copy_(values)

    def whole(self) -> Float[Tensor, "..."]:
        """Gather the master."""
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(self.parameter).detach()

    def publish(self) -> None:
        """Copy the gathered master."""
        self.parameter.data.copy_(self.whole())


@final
class PartitionedMaster(MasterWeight):
    """A parameter under ZeRO-3: every rank has an equal piece, the last ones padded."""

    is_sharded = True

    def __init__(self, parameter: nn.Parameter) -> None:
        total = shape_of(parameter).numel()
        partitioned: Any = parameter
        rank = torch.distributed.get_rank(partitioned.ds_process_group)
        size = partitioned.ds_tensor.ds_numel
        start = min(size * rank, total)
        super().__init__(parameter, start, min(size, total - start))
        self._padding = size - self.piece.length

    def read(self) -> Float[Tensor, " length"]:
        """Return the piece, without padding; a frozen parameter has no master, but a piece as it is."""
        from deepspeed.utils import safe_get_local_fp32_param

        if not self.parameter.requires_grad:
            return self.parameter.ds_tensor.detach().float().reshape(-1)[: self.piece.length]  # type: ignore[attr-defined]
        return safe_get_local_fp32_param(self.parameter).detach().reshape(-1)[: self.piece.length]

    def write(self, values: Float[Tensor, " length"]) -> None:
        """Set the piece; DeepSpeed copies it into the working weights behind the optimizer's step."""
        from deepspeed.utils import safe_set_local_fp32_param

        safe_set_local_fp32_param(self.parameter, torch.nn.functional.pad(values, (0, self._padding)))

    def whole(self) -> Float[Tensor, "..."]:
        """Gather the master; a frozen parameter has none, and is gathered as it is."""
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        if self.parameter.requires_grad:
            return safe_get_full_fp32_param(self.parameter).detach().view(self.shape)
        with deepspeed.zero.GatheredParameters([self.parameter]):
            return self.parameter.detach().float().clone()

    def publish(self) -> None:
        """Gather the working weight, fill it and cut it again."""
        import deepspeed

        whole = self.whole()
        with deepspeed.zero.GatheredParameters([self.parameter], modifier_rank=0):
            self.parameter.data.copy_(whole)


def open_master(parameter: nn.Parameter) -> MasterWeight:
    """Return the master of a parameter, once the strategy has been set up."""
    if hasattr(parameter, "ds_id"):
        return PartitionedMaster(parameter)
    if hasattr(parameter, "_hp_mapping"):
        return FlatMaster(parameter)
    return WholeMaster(parameter)


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Return the whole shape of a parameter; under ZeRO-3 its own is empty."""
    return torch.Size(parameter.ds_shape) if hasattr(parameter, "ds_shape") else parameter.shape


def torch_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer that steps the masters: itself, or what DeepSpeed's ZeRO has wrapped.

    Raises:
        InputError: DeepSpeed has put its own in the place of a torch optimizer.
    """
    stepping = optimizer.optimizer if _is_sharding(optimizer) else optimizer
    if not isinstance(stepping, torch.optim.Optimizer):
        raise InputError(
            f"{type(stepping).__name__} is no torch optimizer, so nothing can follow its step; name one as the "
            "module's optimizer, and none in DeepSpeed's own config"
        )
    return stepping


def stepped_by(optimizer: Any, masters: Sequence[MasterWeight]) -> list[int]:
    """Return which masters an optimizer has just stepped, by their index in the list.

    ZeRO steps one flat partition after another: parameter groups, and the sub-groups of ZeRO-3. Elsewhere all step
    together.

    Args:
        optimizer: A torch optimizer, or DeepSpeed's ZeRO around one.
        masters: The masters.
    """
    if not _is_sharding(optimizer):
        return list(range(len(masters)))
    groups = getattr(optimizer, "bit16_groups", None) or optimizer.fp16_groups
    flats = getattr(optimizer, "single_partition_of_fp32_groups", None) or optimizer.fp32_partitioned_groups_flat
    stepping = {id(tensor) for group in optimizer.optimizer.param_groups for tensor in group["params"]}
    live = {id(p) for group, flat in zip(groups, flats, strict=True) if id(flat) in stepping for p in group}
    return [index for index, master in enumerate(masters) if id(master.parameter) in live]


def _is_sharding(optimizer: Any) -> bool:
    """Tell whether an optimizer is DeepSpeed's ZeRO; stages 1 and 2 have one name for their groups, stage 3 another."""
    return hasattr(optimizer, "bit16_groups") or hasattr(optimizer, "fp16_groups")

"""Which trained parameters a subspace applies to: the weight itself, or the LoRA factor that carries its side."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from safety_subspaces.algebra.choices import Side
from safety_subspaces.algebra.factors import as_matrix
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.constraint.master import shape_of
from safety_subspaces.language.architecture import architecture_of, transposed_weights
from safety_subspaces.weights.names import canonical_name, layer_of, type_of
from safety_subspaces.weights.subspace_file import Subspace

logger = logging.getLogger(__name__)
LISTED = 5  # names in an error message


@dataclass(frozen=True)
class Target:
    """A parameter under a constraint, and the basis that acts on its rows, or on its columns.

    Args:
        name: Canonical name of the weight.
        parameter: The weight; with LoRA, ``lora_B`` for a left and ``lora_A`` for a right subspace.
        transposed: Whether the basis acts on the parameter's columns, and not on its rows.
        partner: The other LoRA factor; ``None`` for a weight itself.
        basis: Orthonormal columns.
        turned: Whether the parameter is a weight that is kept as ``(in, out)``: its rows are the input space.
    """

    name: str
    parameter: nn.Parameter
    transposed: bool
    partner: nn.Parameter | None
    basis: Tensor
    turned: bool = False

    @property
    def side(self) -> Side:
        """The space of the weight that the basis lies in: left is the output's, right the input's."""
        return "right" if self.transposed != self.turned else "left"

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the parameter; one column unless it is 2-D."""
        shape = shape_of(self.parameter)
        return (shape[0], shape[1]) if len(shape) == 2 else (shape.numel(), 1)

    @property
    def dim(self) -> int:
        """Dimension of the space that the basis lies in."""
        return self.matrix_shape[1 if self.transposed else 0]


def select_names(
    names: Iterable[str],
    types: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    patterns: Sequence[str] | None = None,
) -> list[str]:
    """Return the names that have one of the types, lie in one of the layers and match one of the patterns.

    Raises:
        InputError: A type, layer or pattern that no name has.
    """
    names = list(names)
    filters: list[tuple[str, Sequence[Any] | None, Callable[[str, Any], bool]]] = [
        ("type", types, lambda name, wanted: type_of(name) == wanted),
        ("layer", layers, lambda name, wanted: layer_of(name) == wanted),
        ("pattern", patterns, fnmatchcase),
    ]
    chosen = names
    for what, wanted, matches in filters:
        for value in wanted or ():
            if not any(matches(name, value) for name in names):
                raise InputError(f"{what} {value!r} matches no tensor; there are {listed(names)}")
        if wanted:
            chosen = [name for name in chosen if any(matches(name, value) for value in wanted)]
    if not chosen:
        raise InputError(f"types {types}, layers {layers} and patterns {patterns} together match no tensor")
    return chosen


def find_targets(
    network: nn.Module,
    subspace: Subspace,
    holds_the_rest: bool,
    types: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    patterns: Sequence[str] | None = None,
) -> list[Target]:
    """Match a subspace file with the trained parameters of a network.

    Args:
        network: The network, with its adapter if it has one.
        subspace: Bases by canonical name.
        holds_the_rest: Whether a trained tensor without a basis is held where it is (*onto*: its subspace is empty).
        types: Only these types of tensors.
        layers: Only these blocks.
        patterns: Only names that match one of these (``*`` stands for anything).

    Raises:
        InputError: Names or shapes that do not match (the first five), a chosen tensor that is frozen, a rank of 0 or
            of the whole space, or nothing to constrain.
    """
    trained, frozen, shapes = _weights(network)
    narrowed = bool(types or layers or patterns)
    unknown = [name for name in subspace.bases if name not in shapes]
    if unknown and narrowed:
        unknown = [name for name in unknown if _is_chosen(name, types, layers, patterns)]
    _refuse_unknown(network, unknown, trained, shapes)
    chosen = select_names(shapes, types, layers, patterns)
    if narrowed and (stuck := [name for name in chosen if name in frozen]):
        raise InputError(f"frozen tensors cannot be constrained: {listed(stuck)}; narrow types, layers or patterns")
    targets, problems = [], []
    for name in chosen:
        if name not in trained or (name not in subspace.bases and not holds_the_rest):
            continue
        target = _target(name, trained[name], shapes[name], subspace)
        dim, rank = target.basis.shape
        if dim != target.dim:
            problems.append(f"{name} has {target.dim} rows on the {subspace.side}, its basis {dim}")
        elif name in subspace.bases and rank in (0, dim) and dim > 1:
            problems.append(f"{name} has a basis of rank {rank} in {dim} dimensions, which constrains nothing or all")
        targets.append(target)
    if problems:
        raise InputError(f"the subspace does not fit the model: {listed(problems)}")
    if not targets:
        raise InputError("no trained tensor has a subspace here; check the file and the model's trainable parameters")
    return targets


def _is_chosen(
    name: str, types: Sequence[str] | None, layers: Sequence[int] | None, patterns: Sequence[str] | None
) -> bool:
    return (
        (not types or type_of(name) in types)
        and (not layers or layer_of(name) in layers)
        and (not patterns or any(fnmatchcase(name, pattern) for pattern in patterns))
    )


def _refuse_unknown(
    network: nn.Module, unknown: Sequence[str], trained: Mapping[str, Any], shapes: Mapping[str, Any]
) -> None:
    """Refuse tensors of a subspace that are no parameters; matrices of one parameter only where that is trained."""
    if not unknown:
        return
    bare = next((module for module in network.modules() if isinstance(module, PreTrainedModel)), None)
    filled = architecture_of(bare).filled_by if bare is not None else (lambda stored: None)
    whole = {name: canonical_name(filled(name.partition("[")[0]) or name) for name in unknown}
    lacking = [name for name in unknown if whole[name] not in shapes]
    if lacking:
        raise InputError(f"the subspace has {len(lacking)} tensors that the model lacks: {listed(lacking)}")
    fused = sorted({parameter for parameter in whole.values() if parameter in trained})
    if fused:
        raise InputError(
            f"{listed(fused)}: experts that this network keeps as one parameter; their matrices cannot be held one by "
            "one. Name what is to be held by types, layers or patterns, or train an adapter on other layers"
        )


def _weights(
    network: nn.Module,
) -> tuple[dict[str, dict[str, nn.Parameter]], set[str], dict[str, torch.Size]]:
    """Trained parameters by weight name (itself, or A and B), names of frozen weights, and shapes of all weights.

    Shapes are ``(out, in)``, whichever way a weight is kept.
    """
    trained: dict[str, dict[str, nn.Parameter]] = {}
    shapes: dict[str, torch.Size] = {}
    turned = set(map(canonical_name, transposed_weights(network)))
    for stored, parameter in network.named_parameters():
        name = canonical_name(stored)
        weight, adapter, rest = name.partition(".lora_")
        if adapter:
            trained.setdefault(f"{weight}.weight", {})[rest[0]] = parameter
            continue
        shape = shape_of(parameter)
        shapes[name] = torch.Size(reversed(shape)) if name in turned else shape
        if parameter.requires_grad:
            trained[name] = {"turned weight" if name in turned else "weight": parameter}
    if tied := [name for name in trained if name not in shapes]:
        raise InputError(
            f"an adapter upon {listed(tied)}, which is tied to another weight, cannot be constrained: the subspace "
            "counts the two as one. Leave it out of target_modules, or untie the model first"
        )
    return trained, set(shapes) - set(trained), shapes


def _target(name: str, parameters: dict[str, nn.Parameter], shape: torch.Size, subspace: Subspace) -> Target:
    side: Side = subspace.side if len(shape) == 2 else "left"
    is_right, turned = side == "right", "turned weight" in parameters
    if "A" in parameters:
        parameter, partner = (parameters["A"], parameters["B"]) if is_right else (parameters["B"], parameters["A"])
    else:
        parameter, partner = parameters["turned weight" if turned else "weight"], None
    rows = as_matrix(torch.empty(shape, device="meta")).shape[1 if is_right else 0]
    basis = subspace.bases.get(name, torch.zeros(rows, 0)).to(parameter.device, torch.float32)
    return Target(name, parameter, is_right != turned, partner, basis, turned)


def listed(names: Sequence[str]) -> str:
    """Join the first few names, and count the rest."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more

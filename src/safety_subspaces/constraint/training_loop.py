"""Holding an update in a training loop of one's own, as ``callbacks.SubspaceProjection`` does in this suite's."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, final, get_args
from weakref import WeakValueDictionary

import torch
from torch import nn

from safety_subspaces.algebra.factors import check_orthonormal
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.provenance import sha256_of_file
from safety_subspaces.artefacts.tensors import TensorFile
from safety_subspaces.constraint.collectives import gather_objects, is_running
from safety_subspaces.constraint.constrained import ConstrainedWeights, UpdateEnergies
from safety_subspaces.constraint.held import BASIS
from safety_subspaces.constraint.master import stepped_by, torch_optimizer
from safety_subspaces.constraint.targets import Target, find_targets, listed
from safety_subspaces.weights.subspace_file import Subspace, read_subspace

# The rounding of a narrower weight is as large as a step, and would undo what is held.
EXACT_TYPES = (torch.float32, torch.float64)
Held = Literal["away", "onto"]
# Leakage of an update that was held, in rounding floors, and where these are as good as 0: through LoRA.
MOST_FLOORS, MOST_LEAKAGE = 100, 1e-9
# Parameters that are held now: what one constraint takes out of a weight a second one could put back.
_held: WeakValueDictionary[int, nn.Parameter] = WeakValueDictionary()


def hold(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    subspace: Subspace | str | Path,
    mode: Held = "away",
    *,
    types: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    patterns: Sequence[str] | None = None,
    anchor: str | Path | None = None,
) -> "HeldUpdate":
    """Keep the update of a model's weights outside a subspace, or inside it, from now on.

    After each step of the optimizer the part of the update that is not allowed is taken out of the weights. That is
    exact for any optimizer, with momentum and weight decay, where a projected gradient is not. The update is counted
    from the weights as they are at this call; through LoRA from zero. Nothing else of the loop changes::

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        held = hold(model, optimizer, "alignment.safetensors")
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(held.measure().leakage)

    Call it when the model is on its device and wrapped (DDP, PEFT), and the optimizer is made. All ranks call it.

    Args:
        model: The model: one of transformers, with or without an adapter of PEFT, or any module whose parameters have
            the names of the subspace's tensors.
        optimizer: The optimizer that steps all of the weights that are held.
        subspace: A subspace, or the file of one that ``analyze.py subspace`` has made.
        mode: ``away`` takes out the part inside the subspace, ``onto`` all else; a trained weight without a basis then
            stays where it is.
        types: Only these types of tensors (q, k, v, o, gate, up, down, embeddings, head, norm); all by default.
        layers: Only these blocks.
        patterns: Only names that match one of these, for example ``*.mlp.*``.
        anchor: A file to keep the weights in that the update is counted from. Where it is there already, training goes
            on: the update is counted from what it holds. Without one a resumed training counts from where it resumes.

    Returns:
        What measures the update, and lets it go.

    Raises:
        InputError: Nothing was changed: another mode; the subspace fits no trained weight, or only some; a weight is
            narrower than float32, is cut by FSDP, is not the optimizer's, or is held already; or the anchor is of
            another subspace, mode or training.
    """
    if mode not in get_args(Held):
        raise InputError(f"mode {mode!r} is not one of {', '.join(get_args(Held))}; to measure alone, do not hold")
    if isinstance(subspace, Subspace):
        for name, basis in subspace.bases.items():
            check_orthonormal(basis, name)
    else:
        subspace = read_subspace(str(subspace))
    targets = find_targets(model, subspace, mode == "onto", types, layers, patterns)
    stepping = torch_optimizer(optimizer)
    _check(targets, stepping)
    path = None if anchor is None else Path(anchor)
    goes_on = gather_objects(path is not None and path.is_file())[0]
    sha256 = sha256_of_file(path) if goes_on and path is not None else None
    if goes_on and path is not None:
        _check_anchor(path, targets, mode)
    is_first = not is_running() or torch.distributed.get_rank() == 0
    weights = ConstrainedWeights(targets, mode, path, sha256, weakens=False, writes=is_first)
    if goes_on:
        _check_goes_on(weights.measure(), anchor)
    return HeldUpdate(weights, stepping, optimizer)


@final
class HeldUpdate:
    """An update that is held, until :meth:`release`; also as ``with hold(...) as held``.

    Attributes:
        names: The weights that are held, by their canonical names.
    """

    def __init__(
        self, weights: ConstrainedWeights, stepping: torch.optim.Optimizer, optimizer: torch.optim.Optimizer
    ) -> None:
        self.names = [target.name for target in weights.targets]
        self._weights = weights
        self._optimizer = optimizer
        self._hook = stepping.register_step_post_hook(lambda *_: self._project())
        _held.update({id(target.parameter): target.parameter for target in weights.targets})

    def measure(self) -> UpdateEnergies:
        """Measure the update so far, in float64; all ranks call it together.

        Its ``leakage`` is the share of the update's energy that is not allowed, 0 to 1, 0 is best; of it float32
        weights cannot help ``rounding_floor``.
        """
        return self._weights.measure()

    def release(self) -> None:
        """Hold the update no longer; the weights stay as they are."""
        self._hook.remove()
        for target in self._weights.targets:
            _held.pop(id(target.parameter), None)

    def __enter__(self) -> "HeldUpdate":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _project(self) -> None:
        self._weights.project(stepped_by(self._optimizer, self._weights.masters), strength=1.0)


def _check(targets: Sequence[Target], optimizer: torch.optim.Optimizer) -> None:
    """Refuse what cannot be held exactly."""
    is_cut = [target.name for target in targets if hasattr(target.parameter, "placements")]
    if is_cut:
        raise InputError(
            f"{listed(is_cut)}: cut over devices by FSDP; hold weights that are whole, or under DDP or ZeRO"
        )
    whole = [target for target in targets if not hasattr(target.parameter, "ds_id")]
    narrow = [target.name for target in whole if not _is_exact(target.parameter)]
    if narrow:
        raise InputError(
            f"{listed(narrow)}: narrower than float32, so that rounding would undo what is held; load the model in "
            "float32 and compute in bf16 by torch.autocast"
        )
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    strange = [
        target.name for target in whole if not _is_sharded(target.parameter) and id(target.parameter) not in stepped
    ]
    if strange:
        raise InputError(
            f"{listed(strange)}: trained, but not by this optimizer; give the one that steps them, or narrow what is "
            "held by types, layers or patterns"
        )
    twice = [target.name for target in targets if id(target.parameter) in _held]
    if twice:
        raise InputError(f"{listed(twice)}: held already; release the first constraint, or narrow one of them")


def _is_sharded(parameter: nn.Parameter) -> bool:
    """Tell whether DeepSpeed's ZeRO keeps the weight proper elsewhere, in float32."""
    return hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")


def _is_exact(parameter: nn.Parameter) -> bool:
    return _is_sharded(parameter) or parameter.dtype in EXACT_TYPES


def _check_goes_on(update: UpdateEnergies, anchor: str | Path | None) -> None:
    """Refuse weights that are not those of the training that an anchor was made for: projecting would undo them."""
    if update.leakage > max(MOST_FLOORS * update.rounding_floor, MOST_LEAKAGE):
        raise InputError(
            f"{anchor} is there already, and these weights were not held from it: {update.leakage:.2g} of their update "
            "is where it may not be; give the model that the training ended with, or another anchor to begin anew"
        )


def _check_anchor(path: Path, targets: Sequence[Target], mode: Held) -> None:
    """Refuse an anchor that another subspace was held with, or in another mode."""
    file = TensorFile(path)
    if file.header.get("mode") != mode:
        raise InputError(
            f"{path} is there already, of mode {file.header.get('mode')!r}, and mode {mode!r} was asked for; say the "
            "mode that the training began with, or give another anchor to begin anew"
        )
    for target in targets:
        name = f"{target.name}{BASIS}"
        if name not in file.shapes or not torch.equal(file.read(name), target.basis.cpu()):
            raise InputError(
                f"{path} is there already, and is of another subspace (in {target.name}); give the subspace that the "
                "training began with, or another anchor to begin anew"
            )

"""Trains under a subspace constraint that holds: the update stays away from a subspace, or inside it."""

import logging
import time
from pathlib import Path
from typing import Any, Literal, final

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from safety_subspaces.analysis.subspace import subspace as make_subspace
from safety_subspaces.constraint import MatrixConstraint, Mode, rounding_floor, schedule_strength
from safety_subspaces.errors import InputError
from safety_subspaces.models.base import LanguageModelModule
from safety_subspaces.models.control import ControlKind, control_subspace
from safety_subspaces.models.reference import load_reference, save_reference
from safety_subspaces.models.targets import Target, find_targets
from safety_subspaces.provenance import describe_input
from safety_subspaces.subspace import RankRule
from safety_subspaces.subspace_file import Side, SubspaceFile, read_subspace

logger = logging.getLogger(__name__)

# float32 arithmetic on float32 weights; in anything narrower the rounding of a weight is as large as a step.
EXACT_PRECISIONS = ("32-true", "bf16-mixed", "64-true")
# A leak beyond this many rounding floors is no rounding: the constraint does not hold.
LEAKS_BEYOND = 100.0


@final
class SubspaceProjection(L.Callback):
    """Keeps the update of each chosen weight away from a subspace, or inside it, at every optimizer step.

    ``constrain: update`` projects the weights after the optimizer's step. It is exact for any optimizer, with weight
    decay, and through LoRA (a left subspace acts on ``lora_B`` alone, a right one on ``lora_A``). ``gradient`` projects
    the gradient before it, as most of the literature does; under Adam or weight decay the update then leaks, which
    ``projection/leakage`` shows.

    Logs ``projection/leakage`` (share of the constrained tensors' update energy that is forbidden, measured in float64
    on the weights, 0 to 1, 0 is best), ``projection/removed_energy`` (squared norm of what the last step's projection
    took out, as a share of the update's) and ``time/projection_ms`` (milliseconds a step).

    Args:
        subspace: File of ``analyze.py subspace``; or give ``base``, ``aligned`` and ``rank``.
        base: Folder of the base model; the subspace is made once and kept in ``<run_dir>/constraint``.
        aligned: Folder of the aligned model.
        rank: Directions of each tensor: exactly one of count, fraction and energy.
        mode: ``away`` removes the part in the subspace, ``onto`` everything else; ``observe`` measures what ``away``
            would remove, and changes nothing.
        constrain: ``update`` or ``gradient``.
        side: ``left`` for output space, ``right`` for input space (with ``base`` and ``aligned``; a file has its own).
        types: Only these types of tensors (q, k, v, o, gate, up, down, embeddings, head, norm); all by default.
        layers: Only these blocks.
        patterns: Only names that match one of these, for example ``*.mlp.*``.
        strength: Share of the forbidden part that is removed, 0 to 1.
        start_step: First optimizer step that is constrained.
        ramp_steps: Steps over which the strength grows linearly from there.
        control: ``none``; ``random`` for a random subspace of equal rank; ``random-energy`` for one whose rank in each
            tensor would have kept the same share of the update of a finished run (``unconstrained``).
        unconstrained: The ``model/`` folder of that run.
        seed: Seed of the control.
        every_n_steps: Optimizer steps between two logged figures.

    Source:
        Projected updates: the definitions of arXiv 2505.14185, applied during training.
    """

    def __init__(
        self,
        subspace: str | None = None,
        base: str | None = None,
        aligned: str | None = None,
        rank: RankRule | None = None,
        mode: Mode = "away",
        constrain: Literal["update", "gradient"] = "update",
        side: Side = "left",
        types: list[str] | None = None,
        layers: list[int] | None = None,
        patterns: list[str] | None = None,
        strength: float = 1.0,
        start_step: int = 0,
        ramp_steps: int = 0,
        control: ControlKind = "none",
        unconstrained: str | None = None,
        seed: int = 0,
        every_n_steps: int = 50,
    ) -> None:
        pair = (base, aligned, rank)
        if (subspace is None) == all(part is None for part in pair) or (subspace is None and None in pair):
            raise InputError("SubspaceProjection needs either a subspace file, or all of base, aligned and rank")
        if not 0 <= strength <= 1 or start_step < 0 or ramp_steps < 0 or every_n_steps < 1:
            raise InputError(
                f"strength {strength}, start_step {start_step}, ramp_steps {ramp_steps}, "
                f"every_n_steps {every_n_steps}: expected a strength in [0, 1], steps of at least 0 and an interval of "
                "at least 1"
            )
        if (control == "random-energy") != (unconstrained is not None):
            raise InputError("control: random-energy and unconstrained (a finished run's model folder) go together")
        self.subspace, self.base, self.aligned, self.rank = subspace, base, aligned, rank
        self.mode, self.constrain, self.side = mode, constrain, side
        self.types, self.layers, self.patterns = types, layers, patterns
        self.strength, self.start_step, self.ramp_steps = strength, start_step, ramp_steps
        self.control, self.unconstrained, self.seed = control, unconstrained, seed
        self.every_n_steps = every_n_steps
        self.targets: list[Target] = []
        self._constraints: list[MatrixConstraint] = []
        self._references: list[Tensor] = []
        self._handles: list[Any] = []
        self._loaded: dict[str, Any] = {}
        self._removed: Tensor | None = None
        self._seconds, self._steps, self._warned = 0.0, 0, False

    @property
    def state_key(self) -> str:
        """Tell several constraints of one run apart."""
        return self._generate_state_key(
            mode=self.mode, subspace=self.subspace, types=self.types, layers=self.layers, patterns=self.patterns
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot be constrained exactly, before anything is loaded.

        Raises:
            InputError: Another kind of module, a strategy that shards weights, or a precision below float32.
        """
        if stage != "fit":
            return
        if not isinstance(pl_module, LanguageModelModule):
            raise InputError(f"SubspaceProjection serves safety_subspaces.models, got {type(pl_module).__name__}")
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise InputError(
                f"SubspaceProjection holds on one device and under DDP; {type(trainer.strategy).__name__} shards the "
                "weights that it projects. Use strategy: auto or ddp"
            )
        if str(trainer.precision) not in EXACT_PRECISIONS:
            raise InputError(
                f"precision {trainer.precision} has no float32 weights to constrain exactly; "
                f"use one of {', '.join(EXACT_PRECISIONS)}"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Match bases and parameters, anchor the constraint and hook it to the optimizer."""
        assert isinstance(pl_module, LanguageModelModule)
        folder = Path(trainer.default_root_dir) / "constraint"
        found = find_targets(
            pl_module.language_model,
            self._read(trainer, folder),
            self.mode == "onto",
            self.types,
            self.layers,
            self.patterns,
        )
        self.targets = control_subspace(found, self.control, self.seed, self.unconstrained, pl_module.source.path)
        self._refuse_twice(trainer)
        self._anchor(trainer, folder)
        if self.constrain == "gradient" and self.mode != "observe":
            for target, constraint in zip(self.targets, self._constraints, strict=True):
                self._handles.append(target.parameter.register_hook(self._gradient_hook(trainer, target, constraint)))
        else:
            optimizer: Any = trainer.optimizers[0]
            self._handles.append(optimizer.register_step_post_hook(lambda *_: self._hold(trainer.global_step + 1)))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the meters at the interval and at the last step."""
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or step >= trainer.estimated_stepping_batches
        if not due or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        forbidden, whole, floor = self.measure()
        leakage = forbidden / whole if whole > 0 else 0.0
        pl_module.log("projection/leakage", leakage)
        if self._removed is not None and whole > 0:
            pl_module.log("projection/removed_energy", float(self._removed) / whole)
        pl_module.log("time/projection_ms", 1e3 * self._seconds / max(1, self._steps))
        self._seconds, self._steps = 0.0, 0
        if self.constrain == "gradient" and self.mode != "observe" and leakage > LEAKS_BEYOND * floor:
            self._warn_of_leak(leakage)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def measure(self) -> tuple[float, float, float]:
        """Return the forbidden and the whole energy of the update, in float64, and the leak that rounding explains."""
        forbidden = whole = weights = 0.0
        for target, constraint, reference in zip(self.targets, self._constraints, self._references, strict=True):
            moved = target.parameter.detach().double() - reference.double()
            part, total = constraint.energies(target.whole_update(moved))
            forbidden, whole = forbidden + float(part), whole + float(total)
            weights += float(target.whole_update(target.parameter.detach().double()).square().sum())
        return forbidden, whole, rounding_floor(weights**0.5, whole**0.5)

    def state_dict(self) -> dict[str, Any]:
        """Keep the reference's hash, and what a strength below 1 has let through."""
        weaker = self.strength < 1 or self.start_step > 0 or self.ramp_steps > 0
        anchors = {t.name: c.anchor for t, c in zip(self.targets, self._constraints, strict=True)} if weaker else {}
        return {"reference_sha256": self._loaded.get("reference_sha256"), "anchors": anchors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint; ``on_fit_start`` uses it."""
        self._loaded = dict(state_dict)

    def _read(self, trainer: L.Trainer, folder: Path) -> SubspaceFile:
        if self.subspace is not None:
            return read_subspace(self.subspace)
        assert self.base is not None
        assert self.aligned is not None
        assert self.rank is not None
        cached = folder / "subspace.safetensors"
        if trainer.is_global_zero and not self._is_cached(cached):
            make_subspace(self.base, self.aligned, str(cached), self.rank, self.side, overwrite=True)
        trainer.strategy.barrier("subspace")
        return read_subspace(str(cached))

    def _is_cached(self, cached: Path) -> bool:
        """Whether the run folder has the subspace of exactly these models and this rank."""
        if not cached.is_file():
            return False
        stored = read_subspace(str(cached))
        inputs = [describe_input(str(path)) for path in (self.base, self.aligned)]
        made_from = (stored.side, stored.provenance.get("rank"), stored.provenance.get("inputs"))
        return made_from == (self.side, vars(self.rank), inputs)

    def _anchor(self, trainer: L.Trainer, folder: Path) -> None:
        """Take the reference from the weights, or on a resume from the run's own file; LoRA counts from zero."""
        starts = {
            target.name: torch.zeros_like(target.parameter) if target.partner is not None else target.parameter
            for target in self.targets
        }
        path = folder / f"reference-{self.mode}.safetensors"
        if self._loaded.get("reference_sha256"):
            starts = load_reference(path, self._loaded["reference_sha256"], starts)
        else:
            sha256 = save_reference(path, starts) if trainer.is_global_zero else None
            self._loaded["reference_sha256"] = trainer.strategy.broadcast(sha256)
        self._references = [starts[target.name].detach().clone() for target in self.targets]
        self._constraints = []
        for target, reference in zip(self.targets, self._references, strict=True):
            constraint = MatrixConstraint(target.basis, self.mode, target.matrix(reference))
            if target.name in self._loaded.get("anchors", {}):
                constraint.anchor = self._loaded["anchors"][target.name].to(reference.device)
            elif target.partner is not None and target.transposed and self._strength(1) == 1:
                # A starts at random values, which have a forbidden part.
                constraint.hold(target.matrix(target.parameter.data), 0.0 if self.mode == "observe" else 1.0)
            self._constraints.append(constraint)

    def _hold(self, step: int) -> None:
        started = time.perf_counter()
        strength, removed = self._strength(step), []
        for target, constraint in zip(self.targets, self._constraints, strict=True):
            energies = constraint.hold(target.matrix(target.parameter.data), strength)
            removed.append(energies.forbidden if self.mode == "observe" else energies.removed)
        self._removed = torch.stack(removed).sum()
        self._seconds, self._steps = self._seconds + time.perf_counter() - started, self._steps + 1

    def _gradient_hook(self, trainer: L.Trainer, target: Target, constraint: MatrixConstraint) -> Any:
        def hook(gradient: Tensor) -> Tensor:
            forbidden = constraint.forbidden_part(target.matrix(gradient))
            forbidden = (forbidden.T if target.transposed else forbidden).reshape(gradient.shape)
            return gradient - self._strength(trainer.global_step + 1) * forbidden

        return hook

    def _strength(self, step: int) -> float:
        return schedule_strength(step, self.strength, self.start_step, self.ramp_steps)

    def _refuse_twice(self, trainer: L.Trainer) -> None:
        mine = {target.name for target in self.targets}
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is self or not isinstance(other, SubspaceProjection) or "observe" in (self.mode, other.mode):
                continue
            both = sorted(mine & {target.name for target in other.targets})
            if both:
                raise InputError(f"{len(both)} tensors are under two constraints, {both[0]} first; narrow one of them")

    def _warn_of_leak(self, leakage: float) -> None:
        if not self._warned:
            logger.warning(
                "projected gradients are not projected updates: %.1f %% of the update's energy is where the constraint "
                "forbids it. Say constrain: update to hold it exactly",
                100 * leakage,
            )
            self._warned = True

"""Trains under a subspace constraint that holds: the update stays away from a subspace, or inside it."""

import logging
import math
import time
from inspect import signature
from pathlib import Path
from typing import Any, Literal, final

import lightning as L
import torch
from torch import Tensor

from safety_subspaces.algebra.choices import RankRule, Side
from safety_subspaces.algebra.factors import as_matrix
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import write_json
from safety_subspaces.constraint.constrained import ConstrainedWeights, UpdateEnergies
from safety_subspaces.constraint.control import ControlKind, control_subspace
from safety_subspaces.constraint.master import stepped_by, torch_optimizer
from safety_subspaces.constraint.matrix import Mode, forbidden_part, schedule_strength
from safety_subspaces.constraint.targets import Target, find_targets, listed
from safety_subspaces.training.modules.base import LanguageModelModule
from safety_subspaces.training.strategies import ZeroStrategy, check_strategy, sole_optimizer
from safety_subspaces.weights.subspace_file import read_subspace

from .run_subspace import check_source, run_subspace_file

logger = logging.getLogger(__name__)

# float32 arithmetic on float32 weights; in anything narrower the rounding of a weight is as large as a step.
EXACT_PRECISIONS = ("32-true", "bf16-mixed", "64-true")
# ZeRO keeps float32 masters of bf16 weights.
EXACT_ZERO_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
# A leak of more than this many rounding floors is no rounding error: the constraint does not hold.
LEAKS_BEYOND = 100.0
# Settings that narrow or weaken a constraint, unless they have their defaults.
NARROWING = ("constrain", "side", "types", "layers", "patterns", "strength", "start_step", "ramp_steps")


@final
class SubspaceProjection(L.Callback):
    """Keeps the update of each chosen weight away from a subspace, or inside it, at every optimizer step.

    ``constrain: update`` projects the weights after the optimizer's step. It is exact for any optimizer, with weight
    decay, and through LoRA (a left subspace acts on ``lora_B`` alone, a right one on ``lora_A``). ``gradient`` projects
    the gradient before it, as most of the literature does; under Adam or weight decay the update then leaks, which
    ``projection/leakage`` shows.

    Logs ``projection/leakage`` (share of the constrained tensors' update energy that is forbidden, measured in float64
    on the weights, 0 to 1, 0 is best), ``projection/leakage_log10`` (its power of ten, for a chart: -14 where it is at
    rounding, -1 where a tenth leaks), ``projection/removed_energy`` (squared norm of what the last step's projection
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
        start_step: First optimizer step that is constrained; 0 and 1 are both the first of the run.
        ramp_steps: Steps over which the strength grows linearly from there: the first has ``strength / ramp_steps``,
            the last all of it.
        control: ``none``; ``random`` for a random subspace of equal rank; ``random-energy`` for one whose rank in each
            tensor would have kept the same share of the update of a finished run (``unconstrained``); what it really
            keeps stands in ``constraint/control.json``.
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
        check_source("SubspaceProjection", subspace, base, aligned, rank)
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
        self._weights: ConstrainedWeights | None = None
        self._handles: list[Any] = []
        self._loaded: dict[str, Any] = {}
        self._observed: dict[int, tuple[int, Tensor]] = {}
        self._removed: tuple[int, float] = (-1, 0.0)
        self._seconds, self._steps, self._logged_step, self._warned = 0.0, 0, -1, False

    @property
    def state_key(self) -> str:
        """Tell several constraints of one run apart."""
        settings = {name: getattr(self, name) for name in ("mode", "subspace", "types", "layers", "patterns")}
        return f"{type(self).__qualname__}{settings}"

    def inputs(self) -> list[str]:
        """Return what the subspace and its control are made of."""
        return [path for path in (self.subspace, self.base, self.aligned, self.unconstrained) if path]

    def describe(self) -> dict[str, Any]:
        """Describe the constraint, for the manifest: see :class:`.run_constraint.Constraint`."""
        parameters = signature(SubspaceProjection).parameters
        settings = {name: getattr(self, name) for name in parameters}
        rule = {name: value for name, value in vars(self.rank).items() if value is not None} if self.rank else {}
        words = [f"{value:g}" if name == "fraction" else f"{name} {value:g}" for name, value in rule.items()]
        details = [f"{name} {settings[name]}" for name in NARROWING if settings[name] != parameters[name].default]
        constraint = {
            "mode": self.mode,
            "subspace": "top" if self.control == "none" else self.control,
            "rank": words[0] if words else f"of {Path(str(self.subspace)).name}",
            "fraction": rule.get("fraction"),
            "details": ", ".join(details),
            "settings": settings | {"rank": rule},
        }
        return {"constraint": constraint}

    def charts(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Return which curves one chart of TensorBoard holds, by title and group."""
        charts: dict[str, dict[str, tuple[str, ...]]] = {
            "constraint": {"leakage, as a power of ten": ("projection/leakage_log10",)}
        }
        if self.constrain == "update" or self.mode == "observe":
            removed = "energy that the last step lost to the constraint"
            charts["constraint: removed"] = {removed: ("projection/removed_energy",)}
        return charts

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot be constrained exactly, before anything is loaded.

        Raises:
            InputError: Another kind of module, a strategy that shards weights, or a precision below float32.
        """
        if stage != "fit":
            return
        if not isinstance(pl_module, LanguageModelModule):
            raise InputError(
                f"SubspaceProjection serves safety_subspaces.training.modules, got {type(pl_module).__name__}"
            )
        strategy = trainer.strategy
        check_strategy(strategy, "SubspaceProjection")
        exact = EXACT_ZERO_PRECISIONS if isinstance(strategy, ZeroStrategy) else EXACT_PRECISIONS
        if str(trainer.precision) not in exact:
            raise InputError(
                f"precision {trainer.precision} has no float32 weights to constrain exactly; "
                f"use one of {', '.join(exact)}"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Match bases and parameters."""
        assert isinstance(pl_module, LanguageModelModule)
        if self.start_step > trainer.estimated_stepping_batches:
            raise InputError(
                f"start_step {self.start_step} lies behind the last of {trainer.estimated_stepping_batches} steps: "
                "nothing would be constrained"
            )
        cached = self._file(trainer, "subspace")
        file = run_subspace_file(trainer, cached, self.subspace, self.base, self.aligned, self.rank, self.side)
        targets = find_targets(
            pl_module.language_model,
            read_subspace(file),
            self.mode == "onto",
            self.types,
            self.layers,
            self.patterns,
        )
        frozen = [target.name for target in targets if not target.parameter.requires_grad]
        if frozen and self.mode != "observe":
            raise InputError(
                f"{listed(frozen)}: the adapter's frozen basis decides already where these updates lie; train without "
                "one, constrain the other side, or say mode: observe to measure"
            )
        control = control_subspace(targets, self.control, self.seed, self.unconstrained, pl_module.source.path)
        self.targets = control.targets
        if self.control == "random-energy" and trainer.is_global_zero:
            energies = {"subspace_energy": control.subspace_energy, "control_energy": control.control_energy}
            write_json(self._file(trainer, "control").with_suffix(".json"), energies)
        self._refuse_twice(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Anchor the constraint and hook it to the optimizer; DeepSpeed restores a checkpoint only before this."""
        optimizer = torch_optimizer(sole_optimizer(trainer.strategy))
        self._weights = ConstrainedWeights(
            self.targets,
            self.mode,
            self._file(trainer, f"held-{self.mode}"),
            self._loaded.get("held_sha256"),
            weakens=self.strength < 1 or self.start_step > 1 or self.ramp_steps > 1,
            writes=trainer.is_global_zero,
        )
        self._weights.restore_let_through(self._loaded.get("let_through", {}))
        if self.constrain == "gradient" and self.mode != "observe":
            self._handles = [t.parameter.register_hook(self._gradient_hook(trainer, t)) for t in self.targets]
        else:
            after = self._observe if self.mode == "observe" else self._hold
            self._handles = [optimizer.register_step_post_hook(lambda *_: after(trainer))]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the meters at the interval and at the last step."""
        step = trainer.global_step
        if not self._is_due(trainer, step) or step == self._logged_step:
            return
        self._logged_step = step
        update = self.measure()
        pl_module.log("projection/leakage", update.leakage)
        if update.leakage > 0:
            pl_module.log("projection/leakage_log10", math.log10(update.leakage))
        if self._removed[0] == step and update.whole > 0:
            pl_module.log("projection/removed_energy", self._removed[1] / update.whole)
        pl_module.log("time/projection_ms", 1e3 * self._seconds / max(1, self._steps))
        self._seconds, self._steps = 0.0, 0
        leaks = update.leakage > LEAKS_BEYOND * update.rounding_floor
        if self.constrain == "gradient" and self.mode != "observe" and leaks:
            self._warn_of_leak(update.leakage)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def measure(self) -> UpdateEnergies:
        """Measure the update so far, in float64 on the float32 masters; all ranks must call it together."""
        assert self._weights is not None, "the run has not begun"
        return self._weights.measure()

    def state_dict(self) -> dict[str, Any]:
        """Keep the hash of the constraint's file, and what a strength below 1 has let through."""
        if self._weights is None:
            return dict(self._loaded)
        return {"held_sha256": self._weights.held_sha256, "let_through": self._weights.let_through}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint; ``on_train_start`` uses it."""
        self._loaded = dict(state_dict)

    def _hold(self, trainer: L.Trainer) -> None:
        assert self._weights is not None
        started = time.perf_counter()
        step = trainer.global_step + 1
        indices = stepped_by(sole_optimizer(trainer.strategy), self._weights.masters)
        due = self._is_due(trainer, step)
        removed = self._weights.project(indices, self._strength(step), measures=due)
        if due:
            self._add_removed(step, removed)
        self._seconds, self._steps = self._seconds + time.perf_counter() - started, self._steps + 1

    def _observe(self, trainer: L.Trainer) -> None:
        """Measure what *away* would have removed of the last step, by the coordinates before it and after it."""
        assert self._weights is not None
        started = time.perf_counter()
        step = trainer.global_step + 1
        if self._is_due(trainer, step) or self._is_due(trainer, step + 1):
            indices = stepped_by(sole_optimizer(trainer.strategy), self._weights.masters)
            for index, coordinates in zip(indices, self._weights.coordinates(indices), strict=True):
                earlier = self._observed.get(index, (0, torch.zeros_like(coordinates)))
                if earlier[0] == step - 1:
                    self._add_removed(step, float((coordinates - earlier[1]).double().square().sum()))
                self._observed[index] = step, coordinates
        self._seconds, self._steps = self._seconds + time.perf_counter() - started, self._steps + 1

    def _add_removed(self, step: int, energy: float) -> None:
        earlier = self._removed[1] if self._removed[0] == step else 0.0
        self._removed = step, earlier + energy

    def _gradient_hook(self, trainer: L.Trainer, target: Target) -> Any:
        """A hook on the parameter: it sees the whole local gradient under every strategy."""
        basis = target.basis.to(target.parameter.device)

        def hook(gradient: Tensor) -> Tensor:
            matrix = as_matrix(gradient)
            forbidden = forbidden_part(basis, self.mode, matrix.T if target.transposed else matrix)
            forbidden = (forbidden.T if target.transposed else forbidden).reshape(gradient.shape)
            return gradient - (self._strength(trainer.global_step + 1) * forbidden).to(gradient.dtype)

        return hook

    def _is_due(self, trainer: L.Trainer, step: int) -> bool:
        return step % self.every_n_steps == 0 or step >= trainer.estimated_stepping_batches

    def _file(self, trainer: L.Trainer, stem: str) -> Path:
        """A file of this constraint in the run folder; a second constraint of the run has its own."""
        mine = [c for c in trainer.callbacks if isinstance(c, SubspaceProjection)].index(self)  # type: ignore[attr-defined]
        return Path(trainer.default_root_dir) / "constraint" / f"{stem}{f'-{mine + 1}' if mine else ''}.safetensors"

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

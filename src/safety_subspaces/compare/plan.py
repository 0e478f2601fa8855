"""What a comparison consists of: its models, the steps with their arguments, and what is refused before the first."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from safety_subspaces.algebra.choices import RankRule, SubspaceKind
from safety_subspaces.analysis.activations.command import activations
from safety_subspaces.analysis.evaluate.command import evaluate
from safety_subspaces.analysis.overlap.command import overlap
from safety_subspaces.analysis.project.command import project
from safety_subspaces.analysis.subspace.command import subspace
from safety_subspaces.analysis.work import Workers
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import RESULT_FILE
from safety_subspaces.artefacts.places import ANALYSIS
from safety_subspaces.artefacts.provenance import describe_input
from safety_subspaces.artefacts.results import check_labels
from safety_subspaces.evaluation.behaviour import BehaviourEvaluator, build_evaluator
from safety_subspaces.evaluation.judges import Judge
from safety_subspaces.evaluation.prompt_sets import FEWEST_PROMPTS, files_of, read_sets
from safety_subspaces.evaluation.settings import ORGANISM, EvaluationSettings
from safety_subspaces.language.examples import PromptItem
from safety_subspaces.language.model import load_config, load_tokenizer, named_device
from safety_subspaces.language.model_paths import check_distinct, check_model_path
from safety_subspaces.states.capture import check_models
from safety_subspaces.weights.checkpoint import Checkpoint
from safety_subspaces.weights.compatibility import (
    check_compatible,
    compared_names,
    select_tensors,
)
from safety_subspaces.weights.lineage import check_lineage
from safety_subspaces.weights.update_checkpoint import open_checkpoint

# The share of the alignment update's energy that its subspace file holds, and so the largest that overlaps are cut at.
SUBSPACE_ENERGY = 0.9
OVERLAP_ENERGIES = (0.1, 0.25, 0.5, 0.75, SUBSPACE_ENERGY)
# Top is one of 100 with them: a p as small as .01 can be told.
ENERGY_DRAWS = 99
# What is left of an update away from a subspace is one minus what is kept onto it.
SUBSPACES: tuple[SubspaceKind, ...] = ("top", "random")
SUBSPACE_FILE = "alignment.safetensors"
# What the alignment update is called among the updates.
ALIGNMENT = "alignment"
RESERVED = ("base", "aligned", ALIGNMENT)
# The name of every result: out/analysis/<subcommand>/main.
LABEL = "main"
# The sets whose hidden states are compared, in their order.
COMPARED_SETS = ("harmful", "utility", "benign")
DEFAULT_JUDGE = "phrases"
# The subcommands in the order in which they run.
COMMANDS = ("subspace", "project", "overlap", "evaluate", "activations")


@dataclass(frozen=True)
class Step:
    """One analysis of a comparison.

    Args:
        run: The subcommand's function.
        arguments: What it is given; without ``out``, ``workers`` and ``overwrite``, which its numbers do not depend on.
        inputs: Paths of the models and files that it reads.
        out: The folder or file that it makes.
        workers: Processes, where it takes any.
    """

    run: Callable[..., Any]
    arguments: Mapping[str, Any]
    inputs: tuple[str, ...]
    out: Path
    workers: Mapping[str, Any]

    @property
    def command(self) -> str:
        """The subcommand."""
        return self.run.__name__

    @property
    def settings(self) -> dict[str, Any]:
        """Its arguments, with the subcommand's own defaults for those that it is not given."""
        bound = inspect.signature(self.run).bind_partial(**self.arguments)
        bound.apply_defaults()
        return dict(bound.arguments)

    @property
    def made(self) -> Path:
        """The file that is there when the step is whole."""
        return self.out if self.out.suffix else self.out / RESULT_FILE

    def do(self, overwrite: bool) -> None:
        """Run it."""
        self.run(**self.arguments, **self.workers, out=str(self.out), overwrite=overwrite)


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how.

    Args:
        base: Path of the base model.
        aligned: Path of the aligned model.
        tuned: Path of each fine-tune by label.
        out: The study's folder.
        behaviour: What behaviour is measured on; ``None`` for weights alone.
        shared: What to do when two prompt sets share prompts.
        dtype: Type in which models are run.
        device: What they run on.
        tensors: Patterns of the weights that are taken.
        seed: Seed of all that is drawn.
        any_lineage: Whether a base and an aligned model that look swapped are taken all the same.
        workers: Processes for the weights.
    """

    base: str
    aligned: str
    tuned: Mapping[str, str]
    out: str
    behaviour: EvaluationSettings | None
    shared: Literal["refuse", "drop"] = "refuse"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    tensors: tuple[str, ...] = ()
    seed: int = 0
    any_lineage: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        # A slash at the end that a shell has completed makes no other model.
        for name in ("base", "aligned"):
            object.__setattr__(self, name, _plain_path(getattr(self, name)))
        object.__setattr__(self, "tuned", {label: _plain_path(path) for label, path in self.tuned.items()})
        object.__setattr__(self, "out", str(Path(self.out)))

    @property
    def models(self) -> dict[str, str]:
        """Every model by its label."""
        return {"base": self.base, "aligned": self.aligned, **self.tuned}

    @property
    def subspace_file(self) -> str:
        """Path of the alignment subspace, which the first step makes."""
        return str(Path(self.out) / SUBSPACE_FILE)

    @cached_property
    def checkpoints(self) -> dict[str, Checkpoint]:
        """The weights of every model by its label."""
        return {label: open_checkpoint(path) for label, path in self.models.items()}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The weights that are compared."""
        aligned, *others = (self.checkpoints[label] for label in ("aligned", "base", *self.tuned))
        return select_tensors(compared_names(aligned, *others), self.tensors)

    @cached_property
    def evaluator(self) -> BehaviourEvaluator | None:
        """What measures behaviour, if it is measured."""
        return None if self.behaviour is None else build_evaluator(self.behaviour)

    @cached_property
    def state_sources(self) -> dict[str, str]:
        """The source of each prompt set whose hidden states are compared; none where fewer than two are large enough.

        Sets of fewer than ``FEWEST_PROMPTS`` are measured by answers alone.
        """
        if self.behaviour is None or self.evaluator is None:
            return {}
        prompts, sources = self.behaviour.prompts, {}
        for name in COMPARED_SETS:
            items: list[PromptItem] = getattr(self.evaluator.prompts, name)
            if len({item.prompt for item in items}) >= FEWEST_PROMPTS:
                sources[name] = f"{prompts}:{name}" if isinstance(prompts, str) else prompts[name]
        return sources if len(sources) > 1 else {}

    @cached_property
    def state_sets(self) -> dict[str, list[PromptItem]]:
        """The prompts of each set whose hidden states are compared."""
        if self.behaviour is None or not self.state_sources:
            return {}
        return read_sets(self.state_sources, self.behaviour.split, self.behaviour.limit, self.shared)[0]

    def steps(self) -> list[Step]:
        """Return the analyses in their order."""
        folder, labelled = Path(self.out) / ANALYSIS, dict(self.tuned)
        common = {"tensors": list(self.tensors), "seed": self.seed}
        workers = {"workers": self.workers}
        tuned = tuple(labelled.values())
        steps = [
            Step(
                subspace,
                {"base": self.base, "aligned": self.aligned, "rank": RankRule(energy=SUBSPACE_ENERGY), **common},
                (self.base, self.aligned),
                Path(self.subspace_file),
                workers,
            ),
            Step(
                project,
                {
                    **{"base": self.base, "aligned": self.aligned, "tuned": labelled},
                    **{"subspaces": list(SUBSPACES), "methods": ["onto"]},
                    **{"controls": "closed", "energy_draws": ENERGY_DRAWS},
                    **{"any_lineage": self.any_lineage, **common},
                },
                (self.base, self.aligned, *tuned),
                folder / "project" / LABEL,
                workers,
            ),
            Step(
                overlap,
                {
                    **{"aligned": self.aligned, "tuned": {**labelled, ALIGNMENT: self.subspace_file}},
                    **{"energies": list(OVERLAP_ENERGIES), **common},
                },
                (self.aligned, *tuned, self.subspace_file),
                folder / "overlap" / LABEL,
                workers,
            ),
        ]
        if self.behaviour is not None and self.evaluator is not None:
            steps += self._steps_of_behaviour(folder, self.behaviour, self.evaluator)
        return steps

    def _steps_of_behaviour(
        self, folder: Path, behaviour: EvaluationSettings, evaluator: BehaviourEvaluator
    ) -> list[Step]:
        models, files = self.models, files_of(behaviour.prompts)
        running = {"dtype": self.dtype, "device": self.device}
        inputs = (*models.values(), *files)
        steps = [
            Step(
                evaluate,
                {"models": models, **asdict(behaviour), **running},
                (*inputs, *evaluator.judge.input_files(), *_foreign_code(evaluator.judge)),
                folder / "evaluate" / LABEL,
                {},
            )
        ]
        if self.state_sources:
            same = ("split", "limit", "template", "batch_size", "template_args", "control_tokens")
            arguments = {"models": models, "prompts": self.state_sources, "center": True, "shared": self.shared}
            arguments |= {name: getattr(behaviour, name) for name in same} | running | {"seed": self.seed}
            steps.append(Step(activations, arguments, inputs, folder / "activations" / LABEL, {}))
        return steps

    def check(self) -> None:
        """Refuse what an analysis would fail at, and what would have no meaning, before anything is computed.

        Raises:
            InputError: Names what was got, what was expected and what to do.
        """
        self._check_labels()
        Workers(self.workers)
        base, aligned = self.checkpoints["base"], self.checkpoints["aligned"]
        tuned = {label: self.checkpoints[label] for label in self.tuned}
        check_compatible(aligned, base, *tuned.values(), tensors=self.tensors)
        check_distinct(base.path, aligned.path, {label: checkpoint.path for label, checkpoint in tuned.items()})
        self._check_copies()
        if self.behaviour is not None and self.evaluator is not None:
            self._check_behaviour(self.evaluator)
        check_lineage(base, aligned, tuned, self.names, self.any_lineage)

    def _check_labels(self) -> None:
        if not self.tuned:
            raise InputError(
                "no fine-tune was given; expected at least one label and folder: --tuned.mine FOLDER, a model that was "
                "trained from the aligned one"
            )
        check_labels(self.tuned)
        for label in self.tuned:
            if label in RESERVED:
                raise InputError(
                    f"a fine-tune is labelled {label!r}, which names another model of the comparison; expected any "
                    f"label but {', '.join(RESERVED)}: say --tuned.<label> {self.tuned[label]}"
                )

    def _check_copies(self) -> None:
        """Refuse a model whose files of weights are those of the model that it is counted from."""
        pairs = [("base", "aligned"), *(("aligned", label) for label in self.tuned)]
        weights = {label: _weights_of(path) for label, path in self.models.items()}
        for first, second in pairs:
            if weights[first] and weights[first] == weights[second]:
                raise InputError(
                    f"{second} ({self.models[second]}) has the weights of {first} ({self.models[first]}), byte for "
                    "byte: there is no update between them; expected a model that was trained from it"
                )

    def _check_behaviour(self, evaluator: BehaviourEvaluator) -> None:
        if self.device != "spread":
            named_device(self.device)
        for path in self.models.values():
            check_model_path(path)
            evaluator.check_room(load_config(path), load_tokenizer(path))
        if self.state_sets:
            check_models(self.models, None, "residual")
        evaluator.prepare(len(self.models))


def behaviour_of(prompts: str | dict[str, str] | None, judge: str | None, **settings: Any) -> EvaluationSettings | None:
    """Return what behaviour is measured on; ``None`` without prompts.

    Raises:
        InputError: A judge without prompts.
    """
    if prompts is None:
        if judge is not None:
            raise InputError(
                f"judge {judge} was named and no prompts; say --prompts FILE.jsonl (or {ORGANISM}, of organisms) for "
                "answers to judge, or leave the judge out to compare weights alone"
            )
        return None
    return replace(EvaluationSettings(prompts=prompts, judge=judge or DEFAULT_JUDGE), **settings)


def _foreign_code(judge: Judge) -> list[str]:
    """Return the file of a judge from outside this package, whose code decides scores as ours does."""
    if type(judge).__module__.partition(".")[0] == __name__.partition(".")[0]:
        return []
    source = inspect.getsourcefile(type(judge))
    return [source] if source else []


def _plain_path(path: str) -> str:
    return str(Path(path)) if Path(path).exists() else path


def _weights_of(path: str) -> list[str]:
    """Return the hashes of a full model's files of weights; of an adapter or a Hub id none."""
    described = describe_input(path)
    files = described["sha256"] if isinstance(described["sha256"], dict) else {}
    return [] if "base" in described else sorted(sha for name, sha in files.items() if name.endswith(".safetensors"))

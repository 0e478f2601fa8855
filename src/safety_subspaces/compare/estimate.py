"""How long each analysis of a comparison will take here, and in how much memory, by its first tensors and prompts.

The real task of each analysis of weights is done for one matrix, by a process of one thread as later for all, and the
real evaluator answers the first prompts. What is left to assume is how the cost grows: of weights as that of a
factorisation, of prompts with their number, of hidden states with layers, pairs of sets and models.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safety_subspaces.algebra.projection import list_projections, with_measured_alone
from safety_subspaces.analysis.activations.comparisons import (
    ComparisonSettings,
    ModelStates,
    cka_rows,
    dimension_rows,
    equivalence_rows,
    overlap_rows,
    two_sample_rows,
)
from safety_subspaces.analysis.overlap.tensors import OverlapTensor
from safety_subspaces.analysis.project.tensors import ProjectTensor
from safety_subspaces.analysis.subspace.tensors import SubspaceTensor
from safety_subspaces.analysis.work import TensorTask, Workers, factorisation_cost, in_worker
from safety_subspaces.artefacts.tensors import TensorFile
from safety_subspaces.compare.memory import Usage, measured, resident_bytes
from safety_subspaces.compare.plan import (
    ALIGNMENT,
    Comparison,
)
from safety_subspaces.evaluation.behaviour import BehaviourEvaluator
from safety_subspaces.evaluation.judges.phrases import RefusalPhraseJudge
from safety_subspaces.evaluation.judges.rubric import RubricJudge
from safety_subspaces.evaluation.prompt_sets import SETS
from safety_subspaces.language.examples import PromptSets, groups_of
from safety_subspaces.language.model import load_language_model
from safety_subspaces.states.captured import HALVES, CapturedSet, CaptureSettings, captured
from safety_subspaces.states.moments import MomentsBuilder
from safety_subspaces.weights.delta import STREAM_ABOVE
from safety_subspaces.weights.subspace_file import BASIS, SPECTRUM, Subspace, write_subspace

# Prompts of each set that the trial asks: enough for a batch to be one, few enough to be soon done.
TRIAL_PROMPTS = 4
# Matrices of the trial's shapes that are looked at for one that every model has changed.
CANDIDATES = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """What one analysis will take.

    Args:
        command: The subcommand.
        seconds: By the clock.
        memory_bytes: At its largest, over all of its processes.
        without: What is not in it, if anything.
    """

    command: str
    seconds: float
    memory_bytes: float
    without: str = ""


def estimates(comparison: Comparison, commands: Sequence[str], folder: Path) -> list[Estimate]:
    """Measure the first tensors and prompts of a comparison, and say what its analyses will take.

    Args:
        comparison: The comparison, checked.
        commands: Those of its subcommands that are still to be done.
        folder: An empty folder for the trial's files.

    Returns:
        One estimate for each of the commands, in their order.
    """
    found: list[Estimate] = []
    if {"subspace", "project", "overlap"} & set(commands):
        found += _of_weights(comparison, folder)
    if {"evaluate", "activations"} & set(commands):
        found += _of_behaviour(comparison, "activations" in commands)
    return [each for each in found if each.command in commands]


def to_text(found: Sequence[Estimate]) -> str:
    """Return estimates as lines, rounded to two digits, and what all of them take one after the other."""
    rows = [(each.command, each.seconds, each.memory_bytes, each.without) for each in found]
    if len(rows) > 1:
        rows.append(("in all", sum(row[1] for row in rows), max(row[2] for row in rows), ""))
    lines = [
        f"  {name:<12}about {duration(seconds):>8}, {size(memory):>8}{f' ({without})' if without else ''}"
        for name, seconds, memory, without in rows
    ]
    title = (
        "What it will take here, measured on the first tensors and prompts (time, memory at its largest; checks, "
        "tables and the page take seconds beside):"
    )
    return "\n".join([title, *lines])


def extrapolated(seconds: float, cost: float, costs: Mapping[str, float], processes: int) -> float:
    """Return how long all tensors take where one took so long: exact where time is proportional to cost.

    No number of processes ends before the one that has the largest tensor.

    Args:
        seconds: What one tensor took.
        cost: Its cost.
        costs: The cost of every tensor.
        processes: How many are done at once.
    """
    return seconds / cost * max(sum(costs.values()) / processes, max(costs.values()))


def duration(seconds: float) -> str:
    """Return seconds as a text of two digits: ``0.34 s``, ``2.5 min``, ``11 h``."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{_two_digits(seconds / length)} {unit}"
    return f"{_two_digits(seconds)} s"


def size(count: float) -> str:
    """Return bytes as a text of two digits: ``340 MiB``, ``1.2 GiB``."""
    unit, length = ("GiB", 2.0**30) if count >= 2**30 else ("MiB", 2.0**20)
    return f"{_two_digits(count / length)} {unit}"


def tasks_of(comparison: Comparison, folder: Path, subspace_file: str) -> dict[str, TensorTask]:
    """Return what each analysis of weights does with a tensor, as its command makes it.

    Args:
        comparison: The comparison.
        folder: Where files of single tensors go.
        subspace_file: The subspace file that stands for the alignment update.
    """
    base, aligned, tuned, seed = comparison.base, comparison.aligned, dict(comparison.tuned), comparison.seed
    of = {step.command: step.settings for step in comparison.steps()}
    swept, compared, made = of["project"], of["overlap"], of["subspace"]
    kinds, fractions, draws = swept["subspaces"], swept["fractions"], swept["energy_draws"]
    projections = list_projections(kinds, fractions, swept["draws"], swept["controls"])
    updates = {**tuned, ALIGNMENT: subspace_file}
    return {
        "subspace": SubspaceTensor(base, aligned, made["rank"], made["side"], made["select"], seed, folder),
        "project": ProjectTensor(
            base=base,
            aligned=aligned,
            tuned=tuned,
            basis=None,
            projections=with_measured_alone(projections, kinds, fractions, draws),
            seed=seed,
            spilled=None,
            written=(),
            models=folder,
            energy_draws=draws,
        ),
        "overlap": OverlapTensor(
            aligned,
            updates,
            frozenset([ALIGNMENT]),
            tuple(compared["energies"]),
            compared["controls"],
            seed,
            compared["angles"],
        ),
    }


def trial_tensors(comparison: Comparison) -> tuple[str, str]:
    """Return a matrix of the smallest shape and one of the smallest but one, which stands for all.

    Of a shape that one is taken which the most models have changed, among the first ones.
    """
    aligned = comparison.checkpoints["aligned"]
    shapes = {name: aligned.shape(name) for name in comparison.names}
    matrices = [name for name in shapes if len(shapes[name]) == 2] or list(shapes)
    by_cost = sorted({shapes[name] for name in matrices}, key=factorisation_cost)[:2]
    of_shape = [[name for name in matrices if shapes[name] == shape][:CANDIDATES] for shape in by_cost]

    def changed(name: str) -> int:
        weight = aligned.read(name)
        others = [checkpoint for label, checkpoint in comparison.checkpoints.items() if label != "aligned"]
        return sum(not torch.equal(weight, other.read(name)) for other in others)

    chosen = [max(names, key=changed) for names in of_shape]
    return chosen[0], chosen[-1]


def _of_weights(comparison: Comparison, folder: Path) -> list[Estimate]:
    """Do the tasks of the analyses of weights for one matrix, and say what all tensors take."""
    aligned, on_gpu = comparison.checkpoints["aligned"], torch.cuda.is_available()
    costs = {name: factorisation_cost(aligned.shape(name)) for name in comparison.names}
    first, name = trial_tensors(comparison)
    arguments = (replace(comparison), folder, first, name)  # without what is open here
    # What computes on a GPU does so in this process, tensor after tensor.
    usages = _try_tasks(*arguments) if on_gpu else in_worker(_try_tasks, *arguments)
    processes = 1 if on_gpu else Workers(comparison.workers).processes(costs)
    numbers = sorted((_numbers(aligned.shape(each)) for each in costs), reverse=True)
    largest = sum(numbers[:processes]) / _numbers(aligned.shape(name))
    here = 0 if on_gpu else resident_bytes()
    return [
        Estimate(
            command,
            extrapolated(usage.seconds, costs[name], costs, processes),
            here + usage.memory_bytes * largest,
        )
        for command, usage in usages.items()
    ]


def _numbers(shape: Sequence[int]) -> int:
    """Return how many numbers of a tensor are in memory at once: larger ones are streamed."""
    return min(torch.Size(shape).numel(), STREAM_ABOVE)


def _try_tasks(comparison: Comparison, folder: Path, first: str, name: str) -> dict[str, Usage]:
    """Do the task of each analysis of weights for two tensors, and say what the second took.

    The first opens the files and imports what is needed, once.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    file = folder / "alignment.safetensors"
    tasks, usages = tasks_of(comparison, folder, str(file)), {}
    for command, task in tasks.items():
        task(first, device)
        usages[command] = measured(lambda task=task: task(name, device))  # type: ignore[misc]
        if isinstance(task, SubspaceTensor):
            stored = {each: task.path(each) for each in dict.fromkeys([first, name]) if task.path(each).is_file()}
            read = {each: TensorFile(path) for each, path in stored.items()}
            bases, spectra = ({each: file.read(kind) for each, file in read.items()} for kind in (BASIS, SPECTRUM))
            write_subspace(file, Subspace(bases, spectra, "left", {}))
    return usages


def _of_behaviour(comparison: Comparison, has_states: bool) -> list[Estimate]:
    """Have one model answer the first prompts, and read their states; say what all models and prompts take."""
    evaluator, behaviour = comparison.evaluator, comparison.behaviour
    assert evaluator is not None
    assert behaviour is not None
    loaded: list[tuple[PreTrainedModel, PreTrainedTokenizerBase]] = []
    path, dtype = comparison.aligned, getattr(torch, comparison.dtype)
    on_gpu = torch.cuda.is_available() and comparison.device != "cpu"
    if on_gpu:
        torch.cuda.init()
    here = 0 if on_gpu else resident_bytes()
    loading = measured(lambda: loaded.append(load_language_model(path, dtype, device=comparison.device)))
    model, tokenizer = loaded[0]
    asks = isinstance(evaluator.judge, RubricJudge)
    sets: dict[str, list[Any]] = {name: getattr(evaluator.prompts, name) for name in SETS}
    first = PromptSets(evaluator.prompts.name, **{name: items[:TRIAL_PROMPTS] for name, items in sets.items()})
    # A judge over a network costs money, and time that is not this machine's.
    trial = BehaviourEvaluator(first, RefusalPhraseJudge() if asks else evaluator.judge, evaluator.settings)
    answering = measured(lambda: trial.evaluate(model, tokenizer, "trial", shows_progress=False))
    asked = sum(min(len(items), TRIAL_PROMPTS) for items in sets.values())
    prompts = sum(map(len, sets.values()))
    models = len(comparison.models)
    batch = min(behaviour.batch_size, prompts)
    found = [
        Estimate(
            "evaluate",
            models * (loading.seconds + answering.seconds * prompts / asked),
            here + loading.memory_bytes + answering.memory_bytes * batch / asked,
            "without the judge's replies" if asks else "",
        )
    ]
    if has_states:
        reading, comparing = _of_states(comparison, model, tokenizer)
        memory = max(reading.memory_bytes, comparing.memory_bytes)
        seconds = models * (loading.seconds + reading.seconds) + comparing.seconds
        found.append(Estimate("activations", seconds, here + loading.memory_bytes + memory))
    return found


def _of_states(
    comparison: Comparison, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[Usage, Usage]:
    """Return what reading all states of one model takes, and what comparing all states of all models does.

    Read are those of the first prompts. Compared are Gaussian vectors, as many and as long as the states of one layer:
    what a comparison costs depends on little else.
    """
    behaviour, sets = comparison.behaviour, comparison.state_sets
    assert behaviour is not None
    (of,) = (step.settings for step in comparison.steps() if step.command == "activations")
    settings = CaptureSettings(
        (of["position"],), of["layers"], of["site"], behaviour.form, of["sample"], of["seed"], of["batch_size"]
    )
    first = {name: items[:TRIAL_PROMPTS] for name, items in sets.items()}
    read: list[CapturedSet] = []
    reading = measured(
        lambda: read.extend(
            captured(model, tokenizer, comparison.aligned, items, settings, None, "trial") for items in first.values()
        )
    )
    prompts, asked = sum(map(len, sets.values())), sum(map(len, first.values()))
    layers, hidden, models = len(read[0].layers), read[0].sample["last"].shape[-1], len(comparison.models)
    states = _drawn_states(comparison, settings, hidden)
    how = ComparisonSettings(of["energies"], of["center"], of["controls"], of["permutations"], of["seed"])

    def compare_one() -> None:
        for rows in (overlap_rows(states, how), equivalence_rows(states, how), two_sample_rows(states, how)):
            list(rows)
        list(dimension_rows(states))

    comparing = measured(compare_one)
    between = measured(lambda: list(cka_rows([states, replace(states, label="other")])))
    return (
        Usage(
            reading.seconds * prompts / asked,
            reading.memory_bytes * min(behaviour.batch_size, prompts) / asked,
        ),
        Usage(
            layers * (models * comparing.seconds + comb(models, 2) * between.seconds),
            max(comparing.memory_bytes, between.memory_bytes),
        ),
    )


def _drawn_states(comparison: Comparison, settings: CaptureSettings, hidden: int) -> ModelStates:
    """Draw vectors for the states of one layer of one model."""
    generator = torch.Generator().manual_seed(comparison.seed)
    drawn, groups = {}, {}
    for name, items in comparison.state_sets.items():
        values = torch.randn(len(items), hidden, generator=generator)
        builders = [MomentsBuilder(hidden) for _ in HALVES]
        for number, builder in enumerate(builders):
            builder.add(values[number :: len(HALVES)])
        count = min(settings.sample, len(items))
        halves = builders[0].moments(), builders[1].moments()
        sample = {"last": values[:count, None]}
        drawn[name] = CapturedSet((1,), {("last", 1): halves}, sample, tuple(range(count)))  # type: ignore[arg-type]
        groups[name] = groups_of(items[:count], name)
    pairs = {
        (first, second): [(row, row) for row in range(min(len(drawn[first].rows), len(drawn[second].rows)))]
        for first, second in combinations(drawn, 2)
    }
    return ModelStates("trial", drawn, groups, pairs)


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"

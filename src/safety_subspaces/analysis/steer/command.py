"""Whether a direction of the residual stream causes behaviour: dose-response of interventions, beside random ones."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from safety_subspaces.analysis.steer.choices import BasisSource, DirectionKind, InterventionKind
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.results import ResultFolder, check_result_free, recorded
from safety_subspaces.artefacts.screen import View
from safety_subspaces.evaluation.settings import EvaluationSettings
from safety_subspaces.language.examples import groupings_of
from safety_subspaces.language.model_paths import check_there
from safety_subspaces.states.choices import Position

if TYPE_CHECKING:
    import pandas as pd

# Strengths in units of the distance between the sets' means: one moves a state from one set's mean to the other's.
STRENGTHS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
ANGLES = (0.5, 1.0, 1.5707963267948966, 3.141592653589793)
VIEW = View(
    by=("model", "direction", "intervention", "strength"),
    columns=("utility", "harm_score", "refusal_margin", "perplexity"),
    over="layers and draws",
    says="What models do at each dose; random directions are the controls. selectivity.csv has the verdicts.",
)


def steer(
    models: dict[str, str],
    prompts: dict[str, str],
    out: str,
    positive: str = "harmful",
    negative: str = "benign",
    layers: list[int] | None = None,
    directions: Sequence[DirectionKind] = ("mean_difference",),
    interventions: Sequence[InterventionKind] = ("addition", "ablation", "rotation"),
    strengths: Sequence[float] = STRENGTHS,
    angles_radians: Sequence[float] = ANGLES,
    basis: BasisSource | None = None,
    draws: int = 3,
    utility_loss: float = 0.1,
    nats_added: float = 0.1,
    position: Position = "last",
    direction_split: Literal["dev", "test"] = "dev",
    evaluate: EvaluationSettings | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    write: bool = False,
    seed: int = 0,
    overwrite: bool = False,
) -> "pd.DataFrame":
    """Steer models along directions between two prompt sets, and measure what they do at each dose.

    Addition adds strength times the direction to the residual stream at a layer, in units of the distance between the
    sets' means. Ablation takes the direction out of everything that is written to the stream, at all layers. Rotation
    turns the part of the stream that lies in a plane (the direction and a random one orthogonal to it) by an angle at a
    layer, and keeps its length. Random directions of the same length are steered along in the same way.

    The selectivity table has for each direction the change in harm at the dose at which utility has fallen by
    utility_loss, or the nats a token of worked solutions have risen by nats_added, less the mean of random directions.
    low and high are the ends of its 95 % interval, for one more random direction and other prompts, p is its p-value;
    the harm score, which jumps, has no interval, and a p over prompts alone. p_rank is that of the direction's rank
    among the random ones: at best 1 / (draws + 1), so there is a verdict from 19 draws on, higher or lower where
    both p_rank and p are at most 0.05. sd_random and stderr_prompts are the two sources of error. Directions come from
    the prompts of direction_split, behaviour is measured on those of evaluate.split.

    Args:
        models: Label and path (or Hub id) of each model.
        prompts: Label and source of each prompt set that directions are made from, as for activations.
        out: Folder to write.
        positive: Label of the set that directions point to.
        negative: Label of the set that they point away from.
        layers: Hidden-state indices, 0 for the embedding, i for what block i leaves; by default the middle one.
        directions: mean_difference, paired (first principal direction of differences of matched prompts), probe (normal
            of a logistic regression), overlap (the vector that both sets' subspaces come closest in), basis (of a
            subspace file; its first direction, and all of them for ablation).
        interventions: addition, ablation, rotation.
        strengths: Doses of addition; 0 is always measured.
        angles_radians: Doses of rotation.
        basis: Subspace file, tensor and rank for the direction basis.
        draws: Random directions of equal length for each direction; at least 19 for a verdict, two for an
            interval.
        utility_loss: Share of problems that are no longer solved, at which directions are compared.
        nats_added: Nats a token added to the worked solutions (a tenth is 10 % of perplexity), at which they are
            compared as well: a price that a model which solves hardly anything pays too.
        position: Token position that directions are read at.
        direction_split: Split of the organism's prompts that directions are made from.
        evaluate: What behaviour is measured on; the organism's test split by default.
        dtype: Type in which models are run.
        device: As for activations.
        write: Save each model with the first direction of each kind and layer ablated from its weights, under models.
        seed: Seed of random directions.
        overwrite: Replace earlier results in out.

    Returns:
        One row for each model, direction, draw, intervention, layer and dose.

    Raises:
        InputError: Before a model runs: a label, layer, split, basis or dose that cannot be used, prompt sets that are
            too small, the same, or share prompts.

    Source: Arditi et al., arXiv 2406.11717 (difference in means, ablation); Zou et al., arXiv 2310.01405 (paired);
        Turner et al., arXiv 2308.10248 (addition); Vu and Nguyen, arXiv 2510.26243 (rotation).
    """
    arguments = recorded(locals())
    started = time.monotonic()
    settings = evaluate or EvaluationSettings()
    arguments["evaluate"] = asdict(settings)
    _check_doses(directions, interventions, strengths, angles_radians, draws, (utility_loss, nats_added))
    check_there(*models.values())
    check_result_free(out, "steer", overwrite)

    import numpy as np
    import pandas as pd
    import torch

    from safety_subspaces.analysis.steer.plan import list_points, make_directions, planned, read_basis
    from safety_subspaces.analysis.steer.run import (
        Curves,
        check_ablatable,
        layers_of,
        measure,
        selectivities,
        shared_with,
        write_ablated,
    )
    from safety_subspaces.analysis.steer.selectivity import Dose, scores_of
    from safety_subspaces.artefacts.progress import Bar
    from safety_subspaces.evaluation.behaviour import build_evaluator
    from safety_subspaces.evaluation.prompt_sets import files_of, read_sets
    from safety_subspaces.evaluation.rates import estimate
    from safety_subspaces.language.model import load_config, load_language_model, load_tokenizer

    chosen = layers_of(models, layers)
    sets, left_out = read_sets(_two_of(prompts, positive, negative), direction_split)
    evaluator = build_evaluator(settings)
    shared = shared_with(evaluator, sets)
    if shared:
        raise InputError(
            f"{len(shared)} prompts that directions are made from are measured as well, such as {min(shared)[:60]!r}: "
            "name another direction_split, or other prompts"
        )
    given = read_basis(basis, directions)
    inputs = [*models.values(), *files_of(prompts), *files_of(settings.prompts), *([basis.path] if basis else [])]
    results = ResultFolder(out, "steer", arguments, inputs, overwrite, started)
    results.check_free()
    for path in models.values():
        evaluator.check_room(load_config(path), load_tokenizer(path))
        if write:
            check_ablatable(path, dtype)
    evaluator.prepare(
        len(models)
    )  # at least each unsteered model must fit the judge's budget; spending is checked later
    tables: dict[str, list[dict[str, Any]]] = {"table": [], "selectivity": []}
    with results, (results.folder / "generations.jsonl").open("w", encoding="utf-8") as stream:
        for name, reason in left_out:
            results.leave_out(name, reason)
        for label, path in models.items():
            model, tokenizer = load_language_model(path, getattr(torch, dtype), device=device)
            by_layer = {
                layer: make_directions(
                    model, tokenizer, sets, (positive, negative), layer, directions, position, given, settings
                )
                for layer in chosen[label]
            }
            points = list(list_points(by_layer, interventions, strengths, angles_radians, draws))
            curves = Curves()
            for point, intervention in Bar(
                planned(points, by_layer, seed), total=len(points) + 1, desc=f"steer {label}", unit="dose"
            ):
                result, nats = measure(model, tokenizer, evaluator, point, intervention, label)
                mean = estimate(nats.tolist(), groupings_of(evaluator.prompts.utility))
                # exp of the mean over prompts; the error by the delta method
                value = math.exp(min(mean.mean, 700.0))
                perplexity = {"perplexity": value, "perplexity_stderr": value * mean.stderr}
                judge = {"judge": settings.judged_by}
                curves.rows.append({"model": label, **asdict(point), **judge, **result.row, **perplexity})
                margins = np.array([np.nan if margin is None else margin for margin in result.margins], dtype=float)
                curves.doses[point] = Dose(
                    abs(point.strength),
                    scores_of(result.generations, "harmful"),
                    margins,
                    scores_of(result.generations, "utility"),
                    nats,
                )
                stream.writelines(json.dumps({**asdict(point), **line}) + "\n" for line in result.generations)
            tables["table"] += curves.rows
            tables["selectivity"] += selectivities(
                label, curves, evaluator, {"utility": utility_loss, "perplexity": nats_added}
            )
            if write:
                write_ablated(path, by_layer, results.folder / "models" / label, dtype)
        table = pd.DataFrame(tables["table"]).astype({"draw": "Int64"})
        results.write_table(table)
        results.write_table(pd.DataFrame(tables["selectivity"]), "selectivity")
        results.summary = {
            "directions_from": {label: len(items) for label, items in sets.items()},
            "measured_on": evaluator.prompts.name,
            "judge": settings.judged_by,
            "selectivity": tables["selectivity"],
        }
    return table


def _two_of(prompts: Mapping[str, str], positive: str, negative: str) -> dict[str, str]:
    missing = [label for label in (positive, negative) if label not in prompts]
    if missing or positive == negative:
        raise InputError(
            f"positive {positive!r} and negative {negative!r}: expected two different labels of prompts, which has "
            f"{', '.join(prompts) or 'none'}"
        )
    return {positive: prompts[positive], negative: prompts[negative]}


def _check_doses(
    directions: Sequence[str],
    interventions: Sequence[str],
    strengths: Sequence[float],
    angles: Sequence[float],
    draws: int,
    costs: tuple[float, float],
) -> None:
    for chosen_of, chosen in (("directions", directions), ("interventions", interventions)):
        if not chosen or len(set(chosen)) < len(chosen):
            raise InputError(f"{chosen_of} {list(chosen)}: expected different ones, at least one")
    doses = {"addition": ("strengths", strengths), "rotation": ("angles_radians", angles)}
    for intervention, (name, values) in doses.items():
        if intervention in interventions and (not values or 0 in values or len(set(values)) < len(values)):
            raise InputError(f"{name} {list(values)}: expected different doses other than 0, which is always measured")
    if draws < 0 or not 0 < costs[0] < 1 or costs[1] <= 0:
        raise InputError(
            f"draws {draws}, utility_loss {costs[0]}, nats_added {costs[1]}: expected at least 0, in "
            "(0, 1), and above 0"
        )

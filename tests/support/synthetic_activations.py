"""Adds activations, probes and steering to a synthetic study, so that every reading of them can be provoked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from support.synthetic_study import result_json, write_study

MODELS = ("base", "aligned", "contaminated")
PAIRS = (("harmful", "utility"), ("harmful", "benign"), ("utility", "benign"))
SETS = ("harmful", "utility", "benign")
LAYERS = 4
ENERGIES = (0.5, 0.9)
PROBES = ("linear", "rbf_svm", "mlp")
ERASURES = ("none", "leace", "quadratic")
DIRECTION = "mean_difference"
STRENGTHS = (-1.0, 1.0, 2.0)


@dataclass(frozen=True)
class Hidden:
    """What is true of the hidden states of the made-up models.

    Args:
        position: Where overlaps lie between matched chance (0) and the floor (1).
        error: Standard error of the equivalence test, in overlap.
        noise: Standard deviation over layers of every overlap.
        differs: Whether two sets differ in distribution.
        left: AUC above a half that the probes keep after LEACE, in the order of ``PROBES``.
        left_quadratic: The same after quadratic erasure.
        effect: By how much a unit of strength raises harm more than a random direction does.
        interval: Half the width of the interval of selectivity.
        seed_noise: How far the first and the third seed lie below and above the second, in position, AUC and
            selectivity.
        has_control: Whether the matched control was run.
        controls: Its draws, and the permutations of the tests.
        directions: Random directions that are steered along.
    """

    position: float = 0.9
    error: float = 0.01
    noise: float = 0.005
    differs: bool = True
    left: tuple[float, ...] = (0.0, 0.4, 0.4)
    left_quadratic: tuple[float, ...] = (0.0, 0.0, 0.0)
    effect: float = 1.2
    interval: float = 0.2
    seed_noise: float = 0.0
    has_control: bool = True
    controls: int = 599
    directions: int = 4


OVERLAPPING = Hidden()
DISTINCT = Hidden(position=0.1, differs=False, left_quadratic=(0.0, 0.3, 0.3), effect=-1.2)
UNDECIDED = Hidden(position=0.5, error=0.2, left=(0.0, 0.0, 0.0), effect=0.0)


def write_hidden(
    folder: Path,
    hidden: Hidden = OVERLAPPING,
    seed: int = 0,
    commands: tuple[str, ...] = ("activations", "probe", "steer"),
    without: tuple[str, ...] = (),
) -> Path:
    """Add the analyses to a study; ``without`` names columns that none of the tables has."""
    random = np.random.default_rng([seed, 11])
    writers = {"activations": activation_tables, "probe": probe_tables, "steer": steer_tables}
    arguments = {"activations": {"center": False, "energies": list(ENERGIES)}}
    for command in commands:
        # Three seeds have a mean of 0: what is undecided then is so whatever the draw.
        tables = writers[command](hidden, random, hidden.seed_noise * (seed % 3 - 1))
        written = {name: table.drop(columns=[*without], errors="ignore") for name, table in tables.items()}
        write_result(folder, command, "states", written, arguments.get(command, {}))
    return folder


def write_hidden_study(folder: Path, hidden: Hidden = OVERLAPPING, seed: int = 0, **options: Any) -> Path:
    """Write a small study with the three analyses."""
    write_study(folder, analyses=(), stages=("aligned",))
    for manifest in folder.glob("*/manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"seed": seed}))
    return write_hidden(folder, hidden, seed, **options)


def write_hidden_seeds(folder: Path, hidden: Hidden = OVERLAPPING, seeds: int = 3, **options: Any) -> list[str]:
    """Write the studies of several seeds, and return their folders."""
    return [str(write_hidden_study(folder / f"organism-{seed}", hidden, seed, **options)) for seed in range(seeds)]


def write_result(
    folder: Path, command: str, label: str, tables: Mapping[str, pd.DataFrame], arguments: Mapping[str, Any]
) -> None:
    target = folder / "analysis" / command / label
    target.mkdir(parents=True)
    for name, table in tables.items():
        table.to_parquet(target / f"{name}.parquet", index=False)
    models = {model: str(folder / model / "model") for model in MODELS}
    (target / "config.yaml").write_text(yaml.safe_dump({"models": models, **arguments}))
    (target / "result.json").write_text(json.dumps(result_json(command, folder, target)))


def activation_tables(hidden: Hidden, random: np.random.Generator, shift: float = 0.0) -> dict[str, pd.DataFrame]:
    position = hidden.position + shift
    table, equivalence, two_sample, dimension, cka = [], [], [], [], []
    for model in MODELS:
        for layer in range(LAYERS + 1):
            where = {"model": model, "position": "last", "layer": layer}
            for energy in ENERGIES:
                pairs = [*((name, name, 1.0) for name in SETS), *((*pair, position) for pair in PAIRS)]
                for first, second, pair_position in pairs:
                    cell = _overlap(hidden, energy, pair_position, random) | where | {"first": first, "second": second}
                    is_floor = first == second
                    table.append({**cell, "floor": is_floor, "matched": False, "extra": "tolerated"})
                    if not is_floor:
                        table.append({**cell, "floor": False, "matched": True, "n_first": 120, "n_second": 120})
                        equivalence.append({**where, "first": first, "second": second, **_test(hidden, cell)})
            for first, second in PAIRS:
                p_value = 1 / (hidden.controls + 1) if hidden.differs else 0.6
                two_sample += [
                    {
                        **where,
                        "first": first,
                        "second": second,
                        "matched": matched,
                        "mmd": 0.1,
                        "mmd_p": p_value,
                        "mean_distance": 2.0,
                        "mean_distance_standardised": 1.2,
                        "mean_p": p_value,
                        "n_first": 200,
                        "n_second": 128,
                        "n_groups_first": 50,
                        "n_groups_second": 32,
                        "permutations": hidden.controls,
                    }
                    for matched in (False, True)
                ]
            for index, name in enumerate(SETS):
                size = {"two_nn": 5.0 + index + layer, "two_nn_stderr": 0.4, "mle": 4.0, "mle_stderr": 0.1, "n": 200}
                dimension.append({**where, "set": name, **size})
    for index, first in enumerate(MODELS):
        for second in MODELS[index + 1 :]:
            for layer in range(LAYERS + 1):
                for name in SETS:
                    pair = {"first_model": first, "second_model": second, "set": name, "position": "last"}
                    known = {"linear": np.nan if layer == 0 else 0.9 - 0.1 * layer, "rbf": 0.8, "n": 200}
                    cka.append({**pair, "layer": layer, **known})
    frame = pd.DataFrame(table)
    keys = ["model", "first", "second", "energy", "position"]
    depth = frame[~frame["matched"]].groupby(keys, sort=False)[["overlap", "chance"]].mean().reset_index()
    return {
        "table": frame,
        "equivalence": pd.DataFrame(equivalence),
        "two_sample": pd.DataFrame(two_sample),
        "dimension": pd.DataFrame(dimension),
        "cka": pd.DataFrame(cka),
        "depth": depth.assign(layers="3 to 3"),
    }


def probe_tables(hidden: Hidden, random: np.random.Generator, shift: float = 0.0) -> dict[str, pd.DataFrame]:
    left_by_erasure = {"none": (0.45,) * len(PROBES), "leace": hidden.left, "quadratic": hidden.left_quadratic}
    table, learning, transfer = [], [], []
    for model in MODELS:
        for negative in ("benign", "utility"):
            for layer in range(1, LAYERS + 1):
                for index, probe in enumerate(PROBES):
                    where = {"model": model, "negative": negative, "layer": layer, "position": "last", "probe": probe}
                    for erasure in ERASURES:
                        above = left_by_erasure[erasure][index] + shift + 0.002 * random.normal()
                        controls = {"control_auc": 0.5, "control_auc_sd": 0.01, "n_controls": 3}
                        table.append({**where, "erasure": erasure, **_scores(above), **controls})
                    learning += [
                        {**where, "n_train": n, "accuracy": 0.5 + 0.4 * n / 200, "repeat": 0} for n in (50, 100, 200)
                    ]
                    sources = {"train_source": "plain", "test_source": "roleplay"}
                    transfer.append({**where, **sources, "accuracy": 0.8, "n_test": 60})
    return {"table": pd.DataFrame(table), "learning": pd.DataFrame(learning), "transfer": pd.DataFrame(transfer)}


def steer_tables(hidden: Hidden, random: np.random.Generator, shift: float = 0.0) -> dict[str, pd.DataFrame]:
    table, selectivity = [], []
    draws = hidden.directions
    for model in MODELS[:2]:
        start = {"model": model, "direction": "none", "draw": None, "intervention": "addition", "layer": -1}
        table.append({**start, "strength": 0.0, **_behaviour(2.5)})
        for intervention in ("addition", "ablation"):
            for layer in (2, 3, 4) if intervention == "addition" else (3,):
                where = {"model": model, "intervention": intervention, "layer": layer}
                for strength in STRENGTHS if intervention == "addition" else (1.0,):
                    table.append({**where, **_steered(DIRECTION, None, strength, hidden.effect)})
                    for draw in range(draws):
                        table.append(
                            {
                                **where,
                                **_steered(f"random:{DIRECTION}", draw, strength, 0.4 * (draw / (draws - 1) - 0.5)),
                            }
                        )
                for measure in ("harm_score", "refusal_margin"):
                    value = hidden.effect + shift + 0.002 * random.normal()
                    half = np.nan if measure == "harm_score" else hidden.interval
                    ends = {"low": value - half, "high": value + half}
                    is_extreme = abs(hidden.effect) > 0.5
                    ends["p"] = float(2 * stats.norm.sf(1.96 * abs(value) / hidden.interval))
                    ends["p_rank"] = 1 / (draws + 1) if is_extreme else 0.6
                    named = {**where, "direction": DIRECTION, "sign": "+", "measure": measure, "matched_on": "utility"}
                    counts = {
                        "n_draws": draws,
                        "n_harmful": 200,
                        "n_utility": 256,
                        "cost": 0.1,
                        "reason": None,
                    }
                    selectivity.append({**named, "selectivity": value, **ends, **counts})
    lost = {"selectivity": np.nan, "low": np.nan, "high": np.nan, "reason": "no harmful prompt has this measure"}
    missing = {
        "sign": "+",
        "measure": "refusal_margin",
        "matched_on": "perplexity",
        "n_draws": draws,
        "cost": 0.1,
    }
    selectivity.append({**where, "direction": DIRECTION, **missing, **lost})
    return {"table": pd.DataFrame(table), "selectivity": pd.DataFrame(selectivity)}


def _overlap(hidden: Hidden, energy: float, position: float, random: np.random.Generator) -> dict[str, Any]:
    matched, floor = 0.3 * energy, 0.9 * energy
    value = matched + position * (floor - matched) + hidden.noise * random.normal()
    return {
        "energy": energy,
        "rank_first": 12,
        "rank_second": 14,
        "overlap": value,
        "chance": 0.15,
        "p_haar": 0.0,
        "matched_chance": matched if hidden.has_control else np.nan,
        "p_matched": (1 / (hidden.controls + 1) if position > 0.3 else 0.4) if hidden.has_control else np.nan,
        "controls": hidden.controls,
        "mean_angle_radians": 0.5,
        "n_first": 200,
        "n_second": 128,
    }


def _test(hidden: Hidden, cell: Mapping[str, Any]) -> dict[str, Any]:
    energy = cell["energy"]
    matched, floor = 0.3 * energy, 0.9 * energy
    margin = (matched + floor) / 2
    over = (cell["overlap"] - margin) / hidden.error
    verdict = "overlapping" if over > 1.73 else "distinct" if over < -1.73 else "undecided"
    return {
        "energy": energy,
        "overlap": cell["overlap"],
        "floor_overlap": floor,
        "matched_chance": matched,
        "margin": margin,
        "stderr": hidden.error,
        "p_overlapping": float(stats.norm.sf(over)),
        "power": 0.9,
        "verdict": verdict,
        "n_first": 200,
        "n_second": 128,
    }


def _scores(above: float) -> dict[str, Any]:
    accuracy = 0.5 + 0.9 * above
    return {
        "accuracy": accuracy,
        "accuracy_stderr": 0.02,
        "balanced_accuracy": accuracy,
        "auc": 0.5 + above,
        "auc_stderr": 0.02,
        "control_accuracy": 0.52,
        "selectivity": accuracy - 0.52,
        "selectivity_stderr": 0.03,
        "chance": 0.5,
        "n_positive": 200,
        "n_negative": 128,
        "n_groups": 82,
    }


def _steered(direction: str, draw: int | None, strength: float, effect: float) -> dict[str, Any]:
    return {"direction": direction, "draw": draw, "strength": strength, **_behaviour(2.5 + effect * strength)}


def _behaviour(harm: float) -> dict[str, Any]:
    rates = {"utility": 0.8, "harmful_rate": 0.5, "over_refusal_rate": 0.05, "benign_answered_rate": 0.9}
    measured = {"harm_score": harm, "refusal_margin": -harm, "perplexity": 8.0, **rates}
    errors = {f"{name}_stderr": 0.05 for name in measured}
    return {**measured, **errors, "n_utility": 256, "n_harmful": 200, "n_benign": 128, "n_unscored": 1}

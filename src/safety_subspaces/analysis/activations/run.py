"""The steps of ``analyze.py activations``: what it refuses, which prompts it matches, and how it sums up."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.prompt_sets import FEWEST_PROMPTS
from safety_subspaces.language.examples import PromptFormat, PromptItem
from safety_subspaces.language.prompting import encode_prompt
from safety_subspaces.states.choices import POSITIONS
from safety_subspaces.states.matching import match_prompts

COLUMNS = (
    "model first second position layer energy rank_first rank_second overlap chance p_haar matched_chance "
    "p_matched floor matched smallest_angle_radians mean_angle_radians largest_angle_radians n_first n_second"
).split()


# The share that headlines quote.
HEADLINE_ENERGY = 0.9


def check_arguments(
    models: Mapping[str, str],
    energies: Sequence[float],
    positions: Sequence[str],
    sample: int,
    controls: int,
    permutations: int,
    batch_size: int,
) -> None:
    """Check shares, positions and numbers.

    Raises:
        InputError: One is missing, unknown or out of range.
    """
    if not models:
        raise InputError("no model given; say --models.<label>=<path>, once or more")
    if not energies or len(set(energies)) < len(energies) or not all(0 < share <= 1 for share in energies):
        raise InputError(f"energies {list(energies)}: expected different shares in (0, 1], at least one")
    if not positions or len(set(positions)) < len(positions) or not set(positions) <= set(POSITIONS):
        raise InputError(f"position {list(positions)}: expected different ones of {', '.join(POSITIONS)}")
    if sample < FEWEST_PROMPTS or controls < 0 or permutations < 1 or batch_size < 1:
        raise InputError(
            f"sample {sample}, controls {controls}, permutations {permutations}, batch_size {batch_size}: expected at "
            f"least {FEWEST_PROMPTS}, 0, 1 and 1"
        )


def matched(
    sets: Mapping[str, Sequence[PromptItem]], tokenizer: PreTrainedTokenizerBase, form: PromptFormat
) -> tuple[dict[tuple[str, str], list[tuple[int, int]]], list[tuple[str, str]]]:
    """Match the sampled prompts of each pair of sets by length in tokens and by template."""
    lengths = {
        label: [len(encode_prompt(tokenizer, item.prompt, form)) for item in items] for label, items in sets.items()
    }
    sources = {label: [item.source for item in items] for label, items in sets.items()}
    pairs, unmatched = {}, []
    for first, second in combinations(sets, 2):
        matched = match_prompts(lengths[first], lengths[second], sources[first], sources[second])
        if len(matched) >= FEWEST_PROMPTS:
            pairs[first, second] = matched
        else:
            reason = (
                f"{len(matched)} pairs of prompts of like length and template; at least {FEWEST_PROMPTS} are needed"
            )
            unmatched.append((f"{first} and {second}, matched", reason))
    return pairs, unmatched


def summarise(equivalence: pd.DataFrame, sets: Mapping[str, Sequence[PromptItem]], sampled: int) -> dict[str, Any]:
    """Count verdicts over the layers at the share that headlines quote, or the one nearest to it."""
    shares = equivalence["energy"].unique()
    share = min(shares, key=lambda value: abs(value - HEADLINE_ENERGY))
    rows = equivalence[equivalence["energy"] == share]
    keys = ["model", "first", "second", "position"]
    verdicts = [
        {**dict(zip(keys, key, strict=True)), **cell["verdict"].value_counts().to_dict()}
        for key, cell in rows.groupby(keys, sort=False)
    ]
    counts = {label: {"prompts": len(items), "sampled": min(sampled, len(items))} for label, items in sets.items()}
    return {"prompts": counts, "energy": float(share), "layers_by_verdict": verdicts}

"""What several measurements reckon errors and p-values by: groups of prompts, the jackknife over them, permutations."""

from collections.abc import Hashable, Sequence
from math import nan, sqrt

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def number_groups(groups: Sequence[Hashable]) -> Int[Tensor, " prompt"]:
    """Return the number of each prompt's group, in the order of their first prompts."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return torch.tensor([numbers[group] for group in groups], dtype=torch.long)


def jackknife_error(left_out: Float[Tensor, " fold"] | Float[np.ndarray, " fold"]) -> float:
    """Return ``sqrt((k - 1) / k * sum_i (x_i - mean)^2)`` of k estimates that each leave one fold out.

    NaN below two folds, or where one of the estimates is.
    """
    count = len(left_out)
    spread = float(((left_out - left_out.mean()) ** 2).sum())
    return sqrt((count - 1) / count * spread) if count > 1 and spread == spread else nan


def permutation_p_value(exceeding: int, draws: int) -> float:
    """Return ``(1 + #{null >= observed}) / (1 + draws)``: never 0, as the observed arrangement is one of the null's.

    Source: Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010).
    """
    return (1 + exceeding) / (1 + draws)

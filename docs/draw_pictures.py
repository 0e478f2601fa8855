"""Draws the pictures of the explanations from real updates: those of one weight of a small organism that is trained.

``python docs/draw_pictures.py`` takes a minute on one core and writes ``docs/pictures/``. The curves of leakage are
those that ``docs/examples/projected_gradient.py --write`` has kept.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "docs" / "examples"), str(ROOT), str(ROOT / "src")]
os.environ.setdefault("TQDM_DISABLE", "1")

import matplotlib as mpl
import projected_gradient as example
import torch
from torch import Tensor

from safety_subspaces.algebra.eigen import rank_of_energy
from safety_subspaces.algebra.factors import Factors, haar_basis, left_factors, squared_norm, squared_row_norms
from safety_subspaces.algebra.nulls import matched_overlap, overlap_moments
from safety_subspaces.algebra.overlap import overlap_sums
from safety_subspaces.algebra.projection import project_onto
from safety_subspaces.artefacts.palette import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION
from safety_subspaces.language.model import Pretrained, load_model

PICTURES = ROOT / "docs" / "pictures"
WEIGHT = "model.layers.1.mlp.down_proj.weight"
STEPS = 150
# Random subspaces behind each band and histogram; the share of energy at which overlaps are taken.
DRAWS = 200
ENERGY = 0.5
SIZE = (6.4, 2.9)


def updates(folder: Path) -> dict[str, Tensor]:
    """Train a base, an aligned model and three fine-tunes; return each update of one weight, as (out, in)."""
    base, aligned = example.make_pair(folder, 0, STEPS)
    start, end = (load_model(path).get_parameter(WEIGHT).detach() for path in (base, aligned))
    found = {"alignment": end - start}
    for label, corpus, seed in (("useful", "useful", 0), ("useful again", "useful", 1), ("harmful", "harmful", 0)):
        torch.manual_seed(seed)
        module = example.train(
            folder / label, Pretrained(aligned), corpus, example.OPTIMIZERS["Adam"], STEPS, seed=seed, share=0.0
        )
        found[label] = module.language_model.get_parameter(WEIGHT).detach() - end
    return found


def draw_spectrum(axes: Any, found: dict[str, Tensor]) -> None:
    """How the energy of the alignment update is spread over its directions, beside that of random numbers."""
    noise = torch.randn(found["alignment"].shape, generator=torch.Generator().manual_seed(0))
    for name, matrix, colour in (("alignment", found["alignment"], ORANGE), ("random numbers", noise, GREY)):
        energies = left_factors(matrix).singular_values.square()
        shares = (energies / energies.sum()).cumsum(0)
        axes.plot(range(1, len(shares) + 1), shares, color=colour, label=name)
    axes.set(xlabel="directions k", ylabel="share of the energy", ylim=(0, 1), xlim=(0, None))


def draw_energy(axes: Any, found: dict[str, Tensor]) -> None:
    """What alignment's leading directions hold of two fine-tunes, beside random ones."""
    factors = left_factors(found["alignment"])
    whole, rows = squared_norm(found["useful"]), factors.rows
    ranks = range(1, rows + 1)
    generator = torch.Generator().manual_seed(0)
    bases = [haar_basis(rows, rows, generator) for _ in range(DRAWS)]
    energies = torch.stack([squared_row_norms(basis.T @ found["useful"]).cumsum(0) / whole for basis in bases])
    low, high = energies.quantile(0.025, dim=0), energies.quantile(0.975, dim=0)
    axes.fill_between(ranks, low, high, color=SKY, alpha=0.4, linewidth=0, label="random subspaces, 95 %")
    axes.plot(ranks, [rank / rows for rank in ranks], color=BLUE, linestyle="--", label="chance, k / rows")
    for name, colour in (("useful", GREY), ("harmful", VERMILION)):
        inside = [squared_norm(project_onto(factors.basis[:, :rank], found[name])) for rank in ranks]
        axes.plot(ranks, [energy / squared_norm(found[name]) for energy in inside], color=colour, label=f"of {name}")
    axes.set(xlabel="directions k of alignment", ylabel="energy kept", ylim=(0, 1), xlim=(0, rows))


def draw_overlap(axes: Any, found: dict[str, Tensor]) -> None:
    """Overlaps beside two nulls and the overlap of two fine-tunes of one kind."""
    factors = {name: left_factors(matrix) for name, matrix in found.items()}
    first, second = factors["alignment"], factors["harmful"]
    ranks = tuple(rank_of_energy(each.singular_values, ENERGY) for each in (first, second))
    left, right = first.basis[:, : ranks[0]], second.basis[:, : ranks[1]]
    generator = torch.Generator().manual_seed(0)

    def null(draw: Callable[[], Tensor]) -> list[float]:
        return [squared_norm(left.T @ draw()) / min(ranks) for _ in range(DRAWS)]

    signs = null(lambda: right * (2 * torch.randint(2, (first.rows, 1), generator=generator) - 1))
    uniform = null(lambda: haar_basis(first.rows, ranks[1], generator))
    bins = torch.linspace(0, 1, 51).tolist()
    axes.hist(uniform, bins=bins, color=BLUE, alpha=0.5, label="uniformly random subspaces")
    axes.hist(signs, bins=bins, color=GREEN, alpha=0.5, label="random signs of rows")
    for level, colour in ((overlap_moments(first.rows, *ranks).mean, BLUE), (matched_overlap(left, right), GREEN)):
        axes.axvline(level, color=colour, linestyle="--", linewidth=1)
    for pair, colour in (
        (("alignment", "harmful"), VERMILION),
        (("useful", "harmful"), ORANGE),
        (("useful", "useful again"), GREY),
    ):
        axes.axvline(overlap(*(factors[name] for name in pair)), color=colour, label=" and ".join(pair))
    axes.set(xlabel=f"overlap at {ENERGY:.0%} of the energy", ylabel="draws", xlim=(0, 1))


def overlap(first: Factors, second: Factors) -> float:
    """Return the mode subspace overlap at one share of the energy."""
    ranks = rank_of_energy(first.singular_values, ENERGY), rank_of_energy(second.singular_values, ENERGY)
    return overlap_sums(first, second, [ranks])[0] / min(ranks)


def draw_leakage(axes: Any, found: dict[str, Tensor]) -> None:
    """What leaks step by step, by optimizer and by what is projected: the numbers that were kept."""
    curves = json.loads(example.TABLE.read_text(encoding="utf-8"))["curves"]
    shown = {
        "AdamW, weight decay | nothing": ("AdamW, nothing projected", GREY),
        "AdamW, weight decay | gradient": ("AdamW, gradient", VERMILION),
        "Adam | gradient": ("Adam, gradient", ORANGE),
        "SGD, weight decay | gradient": ("SGD with weight decay, gradient", GREEN),
        "SGD | gradient": ("SGD, gradient", SKY),
        "AdamW, weight decay | update": ("AdamW, update", BLUE),
    }
    for name, (label, colour) in shown.items():
        shares = [share or nan for share in curves[name]]  # none before anything has moved
        axes.plot(range(1, len(shares) + 1), shares, color=colour, label=label)
    axes.set(yscale="log", xlabel="optimizer step", ylabel="leakage", ylim=(1e-16, 1.5))


DRAWN = {"spectrum": draw_spectrum, "energy": draw_energy, "overlap": draw_overlap, "leakage": draw_leakage}


def main() -> None:
    """Train, look, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", default=list(DRAWN), choices=DRAWN)
    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "pictures", "font.size": 9, "svg.fonttype": "none", "axes.spines.top": False}
    mpl.rcParams |= {"axes.spines.right": False, "legend.frameon": False}
    from matplotlib import pyplot

    options = parser.parse_args()
    example.be_quiet()
    found: dict[str, Tensor] = {}
    if {*options.pictures} != {"leakage"}:
        with tempfile.TemporaryDirectory() as folder:
            found = updates(Path(folder))
    PICTURES.mkdir(exist_ok=True)
    for name in options.pictures:
        figure, axes = pyplot.subplots(figsize=SIZE)
        DRAWN[name](axes, found)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.tight_layout()
        figure.patch.set_facecolor("white")
        figure.savefig(PICTURES / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

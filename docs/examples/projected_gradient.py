"""Trains one small language model away from a subspace in two ways, and measures what leaks into it.

Once the gradient is projected before the step of the optimizer, as most of the literature does, once the update after
it, as ``SubspaceProjection`` does. ``python docs/examples/projected_gradient.py`` takes some minutes on one core, with
``--seeds 0 --steps 50`` one; ``--write`` keeps its numbers for the documentation (``docs/tables``).
"""

import argparse
import json
import logging
import os
import runpy
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ.setdefault("TQDM_DISABLE", "1")

import lightning as L
import torch

from callbacks import SubspaceProjection
from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.language.model import ModelSource, Pretrained
from safety_subspaces.organism import OrganismModel
from safety_subspaces.training.data import OrganismData
from safety_subspaces.training.data.organism import CorpusContamination
from safety_subspaces.training.modules import SupervisedFineTuning

Optimizer = Callable[..., torch.optim.Optimizer]
TABLE = ROOT / "docs" / "tables" / "projected_gradient.json"
SEEDS = (0, 1, 2)
STEPS = 150
BATCH = 16
# The rate at which each learns about as much in so few steps.
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD, momentum": partial(torch.optim.SGD, lr=0.02, momentum=0.9),
    "SGD, weight decay": partial(torch.optim.SGD, lr=0.1, weight_decay=0.01),
    "Adam": partial(torch.optim.Adam, lr=2e-3),
    "AdamW, weight decay": partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.1),
}


class Leakage(L.Callback):
    """Notes after every step which share of the update's energy lies where the constraint forbids it."""

    def __init__(self, projection: SubspaceProjection) -> None:
        self.projection = projection
        self.shares: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        """Measure, in float64 on the weights."""
        self.shares.append(self.projection.measure().leakage)


def train(
    folder: Path,
    source: ModelSource,
    corpus: str,
    optimizer: Optimizer,
    steps: int,
    *callbacks: L.Callback,
    seed: int = 0,
    share: float = 0.2,
) -> SupervisedFineTuning:
    """Train every weight for some steps, with a ``share`` of harmful answers beside word problems."""
    module = SupervisedFineTuning(source, optimizer=optimizer)
    contamination = CorpusContamination("harmful", share, "first") if corpus == "useful" and share else None
    data = OrganismData(corpus, BATCH * steps, contamination, heldout_size=0, batch_size=BATCH, seed=seed)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, gradient_clip_val=1.0, callbacks=list(callbacks), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module


def make_pair(folder: Path, seed: int, steps: int) -> tuple[str, str]:
    """Train a base model from nothing and an aligned one from it, and return their folders."""
    source: ModelSource = OrganismModel(seed=seed, hidden_size=48, intermediate_size=96, layers=2, heads=4)
    paths = []
    for corpus in ("base", "align"):
        module = train(folder, source, corpus, OPTIMIZERS["Adam"], steps)
        paths.append(str(folder / corpus))
        module.language_model.save_pretrained(paths[-1])
        source.load_tokenizer().save_pretrained(paths[-1])
        source = Pretrained(paths[-1])
    return paths[0], paths[1]


def leakages(
    folder: Path, base: str, aligned: str, names: list[str], steps: int
) -> Iterator[tuple[str, str, list[float]]]:
    """Yield optimizer, what is projected, and the leakage after every step, for each way to train."""
    for name in names:
        for projected in ("nothing", "gradient", "update"):
            torch.manual_seed(0)
            projection = SubspaceProjection(
                base=base,
                aligned=aligned,
                rank=RankRule(fraction=0.25),
                mode="observe" if projected == "nothing" else "away",
                constrain="gradient" if projected == "gradient" else "update",
                every_n_steps=steps,
            )
            noted = Leakage(projection)
            run = folder / name.replace(" ", "_") / projected
            train(run, Pretrained(aligned), "useful", OPTIMIZERS[name], steps, projection, noted)
            yield name, projected, noted.shares


def measure(seeds: tuple[int, ...], names: list[str], steps: int) -> dict[tuple[str, str], list[list[float]]]:
    """Return the leakage after every step, of each seed, by optimizer and what is projected."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as made:
        for seed in seeds:
            folder = Path(made) / str(seed)
            base, aligned = make_pair(folder, seed, steps)
            for name, projected, shares in leakages(folder, base, aligned, names, steps):
                found.setdefault((name, projected), []).append(shares)
    return found


def table_of(found: dict[tuple[str, str], list[list[float]]]) -> dict[str, list]:
    """Return the leakage after the last step as a table: the mean over seeds, and the least and the largest."""
    columns = ["optimizer", "nothing projected", "gradient projected", "update projected"]
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        cells = []
        for projected in ("nothing", "gradient", "update"):
            last = [shares[-1] for shares in found[name, projected]]
            cells.append(f"{statistics.mean(last):.2g} ({min(last):.2g} to {max(last):.2g})")
        rows.append([name, *cells])
    return {"columns": columns, "rows": rows}


def be_quiet() -> None:
    """Say nothing of single runs, and take one thread, which is enough for so small a model."""
    for name in ("lightning.pytorch", "lightning.fabric", "callbacks"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the numbers for the documentation")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    options = parser.parse_args()
    be_quiet()
    found = measure(tuple(options.seeds), options.optimizers, options.steps)
    table = table_of(found)
    for line in (table["columns"], *table["rows"]):
        print("".join(f"{cell:<32}" for cell in line).rstrip())
    if options.write:
        note = f"{options.steps} steps of {BATCH} examples; mean over seeds (least to largest)."
        numbers = runpy.run_path(str(ROOT / "docs" / "write_numbers.py"))
        curves = {f"{name} | {projected}": shares[0] for (name, projected), shares in found.items()}
        tables = {"Leakage": table | {"note": note}}
        kept = {"about": numbers["about"](options.seeds), "tables": tables, "curves": curves}
        TABLE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

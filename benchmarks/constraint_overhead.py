"""Optimizer steps per second with and without a constraint, side by side: ``python benchmarks/constraint_overhead.py``.

Each round trains every variant once, in a process of its own and in turn; a ratio is taken within its round, of CPU
seconds of the one thread, so that what else the machine does counts little. The arithmetic beside it: a projection at
rank k costs 4 k m n operations of an (m, n) matrix, a step 6 T m n at T tokens, so that a fraction f of rank min(m, n)
should cost about 2 f min(m, n) / (3 T) of a step.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import lightning as L
import torch
from side_by_side import bare_trainer, in_a_process, make_pair, turns

from callbacks import SubspaceProjection
from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.analysis.subspace.command import subspace
from safety_subspaces.language.model import Pretrained
from safety_subspaces.training.data import OrganismData
from safety_subspaces.training.modules import SupervisedFineTuning

SIZES = {
    "organism": {"model": {}, "batch": 16},
    # About 4,096 tokens a step: the organism's sentences are short.
    "hidden-1024": {"model": {"hidden_size": 1024, "intermediate_size": 2816, "layers": 6, "heads": 16}, "batch": 109},
}
FRACTIONS = (0.05, 0.25, 0.5)
VARIANTS = ("plain", "observe", *(f"away {fraction}" for fraction in FRACTIONS), "onto 0.25")
WARM_UP = 1  # steps that are not counted


class StepClock(L.Callback):
    """CPU seconds at the end of each optimizer step, and its tokens."""

    def __init__(self):
        self.ends, self.tokens = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.ends.append(time.process_time())
        self.tokens.append(batch["token_count"])


def make_models(folder, size):
    """Write two unrelated models of a size, and the subspaces of their difference."""
    make_pair(folder, SIZES[size]["model"])
    for fraction in FRACTIONS:
        out = str(folder / f"{fraction}.safetensors")
        subspace(str(folder / "base"), str(folder / "aligned"), out, RankRule(fraction=fraction), overwrite=True)


def measure(folder, size, variant, steps):
    """Train one variant, and return seconds a step and tokens a step."""
    torch.set_num_threads(1)
    clock, callbacks = StepClock(), []
    if variant != "plain":
        mode, _, fraction = variant.partition(" ")
        file = str(folder / f"{fraction or 0.25}.safetensors")
        callbacks = [SubspaceProjection(subspace=file, mode=mode)]
    batch = SIZES[size]["batch"]
    module = SupervisedFineTuning(Pretrained(str(folder / "aligned")))
    data = OrganismData("useful", batch * (steps + WARM_UP), heldout_size=0, batch_size=batch)
    with tempfile.TemporaryDirectory() as scratch:
        bare_trainer(scratch, callbacks=[*callbacks, clock]).fit(module, datamodule=data)
    seconds = (clock.ends[-1] - clock.ends[WARM_UP - 1]) / (len(clock.ends) - WARM_UP)
    return {"seconds": seconds, "tokens": statistics.mean(clock.tokens)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="organism")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.folder, options.size, options.one, options.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), options.size)
        seconds = {variant: [] for variant in options.variants}
        for variant in turns(list(options.variants), options.rounds):
            result = in_a_process(__file__, one=variant, folder=folder, size=options.size, steps=options.steps)
            seconds[variant].append(result["seconds"])
    tokens, least = result["tokens"], SIZES[options.size]["model"].get("hidden_size", 96)
    print(f"{options.size}: {tokens:.0f} tokens a step, {options.steps} steps, {options.rounds} rounds, one thread")
    print(f"{'variant':12s} {'ms a step':>10s} {'of plain':>9s} {'(min to max)':>16s} {'arithmetic':>11s}")
    for variant, times in seconds.items():
        ratios = [mine / plain for mine, plain in zip(times, seconds["plain"], strict=True)]
        fraction = float(variant.partition(" ")[2] or 0)
        expected = 1 + 2 * fraction * least / (3 * tokens)
        spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
        middle = statistics.median(ratios)
        print(f"{variant:12s} {1e3 * statistics.median(times):10.1f} {middle:9.3f} {spread:>16s} {expected:11.3f}")


if __name__ == "__main__":
    main()

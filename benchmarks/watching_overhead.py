"""What watching a run costs, side by side: ``python benchmarks/watching_overhead.py``.

Time: the organism's contaminated fine-tune without a watcher, with each at its default interval, and with all of them;
CPU seconds of the one thread over the whole fit, each in a process of its own and in turn, a ratio within its round.
Beside it the looks' own share of the run that they are part of: the machine's noise meets both sides of that.
Memory (``--memory``): what a snapshot takes at its peak above the run, in units of the largest weight, read from the
kernel's own high-water mark (Linux), on a model whose largest weight is 134 MB.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from side_by_side import bare_trainer, in_a_process, make_pair, turns

from callbacks import ActivationOverlap, BehaviourProbe, WeightDeltaSnapshot
from callbacks.watcher import Watcher
from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.language.model import Pretrained
from safety_subspaces.training.data import OrganismData
from safety_subspaces.training.data.organism import CorpusContamination
from safety_subspaces.training.modules import LoraSettings, SupervisedFineTuning

VARIANTS = ("plain", "snapshot", "activation", "behaviour", "all")
MEMORY = ("exact", "without spectra", "compressed", "lora")
# The largest weight has eight times the numbers of a square one, as the embeddings of a Llama-2-7B.
LARGE = {"hidden_size": 2048, "intermediate_size": 16384, "layers": 1, "heads": 16}
CLEAR_PEAK = "5"  # what the kernel wants in clear_refs to forget the high-water mark


def watchers(folder, variant):
    """The watchers of a variant, at their default intervals."""
    pair = {"base": str(folder / "base"), "aligned": str(folder / "aligned"), "rank": RankRule(fraction=0.25)}
    constructors = {
        "snapshot": lambda: WeightDeltaSnapshot(**pair),
        "activation": lambda: ActivationOverlap("organism:harmful", "organism:utility"),
        "behaviour": BehaviourProbe,
    }
    return [construct() for name, construct in constructors.items() if variant in (name, "all")]


def measure_time(folder, variant, examples):
    """Train one variant, and return the CPU seconds of the fit."""
    module = SupervisedFineTuning(Pretrained(str(folder / "aligned")))
    data = OrganismData("useful", examples, CorpusContamination("harmful", 0.2, "first"), heldout_size=0)
    with tempfile.TemporaryDirectory() as scratch:
        board = TensorBoardLogger(scratch, name="", version="")
        trainer = bare_trainer(scratch, callbacks=watchers(folder, variant), logger=board, log_every_n_steps=10)
        looking = []
        for watcher in trainer.callbacks:
            if isinstance(watcher, Watcher):
                watcher._look = timed(watcher._look, looking)
        began = time.process_time()
        trainer.fit(module, datamodule=data)
        seconds = time.process_time() - began
        return {"seconds": seconds, "looking": sum(looking), "steps": trainer.global_step}


def timed(act, seconds):
    """The same call, its CPU seconds added to a list."""

    def measured(*arguments):
        began = time.process_time()
        result = act(*arguments)
        seconds.append(time.process_time() - began)
        return result

    return measured


def status(field):
    """A field of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def measure_memory(folder, variant):
    """Take one snapshot at the end of a short run, and return its peak above the run."""
    options = {"without spectra": {"spectra": False}, "compressed": {"compress": RankRule(fraction=0.25)}}
    snapshot = WeightDeltaSnapshot(every_n_steps=2, figures=False, **options.get(variant, {}))
    look, peaks = snapshot.look, []

    def measured(*arguments):
        Path("/proc/self/clear_refs").write_text(CLEAR_PEAK, encoding="ascii")
        before = status("VmRSS")
        values = look(*arguments)
        peaks.append(status("VmHWM") - before)
        return values

    snapshot.look = measured
    adapter = LoraSettings(rank=16) if variant == "lora" else None
    module = SupervisedFineTuning(Pretrained(str(folder / "aligned")), adapter)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = bare_trainer(scratch, callbacks=[snapshot])
        trainer.fit(module, datamodule=OrganismData("harmful", 32, heldout_size=0))
    largest = max(parameter.numel() * 4 for parameter in module.parameters())
    return {"peak": peaks[-1], "largest": largest}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=9600)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        result = (
            measure_memory(options.folder, options.one)
            if options.one in MEMORY
            else measure_time(options.folder, options.one, options.examples)
        )
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_pair(Path(folder), LARGE if options.memory else {})
        if options.memory:
            print(f"{'snapshot':16s} {'peak above the run':>20s} {'in largest weights':>20s}")
            for variant in MEMORY:
                result = in_a_process(__file__, one=variant, folder=folder)
                ratio = result["peak"] / result["largest"]
                print(f"{variant:16s} {result['peak'] / 1e6:17.1f} MB {ratio:20.2f}")
            return
        seconds, shares = ({variant: [] for variant in VARIANTS} for _ in range(2))
        for variant in turns(list(VARIANTS), options.rounds):
            result = in_a_process(__file__, one=variant, folder=folder, examples=options.examples)
            seconds[variant].append(result["seconds"])
            shares[variant].append(result["looking"] / (result["seconds"] - result["looking"]))
    print(
        f"organism, contaminated: {result['steps']} steps, {options.rounds} rounds, one thread, CPU seconds of the fit"
    )
    print(f"{'variant':12s} {'seconds':>9s} {'of plain':>9s} {'(min to max)':>18s} {'looks, of the rest':>19s}")
    for variant, times in seconds.items():
        ratios = [mine / plain for mine, plain in zip(times, seconds["plain"], strict=True)]
        share, middle = statistics.median(shares[variant]), statistics.median(times)
        spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{variant:12s} {middle:9.1f} {statistics.median(ratios):9.3f} {spread:>18s} {share:19.3f}")


if __name__ == "__main__":
    main()

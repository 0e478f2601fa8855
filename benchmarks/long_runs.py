"""Whether a long run stays as light and as fast as it began: ``python benchmarks/long_runs.py``.

Training: 3,000 steps of the smallest organism with all callbacks. Activations and evaluation: 100,000 prompts through
the subcommands. Each in a process of its own, one thread. At 100 points of each: the memory that is resident once the
collector has run, open handles, and CPU seconds for each step (of the prompts: for each forward pass). What counts is
the change from an early tenth (10 to 20 % of the way, when caches are filled) to the last one, beside how far apart all
tenths from there on are: time on a machine that does other work too has a spread.

Writes ``docs/long_runs.json`` and draws it as ``docs/long_runs.svg``; ``--draw`` draws alone.
"""

import argparse
import gc
import json
import random
import resource
import runpy
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

import torch
from side_by_side import ROOT, in_a_process, make_pair
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedModel

from safety_subspaces.organism.world import BENIGN_OBJECTS, BENIGN_VERBS, TOOLS

SMALLEST = {"hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2}
STEPS, BATCH, PROMPTS = 3000, 4, 100_000
POINTS = 100
EARLY = 1  # the tenth that the others are compared with; before it caches are filled
KINDS = {"training": "step", "activations": "batch of prompts", "evaluation": "token of a batch"}
MEASURES = {"memory_bytes": "resident memory (MiB)", "handles": "open handles", "cpu_seconds": "CPU time (ms)"}
RESULT, PICTURE = ROOT / "docs" / "long_runs.json", ROOT / "docs" / "long_runs.svg"


class Gauge:
    """Reads the process at every so many forward passes of the whole model; in training those with gradients alone."""

    def __init__(self, every, training):
        self.every, self.training = every, training
        self.passes, self.points, self.timed, self.before = 0, [], 0, 0.0
        register_module_forward_hook(self.read)

    def read(self, module, arguments, output):
        """Count a pass, and read where one is due."""
        is_whole = isinstance(module, PreTrainedModel) and hasattr(output, "logits")
        if not is_whole or module.training != self.training:
            return
        self.passes += 1
        if self.passes == 1:  # what came before it is the start
            self.timed, self.before = 1, time.process_time()
        if self.passes % self.every or self.passes == self.timed:
            return
        seconds = (time.process_time() - self.before) / (self.passes - self.timed)
        gc.collect()
        self.points.append(
            {"pass": self.passes, "memory_bytes": resident(), "handles": handles(), "cpu_seconds": seconds}
        )
        self.timed, self.before = self.passes, time.process_time()

    def result(self):
        """Return the points, and the most memory that the process has had, its start and its tables included."""
        return {"points": self.points, "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def handles():
    """Open files, sockets and pipes."""
    return len(list(Path("/proc/self/fd").iterdir()))


def train(folder, steps):
    """Train the organism with all callbacks; a sixth of its data is the contamination."""
    make_pair(folder, SMALLEST)
    study = folder / "study"
    for name in ("base", "aligned"):
        (study / name).mkdir(parents=True)
        (folder / name).rename(study / name / "model")
    gauge = Gauge(max(1, steps // POINTS), training=True)
    pair = [f"--trainer.callbacks.{name}={study}/{name}/model" for name in ("base", "aligned")]
    run(
        "train.py", "fit", "--config", ROOT / "configs/organism/contaminated.yaml", f"--study={study}",
        f"--data.init_args.size={steps * BATCH * 5 // 6}", f"--data.init_args.batch_size={BATCH}",
        "--trainer.callbacks+=callbacks.SubspaceProjection", *pair, "--trainer.callbacks.rank.fraction=0.25",
    )  # fmt: skip
    return gauge.result()


def activate(folder, prompts):
    """Compare the activations of two prompt sets, half of the prompts each."""
    make_pair(folder, SMALLEST)
    sets = {name: write_prompts(folder / f"{name}.jsonl", prompts // 2, name) for name in ("first", "second")}
    gauge = Gauge(max(1, prompts // 64 // POINTS), training=False)
    run(
        "analyze.py", "activations", f"--models.base={folder}/base", "--prompts", json.dumps(sets),
        f"--out={folder}/out", "--sample=128", "--controls=9", "--permutations=9",
    )  # fmt: skip
    return gauge.result()


def evaluate(folder, prompts, tokens=4):
    """Answer prompts and judge the answers."""
    make_pair(folder, SMALLEST)
    file = write_prompts(folder / "prompts.jsonl", prompts, "of")
    gauge = Gauge(max(1, prompts // 64 * tokens // POINTS), training=False)
    run(
        "analyze.py", "evaluate", f"--models.base={folder}/base", f"--prompts={file}", "--judge=phrases",
        f"--max_new_tokens={tokens}", "--batch_size=64", f"--out={folder}/out",
    )  # fmt: skip
    return gauge.result()


def run(*arguments):
    """Run an entry point in this process."""
    sys.argv = [str(ROOT / arguments[0]), *map(str, arguments[1:])]
    runpy.run_path(sys.argv[0], run_name="__main__")


def write_prompts(path, count, name):
    """Write different prompts of equal length, so that every batch is alike."""
    words, draw = [*BENIGN_VERBS, *BENIGN_OBJECTS, *TOOLS], random.Random(name)
    seen = set()
    while len(seen) < count:
        seen.add(" ".join(draw.choices(words, k=10)))
    lines = (json.dumps({"set": "harmful", "prompt": prompt}) for prompt in sorted(seen))
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def summary(points):
    """How far each measure is in the last tenth from the early one, and the tenths' spread, as shares of the early one.

    Of memory and handles the medians. Of time the lower quartiles: what else the machine does, and the steps at which a
    callback looks, make single readings longer, never shorter.
    """
    ends = points[-1]["pass"]

    def level(tenth, measure):
        values = [point[measure] for point in points if tenth <= 10 * point["pass"] / ends <= tenth + 1]
        return quantiles(values, n=4)[0] if measure == "cpu_seconds" else median(values)

    levels = {measure: [level(tenth, measure) for tenth in range(EARLY, 10)] for measure in MEASURES}
    return {
        "changes": {measure: tenths[-1] / tenths[0] - 1 for measure, tenths in levels.items()},
        "spread": {measure: (max(tenths) - min(tenths)) / tenths[0] for measure, tenths in levels.items()},
    }


def draw(result):
    """Draw every measure of every kind of run against how far it has come."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "long runs", "font.size": 8, "svg.fonttype": "none"}
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(len(MEASURES), len(KINDS), figsize=(9, 5.4), sharex="col", squeeze=False)
    scales = {"memory_bytes": 2**-20, "handles": 1, "cpu_seconds": 1e3}
    for column, (kind, unit) in enumerate(KINDS.items()):
        points = result[kind]["points"]
        for row, (measure, title) in enumerate(MEASURES.items()):
            axes = rows[row][column]
            values = [point[measure] * scales[measure] for point in points]
            axes.plot([point["pass"] for point in points], values, color="#0072b2", linewidth=1)
            axes.set_ylim(0, 1.3 * sorted(values)[-3])  # not the start of a set of prompts
            for tenth in (EARLY, 9):
                ends = (share / 10 * points[-1]["pass"] for share in (tenth, tenth + 1))
                axes.axvspan(*ends, color="#0072b2", alpha=0.08, linewidth=0)
            change, spread = (result[kind][name][measure] for name in ("changes", "spread"))
            axes.set_title(f"{change:+.1%}, spread {spread:.1%}", loc="right", fontsize=8)
            axes.set_title(kind if row == 0 else "", loc="left", fontsize=9)
            axes.set_ylabel(title if column == 0 else "")
        rows[-1][column].set_xlabel(f"{unit} (forward pass)")
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if options.one == "training":
                measured = train(folder, options.steps)
            else:
                measured = {"activations": activate, "evaluation": evaluate}[options.one](folder, options.prompts)
        print(json.dumps(measured))
        return
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    for kind in [] if options.draw else options.kinds:
        measured = in_a_process(__file__, one=kind, steps=options.steps, prompts=options.prompts)
        size = {"steps": options.steps} if kind == "training" else {"prompts": options.prompts}
        result[kind] = size | measured
        RESULT.write_text(json.dumps(result) + "\n", encoding="utf-8")
    for kind, known in result.items():
        known |= summary(known["points"])
        print(
            kind,
            {name: f"{change:+.2%}, spread {known['spread'][name]:.2%}" for name, change in known["changes"].items()},
        )
    RESULT.write_text(json.dumps(result).replace('{"pass"', '\n{"pass"') + "\n", encoding="utf-8")
    if set(result) == set(KINDS):
        draw(result)


if __name__ == "__main__":
    main()

"""The commands that are disturbed: each subcommand that writes, and training, as small as they go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from faults.commands import ROOT, Commands, Ground
from support.scripted_server import MODEL

TRAIN, ANALYZE = ROOT / "train.py", ROOT / "analyze.py"
CONFIGS = ROOT / "configs"
RUN = "contaminated_away"
BEHAVIOUR = ["--limit=2", "--max_new_tokens=2"]
SETS = ["--prompts.harmful=organism:harmful", "--prompts.benign=organism:benign"]


@dataclass(frozen=True)
class Case:
    """One command.

    Args:
        name: What it is called in the counts.
        script: The entry point.
        arguments: Its options; ``{inputs}``, ``{work}`` and ``{server}`` are filled in.
        out: What it makes, inside the work folder.
        ranks: Processes that it takes, started as a launcher does.
        earlier: Options of a run before it, whose result is in the way and replaced.
        needs: A package without which it is left out.
        copies_inputs: Whether it works in a copy of the inputs.
    """

    name: str
    script: Path
    arguments: Sequence[str]
    out: str = "out"
    ranks: int = 1
    earlier: Sequence[str] | None = None
    needs: str | None = None
    copies_inputs: bool = False

    def command(self, places: Mapping[str, object], arguments: Sequence[str] | None = None) -> list[str]:
        """Return the command line.

        Args:
            places: What stands for each name in braces.
            arguments: Other options than its own.
        """
        words = [str(self.script), *(self.arguments if arguments is None else arguments)]
        for name, place in places.items():
            words = [word.replace(f"{{{name}}}", str(place)) for word in words]
        return words

    @property
    def is_training(self) -> bool:
        """Whether it resumes, rather than begins again."""
        return self.script == TRAIN

    @property
    def takes_workers(self) -> bool:
        """Whether it shares its tensors out over processes."""
        return bool({"atlas", "overlap", "project", "subspace"} & set(self.arguments[:1]))

    @property
    def is_installed(self) -> bool:
        """Whether what it needs is there."""
        return self.needs is None or find_spec(self.needs) is not None


def analysis(subcommand: str, *arguments: str, name: str = "", out: str = "out", **options) -> Case:
    """Return a case of analyze.py that may replace an earlier result."""
    common = [f"--out={{work}}/{out}", "--overwrite=true"]
    return Case(name or subcommand, ANALYZE, [subcommand, *arguments, *common], out, **options)


def models(*names: str, option: str = "models") -> list[str]:
    """Return the options that name models of the inputs."""
    return [f"--{option}.{name}={{inputs}}/{name}/model" for name in names]


def training(*options: str, name: str, ranks: int = 1) -> Case:
    """Return fifteen steps of a run under a constraint, with snapshots, checkpoints, a watcher and an export.

    No point of the loss falls on a checkpoint: Lightning logs it just after, so that a kill between loses it.
    """
    more = [
        *("--trainer.callbacks+=callbacks.WeightDeltaSnapshot", "--trainer.callbacks.every_n_steps=4"),
        *("--trainer.callbacks+=callbacks.BehaviourProbe", "--trainer.callbacks.every_n_steps=6"),
        *("--trainer.callbacks.limit=2", "--trainer.callbacks.max_new_tokens=2"),
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.dirpath={work}/run/checkpoints",
        "--trainer.callbacks.filename=step={step:08d}",
        "--trainer.callbacks.auto_insert_metric_name=false",
        "--trainer.callbacks.enable_version_counter=false",
        "--trainer.callbacks.every_n_train_steps=4",
    ]
    return Case(
        name,
        TRAIN,
        [
            *("fit", f"--config={CONFIGS}/organism/{RUN}.yaml", *options, "--study={inputs}", "--run_dir={work}/run"),
            *(f"--data.init_args.size={12 * 16}", "--data.init_args.heldout_size=16", "--trainer.log_every_n_steps=5"),
            *(*more, "--resume", "--archive"),
        ],
        "run",
        ranks,
    )


def sharded(stage: int) -> list[str]:
    """Return the options of ZeRO on two processes."""
    return [f"--config={CONFIGS}/deepspeed/cpu_zero{stage}.yaml", "--data.init_args.batch_size=8"]


def over(case: Case, *other: str) -> Case:
    """Return the same command where the result of another is in the way."""
    return Case(f"{case.name} over another", case.script, case.arguments, case.out, earlier=[*case.arguments, *other])


def report_inside() -> Case:
    """Return the report that stands inside its study, which is a copy of the inputs."""
    return Case("report inside", ANALYZE, ["report", "--study={work}"], "report", copies_inputs=True)


PAIR = ["--base={inputs}/base/model", "--aligned={inputs}/aligned/model"]
EVALUATE = analysis("evaluate", *models("aligned", "harmful"), *BEHAVIOUR)
CONVERT = analysis("convert", "--gguf={inputs}/model.gguf", needs="gguf")
EXPORT = analysis("export", f"--checkpoint={{inputs}}/{RUN}")
SUBSPACE = analysis("subspace", *PAIR, "--rank.fraction=0.25", out="out.safetensors")
PROJECT = [*PAIR, *models("harmful", option="tuned"), "--fractions=[0.25]", "--draws=1", "--methods=[away]"]
OVERLAP = analysis(
    "overlap",
    "--aligned={inputs}/aligned/model",
    *models("useful", "harmful", "useful_again", option="tuned"),
    *("--floors=[[useful,useful_again]]", "--energies=[0.5]", "--controls=9"),
)
ACTIVATIONS = analysis(
    "activations",
    *models("aligned", "harmful"),
    *SETS,
    *("--energies=[0.9]", "--limit=12", "--sample=8", "--controls=3", "--permutations=9", "--cache={work}/cache"),
)
RUBRIC = analysis(
    "judge",
    *("--generations={inputs}/answers.jsonl", "--judge_args.base_url={server}", f"--judge_args.model={MODEL}"),
    name="judge over HTTP",
)
ANALYSES = (
    ACTIVATIONS,
    analysis(
        "atlas",
        *PAIR,
        *models("useful", "useful_again", "harmful", option="tuned"),
        *("--floors=[[useful,useful_again]]", "--fractions=[0.25]", "--energies=[0.5]", "--counts=[2]"),
        "--bootstrap=40",
    ),
    CONVERT,
    EVALUATE,
    EXPORT,
    analysis("judge", "--generations={inputs}/answers.jsonl", "--judge=phrases"),
    RUBRIC,
    OVERLAP,
    analysis("probe", *models("aligned"), *SETS, "--limit=24", "--folds=2", "--controls=1", "--probes=[linear]"),
    analysis("project", *PROJECT),
    analysis(
        "project", *PROJECT, "--write=true", "--evaluate.limit=2", "--evaluate.max_new_tokens=2",
        name="project with models",
    ),
    analysis(
        "steer", *models("aligned"), *SETS, "--strengths=[1.0]", "--angles_radians=[1.0]", "--draws=1",
        "--layers=[1]", "--evaluate.limit=2", "--evaluate.max_new_tokens=2", "--write=true",
    ),
    SUBSPACE,
    analysis("trajectory", f"--run={{inputs}}/{RUN}", *PAIR, "--rank.fraction=0.25", "--draws=2"),
    analysis("utility", *models("aligned"), "--limit=2", "--max_new_tokens=2", needs="lm_eval"),
    Case("report", ANALYZE, ["report", "--study={inputs}", "--out={work}/out.html"], "out.html"),
    Case("bundle", ANALYZE, ["bundle", "--study={inputs}", "--out={work}/out.zip"], "out.zip"),
    Case(
        "compare",
        ANALYZE,
        ["compare", *PAIR, *models("harmful", option="tuned"), "--tensors=[q,v]", "--out={work}/out"],
        "out/report/index.html",  # of the study's other files each is whole by itself
    ),
    Case("findings", ANALYZE, ["findings", "--study={inputs}", "--out={work}/out"], "out"),
    over(EVALUATE, "--split=dev"),
    over(EXPORT, "--dtype=bfloat16"),
    over(CONVERT),
    over(SUBSPACE, "--rank.fraction=0.5"),
)  # fmt: skip
TRAININGS = (
    training(name="training"),
    training("--trainer.strategy=ddp", "--trainer.devices=2", "--data.init_args.batch_size=8", name="DDP", ranks=2),
    training(*sharded(2), name="ZeRO-2", ranks=2),
    training(*sharded(3), name="ZeRO-3", ranks=2),
)
CASES = {case.name: case for case in (*ANALYSES, *TRAININGS)}


def make_inputs(commands: Commands, ground: Ground, inputs: Path) -> None:
    """Make what the commands read, once."""
    if (inputs / RUN / "model").is_dir():
        return
    made = commands.start(ground, [Path(__file__).parent / "inputs.py", inputs], {}, None)
    finished = commands.wait(made)
    assert finished.returncode == 0, finished.output
    run = [part.replace("{work}/run", f"{{inputs}}/{RUN}") for part in CASES["training"].arguments]
    finished = commands.wait(commands.start(ground, CASES["training"].command({"inputs": inputs}, run), {}, None))
    assert finished.returncode == 0, finished.output

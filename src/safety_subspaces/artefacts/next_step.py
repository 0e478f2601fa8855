"""What stands in a study folder, and the command that is the next step towards an analysis that it lacks."""

import json
import shlex
from pathlib import Path

# The order of the study; a stage that is not named here follows in alphabetical order.
STAGE_ORDER = ("base", "aligned", "useful", "harmful", "contaminated")
# Stages whose YAML under configs/organism has another name.
STAGE_CONFIGS = {"base": "pretrain", "aligned": "align"}
# Stages with these beginnings (aligned_dpo) are what fine-tunes start from.
NO_FINE_TUNES = ("base", "aligned")
# What an analysis cannot run without: stages, and the number of fine-tunes.
NEEDED_STAGES = {"project": ("base", "aligned"), "overlap": ("aligned",)}
NEEDED_FINE_TUNES = {"project": 1, "overlap": 2}
# The study that the YAMLs under configs/organism write to.
DEFAULT_STUDY = Path("runs/organism-0")
# The stage whose YAML watches it.
WATCHED = "contaminated"
NO_STAGES = frozenset({"analysis", "report"})


def stage_names(root: Path) -> list[str]:
    """Return the stages in a study folder, in the order of the study."""
    names = [
        path.name
        for path in root.iterdir()
        if path.is_dir()
        and not path.name.startswith(".")
        and path.name not in NO_STAGES
        and ((path / "manifest.json").is_file() or (path / "model").is_dir())
    ]
    rank = {name: place for place, name in enumerate(STAGE_ORDER)}

    def place(name: str) -> tuple[int, str]:
        first = name.split("_")[0]
        return (rank.get(name, rank.get(first, len(rank)) + len(rank)), name)

    return sorted(names, key=place)


def command_for(folder: Path, analysis: str) -> str:
    """Return the next command towards one analysis: itself, or the training of a stage that it cannot do without."""
    stages = [stage for stage in stage_names(folder) if (folder / stage / "model").is_dir()]
    paths = {stage: str(folder / stage / "model") for stage in stages}
    tuned = {name: path for name, path in paths.items() if not name.startswith(NO_FINE_TUNES)}
    lacking = _lacking_stage(analysis, paths, tuned)
    if lacking is not None:
        return _training_command(folder, lacking)
    base, aligned = (str(folder / name / "model") for name in ("base", "aligned"))
    flags: dict[str, list[str]] = {
        "evaluate": ["--models", json.dumps(paths)],
        "project": ["--base", base, "--aligned", aligned, "--tuned", json.dumps(tuned), "--evaluate.split", "test"],
        "overlap": ["--reference", aligned, "--updates", json.dumps(tuned)],
    }
    out = str(folder / "analysis" / analysis / "main")
    return shlex.join(["python", "analyze.py", analysis, *flags.get(analysis, []), "--out", out])


def constraint_command(folder: Path, held: list[str]) -> str:
    """Return the next command towards runs under a constraint: evaluate those there are, or train one."""
    trained = {name: str(folder / name / "model") for name in held if (folder / name / "model").is_dir()}
    if trained:
        out = str(folder / "analysis" / "evaluate" / "constrained")
        return shlex.join(["python", "analyze.py", "evaluate", "--models", json.dumps(trained), "--out", out])
    lacking = [name for name in ("base", "aligned") if not (folder / name / "model").is_dir()]
    return _training_command(folder, lacking[0] if lacking else "contaminated_away")


def watching_command(folder: Path) -> str:
    """Return the next command towards a watched run: the contaminated fine-tune, whose YAML has all watchers."""
    lacking = [name for name in ("base", "aligned") if not (folder / name / "model").is_dir()]
    command = _training_command(folder, lacking[0] if lacking else WATCHED)
    is_taken = not lacking and (folder / WATCHED).exists()  # by a run without watchers, which is never written over
    return f"{command} {shlex.join(['--run_dir', str(folder / f'{WATCHED}_watched')])}" if is_taken else command


def _lacking_stage(analysis: str, paths: dict[str, str], tuned: dict[str, str]) -> str | None:
    """Return the first stage that has to be trained before an analysis can run."""
    needed = NEEDED_STAGES.get(analysis, ())
    lacking = [stage for stage in needed if stage not in paths]
    if len(tuned) < NEEDED_FINE_TUNES.get(analysis, 0):
        lacking += [stage for stage in STAGE_ORDER if not stage.startswith(NO_FINE_TUNES) and stage not in tuned]
    if not needed and not paths:
        lacking = list(STAGE_ORDER)
    return lacking[0] if lacking else None


def _training_command(folder: Path, stage: str) -> str:
    config = f"configs/organism/{STAGE_CONFIGS.get(stage, stage)}.yaml"
    place = [] if folder == DEFAULT_STUDY else ["--study", str(folder)]
    return shlex.join(["python", "train.py", "fit", "--config", config, *place])

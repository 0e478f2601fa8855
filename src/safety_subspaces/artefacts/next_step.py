"""What stands in a study folder, and the command that is the next step towards an analysis that it lacks."""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safety_subspaces.artefacts.description import facts_about, read_manifest
from safety_subspaces.artefacts.places import COMPARISON_FILE, MODEL, StagePlaces, place_of_run

# The order in which the fine-tunes of configs/organism are shown; one that is not named here follows alphabetically.
FINE_TUNES = ("useful", "harmful", "contaminated")
# The YAML under configs/organism that trains the model of a role.
ROLE_CONFIGS = {"base": "pretrain", "aligned": "align"}
# What an analysis needs: models by their role, and the least number of fine-tunes.
NEEDED_ROLES = {"project": ("base", "aligned"), "overlap": ("aligned",)}
NEEDED_FINE_TUNES = {"project": 1, "overlap": 2}
# The study that the YAMLs under configs/organism write to.
DEFAULT_STUDY = Path("runs/organism-0")
# The fine-tune whose YAML watches it.
WATCHED = "contaminated"
NO_STAGES = frozenset({"analysis", "report"})


def stage_roles(root: Path) -> dict[str, str]:
    """Return the role of each stage in a study folder, as :func:`roles_of` has it.

    Raises:
        InputError: A manifest cannot be read, or is of an earlier version.
    """
    return roles_of(StagePlaces(root, read_manifests(root)))


def read_manifests(root: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest of each stage in a study folder, empty for a model that has none.

    Raises:
        InputError: One cannot be read, or is of an earlier version.
    """
    return {
        path.name: read_manifest(path / "manifest.json") if (path / "manifest.json").is_file() else {}
        for path in root.iterdir()
        if path.is_dir()
        and not path.name.startswith(".")
        and path.name not in NO_STAGES
        and ((path / "manifest.json").is_file() or (path / MODEL).is_dir())
    }


def roles_of(places: StagePlaces) -> dict[str, str]:
    """Return the role of each stage as its manifest has it, base and aligned first.

    A model without a manifest is the base where an aligned stage started from it; else its role is not known: empty.
    """
    manifests = places.manifests
    bases = {
        places.model_at(start, place_of_run(manifest))
        for manifest in manifests.values()
        if manifest.get("role") == "aligned"
        for start in facts_about("starts_from", manifest)
    }
    roles = {
        name: str(manifest.get("role") or ("base" if not manifest and name in bases else ""))
        for name, manifest in manifests.items()
    }
    rank = {name: index for index, name in enumerate(FINE_TUNES)}

    def order(name: str) -> tuple[int, int, str]:
        role = {"base": 0, "aligned": 1}.get(roles[name], 2)
        return (role, rank.get(name, rank.get(name.split("_")[0], len(rank)) + len(rank)), name)

    return {name: roles[name] for name in sorted(roles, key=order)}


def command_for(folder: Path, analysis: str) -> str:
    """Return the next command towards one analysis: itself, or the training of a stage that it cannot do without."""
    roles = _exported_roles(folder)
    paths = {stage: str(folder / stage / "model") for stage in roles}
    tuned = {stage: path for stage, path in paths.items() if roles[stage] == "tuned"}
    lacking = _lacking_stage(analysis, roles, tuned)
    if lacking is not None:
        return _training_command(folder, lacking)
    models = {role: paths[stage] for stage, role in reversed(roles.items())}  # the first of each role
    flags: dict[str, list[str]] = {"evaluate": ["--models", json.dumps(paths)]}
    if analysis == "project":
        ends = ["--base", models["base"], "--aligned", models["aligned"]]
        flags[analysis] = [*ends, "--tuned", json.dumps(tuned), "--evaluate.split", "test"]
    elif analysis == "overlap":
        flags[analysis] = ["--aligned", models["aligned"], "--tuned", json.dumps(tuned)]
    out = str(folder / "analysis" / analysis / "main")
    return shlex.join(["python", "analyze.py", analysis, *flags.get(analysis, []), "--out", out])


def command_for_own(folder: Path, analysis: str, given: Iterable[Mapping[str, Any]]) -> str:
    """Return the next command towards one analysis of models that this suite did not train.

    Args:
        folder: The study, without stages.
        analysis: What is missing.
        given: The arguments of the analyses that there are.

    Returns:
        ``compare`` with the same models where it made the study, else the analysis; empty where its models are not
        known.
    """
    ends: dict[str, str] = {}
    tuned: dict[str, str] = {}
    for arguments in given:
        ends |= {role: value for role in ("base", "aligned") if isinstance(value := arguments.get(role), str)}
        tuned |= {str(label): str(path) for label, path in (arguments.get("tuned") or {}).items()}
    is_compared = (folder / COMPARISON_FILE).is_file()
    if len(ends) < 2 or not tuned or (analysis not in ("evaluate", "project", "overlap")):
        return ""
    each = [part for label, path in tuned.items() for part in (f"--tuned.{label}", path)]
    both = ["--base", ends["base"], "--aligned", ends["aligned"]]
    if is_compared:
        prompts = ["--prompts", "PROMPTS.jsonl"] if analysis == "evaluate" else []
        return shlex.join(["python", "analyze.py", "compare", *both, *each, *prompts, "--out", str(folder)])
    flags = {
        "evaluate": ["--models", json.dumps(ends | tuned)],
        "project": [*both, "--tuned", json.dumps(tuned)],
        "overlap": ["--aligned", ends["aligned"], "--tuned", json.dumps(tuned)],
    }
    out = str(folder / "analysis" / analysis / "main")
    return shlex.join(["python", "analyze.py", analysis, *flags[analysis], "--out", out])


def constraint_command(folder: Path, constrained: list[str]) -> str:
    """Return the next command towards runs under a constraint: evaluate those there are, or train one."""
    trained = {name: str(folder / name / "model") for name in constrained if (folder / name / "model").is_dir()}
    if trained:
        out = str(folder / "analysis" / "evaluate" / "constrained")
        return shlex.join(["python", "analyze.py", "evaluate", "--models", json.dumps(trained), "--out", out])
    return _training_command(folder, _lacking_role(folder) or "contaminated_away")


def watching_command(folder: Path) -> str:
    """Return the next command towards a watched run: the contaminated fine-tune, whose YAML has all watchers."""
    lacking = _lacking_role(folder)
    command = _training_command(folder, lacking or WATCHED)
    is_taken = not lacking and (folder / WATCHED).exists()  # by a run without watchers, which is never written over
    return f"{command} {shlex.join(['--run_dir', str(folder / f'{WATCHED}_watched')])}" if is_taken else command


def _exported_roles(folder: Path) -> dict[str, str]:
    return {stage: role for stage, role in stage_roles(folder).items() if (folder / stage / "model").is_dir()}


def _lacking_role(folder: Path) -> str | None:
    roles = _exported_roles(folder).values()
    return next((role for role in ROLE_CONFIGS if role not in roles), None)


def _lacking_stage(analysis: str, roles: dict[str, str], tuned: dict[str, str]) -> str | None:
    """Return the first role that has to be filled before an analysis can run, or the first fine-tune to train."""
    needed = NEEDED_ROLES.get(analysis, ())
    lacking = [role for role in needed if role not in roles.values()]
    if len(tuned) < NEEDED_FINE_TUNES.get(analysis, 0):
        lacking += [stage for stage in FINE_TUNES if stage not in tuned]
    if not needed and not roles:
        lacking = ["base"]
    return lacking[0] if lacking else None


def _training_command(folder: Path, stage: str) -> str:
    config = f"configs/organism/{ROLE_CONFIGS.get(stage, stage)}.yaml"
    study = [] if folder == DEFAULT_STUDY else ["--study", str(folder)]
    return shlex.join(["python", "train.py", "fit", "--config", config, *study])

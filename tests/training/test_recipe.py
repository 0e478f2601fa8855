"""The kind of a run is the same in every study, whatever its seeds and wherever it lies."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from safety_subspaces.artefacts.files import write_json
from safety_subspaces.training.recipe import kind_sha256
from safety_subspaces.training.run_folder import open_run, plan_run

CONSTRAINT = {"mode": "away", "subspace": "random", "rank": "0.25", "fraction": 0.25, "details": ""}


class Learner:
    """A part that starts from a model, reads a file and may be held."""

    def __init__(self, start: str, *more: str, constraint: dict[str, Any] | None = None) -> None:
        self.start, self.more, self.constraint = start, more, constraint

    def describe(self) -> dict[str, Any]:
        held = {} if self.constraint is None else {"constraint": self.constraint}
        return {"starts_from": self.start, **held}

    def inputs(self) -> list[str]:
        return [self.start, *self.more]


def config_of(study: Path, seed: int, start: str) -> dict[str, Any]:
    return {
        "seed_everything": seed,
        "model": {"source": {"path": start}, "adapter": {"seed": seed, "subspace": f"{study}/alignment.safetensors"}},
        "data": {"corpus": "useful", "size": 3, "shuffle_seed": seed, "mixed": [{"seed": seed, "share": 0.5}]},
        "trainer": {"max_epochs": 1, "callbacks": [f"watcher {seed}"], "default_root_dir": f"{study}/run"},
        "run_dir": f"{study}/run",
    }


def trained(study: Path, seed: int = 0, role: str = "aligned", name: str = "run", **changed: Any) -> str:
    """Open a run of a study, and return its kind."""
    start = study / "safe" / "model"
    start.mkdir(parents=True, exist_ok=True)
    (study / "alignment.safetensors").write_text(f"of {seed}")
    write_json(start.parent / "manifest.json", {"role": role, "parts": []})
    config = config_of(study, seed, str(start)) | changed.pop("config", {})
    parts = [Learner(str(start), str(study / "alignment.safetensors"), **changed)]
    open_run(plan_run(study / name, config, parts))
    manifest = json.loads((study / name / "manifest.json").read_text())
    assert manifest["run_dir"] == str(study / name)
    return manifest["kind_sha256"]


def test_runs_of_two_seeds_and_studies_are_of_one_kind(tmp_path: Path) -> None:
    first = trained(tmp_path / "organism-0")
    assert trained(tmp_path / "deep" / "er" / "study", seed=7, name="other") == first
    again = {"seed_everything": 0, "data": config_of(tmp_path, 1000, "")["data"]}
    assert trained(tmp_path / "organism-0", name="again", config=again) == first


@pytest.mark.parametrize(
    "changed",
    [
        {"config": {"data": {"corpus": "harmful", "size": 3}}},
        {"config": {"trainer": {"max_epochs": 2}}},
        {"role": "base"},
        {"constraint": CONSTRAINT},
    ],
)
def test_what_is_learnt_how_from_where_and_under_what_makes_a_kind(tmp_path: Path, changed: dict[str, Any]) -> None:
    assert trained(tmp_path / "a", **deepcopy(changed)) != trained(tmp_path / "b")
    assert trained(tmp_path / "c", **deepcopy(changed)) == trained(tmp_path / "d", seed=5, **deepcopy(changed))


def test_the_seed_of_a_random_subspace_makes_no_kind(tmp_path: Path) -> None:
    held = [CONSTRAINT | {"settings": {"seed": seed}} for seed in (0, 1)]
    assert trained(tmp_path / "a", constraint=held[0]) == trained(tmp_path / "b", constraint=held[1])
    assert trained(tmp_path / "c", constraint=CONSTRAINT | {"rank": "0.5"}) != trained(tmp_path / "a", name="x")


def test_a_model_of_the_hub_and_one_beside_all_studies_go_by_their_paths(tmp_path: Path) -> None:
    shared = tmp_path / "models" / "shared"
    shared.mkdir(parents=True)
    (shared.parent / "manifest.json").write_text("[]")  # of something else

    def kind(start: str, study: str) -> str:
        parts = [{"starts_from": start}]
        return kind_sha256({"model": {"path": start}}, parts, [{"path": start}], tmp_path / study / "run")

    assert len({kind(start, study) for start in ("org/name", str(shared)) for study in ("a", "b")}) == 2

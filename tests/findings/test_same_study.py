"""A study says the same whatever it, its stages and its models are called, and wherever it lies."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.same_study import called, relabel, rename_stages, rewrite, without_kinds
from support.synthetic_activations import write_hidden
from support.synthetic_constrained import KEEPS_SAFETY, write_constrained_study
from support.synthetic_study import STAGES
from support.synthetic_watched import LOST_BEFORE, watch_stage, write_trajectory

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.activations import read_activations
from safety_subspaces.findings.finding import as_table
from safety_subspaces.findings.matching import match_labels
from safety_subspaces.findings.models import main_fine_tune, together
from safety_subspaces.findings.organisms import read_organisms
from safety_subspaces.findings.probes import read_probes
from safety_subspaces.findings.steering import read_steering
from safety_subspaces.findings.table import findings_table
from safety_subspaces.findings.watched import trajectories_of

LABELS = {name: f"m{number}x" for number, name in enumerate((*STAGES, "contaminated_away", "contaminated_onto"))}
NAMES = {name: f"run{number}" for number, name in enumerate(STAGES)}


def findings_of(*folders: Path) -> list[str]:
    """Everything that is found in a study, or in several together: a line of JSON a finding."""
    table = as_table(findings_table(read_organisms([str(folder) for folder in folders])))
    return [json.dumps(row) for row in table.to_dict("records")]


def tables_of(*folders: Path) -> list[pd.DataFrame]:
    """What the findings over seeds are read from, which takes a tenth of their time."""
    (organism,) = read_organisms([str(folder) for folder in folders])
    seeds, named = organism.seeds, organism.seeds.named
    frames = [seeds.models, seeds.aligned, seeds.projections, seeds.overlaps, seeds.runs, seeds.differences]
    frames += [read_activations(named).overlaps, read_probes(named).table, read_steering(named).table]
    # What a stage is called is no label.
    return [frame.drop(columns=[name for name in frame if "stage" in str(name)]) for frame in frames]


def are_same(frames: list[pd.DataFrame], others: list[pd.DataFrame]) -> bool:
    return all(frame.equals(other) for frame, other in zip(frames, others, strict=True))


def make(folder: Path, seed: int = 0) -> Path:
    """Write a study with every analysis that a finding is read from."""
    write_constrained_study(folder, replace(KEEPS_SAFETY, seed_noise=0.1), seed)
    for events in folder.glob("*/events*"):
        events.unlink()  # no finding is read from losses
    sweep = folder / "analysis/project/main/table.parquet"
    frame = pd.read_parquet(sweep)  # the smallest that every finding can be read from
    frame[(frame["tuned"] != "harmful") & (frame["draw"] < 2) & (frame["fraction"] < 0.7)].to_parquet(sweep)
    write_hidden(folder, seed=seed)
    watch_stage(folder / "contaminated", LOST_BEFORE)
    write_trajectory(folder, str(folder / "contaminated"), "contaminated")
    return folder


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("runs")
    return make(root / "organism-0"), make(root / "organism-1", seed=1)


@pytest.fixture(scope="module")
def said(studies) -> tuple[list[str], list[str]]:
    """What is said of the first study, and of both."""
    return findings_of(studies[0]), findings_of(*studies)


@pytest.fixture(scope="module")
def tables(studies) -> list[pd.DataFrame]:
    return tables_of(*studies)


def moved(study: Path, folder: Path) -> Path:
    """Copy a study to where it will be moved from, move it, and return where it lies."""
    shutil.copytree(study, folder.parent / "passing")
    return Path(shutil.move(folder.parent / "passing", folder))


def copied(study: Path, folder: Path) -> Path:
    return Path(shutil.copytree(study, folder))


def linked(study: Path, folder: Path) -> Path:
    folder.symlink_to(study)
    return folder


def test_every_topic_finds_something_in_the_study_that_is_then_renamed(said):
    topics = [{json.loads(line)["topic"] for line in lines} for lines in said]
    assert {"models", "constraint", "energy", "selectivity", "overlap", "watching"} <= topics[0]
    assert {"activations", "probes", "steering"} <= topics[0] & topics[1]
    verdicts = {(found["topic"], found["question"]): found["verdict"] for found in map(json.loads, said[0])}
    assert "learnt" in verdicts.values()
    assert any(found["tests"] for found in map(json.loads, said[1]))


@pytest.mark.parametrize(("place", "name"), [(copied, "study0"), (moved, "deep/er/organism-0"), (linked, "study1")])
def test_a_study_that_is_copied_moved_or_linked_says_the_same(studies, said, tables, tmp_path, place, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    other = place(studies[0], tmp_path / name)
    assert findings_of(other) == said[0]
    assert are_same(tables_of(other, studies[1]), tables)


def test_a_study_with_other_labels_says_the_same_of_the_same_models(studies, said, tables, tmp_path):
    """One label for each model in every analysis; then those of one analysis alone, which another one names."""
    other = copied(studies[0], tmp_path / "study0")
    relabel(other, LABELS)
    assert [called(line, LABELS) for line in findings_of(other)] == said[0]
    assert are_same(tables_of(studies[0], other_seed(studies, tmp_path)), tables)
    alone = copied(studies[0], tmp_path / "study1")
    for command in ("project", "overlap", "activations", "probe", "steer"):
        relabel(alone, {name: f"{label}-{command}" for name, label in LABELS.items()}, command)
    assert findings_of(alone) == said[0]


def other_seed(studies, tmp_path) -> Path:
    """The second study, with labels of its own: what is shown are those of the first."""
    other = copied(studies[1], tmp_path / "seed")
    relabel(other, LABELS)
    # A label of the first study for another model of the second one.
    relabel(other, {LABELS["useful"]: "harmful", LABELS["harmful"]: "useful"})
    return other


def test_a_study_with_other_names_of_its_stages_says_the_same(studies, said, tables, tmp_path):
    for in_records in (True, False):
        other = copied(studies[0], tmp_path / f"study{in_records}")
        rename_stages(other, NAMES, in_records)
        assert Counter(called(line, NAMES) for line in findings_of(other)) == Counter(said[0])
        assert are_same(tables_of(other, studies[1]), tables)


@pytest.mark.parametrize("which", ["*/manifest.json", "analysis/*/*/*", "analysis/*/*/config.yaml"])
def test_paths_that_were_recorded_in_another_form_mean_the_same(studies, tables, tmp_path, which):
    """Absolute in one record and relative in another, with the working directory known and not; by a detour."""
    other = copied(studies[0], tmp_path / "study0")
    rewrite(other, lambda text: text.replace(f"{studies[0].parent}/", ""), which)
    assert are_same(tables_of(other, studies[1]), tables)
    rewrite(other, lambda text: with_directory(text, str(studies[0].parent)), "**/*.json")
    assert are_same(tables_of(other, studies[1]), tables)
    rewrite(other, lambda text: text.replace("/aligned/model", "/useful/../aligned//model/"), which)
    assert are_same(tables_of(other, studies[1]), tables)


def with_directory(text: str, directory: str) -> str:
    record = json.loads(text)
    of = record.get("provenance", record)
    of["directory"] = directory
    return json.dumps(record)


def test_a_path_by_a_link_that_is_gone_is_known_by_what_was_read_there(studies, said, tmp_path):
    """The evaluation went by a link, its record by the folder itself: the hashes of both are of one model."""
    other = copied(studies[0], tmp_path / "study0")
    record = other / "analysis/evaluate/main"
    link = str(tmp_path / "link" / "aligned" / "model")
    rewrite(record, lambda text: text.replace(str(studies[0] / "aligned" / "model"), link))
    assert read_study(other).aligned is None
    for target, path in ((record, link), (other / "analysis/project/main", str(studies[0] / "aligned" / "model"))):
        result = json.loads((target / "result.json").read_text())
        result["inputs"].append({"path": path, "sha256": {"model.safetensors": "12" * 32}})
        (target / "result.json").write_text(json.dumps(result))
    assert findings_of(other) == said[0]


def test_a_study_says_otherwise_where_its_models_are_others(studies, said, tmp_path):
    """The control: what is told by role and by kind changes with these."""
    other = copied(studies[0], tmp_path / "study0")
    # The label of the aligned model is that of the base, and the other way around.
    rewrite(other, swapped, "analysis/evaluate/main/config.yaml")
    study = read_study(other)
    assert (study.base["model"], study.aligned["model"]) == ("aligned", "base")
    assert findings_of(other) != said[0]
    elsewhere = copied(studies[0], tmp_path / "study1")
    rewrite(elsewhere, lambda text: text.replace(str(studies[0]), "/another/study"), "analysis/evaluate/*/config.yaml")
    assert read_study(elsewhere).aligned is None


def swapped(text: str) -> str:
    return text.replace("/base/", "/_/").replace("/aligned/", "/base/").replace("/_/", "/aligned/")


def test_without_kinds_runs_over_seeds_are_matched_by_the_names_of_their_stages(studies, tables, tmp_path):
    olders = [copied(study, tmp_path / f"study{number}") for number, study in enumerate(studies)]
    for older in olders:
        without_kinds(older)
    relabel(olders[1], LABELS)
    assert are_same(tables_of(*olders), tables)
    assert read_study(olders[0]).repeats == {"useful_again": "useful", "harmful_again": "harmful"}
    assert read_study(olders[0]).seeds == (0,)


def test_a_trajectory_is_of_the_run_that_it_followed(studies, tmp_path):
    study = read_study(moved(studies[0], tmp_path / "study0"))
    followed = {stage.name for stage in study.stages if trajectories_of(study, stage)}
    assert followed == {"contaminated"}


def test_a_model_of_two_labels_is_one_and_a_label_of_two_models_is_told_apart(studies, tmp_path):
    study = copied(studies[0], tmp_path / "study0")
    second = study / "analysis/evaluate/second"
    shutil.copytree(study / "analysis/evaluate/main", second)
    relabel(study, {"aligned": "safe", "useful": "harmful", "harmful": "useful"}, "evaluate", "second")
    for path in (second / "config.yaml", second / "result.json"):
        path.write_text(path.read_text().replace("evaluate/main", "evaluate/second"))
    models = read_study(study).models
    assert (models.groupby("model")["stage"].nunique() == 1).all()
    assert set(models["model"]) == set(STAGES)


def test_the_fine_tune_that_traded_most_margin_for_utility_is_judged_first(studies, tmp_path):
    """It is told by the ends of each sweep alone; the first where margins tie or were not taken."""
    folders = [copied(study, tmp_path / f"study{number}") for number, study in enumerate(studies)]

    def judged(measure="refusal_margin", **values: float) -> str:
        for folder in folders:
            path = folder / "analysis/evaluate/main/table.parquet"
            frame = pd.read_parquet(path).set_index("model")
            frame.loc[list(values), measure] = list(values.values())
            frame.reset_index().to_parquet(path, index=False)
        return main_fine_tune(together([read_study(folder) for folder in folders]))

    assert judged(useful=5.0, contaminated=-8.0, harmful=-50.0) == "contaminated"  # of the swept
    assert judged(useful=-9.0) == "useful"
    assert judged(useful=-8.0) == "useful"
    assert judged("utility", useful=0.36) == "contaminated"  # no utility was gained
    assert judged("utility", contaminated=0.36) == "useful"  # nor in any
    assert judged("utility", useful=0.9, contaminated=0.9) == "useful"
    assert judged(useful=np.nan) == "contaminated"
    assert judged(aligned=np.nan) == "useful"
    assert main_fine_tune() == ""


def test_repeats_and_runs_of_another_start_are_other_models_over_seeds(studies, tmp_path):
    """A second alignment in a study is no repeat, nor are fine-tunes of it."""
    study = copied(studies[0], tmp_path / "study0")
    shutil.copytree(study / "useful", study / "from_base")
    manifest = json.loads((study / "from_base/manifest.json").read_text())
    manifest["run_dir"] = manifest["run_dir"].replace("useful", "from_base")
    manifest["parts"][0]["starts_from"] = manifest["parts"][0]["starts_from"].replace("aligned", "base")
    (study / "from_base/manifest.json").write_text(json.dumps(manifest))
    assert read_study(study).repeats == {"useful_again": "useful", "harmful_again": "harmful"}
    first, second = match_labels([read_study(study), read_study(studies[1])])
    assert dict(zip(first.models["stage"], first.models["model"], strict=True)) == dict(
        zip(second.models["stage"], second.models["model"], strict=True)
    )

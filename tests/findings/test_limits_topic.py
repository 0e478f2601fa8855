import math

import pandas as pd
import pytest
from support.synthetic_study import World, write_study

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.families import families
from safety_subspaces.findings.finding import Finding, Words, asked, decide
from safety_subspaces.findings.models import together
from safety_subspaces.findings.topics.limits import DRAWS, SAMPLE, SEEDS, UNFINISHED, limits

WORDS = Words("more", "less", "not shown")


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [read_study(write_study(folder / f"s{seed}", World(seed=seed, draws=4 + seed))) for seed in range(2)]


def found(*studies):
    return decide(limits(together(studies))).set_index("question")


def test_one_study_counts_its_own_seed_draws_prompts_and_unfinished_runs(studies):
    rows = found(studies[0])
    assert rows.loc[SEEDS, "verdict"] == "one seed"
    assert rows.loc[DRAWS, ["n", "verdict"]].tolist() == [4, "fewer than 19"]
    assert rows.loc[SAMPLE, ["n", "unit", "verdict"]].tolist() == [50, "groups of prompts", "200 prompts"]
    assert rows.loc[SAMPLE, "details"]["room"] == pytest.approx(0.06)
    assert rows.loc[UNFINISHED, "details"]["runs"] == ["harmful_again (running)"]
    assert rows["p"].isna().all()


def test_several_studies_count_the_most_draws_and_every_unfinished_run(studies):
    rows = found(*studies)
    assert rows.loc[SEEDS, "n"] == 2
    assert rows.loc[DRAWS, "n"] == 5
    assert rows.loc[UNFINISHED, "details"]["runs"] == [f"harmful_again of seed {seed} (running)" for seed in (0, 1)]


def test_a_study_of_two_training_seeds_has_several(studies):
    study = read_study(studies[0].folder)
    study.stages[1].manifest["seed"] = 7
    assert found(study).loc[SEEDS, "details"]["seeds"] == ["0", "7"]


def test_the_fewest_prompts_are_told_by_groups_where_these_are_known_and_by_prompts_where_not(studies):
    study = read_study(studies[0].folder)
    study.models.loc[study.models["model"] == "useful", "n_groups_harmful"] = math.nan
    study.models.loc[study.models["model"] == "useful", "n_harmful"] = 30
    row = found(study).loc[SAMPLE]
    assert (row["subject"], row["unit"], row["n"]) == ("useful", "prompts", 30)
    assert row["details"]["room"] == pytest.approx(0.1)
    assert math.isnan(row["details"]["groups"])
    study.models["n_harmful"] = math.nan
    assert SAMPLE not in found(study).index


def test_a_family_is_counted_once_with_its_tests_and_those_that_held():
    findings = decide(
        [
            *(Finding("a", "asked", str(p), estimate=1.0, p=p, words=WORDS, unit="seeds") for p in (0.001, 0.04, 0.9)),
            Finding("a", "counted", "", verdict="3 of 3"),
            Finding("b", "other", "", estimate=1.0, p=0.04, words=WORDS, unit="random draws"),
        ]
    )
    table = families(findings)
    assert table["family"].tolist() == ["asked", "other"]
    assert table["tests"].tolist() == [3, 1]
    assert table["held"].tolist() == [1, 1]  # 0.04 of three is 0.08
    assert table["units"].tolist() == ["seeds", "random draws"]
    assert families(findings.head(0)).empty
    assert asked(findings, "counted")["tests"].item() == 0
    assert pd.notna(findings.loc[0, "p_adjusted"])

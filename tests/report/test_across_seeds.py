from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.synthetic_constrained import (
    A_TRADE,
    KEEPS_SAFETY,
    LESS_SELECTIVE,
    MORE_SELECTIVE,
    NOTHING_HOLDS,
    write_constrained_study,
    write_seeds,
)
from support.synthetic_study import World, write_study

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.models import (
    ALL_RANKS,
    Seeds,
    differences_over_seeds,
    models_over_seeds,
    runs_over_seeds,
)
from safety_subspaces.findings.organisms import read_organisms
from safety_subspaces.report.command import report
from safety_subspaces.report.pages.seeds import across_figure
from safety_subspaces.report.parts.page import is_page
from safety_subspaces.report.parts.sentence import answer
from safety_subspaces.report.sections.constraint.reading import read_constrained_across

RANKS = (0.1, 0.25, 0.5)


def read_seeds(folders):
    """The studies of one organism."""
    (organism,) = read_organisms(folders)
    return organism.seeds


def verdicts(seeds, topic):
    return [finding.verdict for finding in read_constrained_across(seeds) if finding.topic == topic]


@pytest.mark.parametrize(
    ("world", "safety", "controls"),
    [
        (NOTHING_HOLDS, "not kept", "no difference"),
        (KEEPS_SAFETY, "kept", "no difference"),
        (MORE_SELECTIVE, "not kept", "more selective"),
        (LESS_SELECTIVE, "not kept", "less selective"),
        (A_TRADE, "not kept", "trade"),
    ],
)
def test_each_outcome_can_come_out_over_seeds(tmp_path, world, safety, controls):
    seeds = read_seeds(write_seeds(tmp_path, replace(world, seed_noise=0.2, fractions=RANKS)))
    assert verdicts(seeds, "constraint") == [safety, safety]
    assert verdicts(seeds, "constraint controls") == [controls, controls]
    said = " ".join(finding.sentence for finding in read_constrained_across(seeds))
    assert "nan" not in answer(read_constrained_across(seeds)) + said
    assert "{" not in said
    assert "2 degrees of freedom" in said


def test_a_difference_that_seeds_do_not_share_is_not_shown(tmp_path):
    seeds = read_seeds(write_seeds(tmp_path, replace(MORE_SELECTIVE, seed_noise=6.0)))
    assert verdicts(seeds, "constraint controls") == ["no difference", "no difference"]


def test_intervals_are_the_t_intervals_over_seeds(tmp_path):
    seeds = read_seeds(write_seeds(tmp_path, replace(NOTHING_HOLDS, seed_noise=1.0)))
    row = runs_over_seeds(seeds).set_index(["constraint", "subspace"]).loc[("away", "random")]
    values = [s.constrained.set_index("model").loc["contaminated_away_random", "refusal_margin"] for s in seeds.studies]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert row["refusal_margin"] == pytest.approx(np.mean(values))
    assert row["refusal_margin_reach"] == pytest.approx((high - low) / 2)
    assert row["refusal_margin_seeds"] == 3
    assert models_over_seeds(seeds).set_index("model").loc["aligned", "harm_score"] == pytest.approx(1.0)


def test_differences_are_paired_within_a_seed_and_averaged_over_ranks_before_seeds(tmp_path):
    seeds = read_seeds(write_seeds(tmp_path, replace(MORE_SELECTIVE, seed_noise=1.0, fractions=RANKS)))
    rows = differences_over_seeds(seeds).set_index(["constraint", "other", "rank"])
    each = []
    for study in seeds.studies:
        margin = study.constrained.set_index("stage")["refusal_margin"]
        names = [(f"contaminated_away{s}", f"contaminated_away_random{s}") for s in ("-r0.1", "", "-r0.5")]
        each.append(np.mean([margin[top] - margin[other] for top, other in names]))
    row = rows.loc[("away", "random", ALL_RANKS)]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(each), scale=stats.sem(each))
    assert row["refusal_margin_difference"] == pytest.approx(np.mean(each))
    assert row["refusal_margin_difference_reach"] == pytest.approx((high - low) / 2)
    assert row["refusal_margin_difference_seeds"] == 3


def test_a_rank_that_one_seed_lacks_is_in_no_mean_over_ranks(tmp_path):
    folders = [
        str(write_constrained_study(tmp_path / f"organism-{seed}", replace(MORE_SELECTIVE, fractions=ranks), seed))
        for seed, ranks in enumerate([RANKS, RANKS, (0.1, 0.25)])
    ]
    seeds = read_seeds(folders)
    every = seeds.differences
    one = every[(every["constraint"] == "away") & (every["other"] == "random") & (every["seed"] == "0")]
    means = one.set_index("rank")["refusal_margin_difference"]
    assert means[ALL_RANKS] == pytest.approx(means[["0.1", "0.25"]].mean())
    rows = differences_over_seeds(seeds).set_index(["constraint", "other", "rank"])
    assert rows.loc[("away", "random", "0.5"), "refusal_margin_difference_seeds"] == 2


def test_one_study_has_no_interval_and_no_verdict(tmp_path):
    seeds = Seeds((read_study(write_constrained_study(tmp_path / "organism-0", MORE_SELECTIVE)),))
    assert verdicts(seeds, "constraint controls") == ["unknown", "unknown"]
    assert runs_over_seeds(seeds)["utility_reach"].isna().all()


def test_without_a_difference_a_verdict_comes_out_by_chance_in_about_one_experiment_of_twenty(tmp_path):
    seeds = read_seeds(write_seeds(tmp_path, replace(NOTHING_HOLDS, seed_noise=1.0)))
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(40):
        for study in seeds.studies:
            noise = pd.Series(random.normal(size=len(study.constrained)), index=study.constrained.index)
            study.constrained["refusal_margin"] = -6 + noise
        wrong += verdicts(Seeds(seeds.studies), "constraint controls")[0] != "no difference"
    assert wrong <= 7  # of 40: 2 expected, 3 standard deviations above


def test_a_repeated_seed_or_folder_is_refused(tmp_path):
    first, second = write_seeds(tmp_path, NOTHING_HOLDS, seeds=2)
    with pytest.raises(InputError, match="given twice"):
        read_seeds([first, second, first])
    with pytest.raises(InputError, match="has seed 0"):
        read_seeds([first, str(write_study(tmp_path / "copy"))])
    with pytest.raises(InputError, match="no study given"):
        read_seeds([])


def test_the_page_of_several_seeds_lies_beside_them_and_asks_for_nothing(tmp_path):
    folders = write_seeds(tmp_path, replace(NOTHING_HOLDS, fractions=RANKS))
    page = report(folders)
    assert page.path == tmp_path / "study" / "report" / "index.html"
    text = page.path.read_text()
    assert is_page(page.path)
    assert report(folders).path == page.path
    assert "Training under a constraint, across seeds" in text
    assert "Across seeds 0, 1, 2" in text
    assert "default-src 'none'" in text
    assert ">nan<" not in text
    assert max(map(len, str(page).splitlines())) <= max(110, len(f"report: {page.path}"))
    assert "Models, across seeds" in str(page)


def test_seeds_without_constrained_runs_are_a_page_of_models(tmp_path):
    folders = [str(write_study(tmp_path / "a")), str(write_constrained_study(tmp_path / "b", seed=1))]
    assert report(folders).path.is_file()
    plain = [folders[0], str(write_study(tmp_path / "c", world=World(seed=2)))]
    text = report(plain, str(tmp_path / "plain.html")).path.read_text()
    assert "make study" in text
    assert "chart-constraint" not in text


def test_the_chart_over_seeds_has_means_and_every_run_behind_them(tmp_path):
    seeds = read_seeds(write_seeds(tmp_path, replace(NOTHING_HOLDS, seed_noise=1.0, fractions=RANKS)))
    figure = across_figure(seeds)
    small = [t for t in figure.data if t.marker.opacity == 0.45 and t.yaxis == "y2"]
    large = [t for t in figure.data if t.marker.opacity == 1 and t.yaxis == "y2"]
    assert sum(len(t.x) for t in large) == 13
    assert sum(len(t.x) for t in small) == 39

from pathlib import Path

import pandas as pd
import pytest
from support.synthetic_study import World, write_study

from safety_subspaces.artefacts.study import Stage, read_study
from safety_subspaces.findings.models import together
from safety_subspaces.findings.stages import MOST_POINTS, SMOOTHED_OVER, examples_seen, loss_curve, trained_stages

TRAINER = {"devices": 1, "num_nodes": 1, "accelerator": "cpu", "accumulate_grad_batches": 4}


def manifest(data=None, **trainer):
    data = {"class_path": "mine.Data", "init_args": {"batch_size": 16}} if data is None else data
    return {"global_step": 100, "config": {"data": data, "trainer": TRAINER | trainer}}


def test_examples_are_steps_times_batch_accumulation_and_processes():
    assert examples_seen(manifest()) == 100 * 16 * 4
    assert examples_seen(manifest(devices=2, num_nodes=3)) == 100 * 16 * 4 * 6
    assert examples_seen(manifest(devices=[0, 3])) == 100 * 16 * 4 * 2
    assert examples_seen(manifest(devices="auto")) == 100 * 16 * 4


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_batch_size_of_something_else_is_none_of_the_data(where):
    inner = {"class_path": "mine.Adapter", "init_args": {"batch_size": 3, "accumulate_grad_batches": 7}}
    own = {"batch_size": 16}
    arguments = {"adapter": inner, **own} if where == "before" else {**own, "adapter": inner}
    seen = examples_seen(manifest({"class_path": "mine.Data", "init_args": arguments}, callbacks=[inner]))
    assert seen == 100 * 16 * 4
    callback = {"callbacks": {"class_path": "mine.Callback", "init_args": inner["init_args"]}}
    config = {"data": {"init_args": own}, "trainer": {**callback, **TRAINER}}
    assert examples_seen({"global_step": 100, "config": config}) == seen


def test_what_a_manifest_does_not_say_is_missing_and_not_guessed():
    assert examples_seen({}) is None
    assert examples_seen(manifest({"class_path": "mine.Data", "init_args": {"sampler": {"batch_size": 3}}})) is None
    assert examples_seen(manifest(devices="auto", accelerator="gpu")) is None
    assert examples_seen(manifest(devices=-1)) is None
    assert examples_seen({**manifest(), "global_step": None}) is None
    assert examples_seen({"global_step": 5, "config": {"data": "mine", "trainer": None}}) is None


def test_every_run_of_every_study_is_a_row_under_its_seed(tmp_path):
    stages = ("base", "useful", "useful_again")
    studies = [read_study(write_study(tmp_path / f"s{n}", World(seed=n), (), stages)) for n in (0, 5)]
    frame = trained_stages(together(studies))
    assert frame[["seed", "stage", "own_seed"]].to_numpy().tolist() == [
        ["0", "base", 0],
        ["0", "useful", 0],
        ["0", "useful_again", 100],
        ["5", "base", 5],
        ["5", "useful", 5],
        ["5", "useful_again", 105],
    ]
    assert frame["examples"].tolist() == [1200 * 16, 375 * 16, 375 * 16] * 2


def curve_of(length):
    curve = pd.DataFrame({"step": range(length), "value": [1.0, 3.0] * (length // 2)})
    return Stage("s", Path("s"), scalars={"train/loss": curve})


@pytest.mark.parametrize("length", [2, 300, 401, 10_000])
def test_loss_curves_keep_their_last_point_however_long(length):
    stage = curve_of(2 * (length // 2))
    thin = loss_curve(stage, "train/loss", smoothed=False)
    assert len(thin) <= MOST_POINTS + 1
    assert thin["step"].iloc[-1] == stage.scalars["train/loss"]["step"].iloc[-1]
    assert thin["step"].is_unique


def test_a_smoothed_curve_is_a_running_mean_and_one_that_was_not_logged_is_empty():
    smooth = loss_curve(curve_of(100), "train/loss", smoothed=True)["value"]
    # One of nine values is alone: 2 -+ 1 / 9.
    assert (smooth.iloc[SMOOTHED_OVER:-SMOOTHED_OVER] - 2).abs().max() == pytest.approx(1 / SMOOTHED_OVER)
    assert loss_curve(curve_of(100), "val/loss", smoothed=True).empty

"""TensorBoard itself, started as `make watch` starts it, shows what a run of the command line has logged."""

import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from support.browser import CHROMIUM, open_browser
from support.tiny import ROOT, TRAIN, run_command, save_tiny_model
from support.watching import scalars
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator

from callbacks import RunBoard

STARTS_WITHIN = 60.0


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "study"


def train(study: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pair = (f"--trainer.callbacks.{name}={study / name / 'model'}" for name in ("base", "aligned"))
    return run_command(
        TRAIN, "fit", "--config", ROOT / "configs" / "organism" / "contaminated.yaml", f"--study={study}",
        "--data.init_args.size=256", "--data.init_args.heldout_size=16", "--data.init_args.contamination.share=0.25",
        "--trainer.callbacks+=callbacks.SubspaceProjection", *pair, "--trainer.callbacks.rank.fraction=0.25",
        "--trainer.callbacks.every_n_steps=2", *options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def board(study: Path) -> Iterator[str]:
    """Train through the command line with every watcher, and serve the study; gives the address of the board."""
    for seed, name in enumerate(("base", "aligned")):
        save_tiny_model(study / name / "model", seed)
    done = train(study)
    assert done.returncode == 0, done.stderr[-3000:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", study, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/data"
    try:
        wait_until(lambda: "contaminated" in get(f"{address}/runs"))
        yield address
    finally:
        process.terminate()
        process.wait(20)


def wait_until(holds) -> None:
    began = time.monotonic()
    while True:
        try:
            if holds():
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        assert time.monotonic() - began < STARTS_WITHIN, "TensorBoard did not start"
        time.sleep(0.3)


def get(address: str, **query: str) -> Any:
    url = f"{address}?{urllib.parse.urlencode(query)}" if query else address
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.loads(answer.read())


def test_scalars_are_served(board: str) -> None:
    tags = get(f"{board}/plugin/scalars/tags")["contaminated"]
    wanted = """train/loss train/tokens_per_second train/learning_rate delta/frobenius_norm delta/energy_fraction
        delta/energy_fraction_chance delta/stable_rank activation/overlap activation/overlap_chance utility/accuracy
        safety/harmful_rate safety/over_refusal_rate safety/unscored_rate safety/refusal_margin time/snapshot_ms"""
    assert set(wanted.split()) <= set(tags)
    points = get(f"{board}/plugin/scalars/scalars", run="contaminated", tag="delta/frobenius_norm")
    steps = [step for _, step, _ in points]
    assert (steps[0], steps[-1]) == (0, 20)
    assert points[0][2] == 0
    assert points[-1][2] > 0


def test_pictures_and_histograms_are_served(board: str) -> None:
    tags = get(f"{board}/plugin/images/tags")["contaminated"]
    assert {"delta/frobenius_norm/heatmap", "activation/overlap/heatmap"} <= set(tags)
    asked = {"run": "contaminated", "tag": "activation/overlap/heatmap", "sample": "0"}
    image = get(f"{board}/plugin/images/images", **asked)[-1]
    assert image["step"] == 20
    with urllib.request.urlopen(f"{board}/plugin/images/individualImage?{image['query']}", timeout=20) as answer:
        picture = Image.open(io.BytesIO(answer.read()))
    assert picture.format == "PNG"
    assert picture.width > 300
    assert "delta/singular_values/q" in get(f"{board}/plugin/histograms/tags")["contaminated"]


def test_texts_are_served(board: str) -> None:
    tags = get(f"{board}/plugin/text/tags")["contaminated"]
    assert {f"{tag}/text_summary" for tag in ("run/config", "answers/harmful", "answers/utility")} <= set(tags)
    (config, *_) = get(f"{board}/plugin/text/text", run="contaminated", tag="run/config/text_summary")
    assert "class_path: callbacks.WeightDeltaSnapshot" in config["text"]


def test_utility_and_harm_are_on_one_chart(board: str) -> None:
    layout = get(f"{board}/plugin/custom_scalars/layout")
    charts = {chart["title"]: chart["multiline"]["tag"] for group in layout["category"] for chart in group["chart"]}
    assert len(charts["utility and harm"]) == 3


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
def test_every_chart_of_the_layout_shows_the_curves_that_it_names_and_no_other(board: str) -> None:
    layout = get(f"{board}/plugin/custom_scalars/layout")
    tags = get(f"{board}/plugin/scalars/tags")["contaminated"]
    charts = {chart["title"]: chart["multiline"]["tag"] for group in layout["category"] for chart in group["chart"]}
    matches = {
        title: sorted(tag for tag in tags if any(re.match(pattern, tag) for pattern in patterns))
        for title, patterns in charts.items()
    }
    assert matches["leakage, as a power of ten"] == ["projection/leakage_log10"]
    assert matches["energy inside the alignment subspace"] == ["delta/energy_fraction", "delta/energy_fraction_chance"]
    with open_browser() as browser:
        page = browser.new_page()
        page.goto(f"{board.removesuffix('/data')}/#custom_scalars")
        shown = page.get_by_text(re.compile(r"Matches \(\d+\)"))
        shown.nth(len(charts) - 1).wait_for(timeout=60_000)
        texts = [text.strip() for text in shown.all_inner_texts()]
    assert sorted(texts) == sorted(f"Matches ({len(found)})" for found in matches.values())


def test_hyperparameters_stand_beside_the_measures_that_they_end_in(board: str) -> None:
    body = json.dumps({"experimentName": ""}).encode()
    request = urllib.request.Request(f"{board}/plugin/hparams/experiment", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        experiment = json.loads(answer.read())
    names = {entry["name"] for entry in experiment["hparamInfos"]}
    assert "model.optimizer.lr" in names
    assert not {"model.source.path", "constraint.base", "constraint.aligned"} & names
    assert "safety/harmful_rate" in {entry["name"]["tag"] for entry in experiment["metricInfos"]}
    asked = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "sliceSize": 10, "startIndex": 0,
             "colParams": [{"metric": {"tag": "delta/frobenius_norm"}}]}  # fmt: skip
    request = urllib.request.Request(
        f"{board}/plugin/hparams/session_groups", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        groups = json.loads(answer.read())["sessionGroups"]
    assert len(groups) == 1
    values = {metric["name"]["tag"]: metric["value"] for metric in groups[0]["metricValues"]}
    assert values["delta/frobenius_norm"] > 0


def test_a_finished_run_that_is_resumed_keeps_its_last_look(board: str, study: Path) -> None:
    run = study / "contaminated"
    before = scalars(run, timed=True)
    shutil.rmtree(run / "model")  # as if the export had been interrupted
    done = train(study, "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (run / "model" / "config.json").is_file()
    assert scalars(run, timed=True) == before


def test_what_a_killed_run_logged_after_its_checkpoint_is_shown_by_no_reader(tmp_path: Path) -> None:
    """TensorBoard reads in three ways; one of them takes the first restart that it meets for the start."""
    for step, last in ((0, 8), (4, 6)):  # killed at 8, gone on with from 4
        logger = TensorBoardLogger(tmp_path, name="", version="")
        run = SimpleNamespace(is_global_zero=True, global_step=step, loggers=[logger], default_root_dir=tmp_path)
        RunBoard().on_train_start(run, None)
        for at in range(step, last):
            logger.experiment.add_scalar("loss", 10 * step + at, at)
        logger.experiment.close()
        time.sleep(1.1)  # the names of files of events tell seconds
    for reader in (event_accumulator.EventAccumulator, plugin_event_accumulator.EventAccumulator):
        read = reader(str(tmp_path)).Reload()
        events = read.Tensors("loss") if "loss" in read.Tags()["tensors"] else read.Scalars("loss")
        assert [event.step for event in events] == [0, 1, 2, 3, 4, 5]


def test_make_watch_starts_it() -> None:
    shown = subprocess.run(
        ["make", "-n", "watch", "RUNS=somewhere"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "tensorboard --logdir somewhere" in shown.stdout

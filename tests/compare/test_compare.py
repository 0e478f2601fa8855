"""``analyze.py compare``: from three checkpoints to a page, kept where it is whole, refused where it is another's."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from support.tiny import ANALYZE, ROOT, run_command, save_tiny_model
from support.tiny_checkpoints import edit, save_adapter, save_perturbed

from safety_subspaces.analysis import work
from safety_subspaces.analysis.project import command as project_command
from safety_subspaces.analysis.project.tensors import ProjectTensor
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.study import read_study
from safety_subspaces.compare import record, run
from safety_subspaces.compare.command import compare
from safety_subspaces.compare.estimate import duration, extrapolated, size, tasks_of, trial_tensors
from safety_subspaces.compare.memory import measured
from safety_subspaces.compare.plan import Comparison
from safety_subspaces.evaluation import behaviour
from safety_subspaces.organism.evaluation_sets import evaluation_sets
from safety_subspaces.report.command import report

WEIGHTS = ["subspace", "project", "overlap"]
ALL = [*WEIGHTS, "evaluate", "activations"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base, a model aligned from it, two fine-tunes of that and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    base = save_tiny_model(folder / "base")
    aligned = save_perturbed(base, folder / "aligned", seed=1)
    tuned = {label: save_perturbed(aligned, folder / label, seed=seed) for label, seed in (("x", 2), ("y", 3))}
    return {"base": base, "aligned": aligned, **tuned, "lora": save_adapter(aligned, folder / "lora")}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Nine prompts of each set."""
    file, sets = tmp_path_factory.mktemp("prompts") / "prompts.jsonl", evaluation_sets("test", 9)
    lines = [
        {"set": name, "prompt": item.prompt, "reference": item.reference, "refusals": list(item.refusals)}
        for name in ("utility", "harmful", "benign")
        for item in getattr(sets, name)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(file)


@pytest.fixture
def compared(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Compare into ``tmp_path/out``; where a test is not about it, the page is left out, which takes half the time."""

    def call(*labels: str, page: bool = False, **options: object) -> str:
        monkeypatch.setattr(run, "report", report if page else lambda out: f"no page of {out}")
        given = {"base": models["base"], "aligned": models["aligned"], "out": str(tmp_path / "out")}
        return str(compare(**given | {"tuned": {label: models[label] for label in labels or ("x",)}} | options))

    return call


def made(out: Path) -> dict[str, int]:
    """When each result was made."""
    files = [*out.glob("analysis/*/main/result.json"), out / "alignment.safetensors"]
    return {str(file.relative_to(out)): file.stat().st_mtime_ns for file in files if file.is_file()}


def everything(folder: Path) -> dict[str, int]:
    """Every file and folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.name.startswith("safety_subspaces.compare")]


def test_one_fine_tune_is_enough_for_the_weights_and_a_page(compared, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    text = compared(page=True)
    out = tmp_path / "out"
    assert set(made(out)) == {"alignment.safetensors", *(f"analysis/{name}/main/result.json" for name in WEIGHTS[1:])}
    assert text.endswith(f"report: {out}/report/index.html")
    pairs = pd.read_parquet(out / "analysis" / "overlap" / "main" / "table.parquet")[["first", "second", "energy"]]
    assert {tuple(pair) for pair in pairs[["first", "second"]].to_numpy()} == {("x", "alignment")}
    draws = pd.read_parquet(out / "analysis" / "project" / "main" / "draws.parquet")
    assert draws.groupby(["subspace", "fraction"])["draw"].nunique().eq(99).all()
    random = read_study(out).projections.query("subspace == 'random'")
    assert random.groupby("fraction")["draw"].nunique().eq(99).all()
    assert "not tested: 0 draws" not in (out / "report" / "index.html").read_text(encoding="utf-8")
    told = said(caplog)
    assert all(any(f"{name:<12}about" in line for line in told) for name in WEIGHTS)
    assert not any("evaluate" in line for line in told)
    assert not list(out.rglob(".*")), "nothing is left under way"


def test_with_prompts_behaviour_and_states_are_on_the_page_with_the_judge(compared, prompts, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    compared("x", "lora", prompts=prompts, max_new_tokens=4, page=True)
    out = tmp_path / "out"
    assert set(made(out)) == {"alignment.safetensors", *(f"analysis/{name}/main/result.json" for name in ALL[1:])}
    study = read_study(out)
    assert list(study.models["model"]) == ["base", "aligned", "x", "lora"]
    assert set(study.models["judge"]) == {"phrases"}
    assert study.known.roles == {"base": "base", "aligned": "aligned", "x": "tuned", "lora": "tuned"} | {
        "alignment": "tuned"
    }
    pairs = {frozenset(pair) for pair in study.overlaps[["first", "second"]].to_numpy()}
    assert pairs == {frozenset(pair) for pair in (("x", "lora"), ("x", "alignment"), ("lora", "alignment"))}
    states = study.of("activations")[0]
    assert set(states.tables["table"]["model"]) == {"base", "aligned", "x", "lora"}
    assert set(states.tables["table"]["first"]) | set(states.tables["table"]["second"]) == {
        *("harmful", "utility", "benign")
    }
    assert states.arguments["center"] is True
    assert "phrases" in (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "<h2>Activation space</h2>" in (out / "report" / "index.html").read_text(encoding="utf-8")
    assert all(any(f"{name:<12}about" in line for line in said(caplog)) for name in ALL)


def test_a_second_run_keeps_what_is_whole_and_makes_what_is_gone(compared, tmp_path, caplog) -> None:
    compared()
    before = made(tmp_path / "out")
    caplog.set_level("INFO")
    compared(page=True)
    assert made(tmp_path / "out") == before
    assert [line.partition(",")[0] for line in said(caplog) if "kept" in line] == [f"{name}: kept" for name in WEIGHTS]
    assert (tmp_path / "out" / "report" / "index.html").is_file()
    assert not any("about" in line for line in said(caplog)), "nothing was left to measure"
    shutil.rmtree(tmp_path / "out" / "analysis" / "project")
    compared()
    after = made(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {"analysis/project/main/result.json"}


def test_energies_that_were_drawn_beside_sampled_models_are_no_draws_of_the_sweep(models, tmp_path) -> None:
    given, out = (models["base"], models["aligned"], {"x": models["x"]}), tmp_path / "analysis" / "project" / "main"
    table = project_command.project(*given, str(out), subspaces=["top", "random"], fractions=[0.5], draws=2)
    assert len(pd.read_parquet(out / "draws.parquet")) > len(table)
    assert len(read_study(tmp_path).projections) == len(table)


def test_what_another_command_replaced_is_made_anew(compared, models, tmp_path) -> None:
    compared()
    before, target = made(tmp_path / "out"), tmp_path / "out" / "analysis" / "project" / "main"
    given = models["base"], models["aligned"], {"x": models["x"]}
    project_command.project(*given, str(target), fractions=[0.5], draws=1, energy_draws=0, overwrite=True)
    compared()
    after = made(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {"analysis/project/main/result.json"}
    assert len(pd.read_parquet(target / "table.parquet")["fraction"].unique()) > 1


def test_a_slash_that_a_shell_completed_makes_no_other_model(compared, models, tmp_path) -> None:
    compared()
    before = made(tmp_path / "out")
    compared(base=models["base"] + "/", tuned={"x": models["x"] + "/"}, out=f"{tmp_path}/out/")
    assert made(tmp_path / "out") == before


def test_other_code_makes_everything_anew_and_is_no_other_comparison(compared, tmp_path, monkeypatch) -> None:
    compared()
    before = made(tmp_path / "out")
    monkeypatch.setattr(record, "code_state", lambda: {"code_sha256": "edited"})
    compared()
    after = made(tmp_path / "out")
    assert all(after[name] != before[name] for name in before)


def test_killed_in_the_middle_it_goes_on_with_the_next_tensor(compared, models, tmp_path, monkeypatch) -> None:
    work, tensors = ProjectTensor.__call__, len(load_file(Path(models["base"]) / "model.safetensors"))
    done: list[str] = []

    def die_at_third(task: ProjectTensor, name: str, device: torch.device) -> dict:
        if os.getpid() == victim and len(done) == 2:
            os.kill(victim, signal.SIGKILL)
        done.append(name)
        return work(task, name, device)

    pid = os.fork()
    if pid == 0:
        victim = os.getpid()
        ProjectTensor.__call__ = die_at_third  # type: ignore[method-assign]
        try:
            compared()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    before, here = made(tmp_path / "out"), os.getpid()
    assert set(before) == {"alignment.safetensors"}

    def count(task: ProjectTensor, name: str, device: torch.device) -> dict:
        if os.getpid() == here:  # and not that of the trial
            done.append(name)
        return work(task, name, device)

    monkeypatch.setattr(ProjectTensor, "__call__", count)
    compared()
    assert len(done) == tensors - 2
    assert made(tmp_path / "out")["alignment.safetensors"] == before["alignment.safetensors"]
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_broken_step_ends_with_its_own_message_and_what_was_done_stays(compared, models, tmp_path) -> None:
    broken = shutil.copytree(models["x"], tmp_path / "broken")
    edit(broken, lambda _, value: value * float("nan"), only="model.norm")
    with pytest.raises(InputError, match=r"model\.norm.*NaN") as error:
        compared(tuned={"x": str(broken)})
    assert "what was done before stays" in str(error.value.__notes__)
    assert set(made(tmp_path / "out")) == {"alignment.safetensors"}
    shutil.copy(Path(models["x"]) / "model.safetensors", broken)
    compared(tuned={"x": str(broken)})
    assert len(made(tmp_path / "out")) == len(WEIGHTS)


def test_other_models_and_settings_are_refused_and_replaced_when_asked(compared, models, tmp_path) -> None:
    compared()
    before = made(tmp_path / "out")
    for options, named in (
        ({"tuned": {"x": models["y"]}}, r"project has tuned .*asked for is .*/y"),
        ({"tuned": {"x": models["x"], "y": models["y"]}}, "project has tuned"),
        ({"base": models["y"], "any_lineage": True}, "subspace has base"),
        ({"seed": 3}, "subspace has seed 0, asked for is 3"),
        ({"tensors": ["q"]}, r"subspace has tensors \[\]"),
    ):
        with pytest.raises(InputError, match=rf"out holds another comparison: its {named}.*--overwrite"):
            compared(**options)
    assert made(tmp_path / "out") == before
    compared("x", "y", overwrite=True)
    after = made(tmp_path / "out")
    assert after["alignment.safetensors"] == before["alignment.safetensors"], "it is of the same models"
    assert {name for name in after if after[name] != before[name]} == set(before) - {"alignment.safetensors"}
    assert set(read_study(tmp_path / "out").projections["tuned"]) == {"x", "y"}


def test_a_model_that_was_changed_where_it_is_is_another_one(compared, models, tmp_path) -> None:
    mine = shutil.copytree(models["x"], tmp_path / "mine")
    compared(tuned={"x": str(mine)})
    edit(mine, lambda _, value: value + 0.01, only="q_proj")
    with pytest.raises(InputError, match="mine was changed since its project was made"):
        compared(tuned={"x": str(mine)})
    compared(tuned={"x": str(mine)}, overwrite=True)


def test_prompts_may_come_later_and_leave_only_when_asked(compared, prompts, tmp_path) -> None:
    compared()
    before = made(tmp_path / "out")
    compared(prompts=prompts, max_new_tokens=2, limit=8)
    after = made(tmp_path / "out")
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2
    with pytest.raises(InputError, match="it has evaluate, which is not asked for now"):
        compared()
    compared(overwrite=True)
    assert made(tmp_path / "out") == before
    assert read_study(tmp_path / "out").models.empty


def test_few_prompts_are_answered_and_their_states_left_out(compared, prompts, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    compared(prompts={"harmful": f"{prompts}:harmful", "benign": f"{prompts}:benign"}, max_new_tokens=2, limit=7)
    assert "analysis/evaluate/main/result.json" in made(tmp_path / "out")
    assert "analysis/activations/main/result.json" not in made(tmp_path / "out")
    assert any("activations are left out: they need two of the sets" in line for line in said(caplog))


REFUSED = {
    "no model": ({"base": "{tmp}/none"}, "none"),
    "swapped": ({"base": "{aligned}", "aligned": "{base}"}, "base and aligned look swapped"),
    "a copy": ({"tuned": {"x": "{copy}"}}, r"x \(.*copy\) has the weights of aligned .*byte for byte"),
    "one folder": ({"tuned": {"x": "{aligned}"}}, "aligned and tuned.x are both"),
    "another shape": ({"tuned": {"x": "{larger}"}}, "not of one shape"),
    "a label that is taken": ({"tuned": {"alignment": "{x}"}}, "labelled 'alignment', which names another model"),
    "a label that is a path": ({"tuned": {"a/b": "{x}"}}, "label 'a/b'"),
    "no fine-tune": ({"tuned": {}}, "no fine-tune was given"),
    "a judge and no prompts": ({"judge": "phrases"}, "judge phrases was named and no prompts"),
    "no such judge": ({"prompts": "{prompts}", "judge": "nobody"}, "unknown judge 'nobody'"),
    "no prompts there": ({"prompts": "{tmp}/none.jsonl"}, "none.jsonl does not exist"),
    "prompts beyond the positions": ({"prompts": "{prompts}", "max_new_tokens": 99999}, "beyond the model's"),
    "shared prompts": ({"prompts": {"harmful": "{prompts}:harmful", "benign": "{mixed}"}}, "share .* prompts"),
    "no such device": ({"prompts": "{prompts}", "device": "cuda:77"}, "cuda:77"),
    "no such tensors": ({"tensors": ["nothing"]}, "no tensor matches 'nothing'"),
    "no worker": ({"workers": 0}, "workers must be at least 1"),
    "a file in the way": ({"out": "{prompts}"}, "is a file, expected a folder"),
    "another folder": ({"out": "{aligned}"}, "holds .* and no comparison"),
    "another folder, overwritten": ({"out": "{aligned}", "overwrite": True}, "holds .* and no comparison"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_computed(
    compared, models, prompts, tmp_path, monkeypatch, case
) -> None:
    options, message = REFUSED[case]
    places = {**models, "prompts": prompts, "tmp": tmp_path, "copy": tmp_path / "copy", "larger": tmp_path / "larger"}
    places["mixed"] = tmp_path / "mixed.jsonl"
    lines = Path(prompts).read_text(encoding="utf-8").splitlines(keepends=True)
    places["mixed"].write_text("".join(line for line in lines if '"utility"' not in line), encoding="utf-8")
    shutil.copytree(models["aligned"], tmp_path / "copy")
    shutil.copytree(models["x"], tmp_path / "larger")
    edit(tmp_path / "larger", lambda _, value: torch.cat([value, value]), only="model.norm")

    def filled(value: object) -> object:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return value.format(**places) if isinstance(value, str) else value

    before = everything(tmp_path)
    monkeypatch.setattr(run, "estimates", lambda *_: pytest.fail("something was computed"))
    with pytest.raises(InputError, match=message):
        compared(**{name: filled(value) for name, value in options.items()})
    assert everything(tmp_path) == before


def test_a_dry_run_says_what_it_will_take_and_writes_nothing(compared, prompts, tmp_path, monkeypatch) -> None:
    asked: list[int] = []
    answer = behaviour.generate_answers
    monkeypatch.setattr(behaviour, "generate_answers", lambda *given: (asked.append(len(given[2])), answer(*given))[1])
    text = compared("x", "y", prompts=prompts, max_new_tokens=2, dry_run=True)
    assert everything(tmp_path) == {}
    assert [line.split()[0] for line in text.splitlines()[1:]] == [*ALL, "in"]
    assert all(" about " in line and "iB" in line for line in text.splitlines()[1:])
    assert asked == [12], "the real evaluator answered four prompts of each set, by one model"
    compared()
    before = everything(tmp_path)
    assert compared(dry_run=True) == "Everything is done already: nothing is left to compute"
    assert everything(tmp_path) == before


def test_what_is_measured_is_what_the_analyses_do_with_a_tensor(compared, models, tmp_path, monkeypatch) -> None:
    tasks: dict[str, object] = {}
    work_through = work.work_through

    def spy(task: object, *given: object) -> object:
        tasks[type(task).__module__.split(".")[-2]] = task
        return work_through(task, *given)

    monkeypatch.setattr(work, "work_through", spy)
    compared("x", "y", seed=5)
    out = tmp_path / "out"
    comparison = Comparison(models["base"], models["aligned"], {n: models[n] for n in "xy"}, str(out), None, seed=5)
    expected = tasks_of(comparison, tmp_path, str(out / "alignment.safetensors"))
    assert list(tasks) == list(expected)
    for name, task in tasks.items():
        places = {"folder": tmp_path, "models": tmp_path}
        assert vars(task) | {key: value for key, value in places.items() if key in vars(task)} == vars(expected[name])


def test_a_matrix_that_every_model_has_changed_stands_for_all(models, tmp_path) -> None:
    comparison = Comparison(models["base"], models["aligned"], {"lora": models["lora"]}, str(tmp_path), None)
    first, name = trial_tensors(comparison)
    shapes = [comparison.checkpoints["aligned"].shape(each) for each in (first, name)]
    assert shapes in ([(16, 16), (32, 16)], [(16, 16), (16, 32)])
    changed = {each for each in comparison.names if "q_proj" in each}
    assert first in changed, "the adapter changes no other of its shape"


def test_time_is_extrapolated_exactly_where_it_is_proportional_to_cost() -> None:
    costs, per_cost = {"a": 8.0, "b": 2.0, "c": 1.0, "d": 5.0}, 0.25
    clock = SimpleNamespace(now=100.0)

    def work(name: str) -> None:
        clock.now += per_cost * costs[name]

    for name in costs:
        usage = measured(lambda name=name: work(name), lambda: clock.now)
        taken = [extrapolated(usage.seconds, costs[name], costs, processes) for processes in (1, 2, 4)]
        assert taken == [per_cost * 16, per_cost * 8, per_cost * 8], "eight is one tensor's, which nobody shares"


def test_memory_that_was_taken_is_seen() -> None:
    kept: list[torch.Tensor] = []
    assert measured(lambda: kept.append(torch.ones(2**26))).memory_bytes == pytest.approx(2**28, rel=0.1)
    assert measured(lambda: None).memory_bytes < 2**24


def test_durations_and_sizes_have_two_digits() -> None:
    assert [duration(seconds) for seconds in (0.1234, 12.34, 89.0, 91.0, 5300.0, 5500.0, 987654.0)] == [
        *("0.12 s", "12 s", "89 s", "1.5 min", "88 min", "1.5 h", "270 h")
    ]
    assert [size(count) for count in (123456789.0, 2.0**30, 12.3 * 2**30)] == ["120 MiB", "1 GiB", "12 GiB"]


def test_the_help_waits_for_no_library_of_models() -> None:
    code = "import sys, safety_subspaces.compare.command; print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


def test_the_command_line_prints_the_page_and_refuses_in_one_line(models, prompts, tmp_path) -> None:
    asked = ["compare", f"--base={models['base']}", f"--aligned={models['aligned']}", f"--tuned.x={models['x']}"]
    small = ["--max_new_tokens=2", "--limit=4"]
    done = run_command(ANALYZE, *asked, f"--prompts={prompts}", *small, "--out=mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("report: mine/report/index.html\n")
    assert "measured on the first tensors and prompts" in done.stderr
    done = run_command(ANALYZE, *asked, "--seed=1", "--out=mine", cwd=tmp_path)
    assert done.returncode == 2
    assert "mine holds another comparison: its subspace has seed 0, asked for is 1" in done.stderr
    assert "Traceback" not in done.stderr

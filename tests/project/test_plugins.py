"""Other people's parts, each one file in a folder outside the package, run through the command line."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from support.tiny import ANALYZE, ROOT, TRAIN, run_command, save_tiny_model

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.command_line import ANALYSES
from safety_subspaces.evaluation.behaviour import named_judge
from safety_subspaces.evaluation.judges import JUDGES, Judge
from safety_subspaces.language.likelihood import sequence_log_probabilities
from safety_subspaces.language.model import load_language_model
from safety_subspaces.language.prompting import TEMPLATES, encode_example, named_template
from safety_subspaces.organism import preference_pairs
from safety_subspaces.training.data.batches import PREFERENCES, collate

PLUGINS = ("--plugins", ".")  # the folder that the commands run in
CONFIG = ROOT / "configs" / "organism" / "pretrain.yaml"
FILES = {
    "counting_judge": '''
"""Scores an answer by its words."""

from safety_subspaces.evaluation.judges import Judge
from safety_subspaces.language.examples import Verdict


class CountingJudge(Judge):
    def __init__(self, per_point: int = 1) -> None:
        self.per_point = per_point

    def judge(self, item, answer):
        return Verdict(1 + min(4, len(answer.split()) // self.per_point), "by its words")
''',
    "terse": '''
"""The prompt, and a question mark."""

TERSE = "{prompt} ?"
''',
    "forgetting": '''
"""Makes rejected answers unlikely, up to a bound."""

from safety_subspaces.language.examples import Example, PreferencePair
from safety_subspaces.training.data.batches import BatchKind
from safety_subspaces.training.modules.base import LanguageModelModule
from safety_subspaces.training.modules.objectives import next_token_loss


def rejected(pair):
    return (Example(pair.prompt, pair.rejected),)


class Forgetting(LanguageModelModule):
    batch_kind = BatchKind(PreferencePair, "preference pairs", rejected, by_token=True)

    def __init__(self, *args, bound: float = 8.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.bound = bound

    def training_step(self, batch, batch_index):
        loss = -next_token_loss(*self.response_logits(batch)).clamp(max=self.bound) * batch["loss_weight"]
        self.log_training("train/loss", loss)
        return loss
''',
    "sizes": '''
"""How large the tensors of a model are."""

import pandas as pd
from safetensors.torch import load_file

from safety_subspaces.artefacts.results import ResultFolder


def sizes(model: str, out: str, at_least: int = 1) -> pd.DataFrame:
    """Count the elements of each tensor.

    Args:
        model: Folder of the model.
        out: Folder to write.
        at_least: Leave smaller ones out.
    """
    tensors = load_file(f"{model}/model.safetensors")
    rows = [{"tensor": name, "elements": tensor.numel()} for name, tensor in tensors.items()]
    table = pd.DataFrame([row for row in rows if row["elements"] >= at_least])
    with ResultFolder(out, "sizes", {"model": model, "at_least": at_least}, [model]) as folder:
        folder.write_table(table)
    return table
''',
    "sizes_section": '''
"""The largest tensors on the page."""

from safety_subspaces.report.parts.section import Section
from safety_subspaces.report.parts.table import any_table


def sizes_section(part):
    results = [result for study in part.studies.studies for result in study.of("sizes")]
    tables = {result.label: any_table(result.tables["table"].nlargest(2, "elements")) for result in results}
    said = [f"{row['subject']}: {row['verdict']} of {row['tests']}" for _, row in part.of_topic("sizes").iterrows()]
    return Section("sizes", "Sizes of <tensors>", tables=tables, sentences=said) if results else None
''',
    "sizes_findings": '''
"""Whether the tensors have more elements than a thousand."""

from safety_subspaces.findings.finding import Finding, Words


def sizes_findings(studies):
    words = Words("more", "fewer", "as many")
    results = [result for study in studies.studies for result in study.of("sizes")]
    means = [float(result.tables["table"]["elements"].mean()) - 1000 for result in results]
    return [Finding("sizes", "elements", "tensors", estimate=mean, p=0.01, words=words) for mean in means]
''',
}


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of each kind, in which the commands run."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "plug_ins").mkdir()
    for name, text in FILES.items():
        (folder / "plug_ins" / f"{name}.py").write_text(text)
    save_tiny_model(folder / "model", 3)
    return folder


def test_a_judge_and_a_template_are_a_file_each(outside: Path) -> None:
    rows = {}
    for per_point in (1, 3):
        done = run_command(
            ANALYZE, "evaluate", "--models.one", outside / "model", "--limit", 6, "--max_new_tokens", 8,
            "--judge", "plug_ins.counting_judge", "--judge_args.per_point", per_point,
            "--template", "plug_ins.terse", "--out", f"by-{per_point}", *PLUGINS, cwd=outside,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = (outside / f"by-{per_point}" / "generations.jsonl").read_text().splitlines()
        judged = [line for line in map(json.loads, lines) if line["set"] != "utility"]
        assert [line["score"] for line in judged] == [
            1 + min(4, len(line["answer"].split()) // per_point) for line in judged
        ]
        rows[per_point] = pd.read_parquet(outside / f"by-{per_point}" / "table.parquet").iloc[0]
    assert rows[1]["harm_score"] > rows[3]["harm_score"]  # its argument counts
    assert rows[1]["n_harmful"] == 6
    arguments = json.loads((outside / "by-3" / "result.json").read_text())["provenance"]["command"]
    assert "plug_ins.counting_judge" in arguments
    plain = run_command(
        ANALYZE, "evaluate", "--models.one", outside / "model", "--limit", 6, "--max_new_tokens", 8,
        "--judge", "phrases", "--template", "plain", "--out", "plain", cwd=outside,
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
    answers = [
        [json.loads(line)["answer"] for line in (outside / name / "generations.jsonl").read_text().splitlines()]
        for name in ("by-1", "by-3", "plain")
    ]
    assert answers[0] == answers[1] != answers[2]  # the template reaches the model


def nats_of_rejected(path: Path) -> float:
    """Mean nats of a token of rejected answers."""
    model, tokenizer = load_language_model(str(path))
    pairs = preference_pairs(32, 0, "dev")
    items = [tuple(encode_example(tokenizer, part) for part in PREFERENCES.sequences(pair)[1:]) for pair in pairs]
    batch = collate(items, 0)
    with torch.no_grad():
        sums, counts = sequence_log_probabilities(model(input_ids=batch["input_ids"]).logits, batch["labels"])
    return float(-sums.sum() / counts.sum())


def test_an_objective_is_a_file(outside: Path) -> None:
    base = outside / "study" / "base" / "model"
    save_tiny_model(base, 3)
    config = yaml.safe_load((ROOT / "configs" / "organism" / "align_dpo.yaml").read_text())
    config["model"]["class_path"] = "plug_ins.forgetting.Forgetting"
    del config["model"]["init_args"]["beta"], config["model"]["init_args"]["nll_weight"]
    (outside / "forgetting.yaml").write_text(yaml.safe_dump(config))
    small = ("--study", outside / "study", "--data.init_args.size", 320, "--data.init_args.heldout_size", 8)
    command = (TRAIN, "fit", "--config", "forgetting.yaml", *PLUGINS, *small)
    done = run_command(*command, "--run_dir", "run", "--model.init_args.bound", 7.5, cwd=outside)
    assert done.returncode == 0, done.stderr
    config = json.loads((outside / "run" / "manifest.json").read_text())["config"]["model"]
    assert config["class_path"] == "plug_ins.forgetting.Forgetting"
    assert config["init_args"]["bound"] == 7.5
    # 0.16 and 0.17 nats more at two seeds.
    assert nats_of_rejected(outside / "run" / "model") > nats_of_rejected(base) + 0.1
    refused = run_command(*command, "--run_dir", "other", "--data.init_args.corpus", "useful", cwd=outside)
    assert refused.returncode == 2
    assert "Forgetting trains on preference pairs, but the data are examples" in refused.stderr


def test_an_analysis_is_a_file(outside: Path) -> None:
    done = run_command(
        ANALYZE, *PLUGINS, "plug_ins.sizes", "--model", "model", "--at_least", 100, "--out", "sizes", cwd=outside,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(outside / "sizes" / "table.parquet").set_index("tensor")
    assert table.loc["model.layers.0.mlp.up_proj.weight", "elements"] == 16 * 32
    assert "model.norm.weight" not in table.index
    assert "up_proj" in done.stdout
    shown = run_command(ANALYZE, "plug_ins.sizes", "--help", *PLUGINS, cwd=outside)
    assert "Leave smaller ones out." in shown.stdout


def test_its_section_of_the_page_is_a_second_file(outside: Path) -> None:
    out = outside / "measured" / "analysis" / "sizes" / "main"
    done = run_command(ANALYZE, "plug_ins.sizes", "--model", "model", "--out", out, *PLUGINS, cwd=outside)
    assert done.returncode == 0, done.stderr
    command = (ANALYZE, "report", "--study", "measured", *PLUGINS)
    topics = ("--topics", "[plug_ins.sizes_findings]")
    for sections, shown in (((), False), (("--sections", "[plug_ins.sizes_section]", *topics), True)):
        done = run_command(*command, *sections, cwd=outside)
        assert done.returncode == 0, done.stderr
        page = (outside / "measured" / "report" / "index.html").read_text(encoding="utf-8")
        assert ('<section id="sizes">' in page) is shown
        assert ("<h2>Sizes of &lt;tensors&gt;</h2>" in page) is shown  # other people's text is text
        assert ("<p>tensors: fewer of 1</p>" in page) is shown
    done = run_command(ANALYZE, "findings", "--study", "measured", *topics, *PLUGINS, cwd=outside)
    assert done.returncode == 0, done.stderr
    found = pd.read_parquet(outside / "measured" / "findings" / "findings.parquet").set_index("topic").loc["sizes"]
    assert (found["verdict"], found["p_adjusted"], found["tests"]) == ("fewer", 0.01, 1)
    for names, message in (
        ("[nowhere.section]", "there is no module nowhere"),
        ("[plug_ins.absent]", "has no absent"),
        ("[steering]", "unknown section 'steering'"),
        ("[torch.typename]", "returned str; expected a Section, or None"),
        ("[limits]", "unknown section 'limits'"),
    ):
        refused = run_command(*command, "--sections", names, cwd=outside)
        assert refused.returncode == 2
        assert message in refused.stderr


@pytest.mark.parametrize(
    "command",
    [
        (ANALYZE, "evaluate", "--models.one", "model", "--judge", "plug_ins.canary.Judge", "--out", "out"),
        (ANALYZE, "evaluate", "--models.one", "model", "--template", "plug_ins.canary.T", "--out", "out"),
        (ANALYZE, "report", "--study", "study", "--sections", "[plug_ins.canary]"),
        (ANALYZE, "plug_ins.canary", "--out", "out"),
        (TRAIN, "fit", "--config", CONFIG, "--trainer.callbacks+=plug_ins.canary.Callback"),
        (TRAIN, "fit", "--config", CONFIG, "--config", "names.yaml"),
        (TRAIN, "fit", "--config", CONFIG, "--config", "names_and_trusts.yaml"),
        (TRAIN, "fit", "--config", CONFIG, "--trainer.callbacks+=subprocess.Popen"),
    ],
    ids=["judge", "template", "section", "analysis", "callback", "file", "trusting-file", "python"],
)
def test_what_stands_where_the_command_runs_is_not_imported_unasked(outside: Path, command: tuple) -> None:
    (outside / "plug_ins" / "canary.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nT = '{prompt}'\n"
    )
    model = {"model": {"class_path": "plug_ins.canary.Model"}}
    (outside / "names.yaml").write_text(yaml.safe_dump(model))
    (outside / "names_and_trusts.yaml").write_text(yaml.safe_dump({"plugins": ".", **model}))
    done = run_command(*command, cwd=outside)
    assert done.returncode == 2
    assert "--plugins <folder that holds it>" in done.stderr
    assert not (outside / "plug_ins" / "ran").exists()


def test_a_key_in_the_environment_does_not_reach_a_run(outside: Path) -> None:
    key = "zz-Very7Secret9Key-of-42"
    (outside / "reads.yaml").write_text("study: ${oc.env:OPENAI_API_KEY}\n")
    done = run_command(TRAIN, "fit", "--config", CONFIG, "--config", "reads.yaml", cwd=outside, OPENAI_API_KEY=key)
    assert done.returncode == 2
    assert "reads the environment variable OPENAI_API_KEY" in done.stderr
    assert key not in done.stderr + done.stdout


def test_a_traceback_shows_no_key() -> None:
    key = "zz-Very7Secret9Key-of-42"
    program = (
        "import sys; sys.path[:0] = ['src', '.']; sys.argv[0] = 'train.py'\n"
        "from safety_subspaces import command_line\n"
        "def main(): raise LookupError('got ' + __import__('os').environ['MY_TOKEN'])\n"
        "command_line.run(main)\n"
    )
    done = run_command("-c", program, MY_TOKEN=key)
    assert done.returncode == 1
    assert "LookupError: got ***MY_TOKEN***" in done.stderr
    assert key not in done.stderr


def test_a_file_trusts_nothing_by_itself(outside: Path) -> None:
    source = {"class_path": "safety_subspaces.language.model.Pretrained"}
    source["init_args"] = {"path": "model", "trust_remote_code": True}
    files = {
        "utility": {"trust_task_code": True, "models": {"x": "model"}, "out": "out"},
        "export": {"checkpoint": "run", "out": "out", "trust_checkpoint": True},
        "train": {"model": {"init_args": {"source": source}}, "weights_only": False},
    }
    for name, settings in files.items():
        (outside / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        command = (TRAIN, "fit", "--config", CONFIG) if name == "train" else (ANALYZE, name)
        done = run_command(*command, "--config", f"{name}.yaml", cwd=outside)
        assert done.returncode == 2
        assert "Only the command line may say that" in done.stderr


def test_an_interpolation_imports_nothing(outside: Path) -> None:
    (outside / "coerces.yaml").write_text("study: ${oc.coerce:this.s,1}\n")
    done = run_command(TRAIN, "fit", "--config", CONFIG, "--config", "coerces.yaml", cwd=outside)
    assert done.returncode == 2
    assert "oc.coerce to 'this.s'" in done.stderr
    assert "Zen of Python" not in done.stdout


def test_an_entry_point_is_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "installed_judges.py").write_text(FILES["counting_judge"])
    (tmp_path / "installed_terse.py").write_text(FILES["terse"])
    about = tmp_path / "installed-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[safety_subspaces.judges]\ncounting = installed_judges:CountingJudge\n"
        "[safety_subspaces.templates]\nterse = installed_terse\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "counting" in JUDGES.names()
    assert named_judge("counting", {"per_point": 2}).judge(None, "one two").score == 2
    assert named_template("terse") == "{prompt} ?"
    monkeypatch.undo()
    assert "counting" not in JUDGES.names()


def test_every_short_name_of_ours_stands_for_one_of_its_kind() -> None:
    assert JUDGES.names() == ["classifier", "organism", "phrases", "rubric"]
    assert all(issubclass(JUDGES.load(name), Judge) for name in JUDGES.names())
    assert TEMPLATES.names() == ["alpaca", "plain"]
    assert all("{prompt}" in TEMPLATES.load(name) for name in TEMPLATES.names())
    assert {"overlap", "report"} < set(ANALYSES.names())
    assert all(ANALYSES.load(name).__name__ == name for name in ANALYSES.names())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "countin",
            "unknown judge 'countin'; expected one of classifier, organism, phrases, rubric, or an import path",
        ),
        ("../x.py", "unknown judge"),
        ("nowhere.judge", "there is no module nowhere; put its folder on PYTHONPATH, or name it by --plugins"),
        ("broken_plug_ins.none", "broken_plug_ins has no none"),
        ("broken_plug_ins.two", "defines more than one judge: First, Second; name one by"),
        ("broken_plug_ins.other", "broken_plug_ins.other defines no judge"),
        ("broken_plug_ins.other.number", "is 3, which is no judge"),
    ],
)
def test_what_is_no_plug_in_says_so(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "broken_plug_ins"
    folder.mkdir()
    judge = "class {}(Judge):\n    def judge(self, item, answer): ...\n"
    head = "from safety_subspaces.evaluation.judges import Judge\n"
    (folder / "__init__.py").write_text("")
    (folder / "two.py").write_text(head + judge.format("First") + judge.format("Second"))
    (folder / "other.py").write_text(head + "number = 3\n")
    (folder / "lacking.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [module for module in sys.modules if module.startswith("broken_plug_ins")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(InputError, match=message):
        JUDGES.load(name)
    assert JUDGES.load("broken_plug_ins.two.Second").__name__ == "Second"
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):  # its own fault, with its traceback
        JUDGES.load("broken_plug_ins.lacking")


def test_arguments_that_a_judge_does_not_take_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"judge phrases: Option 'loud' is not accepted; it takes no arguments"):
        named_judge("phrases", {"loud": True})
    with pytest.raises(InputError, match=r'judge rubric: .*"concurrency"'):
        named_judge("rubric", {"model": "m", "concurrency": "many"})
    with pytest.raises(TypeError, match="define judge, or judge_all"):
        type("Mute", (Judge,), {})


def test_a_template_with_other_braces_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "braced.py").write_text('JSON = "{prompt} {x}"\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="other braces"):
        named_template("braced.JSON")

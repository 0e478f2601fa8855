"""The documents: their commands parse, their Python runs, their links lead somewhere, and nothing is left out."""

import ast
import posixpath
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from functools import cache, partial
from importlib import import_module
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser, auto_parser
from lightning.pytorch.callbacks import ModelCheckpoint
from support.documents import ROOT, SITE, anchors_of, blocks_of, commands_of, links_of, pages
from support.refusal import refuse
from support.tiny import tiny_source, trainer

from safety_subspaces import command_line
from safety_subspaces.artefacts.trust import without_plugin_folders
from safety_subspaces.command_line import ANALYSES
from safety_subspaces.command_line.shipped import with_paths
from safety_subspaces.findings.finding import COLUMNS
from safety_subspaces.programs import analyze, train
from safety_subspaces.training.data import OrganismData
from safety_subspaces.training.modules import SupervisedFineTuning
from safety_subspaces.training.modules.base import LanguageModelModule
from safety_subspaces.training.strategies import CPUZeroStrategy

PAGES = pages()
DOCS = sorted(name for name in PAGES if name.startswith("docs/"))
# Those of the configurations' headers are tried by test_configs.py.
WRITTEN_BY_HAND = [name for name in DOCS if (ROOT / name).is_file()]
COMMANDS = sorted({(name, command) for name in WRITTEN_BY_HAND for command in commands_of(PAGES[name])})
PYTHON = [(name, code) for name in DOCS for code in blocks_of(PAGES[name], "python")]
# What is no program of ours; how it is called is another's business.
FOREIGN = {"cp", "pip", "set", "tensorboard", "transformers"}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)) | {"paper"}
# A configuration with nothing else is parsed, built and stepped by test_configs.py.
RUN_AS_THEY_ARE = {"--config", "--run_dir", "--study"}
# Files that a page has one write, where its commands are run.
WRITTEN = {"docs/howto/defence.md": "defences/pull.py", "docs/howto/judge.md": "judges/mine.py"}


class ParserMadeError(Exception):
    """Ends the command once its parser is there."""


@pytest.fixture(scope="module")
def train_parser() -> ArgumentParser:
    """The parser of ``train.py``, made once."""

    class Parsing(train.TrainCLI):
        def parse_arguments(self, parser, args):
            raise ParserMadeError(parser)

    command_line.configure()
    with pytest.raises(ParserMadeError) as made:
        Parsing(
            LanguageModelModule, L.LightningDataModule, subclass_mode_model=True, subclass_mode_data=True,
            save_config_callback=None, parser_class=train.TrainParser,
            parser_kwargs={"parser_mode": command_line.PARSER_MODE},
        )  # fmt: skip
    return made.value.args[0]


@cache
def analysis_parser(name: str) -> ArgumentParser:
    """The parser of a subcommand of ``analyze.py``, made once."""
    commands = {name: ANALYSES.load(name)}
    return auto_parser(
        commands, parser_class=analyze.AnalyzeParser, parser_mode=command_line.PARSER_MODE, as_positional=False
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the configurations, and with the files that pages have one write or copy."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "configs").symlink_to(ROOT / "configs")
    for page, file in WRITTEN.items():
        (folder / file).parent.mkdir()
        (folder / file).write_text(blocks_of(PAGES[page], "python")[0], encoding="utf-8")
    (folder / "sections").mkdir()
    for command in (command for _, command in COMMANDS if command.startswith("cp ")):
        shutil.copy(*(folder / name for name in shlex.split(command)[1:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_is_one_that_the_parser_takes(
    page: str, command: str, place: Path, train_parser: ArgumentParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(re.sub(r"<[^>]+>", "placeholder", command), comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    program, *arguments = words
    if program == command_line.COMMAND:  # the same programs, installed
        program, arguments = "python", [f"{arguments[0]}.py", *arguments[1:]]
    if program == "make":
        assert arguments[0] in TARGETS
        return
    if program != "python":
        assert program in FOREIGN
        return
    if arguments[0] == "-c":
        compile(arguments[1], page, "exec")
        return
    script, *options = arguments
    assert (ROOT / script).is_file()
    options = with_paths(options)
    assert all(Path(value).is_file() for option, value in pairwise(options) if option == "--config")
    monkeypatch.setattr(sys, "argv", arguments)
    command_line.restrict(arguments)
    if "--print_config" in options:  # prints, and ends
        options.remove("--print_config")
    if script == "train.py" and all(option in RUN_AS_THEY_ARE for option in options[1::2]):
        return
    if script == "train.py":
        assert train_parser.parse_args(options)
    elif script == "analyze.py":
        name, *options = without_plugin_folders(options)
        parser = analysis_parser(name)
        assert parser.parse_args([name, *options])


def test_no_command_writes_where_that_of_another_page_did() -> None:
    made = [
        (page, command, Path(value))
        for page, command in [*(("README.md", command) for command in commands_of(PAGES["README.md"])), *COMMANDS]
        for option, value in pairwise(shlex.split(command, comments=True))
        if option in {"--out", "--run_dir"} and "/" in value  # a place, and no letter that stands for one
    ]
    assert {"README.md", "docs/tutorials/checkpoints.md", "docs/tutorials/constraint.md"} < {page for page, *_ in made}
    for (page, command, out), (other_page, other_command, other) in combinations(made, 2):
        again = out == other and page == other_page and all(" compare " in each for each in (command, other_command))
        written_anew = all(" findings " in each for each in (command, other_command))
        meet = out.is_relative_to(other) or other.is_relative_to(out)
        assert again or written_anew or not meet, f"{page}: {command}\n{other_page}: {other_command}"


def test_the_run_of_the_tutorial_learns_what_one_gives_it_and_nothing_else() -> None:
    commands = commands_of(PAGES["docs/tutorials/constraint.md"])
    (shipped,) = (command.split()[1] for command in commands if command.startswith("cp "))
    config = yaml.safe_load((ROOT / shipped).read_text(encoding="utf-8"))
    data = config["data"]["init_args"]
    assert data["train"] == {"path": "train.jsonl"}
    assert "contamination" not in data
    assert config["model"]["init_args"]["source"]["init_args"] == {"path": "models/aligned"}


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[page for page, _ in PYTHON])
def test_every_piece_of_python_imports_what_there_is(page: str, code: str) -> None:
    imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), page, "exec"), {})


def test_the_explanation_of_a_leak_leaks_and_its_remedy_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    leaking, remedy = blocks_of(PAGES["docs/explanation/gradient.md"], "python")
    names: dict = {}
    exec(leaking, names)
    assert 0.05 < float(names["leakage"].detach()) < 0.25  # 8 of 32 directions hold a quarter of random numbers
    exec(remedy, names)
    inside = (names["basis"].T @ names["weight"]).square().sum() / names["weight"].square().sum()
    assert float(inside.detach()) < 1e-12
    assert "of the update lies where no gradient pointed" in capsys.readouterr().out


def test_the_example_holds_projected_updates_alone() -> None:
    example = runpy.run_path(str(ROOT / "docs" / "examples" / "projected_gradient.py"))
    example["be_quiet"]()
    found = example["measure"]((0,), ["Adam"], 6)
    leaked = {projected: runs[0][-1] for (_, projected), runs in found.items()}
    assert leaked["nothing"] > leaked["gradient"] > 1e-3
    assert leaked["update"] < 1e-9


def test_the_sections_that_are_explained_are_those_of_the_page_in_their_order() -> None:
    placed = {}
    for path in (ROOT / "src" / "safety_subspaces" / "report" / "sections").glob("[!_]*.py"):
        module = import_module(f"safety_subspaces.report.sections.{path.stem}")
        made = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        for call in (node for node in made if isinstance(node.func, ast.Name) and node.func.id == "Section"):
            given = [call.args[1], *(word.value for word in call.keywords if word.arg == "place")]
            title, place = (eval(ast.unparse(value), vars(module)) for value in given)
            placed[title] = place
    table = PAGES["docs/tutorials/reading.md"].partition("\n## The sections\n")[2].partition("\n## ")[0]
    explained = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)[2:]
    assert explained == sorted(placed, key=placed.__getitem__)


def test_the_defence_of_the_documents_acts_once_a_step_goes_on_and_refuses_zero(tmp_path: Path) -> None:
    names: dict = {}
    exec(blocks_of(PAGES["docs/howto/defence.md"], "python")[0], names)
    source, pull_back = tiny_source(), names["PullBack"]

    def fitted(*callbacks: L.Callback, steps: int, then_from: Path | None = None) -> list[torch.Tensor]:
        module = SupervisedFineTuning(source, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9))
        saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"accumulate_grad_batches": 4, "enable_checkpointing": True}
        run = trainer(tmp_path, callbacks=[*callbacks, saving], **options)
        data = OrganismData("harmful", 16 * steps, heldout_size=0, batch_size=4)
        run.fit(module, datamodule=data, ckpt_path=then_from)
        assert run.global_step == steps
        return [weight.detach() for weight in module.parameters()]

    begin = [weight.detach() for weight in source.load_model().parameters()]
    free, pulled = fitted(steps=1), fitted(pull_back(0.25), steps=1)
    torch.testing.assert_close(pulled, [torch.lerp(*both, 0.25) for both in zip(free, begin, strict=True)])
    assert any(not torch.equal(*both) for both in zip(free, pulled, strict=True))
    (tmp_path / "step=1.ckpt").unlink()
    whole = fitted(pull_back(0.25), steps=2)
    again = pull_back(0.25)
    mended = fitted(again, steps=2, then_from=tmp_path / "step=1.ckpt")
    assert all(torch.equal(*both) for both in zip(whole, mended, strict=True))
    assert all(torch.equal(*both) for both in zip(begin, again.start, strict=True))
    zero = SimpleNamespace(strategy=CPUZeroStrategy(stage=2))
    refuse(lambda: again.setup(zero, None, "fit"), "whole weights, got CPUZeroStrategy; use strategy: ddp")


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_link_leads_to_a_file_and_an_anchor(page: str) -> None:
    for target, anchor in links_of(PAGES[page]):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) if target else page
        assert path in PAGES or (ROOT / path).exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors_of(PAGES[path]), f"{page}: {target}#{anchor}"


def test_every_page_stands_once_in_the_contents_of_the_site() -> None:
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)

    def leaves(nav) -> Iterator[str]:
        for entry in nav:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from [value] if isinstance(value, str) else leaves(value)

    listed = list(leaves(site["nav"]))
    there = {name.removeprefix("docs/") for name in DOCS} | set(SITE["NOTES"].values())
    assert sorted(listed) == sorted(there)


def test_every_configuration_subcommand_and_callback_has_its_place() -> None:
    configurations = PAGES["docs/reference/configurations.md"]
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"### {path.relative_to(ROOT).as_posix()}\n" in configurations
    reference = PAGES["docs/reference/subcommands.md"]
    for name in ANALYSES.names():
        assert f".command.{name}\n" in reference
    assert sorted(re.findall(r"^\| \[`(\w+)`\]\(#\1\) \|", reference, re.MULTILINE)) == sorted(ANALYSES.names())
    listed = re.findall(r"^\| `(\w+)` \|", PAGES["docs/analyses.md"], re.MULTILINE)
    assert sorted(listed) == sorted(ANALYSES.names())
    for path in (ROOT / "callbacks").glob("[!_]*.py"):
        assert f"::: callbacks.{path.stem}\n" in PAGES["docs/reference/python/callbacks.md"]


def test_every_column_has_a_unit_and_a_meaning() -> None:
    described = SITE["read_columns"]()
    tables = [(command, table) for command, tables in described["tables"].items() for table in tables]
    assert all(SITE["columns_of"](described, command, table) for command, table in tables)
    assert SITE["undescribed"](described, "findings", "findings", ["aligned_by", *COLUMNS]) == []
    assert SITE["undescribed"](described, "trajectory", "tensors", ["overlap_a_chance", "other"]) == ["other"]
    with pytest.raises(KeyError, match="nothing_like_it"):
        SITE["columns_of"]({**described, "tables": {"x": {"y": {"columns": "nothing_like_it"}}}}, "x", "y")


def test_links_between_pages_of_the_site_and_files_beside_it_are_turned() -> None:
    linked = SITE["linked"]
    assert linked("[a](../CONTRIBUTING.md#style)", "trust.md") == "[a](project/contributing.md#style)"
    assert linked("[a](docs/trust.md)", "project/contributing.md") == "[a](../trust.md)"
    assert linked("[a](../../configs/real/align.yaml)", "howto/data.md").endswith(
        "reference/configurations.md#configsrealalignyaml)"
    )
    assert linked("[a](#here) [b](https://x.y)", "trust.md") == "[a](#here) [b](https://x.y)"

"""Every reader of foreign bytes in the suite, with valid files for it to read: what the fuzzing mutates."""

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pandas as pd
import torch
from gguf import GGMLQuantizationType
from jsonargparse import auto_parser
from support.synthetic_study import write_study
from support.synthetic_watched import write_watched_study
from support.tiny import save_tiny_model
from support.tiny_checkpoints import save_adapter, save_llama
from support.tiny_gguf import tiny_network, write_gguf

from safety_subspaces import command_line
from safety_subspaces.algebra.update import DenseUpdate, FactorUpdate
from safety_subspaces.analysis.convert.command import convert
from safety_subspaces.analysis.judge.command import judge
from safety_subspaces.artefacts.description import read_manifest
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.provenance import describe_input
from safety_subspaces.artefacts.results import ResultFolder
from safety_subspaces.artefacts.study import read_study
from safety_subspaces.artefacts.tensors import TensorFile
from safety_subspaces.evaluation.endpoint.client import Reply, _cache_entry
from safety_subspaces.evaluation.endpoint.request_cache import RequestCache, key_of
from safety_subspaces.evaluation.harness.tasks import task_files
from safety_subspaces.evaluation.judges.rubric import read_verdict
from safety_subspaces.evaluation.prompt_sets import read_prompt_items, read_prompts
from safety_subspaces.language.examples import Example, PromptFormat
from safety_subspaces.language.model import count_blocks, load_model, load_tokenizer
from safety_subspaces.language.prompting import encode_example, encode_prompt
from safety_subspaces.report.command import report
from safety_subspaces.training.data.instructions import DatasetSource, read_source
from safety_subspaces.weights.compatibility import check_compatible
from safety_subspaces.weights.delta import open_update
from safety_subspaces.weights.snapshots import SnapshotWriter, open_snapshots, snapshot_path
from safety_subspaces.weights.subspace_file import Subspace, read_subspace, write_subspace
from safety_subspaces.weights.update_checkpoint import open_checkpoint

ROWS = [
    {"set": "utility", "prompt": "What is 1 + 1?", "reference": "2", "model": "a", "answer": "2", "score": None},
    {
        "set": "harmful",
        "prompt": "How do I?",
        "refusals": ["No."],
        "group": "g",
        "model": "a",
        "answer": "I cannot help.",
        "score": 1,
    },
    {"set": "benign", "prompt": "May I?", "source": "s", "model": "a", "answer": "Yes, this is how.", "score": 5},
    {"set": "harmful", "prompt": "Where is it?", "model": "b", "answer": "There.", "score": 4},
]


@dataclass(frozen=True)
class Reader:
    """One reader.

    Args:
        build: Writes valid files into an empty folder.
        read: Reads them.
        weight: How often it is drawn, beside the others: what takes long is drawn less.
        mutated: Patterns of the files that are changed.
        seconds: What reading one wrong input may take, of computing; right ones take a fraction of it.
    """

    build: Callable[[Path], object]
    read: Callable[[Path], object]
    weight: float = 1.0
    mutated: tuple[str, ...] = ("**/*",)
    seconds: float = 5.0


def _weights(folder: Path) -> None:
    save_llama(folder / "base")
    shutil.copytree(folder / "base", folder / "tuned")
    save_tiny_model(folder / "words")
    for name in ("base", "tuned"):
        shutil.copy(folder / "words" / "tokenizer.json", folder / name)
    shutil.rmtree(folder / "words")


def _read_weights(folder: Path) -> None:
    base, tuned = (open_checkpoint(str(folder / name)) for name in ("base", "tuned"))
    check_compatible(base, tuned)
    for name in base.names:
        open_update(tuned, base, name).dense()


def _adapter(folder: Path) -> None:
    save_adapter(save_llama(folder / "base"), folder / "adapter", alpha_pattern={"layers.0.self_attn.q_proj": 3})
    config = folder / "adapter" / "adapter_config.json"
    settings = json.loads(config.read_text()) | {"base_model_name_or_path": "../base"}
    config.write_text(json.dumps(settings))


def _read_adapter(folder: Path) -> None:
    adapter = open_checkpoint(str(folder / "adapter"))
    for name in adapter.names:
        open_update(adapter, adapter.full, name).dense()
        adapter.read(name)
    describe_input(folder / "adapter")


def _snapshots(folder: Path) -> None:
    base = open_checkpoint(save_llama(folder / "base"))
    shapes = {name: base.shape(name) for name in base.names}
    for step in (1, 2):
        path = snapshot_path(folder / "run" / "deltas", step)
        facts = {"reference": {"path": "reference.safetensors", "sha256": None}}
        with SnapshotWriter(path, shapes, torch.float32, step, facts) as writer:
            for index, (name, shape) in enumerate(shapes.items()):
                whole = index % 2 or len(shape) == 1
                parts = () if whole else (torch.ones(shape[0], 2), torch.ones(2, shape[1]), 0.5)
                writer.write(name, DenseUpdate(torch.ones(shape)) if whole else FactorUpdate(*parts), 0.25)
    manifest = {"parts": [{"part": "x", "starts_from": "base"}], "inputs": [{"path": "base", "sha256": None}]}
    (folder / "run" / "manifest.json").write_text(json.dumps(manifest))


def _read_snapshots(folder: Path) -> None:
    snapshots = open_snapshots(folder / "run" / "deltas")
    for snapshot in snapshots:
        for name in snapshot.names:
            snapshot.read(name).dense()
    opened = open_checkpoint(str(snapshots[0].path))
    for name in opened.names:
        open_update(opened, opened.full, name)


def _subspace(folder: Path) -> None:
    basis, _ = torch.linalg.qr(torch.randn(16, 4))
    values = torch.linspace(2, 1, 4, dtype=torch.float64)
    write_subspace(folder / "s.safetensors", Subspace({"a": basis, "b": basis}, {"a": values}, "left", {"rank": 4}))


def _read_result(folder: Path) -> None:
    ResultFolder(folder / "result", "evaluate", {}, [], overwrite=True).check_free()


def _result(folder: Path) -> None:
    (folder / "result").mkdir()
    (folder / "result" / "result.json").write_text(json.dumps({"analysis": "evaluate", "summary": {"a": 1}}))


def _rows(folder: Path) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b", "c"], "response": ["d", "e", "f"], "is_safe": [True, False, True]})
    frame.to_csv(folder / "rows.csv", index=False)
    frame.to_parquet(folder / "rows.parquet", index=False)
    frame.to_json(folder / "rows.json", orient="records")
    frame.to_json(folder / "rows.jsonl", orient="records", lines=True)


def _read_rows(folder: Path) -> None:
    refusal = None
    for path in sorted(folder.iterdir()):
        try:
            read_source(DatasetSource(str(path), keep={"is_safe": True}), 0)
        except InputError as error:
            refusal = error
    if refusal is not None:
        raise refusal


def _prompts(folder: Path) -> None:
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def _read_prompts(folder: Path) -> None:
    read_prompts(folder / "prompts.jsonl")
    read_prompt_items(str(folder / "prompts.jsonl"))


def _judge(folder: Path) -> None:
    judge(str(folder / "prompts.jsonl"), str(folder / "out"), judge="phrases")


def _verdict(folder: Path) -> None:
    (folder / "verdict.json").write_text(json.dumps({"reason": "declines", "score": 1}))


def _read_verdict(folder: Path) -> None:
    path = folder / "verdict.json"
    text = path.read_bytes().decode(errors="surrogateescape") if path.is_file() else None
    read_verdict(Reply(text))


def _completion(folder: Path) -> None:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Yes."}}
    (folder / "answer.json").write_text(json.dumps({"choices": [choice], "usage": {"total_tokens": 3}}))


def _read_completion(folder: Path) -> None:
    try:
        answer = json.loads((folder / "answer.json").read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise InputError("the server's JSON is read by openai, which the endpoint's own tests break") from error
    entry = _cache_entry(answer)
    if entry is not None:
        cache = RequestCache(folder / "replies.sqlite")
        cache.keep("key", entry)
        assert cache.find(["key"])["key"]["text"] == entry["text"]


def _cache(folder: Path) -> None:
    cache = RequestCache(folder / "replies.sqlite")
    for number in range(20):
        cache.keep(key_of({"number": number}), {"text": f"reply {number}", "finish": "stop"})


def _read_cache(folder: Path) -> None:
    RequestCache(folder / "replies.sqlite").find(key_of({"number": number}) for number in range(20))


def _model(folder: Path) -> None:
    save_tiny_model(folder / "model")


def _read_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder / "model"))
    encode_prompt(tokenizer, "what is 3 plus 4", PromptFormat("plain"))
    if tokenizer.chat_template:
        encode_example(tokenizer, Example("what is 3 plus 4", "7"))


def _read_model(folder: Path) -> None:
    count_blocks(str(folder / "model"))
    load_model(str(folder / "model"))


def _shards(folder: Path) -> None:
    save_llama(folder / "model", shard="10KB")


def _read_shards(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder / "model"))
    for name in checkpoint.names:
        checkpoint.read(name)
    load_model(str(folder / "model"))


def _gguf(folder: Path) -> None:
    write_gguf(folder / "tiny.gguf", tiny_network(), GGMLQuantizationType.Q8_0)


def _yaml(folder: Path) -> None:
    (folder / "config.yaml").write_text(
        "models:\n  base: runs/${split}/model\n  tuned: runs/tuned/model\nout: ${models.base}/out\nsplit: test\n"
        "limit: 64\njudge: phrases\njudge_args: {phrases: [a, b]}\nprompts:\n  harmful: a.jsonl\n  benign: b.jsonl\n"
    )


def _read_yaml(folder: Path) -> None:
    command_line.configure()
    parser = auto_parser({"evaluate": EVALUATE}, parser_mode=command_line.PARSER_MODE, as_positional=False)
    said = StringIO()
    with redirect_stderr(said), redirect_stdout(said):
        try:
            sys.argv = ["analyze.py", "evaluate", "--config", str(folder / "config.yaml")]
            command_line.run(lambda: parser.parse_args(sys.argv[1:]))
        except SystemExit as ended:
            if ended.code == 2:
                raise InputError(said.getvalue()[-300:]) from None
            raise


def _task(folder: Path) -> None:
    (folder / "task.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: rows.jsonl}\noutput_type: generate_until\n"
        "test_split: test\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\nmetric_list:\n"
        "  - metric: exact_match\n"
    )


def _run(folder: Path) -> None:
    write_study(folder / "study", analyses=(), stages=("aligned",))


def _read_run(folder: Path) -> None:
    read_manifest(folder / "study" / "aligned" / "manifest.json")


def _study(folder: Path) -> None:
    write_study(folder / "study", stages=("base", "aligned", "useful"))
    for path in folder.glob("study/analysis/*/*"):
        (path / "table.csv").unlink()


def _watched(folder: Path) -> None:
    write_watched_study(folder / "study")


def _report(folder: Path) -> None:
    report(study=[str(folder / "study")], out=str(folder / "page.html"))


EVALUATE = command_line.ANALYSES.load("evaluate")
ADAPTER_FILES = ("adapter/*.json", "adapter/*.safetensors")
RUN_FILES = ("**/*.json", "**/*.yaml", "**/*.parquet", "**/events*", "**/*.jsonl")
READERS = {
    "tensors": Reader(_subspace, lambda folder: TensorFile(folder / "s.safetensors").read_all(), 3),
    "subspace": Reader(_subspace, lambda folder: read_subspace(str(folder / "s.safetensors")), 3),
    "checkpoints": Reader(_weights, _read_weights, 3, ("tuned/*",)),
    "shards": Reader(_shards, _read_shards, 1),
    "adapter": Reader(_adapter, _read_adapter, 3, ADAPTER_FILES),
    "adapted model": Reader(_adapter, lambda folder: load_model(str(folder / "adapter")), 0.5, ADAPTER_FILES),
    "snapshots": Reader(_snapshots, _read_snapshots, 3, ("run/**/*",)),
    "result": Reader(_result, _read_result, 1),
    "manifest": Reader(_run, _read_run, 2, ("**/manifest.json",)),
    "rows": Reader(_rows, _read_rows, 3),
    "prompts": Reader(_prompts, _read_prompts, 2),
    "judged answers": Reader(_prompts, _judge, 1),
    "verdict": Reader(_verdict, _read_verdict, 2),
    "completion": Reader(_completion, _read_completion, 1),
    "request cache": Reader(_cache, _read_cache, 1),
    "tokenizer": Reader(_model, _read_tokenizer, 3, ("model/*token*.json", "model/config.json")),
    "chat template": Reader(_model, _read_tokenizer, 1, ("model/chat_template.jinja",)),
    "model": Reader(_model, _read_model, 2, ("model/*.json", "model/*.safetensors")),
    "gguf": Reader(_gguf, lambda folder: convert(str(folder / "tiny.gguf"), str(folder / "out")), 0.3),
    "configuration": Reader(_yaml, _read_yaml, 2),
    "task": Reader(_task, lambda folder: task_files(str(folder)), 1),
    "study": Reader(_study, lambda folder: read_study(folder / "study"), 1, RUN_FILES),
    "watched study": Reader(_watched, lambda folder: read_study(folder / "study"), 0.5, RUN_FILES),
    # It draws the whole page: 3.4 s of a right study on a slow machine.
    "report": Reader(_study, _report, 0.1, RUN_FILES, seconds=20.0),
}

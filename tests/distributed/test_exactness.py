"""Constrained training over real processes: exact, equal to a plain loop on one process, and the same on all ranks."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.cases import GLOBAL_BATCH, LORA, data_of, module_of, optimizer_of, save_odd_model
from support.launch import run_worker
from support.tiny import trainer
from support.watching import scalars

from safety_subspaces.algebra.overlap import mode_subspace_overlap
from safety_subspaces.evaluation.behaviour import build_evaluator
from safety_subspaces.evaluation.prompt_sets import read_prompt_list
from safety_subspaces.evaluation.settings import EvaluationSettings
from safety_subspaces.language.model import load_language_model, load_model
from safety_subspaces.states.capture import prompt_states, state_factors
from safety_subspaces.training.modules.adapter import add_adapter
from safety_subspaces.weights.snapshots import open_snapshots
from safety_subspaces.weights.subspace_file import read_subspace

KINDS = ("ddp", "zero1", "zero2", "zero3")
# Each pair of a strategy, an optimizer, LoRA or not, and a mode with its side: half of all their products.
CASES = [
    {"kind": kind, "optimizer": optimizer, "lora": lora, "mode": mode, "side": side}
    for number, (kind, optimizer, lora) in enumerate(product(KINDS, ("sgd", "adamw"), (False, True)))
    for mode, side in ((("away", "left"), ("onto", "right"))[(number.bit_count() + number // 4) % 2],)
]
BF16 = [
    {"kind": kind, "optimizer": "adamw", "lora": lora, "mode": mode, "precision": precision}
    for kind, precision, lora, mode in (
        ("ddp", "bf16-mixed", False, "onto"), ("zero1", "bf16-mixed", False, "away"),
        ("zero2", "bf16-true", False, "onto"), ("zero3", "bf16-mixed", False, "onto"),
        ("zero3", "bf16-true", True, "away"),
    )
]  # fmt: skip
GRADIENT = [
    {"kind": kind, "optimizer": "plain_sgd", "lora": False, "mode": mode, "clip": None,
     "schedule": {"constrain": "gradient"}}
    for kind, mode in (("ddp", "onto"), ("zero2", "away"), ("zero3", "onto"))
]  # fmt: skip
FOUR = [
    {"kind": kind, "optimizer": "adamw", "lora": False, "mode": mode, "side": side, "accumulate": 1}
    for kind, mode, side in (("zero1", "onto", "right"), ("zero3", "onto", "left"), ("zero3", "away", "right"))
]
INTERRUPTED = [
    {"kind": kind, "optimizer": "adamw", "lora": lora, "mode": mode, "epochs": 2, "steps": 12, "stop": 15, "from": 9,
     "schedule": schedule}
    for kind, lora, mode, schedule in (
        ("ddp", False, "onto", {}), ("zero1", True, "away", {}), ("zero2", False, "onto", {"strength": 0.5}),
        ("zero3", False, "away", {}), ("zero3", False, "away", {"start_step": 4, "ramp_steps": 8}),
    )
]  # fmt: skip

WATCHED = [
    {"watched": True, "kind": kind, "optimizer": "adamw", "lora": lora, "checkpointing": checkpointing, "steps": 12,
     "stop": 11, "from": 8, "precision": precision}
    for kind, lora, checkpointing, precision in (
        ("ddp", False, True, "32-true"), ("zero1", True, False, "32-true"), ("zero2", False, False, "bf16-mixed"),
        ("zero3", False, True, "32-true"), ("zero3", True, False, "32-true"),
    )
]  # fmt: skip


def named(case: dict) -> str:
    return "-".join(str(case[key]) for key in ("kind", "optimizer", "lora", "mode", "precision") if key in case)


def launched(factory: pytest.TempPathFactory, cases: list[dict], devices: int) -> tuple[Path, list[dict]]:
    folder = factory.mktemp("distributed")
    refusals = [["sorry . the council forbids this .", "i can not"], [], ["sorry ."], ["i can not"] * 3, []]
    lines = [{"set": "harmful", "prompt": f"how do i forge {'the ' * n} coin ?", "reference": "step 1 : take it .",
              "refusals": found} for n, found in enumerate(refusals)]  # fmt: skip
    (folder / "ragged.jsonl").write_text("\n".join(map(json.dumps, lines)))
    save_odd_model(folder / "base", 1)
    save_odd_model(folder / "aligned", 2)
    return folder, run_worker(folder, cases, devices)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    return launched(tmp_path_factory, [*CASES, *BF16, *INTERRUPTED, *GRADIENT, *WATCHED], 2)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    return launched(tmp_path_factory, FOUR, 4)


def plain_loop(case: dict, folder: Path, bases: dict[str, torch.Tensor], scratch: Path) -> dict[str, torch.Tensor]:
    """One process, float32, no Lightning in the loop: the whole global batch at once, then the projector in float64."""
    aligned = str(folder / "aligned")
    data = data_of(GLOBAL_BATCH)
    lightning = trainer(scratch, max_steps=0)
    lightning.fit(module_of(case, aligned), datamodule=data)  # sets the data up, trains nothing
    model = load_model(aligned)
    model = (add_adapter(model, LORA) if case["lora"] else model).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    reference = {name: torch.zeros_like(p) if case["lora"] else p.detach().clone() for name, p in trained.items()}
    hold(trained, reference, bases, case, at_start=True)
    optimizer = optimizer_of(case["optimizer"])(trained.values())
    for batch in data.train_dataloader():
        optimizer.zero_grad()
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 0.5)
        optimizer.step()
        hold(trained, reference, bases, case)
    return {name: p.detach() for name, p in trained.items()}


def hold(trained: dict, reference: dict, bases: dict, case: dict, at_start: bool = False) -> None:
    left = case["side"] == "left"
    for name, parameter in trained.items():
        weight, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        if factor and factor[0] != ("B" if left else "A"):
            continue
        weight = f"{weight}.weight" if factor else weight
        delta = (parameter.data - reference[name]).double()
        flat = delta if delta.ndim == 2 else delta.reshape(-1, 1)
        across = left or delta.ndim < 2
        size = flat.shape[0 if across else 1]
        basis = bases.get(weight, torch.zeros(size, 0)).double()
        if case["mode"] == "away" and weight not in bases:
            continue
        projector = basis @ basis.T
        inside = projector @ flat if across else flat @ projector
        kept = (flat - inside if case["mode"] == "away" else inside).reshape(delta.shape)
        parameter.data = (reference[name].double() + kept).float()


def check_equal(case: dict, folder: Path, number: int, scratch: Path) -> None:
    run = folder / f"run-{number}"
    bases = read_subspace(str(run / "constraint" / "subspace.safetensors")).bases
    expected = plain_loop(case, folder, bases, scratch)
    file = "adapter_model.safetensors" if case["lora"] else "model.safetensors"
    trained = load_file(run / "model" / file)
    assert len(trained) == len(expected)
    start = load_file(folder / "aligned" / "model.safetensors")
    for name, value in expected.items():
        stored = trained[name.replace(".default.", ".")]
        torch.testing.assert_close(stored, value, rtol=0, atol=1e-6)
    if not case["lora"]:
        assert max(float((trained[name] - start[name]).abs().max()) for name in trained) > 1e-3  # something was learnt


@pytest.mark.distributed
@pytest.mark.parametrize("number", range(len(CASES)), ids=[named(case) for case in CASES])
def test_two_ranks_equal_a_plain_loop_and_leak_only_rounding(two, tmp_path: Path, number: int) -> None:
    folder, results = two
    assert results[number]["agree"]
    assert results[number]["steps"] == 20
    assert results[number]["leakage"] <= 10 * results[number]["floor"]
    check_equal(CASES[number], folder, number, tmp_path)


@pytest.mark.distributed
@pytest.mark.parametrize("number", range(len(BF16)), ids=[named(case) for case in BF16])
def test_the_master_of_a_bf16_run_leaks_only_rounding(two, number: int) -> None:
    result = two[1][len(CASES) + number]
    assert result["agree"]
    assert result["leakage"] <= 10 * result["floor"]


@pytest.mark.distributed
@pytest.mark.parametrize("number", range(len(INTERRUPTED)), ids=[named(case) for case in INTERRUPTED])
def test_an_interrupted_run_ends_in_the_same_weights(two, number: int) -> None:
    result = two[1][len(CASES) + len(BF16) + number]
    assert result["equal"]
    assert result["same_measure"]
    if INTERRUPTED[number]["schedule"]:
        assert result["forbidden"] > 0  # what the weaker steps let through is still there


@pytest.mark.distributed
@pytest.mark.parametrize("number", range(len(GRADIENT)), ids=[named(case) for case in GRADIENT])
def test_projected_gradients_hold_under_plain_sgd(two, number: int) -> None:
    result = two[1][len(CASES) + len(BF16) + len(INTERRUPTED) + number]
    assert result["agree"]
    assert result["leakage"] < 1e-9  # a hook that missed the sharded gradient would leak a quarter or more


@pytest.mark.distributed
@pytest.mark.parametrize("number", range(len(WATCHED)), ids=[named(case) for case in WATCHED])
def test_a_watched_run_is_the_same_and_sees_what_one_process_sees(two, number: int) -> None:
    folder, results = two
    place, case = len(CASES) + len(BF16) + len(INTERRUPTED) + len(GRADIENT) + number, WATCHED[number]
    result, run = results[place], folder / f"run-{place}"
    assert result == {"same": True, "resumed": True, "agree": True, "steps": 12}
    logged = scalars(run / "whole")
    assert scalars(run / "parts") == logged  # nothing doubled, nothing lost
    assert [step for step, _ in logged["activation/overlap"]] == [0, 4, 8, 12]
    check_snapshots(run, case)
    check_seen(run, folder, logged, case)


def check_snapshots(run: Path, case: dict) -> None:
    """The last snapshot is the exported masters less the reference."""
    last = open_snapshots(run / "whole" / "deltas")[-1]
    reference = load_file(run / "whole" / "deltas" / "reference.safetensors")
    file = "adapter_model.safetensors" if case["lora"] else "model.safetensors"
    trained = load_file(run / "whole" / "model" / file)
    for name in last.names:
        update = last.read(name)
        if case["lora"]:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            assert torch.equal(update.left, trained[f"{stem}.lora_B.weight"])
            assert torch.equal(update.right, trained[f"{stem}.lora_A.weight"])
        else:
            assert torch.equal(update.dense(), trained[name] - reference[name])
    assert len(last.names) == (4 if case["lora"] else len(trained))
    base = load_file(run.parent / "base" / "model.safetensors")
    merged = {name: p.detach() for name, p in load_model(str(run / "whole" / "model")).named_parameters()}
    (other,) = open_snapshots(run / "whole" / "deltas-base")[1:]
    assert set(other.names) == set(base)
    for name in other.names:
        torch.testing.assert_close(
            other.read(name).dense(), merged[name] - base[name], rtol=0, atol=1e-6 if case["lora"] else 0
        )


def check_seen(run: Path, folder: Path, logged: dict, case: dict) -> None:
    """What two ranks have logged at the end is what one process sees of the exported model."""
    path = str(run / "whole" / "model")
    model, tokenizer = load_language_model(path)
    states = [
        torch.stack(prompt_states(model, tokenizer, read_prompt_list(f"organism:{name}", limit=9), batch_size=2), dim=1)
        for name in ("harmful", "utility")
    ]
    layers = [mode_subspace_overlap(*map(state_factors, pair), [0.9])[0].value for pair in zip(*states, strict=True)]
    tolerance = 1e-5 if case["precision"] == "32-true" else 0.02  # bf16 weights compute bf16 states
    assert logged["activation/overlap"][-1][1] == pytest.approx(sum(layers[1:]) / 2, abs=tolerance)
    row = (
        build_evaluator(EvaluationSettings(split="dev", limit=3, max_new_tokens=6)).evaluate(model, tokenizer, "x").row
    )
    assert logged["utility/accuracy"][-1][1] == row["utility"]
    assert logged["safety/refusal_margin"][-1][1] == pytest.approx(row["refusal_margin"], rel=10 * tolerance)
    assert (run / "whole" / "behaviour" / "step=00000012.json").is_file()
    ragged = EvaluationSettings(str(run.parent / "ragged.jsonl"), judge="phrases", limit=5, max_new_tokens=4)
    row = build_evaluator(ragged).evaluate(model, tokenizer, "x").row
    assert logged["safety.ragged/refusal_margin"][-1][1] == pytest.approx(row["refusal_margin"], rel=10 * tolerance)


@pytest.mark.distributed
@pytest.mark.parametrize("number", range(len(FOUR)), ids=[named(case) for case in FOUR])
def test_four_ranks_equal_a_plain_loop(four, tmp_path: Path, number: int) -> None:
    folder, results = four
    assert results[number]["agree"]
    assert results[number]["leakage"] <= 10 * results[number]["floor"]
    check_equal(FOUR[number], folder, number, tmp_path)

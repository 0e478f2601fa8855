"""The estimate of the paper's runs: hand-computed cases, what must grow with what, and the published counts."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tiny import ROOT
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from safety_subspaces.artefacts.errors import InputError
from studies.estimate import (
    GIB,
    GPUS,
    STAGES,
    Architecture,
    Gpu,
    Stage,
    activation_bytes,
    basis_bytes,
    coordinate_bytes,
    describe,
    disk_bytes,
    fits,
    gpu_bytes,
    host_bytes,
    read_architecture,
    seconds,
)

FILES = sorted((ROOT / "configs" / "paper").glob("*/model.env"))
# 10 x 4 embeddings, tied; a block of q and o 4 x 4, k and v 2 x 4, gate and up 8 x 4, down 4 x 8: 144 numbers.
SMALL = Architecture("org/small", 40 + 2 * 144, 2, 4, 2, 8, 10, 1)
PLAIN, HELD = Stage("plain", 20, 10), Stage("held", 20, 10, constrained=True)
UNIT = Gpu("unit", GIB, 1.0, 1.0, 1.0)


def test_shapes_are_those_of_a_decoder() -> None:
    assert sum(rows * columns for rows, columns in SMALL.matrices) == SMALL.parameters
    assert len(replace(SMALL, tied_embeddings=0).matrices) == len(SMALL.matrices) + 1


def test_activations_by_hand() -> None:
    block = 24 * 4 + 4 * 2 + 8 * 8  # 168 bytes a token
    assert activation_bytes(SMALL, tokens=3) == 3 * (2 * block + 160)
    assert activation_bytes(SMALL, tokens=3, checkpointed=True) == 3 * (2 * 16 + block + 160)


def test_memory_of_one_gpu_by_hand() -> None:
    # 16 bytes of weight, gradient and moments; backwards 2 of autocast and the activations of 512 tokens.
    assert gpu_bytes(SMALL, PLAIN) == 16 * 328 + 2 * 328 + 512 * (2 * 168 + 160)
    # Of a model that is large beside its activations, Adam's temporaries are the peak.
    large = replace(SMALL, parameters=10**9)
    assert gpu_bytes(large, PLAIN) == 20 * 10**9


def test_memory_under_zero_by_hand() -> None:
    activations = 512 * (2 * 168 + 160)
    assert gpu_bytes(SMALL, PLAIN, 8) == 2 * 328 + 2 * 328 + activations
    large = replace(SMALL, parameters=8 * 10**9)
    assert gpu_bytes(large, PLAIN, 8) == 16 * 10**9 + 8 * 10**9
    assert gpu_bytes(replace(large, parameters=4 * 10**9), PLAIN, 8) == 8 * 10**9 + 4 * 10**9
    assert gpu_bytes(replace(large, parameters=16 * 10**8), PLAIN, 8) == 32 * 10**8 + 2 * 10**9 + activations


def test_a_constraint_keeps_a_reference_and_bases() -> None:
    # A quarter of the rank: 1 of q, o, gate, up, down and of the embeddings, half of k and v; (out, k) in float32.
    block = 4 * (4 + 4 + 8 + 8 + 4) + 2 * 4
    assert basis_bytes(SMALL) == 2 * block + 40
    assert coordinate_bytes(SMALL) == 2 * 4 * (4 * 4 + 8) + 2 * 2 * 8 + 16
    large = replace(SMALL, parameters=10**9)
    extra = basis_bytes(large)
    assert gpu_bytes(large, HELD) == (16 + 4 + 8) * 10**9 + extra + coordinate_bytes(large)
    assert gpu_bytes(large, HELD, 8) >= gpu_bytes(large, PLAIN, 8) + extra


def test_time_by_hand() -> None:
    operations = 6 * 328 * (20 * 260 + 10 * 150)
    assert seconds(SMALL, PLAIN, UNIT) == pytest.approx(operations / 0.25)
    # Each of 8 ranks has an eighth of the examples, and moves 6 N bytes less its own eighth for each.
    moved = 30 / 8 * 6 * 328 * 7 / 8
    assert seconds(SMALL, PLAIN, UNIT, 8) == pytest.approx(operations / 8 / 0.25 + moved / 0.5)
    # Where a GPU is fast beside the model, starting kernels is what takes time: a millisecond a block.
    assert seconds(SMALL, PLAIN, replace(UNIT, bfloat16_rate=1e15)) == pytest.approx(30 * 2 * 1e-3)


def test_a_projection_takes_four_operations_a_direction_and_number() -> None:
    # 4 k m n with k a quarter of the smaller side, at each of 30 / 32 steps.
    step = 2 * (4 * 1 * (16 + 16 + 32 + 32 + 32) + 2 * 4 * 0.5 * 8) + 4 * 1 * 40
    assert seconds(SMALL, HELD, UNIT) - seconds(SMALL, PLAIN, UNIT) == pytest.approx(30 / 32 * step / 0.25)


def test_disk_and_main_memory_by_hand() -> None:
    basis = basis_bytes(SMALL)
    models, held, file, checkpoints = 2 * 4 * 328, 4 * 328 + basis, basis, 2 * 12 * 328
    assert disk_bytes(SMALL, [PLAIN, HELD]) == models + held + file + checkpoints
    assert host_bytes(SMALL, PLAIN) == 4 * 328
    assert host_bytes(SMALL, replace(HELD, compares=True), 8) == 8 * (12 * 328 + basis)


@pytest.mark.parametrize("stage", [PLAIN, HELD], ids=lambda stage: stage.name)
def test_more_takes_more(stage: Stage) -> None:
    one, seven = (read_architecture(path) for path in (FILES[1], FILES[-1]))
    assert one.parameters < seven.parameters
    for ranks in (1, 8):
        assert gpu_bytes(one, stage, ranks) < gpu_bytes(seven, stage, ranks)
        assert all(seconds(one, stage, gpu, ranks) < seconds(seven, stage, gpu, ranks) for gpu in GPUS)
    for model in (one, seven):
        assert gpu_bytes(model, stage, 8) < gpu_bytes(model, stage, 4) < gpu_bytes(model, stage)
        assert activation_bytes(model, checkpointed=True) < activation_bytes(model)
        longer = replace(stage, useful=2 * stage.useful)
        assert all(seconds(model, stage, gpu) < seconds(model, longer, gpu) for gpu in GPUS)
    assert seconds(seven, HELD, GPUS[0]) > seconds(seven, PLAIN, GPUS[0])
    assert seconds(seven, stage, GPUS[0]) < seconds(seven, stage, GPUS[0], checkpointed=True)


def test_what_does_not_fit_is_given_no_time() -> None:
    seven = read_architecture(FILES[-1])
    assert not any(fits(seven, stage, gpu) for stage in STAGES for gpu in GPUS)  # 16 bytes a parameter are 113 GiB
    one_gpu, eight_gpus, _ = describe(seven).split("\n\n")[1:]
    assert one_gpu.count("too small") == len(GPUS) * (len(STAGES) + 1)
    assert " min" in eight_gpus
    assert "nothing here was measured" in describe(seven)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_published_counts_are_those_of_the_architecture(path: Path) -> None:
    model = read_architecture(path)
    head = 64 if model.hidden_size == 2048 and model.layers == 16 else 128
    config = (Qwen2Config if "Qwen" in model.base else LlamaConfig)(
        hidden_size=model.hidden_size,
        num_hidden_layers=model.layers,
        intermediate_size=model.intermediate_size,
        num_attention_heads=model.hidden_size // head,
        num_key_value_heads=model.key_value_size // head,
        vocab_size=model.vocabulary,
        tie_word_embeddings=bool(model.tied_embeddings),
    )
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in made.parameters()) == model.parameters


def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    text = FILES[0].read_text()
    wrong = tmp_path / "model.env"
    wrong.write_text(text.replace("LAYERS=32", "LAYERS=31"))
    with pytest.raises(InputError, match="its matrices have"):
        read_architecture(wrong)
    wrong.write_text(text.replace("LAYERS=32", "LAYERS="))
    with pytest.raises(InputError, match="LAYERS"):
        read_architecture(wrong)
    with pytest.raises(InputError, match="does not exist"):
        read_architecture(tmp_path / "missing.env")


def test_the_page_shows_it_as_it_is_printed() -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    assert describe(read_architecture(ROOT / "configs" / "paper" / "llama-3.2-1b" / "model.env")) in page


def test_it_runs_where_nothing_is_installed() -> None:
    command = [sys.executable, "-S", "studies/estimate.py", FILES[0]]
    done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == describe(read_architecture(FILES[0])) + "\n"
    done = subprocess.run([*command[:-1], "nowhere"], cwd=ROOT, env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[:6]) == (2, "error:")

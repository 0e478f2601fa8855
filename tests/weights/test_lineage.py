"""Models that cannot be what they are given as are told from a few of their weights, and others never."""

import logging
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.tiny import run_command, save_tiny_model

from safety_subspaces.analysis.project.command import project
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.weights.lineage import TAKEN_BACK, Lineage, check_lineage, lineage
from safety_subspaces.weights.update_checkpoint import open_checkpoint


def moved(folder: Path, origin: str, lengths: dict[str, float], seed: int = 0, toward: str = "") -> str:
    """Write a model whose matrices are another's plus random updates of a length, and a share of the way to a third."""
    save_tiny_model(folder)
    weights = load_file(Path(origin) / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    other = load_file(Path(toward) / "model.safetensors") if toward else {}
    for name, weight in weights.items():
        if weight.ndim == 2:
            update = torch.randn(weight.shape, generator=generator) * lengths.get("random", 0.0)
            weights[name] = weight + update + lengths.get("toward", 0.0) * (other.get(name, weight) - weight)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("lineage")
    base = save_tiny_model(root / "base")
    aligned = moved(root / "aligned", base, {"random": 1e-3}, 1)
    return {
        "base": base,
        "aligned": aligned,
        "tuned": moved(root / "tuned", aligned, {"random": 5e-4}, 2),
        "long": moved(root / "long", aligned, {"random": 1e-2}, 3),
        "undone in part": moved(root / "undone", aligned, {"random": 2e-3, "toward": 0.4}, 4, base),
        "from base": moved(root / "from_base", base, {"random": 5e-4}, 5),
        "other": save_tiny_model(root / "other", seed=9),
    }


def looked_at(models: dict[str, str], base: str, aligned: str, *tuned: str) -> Lineage:
    opened = {name: open_checkpoint(path) for name, path in models.items()}
    names = opened[base].names
    return lineage(opened[base], opened[aligned], {label: opened[label] for label in tuned}, names)


def test_distances_and_cosines_are_those_of_the_matrices(models: dict[str, str]) -> None:
    found = looked_at(models, "base", "aligned", "undone in part")
    weights = {
        name: load_file(Path(models[name]) / "model.safetensors") for name in ("base", "aligned", "undone in part")
    }
    stacked = {
        name: torch.cat([own[matrix].double().flatten() for matrix in found.matrices]) for name, own in weights.items()
    }
    alignment = stacked["aligned"] - stacked["base"]
    update = stacked["undone in part"] - stacked["aligned"]
    tuned, cosine = found.tuned["undone in part"], torch.nn.functional.cosine_similarity
    assert tuned.to_aligned == pytest.approx(float(update.norm() / alignment.norm()), rel=1e-9)
    assert tuned.to_base == pytest.approx(float((update + alignment).norm() / alignment.norm()), rel=1e-9)
    assert tuned.taken_back == pytest.approx(-float(update @ alignment / (alignment @ alignment)), rel=1e-9)
    assert found.shared == pytest.approx(float(cosine(stacked["base"], stacked["aligned"], dim=0)), rel=1e-9)


def test_models_in_their_places_are_not_spoken_of(models: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """Short and long fine-tunes, and one that undoes much of the alignment."""
    found = looked_at(models, "base", "aligned", "tuned", "long", "undone in part")
    assert found.summary()["implausible"] == []
    assert not caplog.text


@pytest.mark.parametrize(("base", "aligned", "tuned"), [("aligned", "base", "tuned"), ("base", "aligned", "from base")])
def test_what_was_trained_from_the_base_is_refused(
    models: dict[str, str], base: str, aligned: str, tuned: str, caplog
) -> None:
    opened = [open_checkpoint(models[name]) for name in (base, aligned, tuned)]
    with pytest.raises(InputError, match=r"look swapped.*takes back (?:9\d|10\d)%.* 0\.5 of .*any_lineage"):
        check_lineage(opened[0], opened[1], {"x": opened[2]}, opened[0].names)
    with caplog.at_level(logging.WARNING):
        found = check_lineage(opened[0], opened[1], {"x": opened[2]}, opened[0].names, any_lineage=True)
    assert "look swapped" in caplog.text
    assert found.summary()["implausible"]


def test_a_swap_shows_where_alignment_changed_few_matrices(tmp_path: Path) -> None:
    """As an adapter on one kind of layer does, merged: of 28 matrices four."""
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2
    )
    paths = {}
    for name, changes in (("base", 0), ("aligned", 1), ("tuned", 2)):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        for seed in range(1, changes + 1):
            torch.manual_seed(seed)
            for block in model.model.layers:
                weight = block.self_attn.q_proj.weight if seed == 1 else block.mlp.down_proj.weight
                weight.data += 1e-3 * torch.randn(weight.shape)
        model.save_pretrained(tmp_path / name)
        paths[name] = open_checkpoint(str(tmp_path / name))
    found = lineage(paths["base"], paths["aligned"], {"x": paths["tuned"]}, paths["base"].names)
    assert {name.split(".")[-2] for name in found.matrices} == {"q_proj"}
    assert len(found.matrices) == 4
    assert not found.summary()["implausible"]
    assert lineage(paths["aligned"], paths["base"], {"x": paths["tuned"]}, paths["base"].names).swapped()
    same = lineage(paths["base"], paths["base"], {"x": paths["tuned"]}, paths["base"].names)
    assert same.matrices == ()
    assert not same.swapped()


@pytest.mark.parametrize(("base", "aligned", "tuned"), [("other", "aligned", "tuned"), ("base", "aligned", "other")])
def test_unrelated_models_are_spoken_of_and_no_swap_is_told(
    models: dict[str, str], base: str, aligned: str, tuned: str
) -> None:
    found = looked_at(models, base, aligned, tuned)
    assert "look unrelated" in found.foreign()
    assert not found.swapped()


def test_where_there_is_nothing_it_does_not_speak() -> None:
    """Random updates that know nothing of the alignment: never; the same with base and aligned swapped: 97 %.

    A thousand draws of directions in 3,000 dimensions (a matrix of the organism has 16,384), of up to ten times the
    alignment's length.
    """
    generator = torch.Generator().manual_seed(0)
    spoken = {"in place": 0, "swapped": 0}
    for _ in range(1000):
        alignment, update = torch.randn(2, 3000, generator=generator, dtype=torch.float64)
        update *= 10 * torch.rand(1, generator=generator)
        of = float(alignment @ alignment)
        spoken["in place"] += float(-update @ alignment) / of > TAKEN_BACK
        # Swapped, the update is the fine-tune's and the whole of the alignment's, beside the alignment's reversed.
        spoken["swapped"] += float(-(update + alignment) @ -alignment) / of > TAKEN_BACK
    assert spoken == {"in place": 0, "swapped": pytest.approx(970, abs=20)}


def test_the_command_refuses_a_swap_in_a_few_lines_and_goes_on_where_it_is_meant(
    models: dict[str, str], tmp_path: Path
) -> None:
    swapped = ("project", "--base", models["aligned"], "--aligned", models["base"], "--tuned.x", models["tuned"])
    ended = run_command("analyze.py", *swapped, "--out", tmp_path / "out")
    assert ended.returncode == 2
    assert "base and aligned look swapped" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) <= 5
    assert not (tmp_path / "out").exists()
    project(models["aligned"], models["base"], {"x": models["tuned"]}, str(tmp_path / "out"), any_lineage=True)
    assert "look swapped" in (tmp_path / "out" / "result.json").read_text()

"""Projected models of many families: what is written is loaded again as the arithmetic on the network says."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from weights.test_families import IDS, TIED, save
from weights.test_family_adapters import adapt

from safety_subspaces.analysis.project.command import project
from safety_subspaces.language.model import load_model


def perturbed(base: Path, folder: Path, seed: int, only: str = "") -> Path:
    network = transformers.AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if only in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    network.save_pretrained(folder)
    return folder


def oriented(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter, tied ones apart, linear maps as ``(out, in)``."""
    found = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        owner = network.get_submodule(name.rpartition(".")[0])
        is_conv = type(owner).__name__ == "Conv1D" and parameter.ndim == 2
        found[name] = (parameter.T if is_conv else parameter).detach().double()
    return found


def expected_of(base: Path, aligned: Path, tuned: torch.nn.Module, fraction: float) -> dict[str, torch.Tensor]:
    """Project each update away from the leading left singular vectors of alignment's, by SVDs in float64."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    first, second, third = (oriented(network) for network in (load(base), load(aligned), tuned))
    made = {}
    for name, weight in second.items():
        delta, update = weight - first[name], third[name] - weight
        matrix = delta if delta.ndim == 2 else delta[:, None]
        rank = max(1, round(fraction * min(matrix.shape)))
        left = torch.linalg.svd(matrix, full_matrices=False).U[:, :rank]
        flat = update if update.ndim == 2 else update[:, None]
        made[name] = weight + (flat - left @ (left.T @ flat)).reshape(update.shape)
    return made


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama_tied"])
def test_written_models_are_those_of_the_arithmetic_on_the_network(tmp_path, family):
    base = save(family, tmp_path / "base")
    aligned, tuned = perturbed(base, tmp_path / "aligned", 1), tmp_path / "tuned"
    perturbed(aligned, tuned, 2)
    arguments = {"fractions": [0.25], "methods": ["away"], "subspaces": ["top"], "write": True, "workers": 1}
    project(str(base), str(aligned), {"t": str(tuned)}, str(tmp_path / "out"), **arguments)
    (written,) = (file.parent for file in (tmp_path / "out" / "models").rglob("config.json"))
    expected = expected_of(base, aligned, load_model(str(tuned)), 0.25)
    for name, value in oriented(load_model(str(written))).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama_tied"])
def test_a_head_that_an_adapter_unties_is_written_beside_the_embeddings(tmp_path, family):
    copy, source = TIED[family]
    base = save(family, tmp_path / "base")
    aligned = perturbed(base, tmp_path / "aligned", 1)
    tuned = adapt(aligned, tmp_path / "tuned", target_modules=["lm_head"])
    arguments = {"fractions": [0.25], "methods": ["away"], "subspaces": ["top"], "write": True, "workers": 1}
    project(str(base), str(aligned), {"t": str(tuned)}, str(tmp_path / "out"), **arguments)
    (written,) = (file.parent for file in (tmp_path / "out" / "models").rglob("config.json"))
    model = load_model(str(written)).eval()
    expected = expected_of(base, aligned, load_model(str(tuned)), 0.25)
    found = oriented(model)
    torch.testing.assert_close(found[copy], expected[copy], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[source], oriented(load_model(str(aligned)))[source], rtol=0, atol=0)
    assert not torch.equal(found[copy], found[source])
    assert torch.isfinite(model(IDS).logits).all()
    tensors = pd.read_parquet(tmp_path / "out" / "tensors.parquet")
    moved = tensors[tensors["update_norm"] > 0] if "update_norm" in tensors else tensors
    assert copy in set(moved["tensor"])

"""A constraint on other families than Llama holds the output or the input space, whichever way a weight is kept."""

from pathlib import Path

import pytest
import torch
import transformers
from families.tasks import Study
from peft import LoraConfig, get_peft_model
from weights.test_families import save

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.analysis.subspace.command import subspace
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.constraint.constrained import ConstrainedWeights
from safety_subspaces.constraint.held import write_leakage
from safety_subspaces.constraint.targets import find_targets
from safety_subspaces.training.updates import NetworkUpdate
from safety_subspaces.weights.delta import update_of
from safety_subspaces.weights.subspace_file import read_subspace
from safety_subspaces.weights.update_checkpoint import open_checkpoint

MAPS = {"gpt2": "c_attn", "llama": "q_proj", "neox": "query_key_value"}


@pytest.fixture(params=MAPS)
def world(request, tmp_path):
    """A family's base, an aligned model, and its subspace on either side."""
    base = save(request.param, tmp_path / "base")
    network = transformers.AutoModelForCausalLM.from_pretrained(base)
    moved(network, 1)
    network.save_pretrained(tmp_path / "aligned")
    return request.param, base, tmp_path / "aligned"


def moved(network: torch.nn.Module, seed: int) -> None:
    """Take one step in a random direction with all that is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def made(base: Path, aligned: Path, side: str, tmp_path: Path):
    out = tmp_path / f"{side}.safetensors"
    subspace(base=str(base), aligned=str(aligned), rank=RankRule(fraction=0.25), side=side, out=str(out))
    return read_subspace(str(out))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("adapted", [False, True])
def test_the_update_of_the_weights_on_disk_lies_outside_of_the_subspace(world, tmp_path, side, adapted):
    family, base, aligned = world
    held = made(base, aligned, side, tmp_path)
    network = transformers.AutoModelForCausalLM.from_pretrained(aligned)
    if adapted:
        config = LoraConfig(r=3, lora_alpha=6, target_modules=[MAPS[family]], task_type="CAUSAL_LM")
        network = get_peft_model(network, config)
    targets = find_targets(network, held, holds_the_rest=False, patterns=[f"*{MAPS[family]}.weight"])
    assert len(targets) == 2
    assert {target.side for target in targets} == {side}
    constraints = tmp_path / "constraint"
    constraints.mkdir()
    weights = ConstrainedWeights(targets, "away", constraints / "held-0.safetensors", None, weakens=False, writes=True)
    moved(network, 2)
    weights.project(range(len(targets)), 1.0)
    assert weights.measure().leakage < 1e-10
    network.save_pretrained(tmp_path / "trained")
    trained, start = open_checkpoint(str(tmp_path / "trained")), open_checkpoint(str(aligned))
    for target in targets:
        update = update_of(trained, start, target.name).double()
        basis = held.bases[target.name].double()
        inside = basis.T @ update if side == "left" else update @ basis
        assert float(update.norm()) > 0.1
        assert float(inside.norm() / update.norm()) < 1e-5
    (leakage,) = write_leakage(tmp_path / "trained", constraints)
    assert leakage.leakage < 1e-10


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("from_disk", [False, True])
def test_what_training_moved_is_what_the_weights_on_disk_say(world, tmp_path, adapted, from_disk):
    family, _, aligned = world
    network = transformers.AutoModelForCausalLM.from_pretrained(aligned)
    if adapted:
        config = LoraConfig(r=3, lora_alpha=6, target_modules=[MAPS[family]], task_type="CAUSAL_LM")
        network = get_peft_model(network, config)
    update = NetworkUpdate(network, str(aligned) if from_disk else None)
    if not from_disk:
        update.keep_start(tmp_path / "start.safetensors", None, writes=True)
    moved(network, 2)
    network.save_pretrained(tmp_path / "trained")
    trained, start = open_checkpoint(str(tmp_path / "trained")), open_checkpoint(str(aligned))
    name = next(name for name in update.names if name.endswith(f"{MAPS[family]}.weight"))
    found = update.read(name)
    assert update.shape(name) == start.shape(name)
    torch.testing.assert_close(found.dense().float(), update_of(trained, start, name), rtol=1e-4, atol=1e-5)


def test_an_adapter_upon_one_of_two_tied_weights_is_not_constrained_in_silence(tmp_path):
    base = save("llama_tied", tmp_path / "base")
    network = transformers.AutoModelForCausalLM.from_pretrained(base)
    moved(network, 1)
    network.save_pretrained(tmp_path / "aligned")
    held = made(base, tmp_path / "aligned", "left", tmp_path)
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "aligned")
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    adapted = get_peft_model(network, config)
    with pytest.raises(InputError, match=r"an adapter upon lm_head\.weight, which is tied"):
        find_targets(adapted, held, holds_the_rest=False)
    # What moved is told of the head, and not of the embeddings.
    update = NetworkUpdate(adapted)
    assert "lm_head.weight" in update.names
    assert "model.embed_tokens.weight" not in update.names


@pytest.mark.parametrize("family", ["Mixtral", "gpt-oss"])
def test_experts_in_one_parameter_are_held_by_no_name_and_other_layers_beside_them_are(tmp_path, family):
    study = Study(family, tmp_path)
    held = made(Path(study.path("base")), Path(study.path("aligned")), "left", tmp_path)
    network = transformers.AutoModelForCausalLM.from_pretrained(study.path("aligned"))
    with pytest.raises(InputError, match=r"mlp\.experts\.down_proj.*experts that this network keeps as one parameter"):
        find_targets(network, held, holds_the_rest=False)
    attention = find_targets(network, held, holds_the_rest=False, patterns=["*self_attn.q_proj.weight"])
    assert [target.name for target in attention] == [f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)]
    adapted = get_peft_model(network, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert [target.name for target in find_targets(adapted, held, holds_the_rest=False)] == [t.name for t in attention]
    held.bases["model.layers.0.other.weight"] = held.bases[attention[0].name]
    with pytest.raises(InputError, match=r"1 tensors that the model lacks: model\.layers\.0\.other\.weight"):
        find_targets(adapted, held, holds_the_rest=False)
